"""Held-out queries: the judge of every decision in training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vqdistill.data.relevance import Relevance
from vqdistill.distill.samplers import Corpus, Search, TeacherLists
from vqdistill.kernels import Engine
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.model.scan import engine_over
from vqdistill.types import F64, Codes, F32Rows, Metric

TOP = 10
"""Teacher documents a query that must be found."""
CANDIDATES = 100
"""Candidates among which they must be: what a search verifies by default."""
SURE = 0.5
"""Standard errors that a gain must exceed. More would refuse what stages bring where queries are few; with none,
50 queries kept a model 0.3 points below its start."""
ROUTE_SHARE = 0.1
"""Share of the corpus that routing is judged at."""
FEWEST_QUERIES = 20
"""Below this nothing is trained on queries: there would be no held-out ones to guard with."""


@dataclass(frozen=True)
class HeldOut:
    """Queries that training never sees, with the teacher's lists over the training corpus."""

    corpus: Corpus
    lists: TeacherLists
    threads: int = 1

    @property
    def usable(self) -> bool:
        """Whether there is any query to judge by."""
        return len(self.lists.queries) > 0

    def engine(self, model: IvfPqModel, codes: Codes) -> tuple[Engine, npt.NDArray[np.int64]]:
        """Return an engine over the codes of the corpus, and the document at each of its positions."""
        return engine_over(model, codes)

    def candidates(self, model: IvfPqModel, codes: Codes, nprobe: int) -> npt.NDArray[np.int32]:
        """Documents (q, CANDIDATES) that the codes rank first in the `nprobe` best lists, -1 padding."""
        return self._found(model, codes, nprobe)[0]

    def scored_candidates(self, model: IvfPqModel, codes: Codes) -> tuple[npt.NDArray[np.int32], F32Rows]:
        """Documents (q, CANDIDATES) that the codes rank first over all lists, -1 padding, and their code scores."""
        return self._found(model, codes, model.nlist)

    def searching(self, model: IvfPqModel, codes: Codes) -> Search:
        """Return a search of the codes for any queries: their first CANDIDATES documents over all lists."""
        engine, order = self.engine(model, codes)
        return lambda queries: self._search(engine, order, queries, model.nlist)[0]

    def _found(self, model: IvfPqModel, codes: Codes, nprobe: int) -> tuple[npt.NDArray[np.int32], F32Rows]:
        return self._search(*self.engine(model, codes), self.lists.queries, nprobe)

    def _search(
        self, engine: Engine, order: npt.NDArray[np.int64], queries: F32Rows, nprobe: int
    ) -> tuple[npt.NDArray[np.int32], F32Rows]:
        scores, positions, _ = engine.search(queries, k=CANDIDATES, nprobe=nprobe, refine=0, threads=self.threads)
        return np.where(positions >= 0, order[positions], -1).astype(np.int32), scores

    def recall(self, found: npt.NDArray[np.int32]) -> float:
        """Share of the teacher's first TOP documents among those found (q, r)."""
        return float(self._shares(found).mean())

    def _shares(self, found: npt.NDArray[np.int32]) -> F64:
        """What each query adds to `recall`, which is the mean of these."""
        hits = [len(np.intersect1d(w, f)) for w, f in zip(_unpadded(self.lists.docs[:, :TOP]), found, strict=True)]
        return self._per_wanted(np.array(hits))

    def _per_wanted(self, hits: npt.NDArray[np.integer]) -> F64:
        """Divide hits (q,) by the documents wanted of a query on average."""
        return np.asarray(hits * (len(hits) / max(1, int((self.lists.docs[:, :TOP] >= 0).sum()))))

    def candidate_recall(self, model: IvfPqModel, codes: Codes) -> float:
        """Share of the teacher's first TOP documents inside the best CANDIDATES by code, all lists visited."""
        return self.recall(self.candidates(model, codes, model.nlist))

    def code_recalls(self, model: IvfPqModel, codes: Codes) -> F64:
        """What stages are judged by: the mean of candidate recall and of recall inside the best TOP by code.

        The first alone is blind near 1, where most of it is already won; the second alone is not what a search needs.

        Returns
        -------
        (q,) float64
            What each query adds; the recall is the mean.
        """
        found = self.candidates(model, codes, model.nlist)
        return 0.5 * (self._shares(found) + self._shares(found[:, :TOP]))

    def route_recalls(self, router: F32Rows, lists: npt.NDArray[np.int32]) -> F64:
        """Share of the teacher's first TOP documents in the lists visited until ROUTE_SHARE of the corpus is scanned.

        Parameters
        ----------
        router : (nlist, d)
        lists : (n,) list of each row of the corpus

        Returns
        -------
        (q,) float64
            What each query adds; the recall is the mean.
        """
        sizes = np.bincount(lists, minlength=len(router))
        scores = route_scores(router, self.corpus.metric, self.lists.queries)
        order = np.argsort(-scores, axis=1, kind="stable")
        scanned_before = np.cumsum(sizes[order], axis=1) - sizes[order]
        visited = np.zeros(order.shape, bool)
        np.put_along_axis(visited, order, scanned_before < ROUTE_SHARE * len(lists), axis=1)
        wanted = self.lists.docs[:, :TOP]
        found = np.take_along_axis(visited, lists[np.maximum(wanted, 0)], axis=1) & (wanted >= 0)
        return self._per_wanted(found.sum(axis=1))

    def calibrate_nprobe(self, model: IvfPqModel, codes: Codes, loss: float) -> int:
        """Fewest lists, on a ladder of about 1.2 steps, that cost at most `loss` of the recall of visiting all."""
        wanted = self.recall(self.candidates(model, codes, model.nlist)) - loss
        ladder = sorted({min(model.nlist, int(1.2**i)) for i in range(64)} | {model.nlist})
        low, high = 0, len(ladder) - 1
        while low < high:
            middle = (low + high) // 2
            enough = self.recall(self.candidates(model, codes, ladder[middle])) >= wanted
            low, high = (low, middle) if enough else (middle + 1, high)
        return ladder[low]


def surely_better(before: F64, after: F64, errors: float = SURE) -> bool:
    """Whether held-out queries gain by more than so many standard errors of their mean gain.

    With few queries, or after many looks, the best of some models is often above the start by chance alone.

    Parameters
    ----------
    before, after : (q,) what each query adds to a recall
    """
    gains = after - before
    error = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else np.inf
    return bool(gains.mean() > errors * error)


def split(
    relevance: Relevance, most: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Numbers of the training and of the held-out queries, `most` or a fifth, among those that have documents."""
    usable = np.flatnonzero(relevance.counts)
    held = min(most, len(usable) // 5) if len(usable) >= FEWEST_QUERIES else 0
    order = rng.permutation(usable)
    return np.sort(order[held:]), np.sort(order[:held])


def route_scores(router: F32Rows, metric: Metric, queries: F32Rows) -> F32Rows:
    """Score (q, nlist) of each list for each query, as the engine ranks lists."""
    dot = queries @ router.T
    if metric is not Metric.L2:
        return dot
    return np.asarray(2 * dot - (router**2).sum(axis=1), dtype=np.float32)


def _unpadded(docs: npt.NDArray[np.int32]) -> list[npt.NDArray[np.int32]]:
    return [row[row >= 0] for row in docs]
