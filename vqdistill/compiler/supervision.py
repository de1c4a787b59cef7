"""Where training gets its queries and relevance from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vqdistill.compiler.index_teacher import IndexTeacher, list_recall
from vqdistill.compiler.memory import AFFORDABLE, LARGEST, Sizes
from vqdistill.data.files import resolve
from vqdistill.data.judgments import read_labels, read_scores
from vqdistill.data.mixture import log_gains, mixed
from vqdistill.data.pairs import pair_scores
from vqdistill.data.relevance import Relevance
from vqdistill.data.sources import EmbeddingSource, open_queries, row_bytes
from vqdistill.data.teacher import (
    CachedTeacher,
    CallableTeacher,
    ExactSearch,
    ExactTeacher,
    IntRows,
    Judge,
    ScoreTeacher,
    pseudo_queries,
)
from vqdistill.errors import InvalidInput
from vqdistill.progress import Progress
from vqdistill.types import F32Rows

DEPTH = 200
"""Teacher documents per query (Distill-VQ uses the top 200)."""
RESERVED = 1000
"""Queries at most, and a fifth at most, that are kept for the certificate."""
FEWEST_CERTIFIED = 200
"""Queries below which none are kept: a fifth of them would prove little, and training needs them more."""
SAMPLE = 200
"""Queries whose exact lists say what share of them the index found; about 1 % of the work of exact search for all."""


@dataclass(frozen=True)
class Supervision:
    """Learn queries and what their teacher ranks."""

    queries: F32Rows
    """(q, d) float32, prepared"""
    reserved: F32Rows
    """(r, d) other queries, which nothing but the certificate may see; none where there are few"""
    relevance: Relevance
    origin: str
    """Where the queries are from, for the report."""
    teacher: dict[str, Any]
    """What the teacher is, for the report: `kind`; of an index, the `recall` of its lists and of how large a `sample`;
    of a mixture, `mix` and what its `dense` teacher is."""
    pseudo: bool = False
    """Whether the queries were made from the corpus."""
    kind: str = "exact"
    """Whose word relevance is: "exact" (similarity of the dense vectors), "scores" (of pairs), "labels" (grades) or
    "callable"."""
    temperature: float | None = None
    """That scores are meant to be divided by; None = to be calibrated."""

    @property
    def dense(self) -> bool:
        """Whether scores are on the scale of the similarity of the dense vectors."""
        return self.kind == "exact"


@dataclass(frozen=True)
class DenseTeacher:
    """Lists by the similarity of the dense vectors: exact while that is affordable, from an index beyond."""

    src: EmbeddingSource
    cache: Path
    """Folder of finished lists."""
    seed: int
    threads: int
    progress: Progress
    sizes: Sizes = LARGEST
    """How many queries and rows may be in memory."""
    exact: ExactSearch = ExactTeacher
    """Makes what searches exactly."""

    @property
    def max_queries(self) -> int:
        """Learn queries used at most, a random choice of more; exact teaching costs queries x rows x dimensions."""
        return self.sizes.queries

    @property
    def max_judged(self) -> int:
        """Those with labels or pair scores, which come first: adapting queries costs less."""
        return 2 * self.sizes.queries

    @property
    def pseudo_queries(self) -> int:
        """Pseudo-queries made when there are none."""
        return self.sizes.queries // 2

    def teach(
        self, queries: F32Rows, exclude: IntRows | None = None, depth: int = DEPTH
    ) -> tuple[Relevance, dict[str, Any]]:
        """Return the first `depth` documents of each query, and what taught them; `exclude` as for ExactTeacher."""
        if len(queries) * self.src.n * self.src.dim <= AFFORDABLE:
            return self._exact(queries, exclude, depth), {"kind": "exact"}
        with self.progress.stage("index teacher", self.src.n, unit_bytes=row_bytes(self.src)) as stage:
            teacher = CachedTeacher(
                IndexTeacher(self.src, self.seed, self.threads, stage.advance, self.sizes), self.cache, self.seed
            )
            found = teacher.relevance(queries, depth, exclude)
        rng = np.random.default_rng([self.seed, 7])
        some = np.sort(rng.permutation(len(queries))[:SAMPLE])
        wanted = self._exact(queries[some], None if exclude is None else exclude[some], depth)
        return found, {"kind": "index", "recall": list_recall(found.select(some), wanted), "sample": len(some)}

    def _exact(self, queries: F32Rows, exclude: IntRows | None, depth: int) -> Relevance:
        with self.progress.stage("exact teacher", self.src.n, unit_bytes=row_bytes(self.src)) as stage:
            exact = self.exact(self.src, self.threads, stage.advance, self.sizes.block_rows(self.src.dim))
            teacher = CachedTeacher(exact, self.cache)
            return teacher.relevance(queries, depth, exclude)


def supervise(
    src: EmbeddingSource, queries: Any, teacher: str | Judge, dense: DenseTeacher, *, proven: bool = False
) -> Supervision:
    """Find learn queries and what their teacher says of the rows of `src`; `queries` and `teacher` as for `compile`.

    Before anything else, some queries are reserved for the certificate.

    Parameters
    ----------
    proven : whether there must be enough queries for that

    Returns
    -------
    Supervision
        Scores, labels and functions as they were given, which `follow` makes a lesson of.

    Raises
    ------
    InvalidInput
        If `teacher` is not usable, or needs real queries and there are none, or too few queries can be `proven`.
    """
    kind = teacher_kind(teacher)
    opened = learn_queries(src, queries)
    if opened is None:
        if kind != "exact":
            shown = "function" if callable(teacher) else repr(teacher)
            raise InvalidInput(f"teacher {shown} needs learn queries, got none")
        return _pseudo(dense, proven)
    order, origin = np.random.default_rng([dense.seed, 2]).permutation(opened.n), opened.name.rpartition("/")[2]
    kept = _reserve(opened.n, proven)
    reserved, order = opened.take(np.sort(order[:kept])), order[kept:]
    if kind in ("scores", "labels"):
        read, path = (read_scores if kind == "scores" else read_labels), str(teacher).partition(":")[2]
        judged = read(path, n_queries=opened.n, n_docs=src.n, query_ids=opened.ids, doc_ids=src.ids)
        if not judged.nnz:
            raise InvalidInput(f"{path} must name a relevant document of some query, got none")
        order = order[np.argsort(judged.counts[order] == 0, kind="stable")]
        picked = np.sort(order[: dense.max_judged])
        return Supervision(opened.take(picked), reserved, judged.select(picked), origin, {"kind": kind}, kind=kind)
    picked = np.sort(order[: dense.max_queries])
    rows = opened.take(picked)
    relevance, said = dense.teach(rows)
    if not callable(teacher):
        return Supervision(rows, reserved, relevance, origin, said)
    judged = _judged(teacher, relevance, picked, dense.progress)
    return Supervision(rows, reserved, judged, origin, {"kind": kind}, kind=kind)


def follow(judged: Supervision, dense: DenseTeacher, mix: float, length: float) -> Supervision:
    """Make of judgments a lesson for codes: what dense scores rank for the same queries, and the judgments as well.

    Parameters
    ----------
    judged : queries, which may be adapted, with their judgments
    mix : share of the judgments in the target, 0..1; the rest are dense scores
    length : effective list length that the parts of a mixture are calibrated to
    """
    given, temperature = judged.relevance, None
    if judged.kind == "labels":
        given, temperature = log_gains(given), 1.0
    if mix == 1:
        return replace(judged, relevance=given, temperature=temperature)
    lists, said = dense.teach(judged.queries)
    told = judged.teacher | {"mix": mix, "dense": said}
    if mix > 0:
        similar = _similar(dense.src, judged.queries, given)
        lists = mixed(lists, given, similar, mix, length, temperature)
    return replace(judged, relevance=lists, teacher=told, kind="exact")


def teacher_kind(teacher: str | Judge, mix: float = 0.0) -> str:
    """Return what a teacher is, having checked it and its share: exact, scores, labels or callable."""
    if callable(teacher):
        kind = "callable"
    else:
        kind, _, path = str(teacher).partition(":")
        if kind not in ("exact", "scores", "labels") or (kind == "exact") != (path == ""):
            raise InvalidInput(f'teacher must be "exact", "scores:FILE", "labels:FILE" or a function, got {teacher!r}')
        if path:
            resolve(path)
    if isinstance(mix, bool) or not isinstance(mix, (int, float)) or not 0 <= mix <= 1:
        raise InvalidInput(f"mix must be in 0..1, got {mix!r}")
    if kind == "exact" and mix > 0:
        raise InvalidInput(f"mix {mix} needs a teacher besides the dense one: scores, labels or a function")
    return kind


def _judged(judge: Judge, lists: Relevance, numbers: IntRows, progress: Progress) -> Relevance:
    with progress.stage("teacher function", len(numbers), "queries") as stage:
        teacher = CallableTeacher(judge, ScoreTeacher(lists), numbers, stage.advance)
        return teacher.relevance(numbers, DEPTH)


def _similar(src: EmbeddingSource, queries: F32Rows, given: Relevance) -> F32Rows:
    """(nnz,) dense similarity of the documents given."""
    docs, _ = given.padded(int(given.counts.max(initial=0)))
    return pair_scores(src, queries, docs)[docs >= 0]


def learn_queries(src: EmbeddingSource, queries: Any) -> EmbeddingSource | None:
    """Open the learn queries of `compile`; None = there are none, or none are wanted."""
    if queries is None:
        return src.companion("learn_queries")
    if isinstance(queries, str) and queries == "none":
        return None
    return open_queries(queries, src)


def _reserve(queries: int, proven: bool) -> int:
    """How many of the queries are kept for the certificate."""
    if queries >= FEWEST_CERTIFIED:
        return min(RESERVED, queries // 5)
    if proven:
        raise InvalidInput(f"recall needs at least {FEWEST_CERTIFIED} queries to be proven on, got {queries}")
    return 0


def _pseudo(dense: DenseTeacher, proven: bool) -> Supervision:
    src = dense.src
    with dense.progress.stage("pseudo-queries"):
        count = min(dense.pseudo_queries, src.n)
        made, origins = pseudo_queries(src, count, dense.seed, dense.threads, dense.sizes.pool_bytes)
    kept = _reserve(len(made), proven)
    relevance, said = dense.teach(made[kept:], origins[kept:])
    return Supervision(made[kept:], made[:kept], relevance, "pseudo-queries", said, pseudo=True)
