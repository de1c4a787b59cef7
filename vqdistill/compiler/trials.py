"""Short measured trials: codes and lists trained on a sample, judged by queries that taught neither."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.compiler.sample import SPACE_MS, Sample, first_best
from vqdistill.config import DistillConfig, IvfPqConfig
from vqdistill.distill.held_out import HeldOut
from vqdistill.distill.routing import DEPTH, calibrate_lift, learn_router
from vqdistill.distill.samplers import Corpus, TeacherLists
from vqdistill.distill.spaces import MOST_CODEBOOKS
from vqdistill.index.encodings import encode_dense
from vqdistill.kernels.threads import one_library_thread
from vqdistill.model.additive import RowTerms
from vqdistill.model.codebooks import Coarse, serve_rows, train_additive_start, train_query_coarse, train_start
from vqdistill.types import Codes, F32Rows

READS = (10, 12, 15, 18, 22, 27, 33, 40, 50, 60, 70, 85, 100, 120, 150, 200, 300, 400)
"""Candidates read, at which misses are measured; in units of a tenth of k."""
_ROWS_PER_LIST = 64
"""Rows of the sample in a list that codes are relative to."""
_ROUTER_STEPS = 200
NESTED = 2
"""Halvings of the sample that codes are trained on again for a law; codebooks know fewer rows by heart."""
_SPACE_GROWTH = 1.6
"""Power of the codebooks that the time of training them grows with."""


@dataclass(frozen=True)
class CodeTrial:
    """What codes of one shape miss of the true neighbours, all lists visited."""

    m: int
    size: int
    """Rows that they were trained and tried on"""
    misses: dict[int, tuple[float, float]]
    """By candidates read: mean share of the k best rows that are not among them, and its standard error"""
    cpu_s: dict[str, float]
    """CPU seconds of `codebooks`, `serve` (fitting them to the queries) and `encode`"""


@dataclass(frozen=True)
class RouteTrial:
    """How few lists hold the true neighbours."""

    nlist: int
    scanned: tuple[float, ...]
    """Share of the rows in the lists visited, for each of COVERAGES"""
    lists: tuple[float, ...]
    """Lists visited, likewise"""
    cpu_s: dict[str, float]
    """CPU seconds of `lists` and `router`"""


@dataclass
class Trials:
    """Runs trials on a sample, each once; what they share is computed once as well.

    Parameters
    ----------
    sample : rows and queries
    k : true neighbours that count
    note : told of each finished trial
    """

    sample: Sample
    k: int
    note: Callable[[str], None] = lambda text: None
    cpu_s: dict[str, float] = field(default_factory=dict)
    """CPU seconds of what trials share"""

    def __post_init__(self) -> None:
        self.codes = cache(self._codes)
        """(m, codes, residual, size) -> CodeTrial"""
        self.routes = cache(self._routes)
        """nlist -> RouteTrial"""
        self.dense_loss = cache(self._dense_loss)
        """dense -> share of the true neighbours that its rounding loses"""
        self._lists = cache(self._train_lists)
        with _timed(self.cpu_s, "products"):
            exact = self.sample.exact
        self.product_s = self.cpu_s["products"] / exact.size / self.sample.corpus.x.shape[1]
        """CPU seconds of a multiply-add of a product of matrices"""

    @property
    def reads(self) -> tuple[int, ...]:
        """Candidates read at which misses are known."""
        return tuple(sorted({round(reads * self.k / 10) for reads in READS}))

    @property
    def nested(self) -> tuple[int, ...]:
        """Rows of the samples that codes are trained on again for a law; where the sample is all rows, of it alone."""
        sizes = self.sample.sizes[-1 - NESTED :]
        return sizes if sizes[-1] < self.sample.n else sizes[-1:]

    def space_s(self, m: int) -> float:
        """CPU seconds of choosing coordinates with the codebooks that a compile takes for it."""
        near = _nearest_m([each for each in SPACE_MS if _space_name(each) in self.cpu_s], m)
        growth: float = (min(m, MOST_CODEBOOKS) / near) ** _SPACE_GROWTH
        return self.cpu_s[_space_name(near)] * growth

    @one_library_thread()
    def _codes(self, m: int, codes: str, residual: bool, size: int) -> CodeTrial:
        """Train codebooks on the first rows, and measure what their codes miss."""
        sample, additive, spent = self.sample, codes == "additive", dict[str, float]()
        space_m = _nearest_m(SPACE_MS, m) if additive else None
        coarse, terms, corpus = self._lists(space_m, size)
        config = IvfPqConfig(nlist=len(coarse.centroids), m=m, codes=codes, seed=sample.seed)
        with _timed(spent, "codebooks"):
            train = train_additive_start if additive else train_start
            model = train(corpus.x, coarse, config, corpus.metric, residual=residual)
        with _timed(spent, "serve"):
            model = serve_rows(model, corpus.x, coarse, terms, config.seed) if additive else model
        with _timed(spent, "encode"):
            coded = Codes(coarse.lists, model.quantize(corpus.x, coarse.lists, terms if additive else None))
        model = model.in_rows_space(None if space_m is None else sample.space(space_m))
        misses = self._misses(sample.scores(Corpus(model.decode(coded), corpus.metric)), size)
        self.note(f"trial: {m // 2} B/vec of {codes} codes on {size:,} rows in {sum(spent.values()):.1f} CPU s")
        return CodeTrial(m, size, misses, spent)

    def _train_lists(self, space_m: int | None, size: int) -> tuple[Coarse, RowTerms, Corpus]:
        """Lists, queries of each row and rows, in the coordinates of so many codebooks; None = of product codes."""
        sample, space = self.sample, None
        if space_m is not None:
            with _timed(self.cpu_s, _space_name(space_m)):
                space = sample.space(space_m)
        x = sample.corpus.x[:size] if space is None else space.docs(sample.corpus.x[:size])
        terms = sample.terms(space, size)
        nlist = max(1, size // _ROWS_PER_LIST)
        return train_query_coarse(x, terms, nlist, sample.seed), terms, Corpus(x, sample.corpus.metric)

    def _misses(self, by_code: F32Rows, size: int) -> dict[int, tuple[float, float]]:
        best = first_best(self.sample.exact[:, :size], self.k)
        found = first_best(by_code, self.reads[-1])
        hit = np.cumsum((best[:, :, None] == found[:, None, :]).any(axis=1), axis=1)
        shares = 1 - hit / best.shape[1]
        last = found.shape[1]
        return {
            reads: (float(missed.mean()), float(missed.std() / np.sqrt(len(missed))))
            for reads in self.reads
            for missed in [shares[:, min(reads, last) - 1]]
        }

    @one_library_thread()
    def _routes(self, nlist: int) -> RouteTrial:
        """Shape lists and a router by the queries, and count what they visit."""
        sample, spent, size = self.sample, dict[str, float](), self.sample.size
        with _timed(spent, "lists"):
            coarse = train_query_coarse(sample.corpus.x, sample.terms(None, size), nlist, sample.seed)
        taught = TeacherLists.from_relevance(sample.teach, sample.taught(size), sample.thinned(DEPTH, size))
        judge: HeldOut = sample.judge(size, sample.thinned(self.k, size))
        config = DistillConfig(seed=sample.seed, router_steps=_ROUTER_STEPS)
        with _timed(spent, "router"):
            rng = np.random.default_rng([sample.seed, 10])
            learned = learn_router(coarse.centroids, taught, coarse.lists, judge, config, rng)
        ladder = calibrate_lift(learned.router, learned.temperature, coarse.lists, judge)
        self.note(f"trial: {nlist:,} lists on {size:,} rows in {sum(spent.values()):.1f} CPU s")
        scanned, lists = (tuple(rung[name] for rung in ladder) for name in ("scanned", "lists"))
        return RouteTrial(nlist, scanned, lists, spent)

    def _dense_loss(self, dense: str) -> float:
        if dense in ("f32", "none"):
            return 0.0
        rounded = _decoded(encode_dense(self.sample.corpus.x, dense), dense)
        best = first_best(self.sample.exact, self.k)
        found = first_best(self.sample.scores(Corpus(rounded, self.sample.corpus.metric)), self.k)
        return float(1 - (best[:, :, None] == found[:, None, :]).any(axis=2).mean())


def _nearest_m(known: Sequence[int], m: int) -> int:
    """Which of some numbers of codebooks is nearest to m, by their ratio."""
    return min(known, key=lambda each: abs(math.log(each / m)))


def _space_name(m: int) -> str:
    return f"coordinates of {m} codebooks"


def _decoded(stored: npt.NDArray[Any], dense: str) -> F32Rows:
    """Rows as verification sees them."""
    if dense == "bf16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    if dense == "i8":
        return np.ascontiguousarray(stored[:, :4]).view("<f4") * stored[:, 4:].view(np.int8)
    return stored.astype(np.float32)


@contextmanager
def _timed(spent: dict[str, float], name: str) -> Iterator[None]:
    """Add the CPU seconds of the block, all threads together."""
    begin = time.process_time()
    yield
    spent[name] = spent.get(name, 0.0) + time.process_time() - begin
