"""Teachers: where relevance is from: exact search, given scores or labels, a function, queries made from the corpus."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from vqdistill.data.exact import exact_top
from vqdistill.data.relevance import Relevance
from vqdistill.data.sources import EmbeddingSource, open_queries
from vqdistill.errors import InvalidInput
from vqdistill.types import Block, F32Rows, Metric

IntRows = npt.NDArray[np.int64]

_POOL_BYTES = 64 << 20
_NEIGHBOURS = 10
_QUERIES_JUDGED = 64
_NOISE = 0.1

_log = logging.getLogger(__name__)


class Teacher(Protocol):
    """Tells which documents are relevant to queries."""

    @property
    def kind(self) -> Literal["exact", "index", "scores", "labels", "callable"]:
        """Where its judgement is from."""
        ...

    def relevance(self, queries: Any, depth: int) -> Relevance:
        """Judge the best documents of each query.

        Parameters
        ----------
        queries : (q, d) array, or an embedding source
        depth : documents wanted for each query, at least 1

        Returns
        -------
        Relevance
            At most `depth` documents for each of the q queries.

        Raises
        ------
        InvalidInput
            If `depth` is below 1, or the queries are not ones that it can judge.
        """


class ExactTeacher:
    """Exact search through all documents of a source, read once for a call.

    Parameters
    ----------
    src : documents; its metric is the score
    threads : how many to use; the result does not depend on it
    progress : called with the number of documents of each finished block
    block_rows : documents in memory at a time; None = about 32 MiB of them
    """

    kind: Literal["exact"] = "exact"

    def __init__(
        self,
        src: EmbeddingSource,
        threads: int = 1,
        progress: Callable[[int], None] | None = None,
        block_rows: int | None = None,
    ) -> None:
        if threads < 1:
            raise InvalidInput(f"threads must be at least 1, got {threads}")
        self.src = src
        self._threads, self._progress, self._block_rows = threads, progress, block_rows

    def relevance(self, queries: Any, depth: int, exclude_self: npt.NDArray[Any] | None = None) -> Relevance:
        """See Teacher. Scores are <q, x> for ip and cosine (on unit rows) and -|q - x|^2 for l2.

        Parameters
        ----------
        queries : (q, d) array, or a source of the same metric
        depth : documents wanted; all if there are fewer
        exclude_self : (q,) row that each query must not get, such as the one it was made from; -1 for none

        Raises
        ------
        InvalidInput
            If queries have another dimension, hold NaN, infinity or, under cosine, a zero vector.
        """
        _check_depth(depth)
        prepared = query_rows(queries, self.src)
        exclude = None if exclude_self is None else np.asarray(exclude_self, np.int64)
        if exclude is not None and exclude.shape != (len(prepared),):
            raise InvalidInput(f"exclude_self must be one row number a query, ({len(prepared)},), got {exclude.shape}")
        l2 = self.src.metric is Metric.L2
        return exact_top(
            prepared,
            self.src.blocks(self._block_rows),
            self.src.n,
            depth,
            l2=l2,
            shift=shift_of(self.src) if l2 else None,
            exclude=exclude,
            threads=self._threads,
            progress=self._progress,
        )


class SearchTeacher(Protocol):
    """A teacher that searches the rows of a source."""

    @property
    def kind(self) -> Literal["exact", "index"]:
        """See Teacher."""
        ...

    src: EmbeddingSource

    def relevance(self, queries: Any, depth: int, exclude_self: npt.NDArray[Any] | None = None) -> Relevance:
        """See ExactTeacher."""
        ...


ExactSearch = Callable[[EmbeddingSource, int, Callable[[int], None] | None, int | None], SearchTeacher]
"""`ExactTeacher`, or what takes its place: same parameters, same answers."""


class CachedTeacher:
    """A searching teacher whose answers are kept as .npz files, named by what they depend on.

    Parameters
    ----------
    teacher : asked when there is no answer yet, or its file is damaged
    directory : where files are kept; made when the first is written
    seed : that the answers depend on; None for those of exact search
    """

    def __init__(self, teacher: SearchTeacher, directory: str | Path, seed: int | None = None) -> None:
        self.kind = teacher.kind
        self._teacher = teacher
        self._version = "1" if seed is None else f"1 {teacher.kind} {seed}"
        self._directory = Path(directory)
        self._fingerprint: str | None = None

    def relevance(self, queries: Any, depth: int, exclude_self: npt.NDArray[Any] | None = None) -> Relevance:
        """See ExactTeacher."""
        _check_depth(depth)
        src = self._teacher.src
        prepared = query_rows(queries, src)
        self._fingerprint = self._fingerprint or src.fingerprint()
        asked = f"{self._version} {self._fingerprint} {depth} {prepared.shape}"
        digest = hashlib.blake2b(asked.encode(), digest_size=16)
        digest.update(prepared.astype("<f4", copy=False).data)
        if exclude_self is not None:
            digest.update(np.asarray(exclude_self, "<i8").tobytes())
        path = self._directory / f"relevance-{digest.hexdigest()}.npz"
        if path.exists():
            try:
                return _checked(Relevance.load(path), len(prepared), src.n)
            except InvalidInput as error:
                _log.warning("computing relevance again: %s", error)
        found = self._teacher.relevance(_Prepared(prepared), depth, exclude_self)
        self._directory.mkdir(parents=True, exist_ok=True)
        found.save(path)
        return found


class ScoreTeacher:
    """Relevance that was given as scores of pairs; it judges the queries that it was given for, in their order."""

    kind: Literal["scores", "labels"] = "scores"

    def __init__(self, relevance: Relevance) -> None:
        self._relevance = relevance

    def relevance(self, queries: Any, depth: int) -> Relevance:
        """See Teacher. Only the number of `queries` is looked at."""
        _check_depth(depth)
        count = getattr(queries, "n", None) or len(queries)
        if count != self._relevance.n_queries:
            raise InvalidInput(f"{self.kind} are given for {self._relevance.n_queries} queries, got {count} queries")
        return self._relevance.top(depth)


class LabelTeacher(ScoreTeacher):
    """Relevance that was given as labels: a grade for relevant documents, nothing about the others."""

    kind: Literal["scores", "labels"] = "labels"


Judge = Callable[[IntRows, IntRows], Any]
"""Row numbers of queries (b,) and of documents (b, l) for each -> scores (b, l), larger is better."""


class CallableTeacher:
    """A function that judges the candidates of another teacher, such as a cross-encoder or a click model.

    Parameters
    ----------
    judge : called with row numbers, of at most 64 queries at once; a query's candidates come best first
    candidates : finds what is to be judged
    numbers : (q,) row number that each query goes by; None: 0, 1, ...
    progress : called with the number of queries of each finished call
    """

    kind: Literal["callable"] = "callable"

    def __init__(
        self,
        judge: Judge,
        candidates: Teacher,
        numbers: IntRows | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._judge, self._candidates = judge, candidates
        self._numbers, self._progress = numbers, progress

    def relevance(self, queries: Any, depth: int) -> Relevance:
        """See Teacher. The first `depth` candidates are judged: of each call, as many as the shortest list has.

        Raises
        ------
        InvalidInput
            If the function returns anything but a finite score for each document.
        """
        found = self._candidates.relevance(queries, depth)
        docs, _ = found.padded(depth)
        scores = np.full(docs.shape, -np.inf, np.float32)
        numbers = np.arange(len(docs)) if self._numbers is None else self._numbers
        for at in range(0, len(docs), _QUERIES_JUDGED):
            part = slice(at, at + _QUERIES_JUDGED)
            width = int(found.counts[part].min())
            scores[part, :width] = _judged(self._judge, numbers[part], docs[part, :width])
            docs[part, width:] = -1
            if self._progress is not None:
                self._progress(len(docs[part]))
        return Relevance.from_padded(docs, scores)


def _judged(judge: Judge, queries: IntRows, docs: IntRows) -> F32Rows:
    got = judge(queries.copy(), docs.copy())
    wanted = f"the teacher function must return {docs.shape} finite scores"
    try:
        scores = np.asarray(got, dtype=np.float32)
    except (TypeError, ValueError):
        raise InvalidInput(f"{wanted}, got {type(got).__name__}") from None
    if scores.shape != docs.shape:
        raise InvalidInput(f"{wanted}, got {scores.shape if scores.ndim else type(got).__name__}")
    if not np.isfinite(scores).all():
        query, place = np.argwhere(~np.isfinite(scores))[0]
        raise InvalidInput(
            f"{wanted}, got {scores[query, place]} for query {queries[query]}, document {docs[query, place]}"
        )
    return scores


def query_rows(queries: Any, src: EmbeddingSource) -> F32Rows:
    """All queries in memory, prepared for the metric of `src`.

    Parameters
    ----------
    queries : (q, d) array or tensor, one (d,) query, a path, or a source

    Raises
    ------
    InvalidInput
        As `open_queries`, or if a row cannot be used.
    """
    if isinstance(queries, _Prepared):
        return queries.rows
    return np.concatenate([block.rows for block in open_queries(queries, src).blocks()])


def pseudo_queries(
    src: EmbeddingSource, count: int, seed: int, threads: int = 1, pool_bytes: int = _POOL_BYTES
) -> tuple[F32Rows, IntRows]:
    """Make queries out of the corpus, for when there are none.

    Parameters
    ----------
    src : documents
    count : queries wanted
    seed : of every random choice
    threads : for the search of neighbours; the result does not depend on it
    pool_bytes : of the documents that neighbours are looked for among

    Returns
    -------
    queries : (count, dim) float32, prepared
    source_rows : (count,) int64 document that each was made from; to be excluded from its own list

    Notes
    -----
    A query is w x + (1 - w) y + noise: x a random document (none twice unless count > n), y one of its 10 nearest among
    a pool of random documents, w uniform in 0.5..1. Under ip and cosine, nearness is that of directions, y is
    scaled to the norm of x, noise has 0.1 of this norm, and the query is scaled to it. Under l2 nothing is scaled, and
    noise has 0.1 of the length of x - y, so that the origin does not matter. Real queries differ from documents in ways
    that these do not.
    """
    if count < 1:
        raise InvalidInput(f"count of pseudo-queries must be at least 1, got {count}")
    rng = np.random.default_rng(seed)
    source_rows = rng.choice(src.n, count, replace=count > src.n).astype(np.int64)
    x = src.take(source_rows)
    y = _neighbours(src, x, source_rows, rng, threads, pool_bytes)
    w = rng.uniform(0.5, 1, (count, 1)).astype(np.float32)
    noise = rng.standard_normal(x.shape, dtype=np.float32) * np.float32(_NOISE / np.sqrt(src.dim))
    if src.metric is Metric.L2:
        return w * x + (1 - w) * y + noise * _norms(x - y), source_rows
    mixed = w * _directions(x) + (1 - w) * _directions(y) + noise
    return _directions(mixed) * _norms(x), source_rows


def _neighbours(
    src: EmbeddingSource, x: F32Rows, source_rows: IntRows, rng: np.random.Generator, threads: int, pool_bytes: int
) -> F32Rows:
    """For each x one of its nearest documents in a random pool; x itself where there is none."""
    pool = _random_rows(rng, src.n, max(1, pool_bytes // (4 * src.dim)))
    candidates = src.take(pool)
    place = np.minimum(np.searchsorted(pool, source_rows), len(pool) - 1)
    exclude = np.where(pool[place] == source_rows, place, -1)
    l2 = src.metric is Metric.L2
    near = exact_top(
        x,
        [Block(0, candidates if l2 else _directions(candidates))],
        len(pool),
        _NEIGHBOURS,
        l2=l2,
        shift=candidates.mean(axis=0) if l2 else None,
        exclude=exclude,
        threads=threads,
    )
    docs, _ = near.padded(_NEIGHBOURS)
    chosen = docs[np.arange(len(x)), (rng.random(len(x)) * near.counts).astype(np.int64)]
    return np.where(chosen[:, None] >= 0, candidates[chosen], x)


def _norms(rows: F32Rows) -> npt.NDArray[np.float32]:
    return np.asarray(np.linalg.norm(rows, axis=1, keepdims=True))


def _directions(rows: F32Rows) -> F32Rows:
    """Rows at unit norm; zero vectors stay."""
    return np.asarray(rows / np.maximum(_norms(rows), np.finfo(np.float32).tiny))


@dataclass(frozen=True)
class _Prepared:
    """Queries that are prepared already, so that they are not scaled a second time."""

    rows: F32Rows


def _check_depth(depth: int) -> None:
    if depth < 1:
        raise InvalidInput(f"depth must be at least 1, got {depth}")


def _checked(relevance: Relevance, n_queries: int, n: int) -> Relevance:
    if relevance.n_queries != n_queries:
        raise InvalidInput(f"cached relevance has {relevance.n_queries} queries, wanted {n_queries}")
    relevance.require_docs_below(n)
    return relevance


def shift_of(src: EmbeddingSource) -> npt.NDArray[np.float32]:
    """(dim,) what exact search subtracts from both sides under l2: the mean of the first rows; whole numbers for stored
    integers, whose distances then stay exact.
    """
    first: Iterator[Block] = src.blocks()
    mean = next(first).rows.mean(axis=0, dtype=np.float64)
    return np.asarray(np.rint(mean) if "int" in src.dtype else mean, dtype=np.float32)


def _random_rows(rng: np.random.Generator, n: int, count: int) -> IntRows:
    """Sorted distinct row numbers, at most `count`."""
    if count >= n:
        return np.arange(n)
    # Draws with replacement, made distinct: choice(replace=False) would permute all n.
    return np.unique(rng.integers(0, n, count))
