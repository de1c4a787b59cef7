"""Exact nearest documents of many queries: one pass over the documents, the same answer with any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from vqdistill.data.relevance import Relevance
from vqdistill.errors import InvalidInput
from vqdistill.types import Block, F32Rows

IntRows = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

_QUERY_TILE, _DOC_TILE = 512, 1024  # 2 MiB of scores a thread: stays in cache, large enough for the matrix product


def exact_top(
    queries: F32Rows,
    blocks: Iterable[Block],
    n: int,
    depth: int,
    *,
    l2: bool = False,
    shift: F32 | None = None,
    exclude: IntRows | None = None,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Relevance:
    """Best `depth` documents of each query by inner product or -|q - x|^2, equal scores by lower row number.

    Parameters
    ----------
    queries : (q, d) float32
    blocks : all n documents in order
    depth : documents wanted; fewer come back where there are fewer
    l2 : score -|q - x|^2 instead of <q, x>
    shift : (d,) with l2, subtracted from both sides: distances stay, cancellation in |q|^2 - 2<q, x> + |x|^2 shrinks
    exclude : (q,) a document that each query must not get; -1 for none
    threads : tiles computed at the same time
    progress : called with the number of documents of each finished block

    Raises
    ------
    InvalidInput
        If the numbers are so large that scores overflow float32.

    Notes
    -----
    Every tile of queries sees the same tiles of documents in the same order, each through one single-threaded matrix
    product, so threads only decide when a tile is computed. Memory: the result, a block, and a few tiles a thread.
    """
    if l2 and shift is not None:
        queries = queries - shift
    tops = [
        _Top(queries[i : i + _QUERY_TILE], min(depth, n), l2, None if exclude is None else exclude[i : i + _QUERY_TILE])
        for i in range(0, len(queries), _QUERY_TILE)
    ]
    longest = _longest(queries)
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        for block in blocks:
            rows = block.rows - shift if l2 and shift is not None else block.rows
            if not (longest + _longest(rows)) ** 2 < float(np.finfo(np.float32).max):
                raise InvalidInput(
                    f"scores of documents from row {block.start} on overflow float32: scale vectors down"
                )
            terms = np.einsum("ij,ij->i", rows, rows) if l2 else None
            for _ in pool.map(lambda top, x=rows, t=terms, s=block.start: top.add(x, t, s), tops):
                pass
            if progress is not None:
                progress(len(rows))
        parts = list(pool.map(_Top.finish, tops))
    counts = np.concatenate([np.empty(0, np.int64), *(count for count, _, _ in parts)])
    return Relevance(
        np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        np.concatenate([np.empty(0, np.int64), *(docs for _, docs, _ in parts)]),
        np.concatenate([np.empty(0, np.float32), *(scores for _, _, scores in parts)]),
    )


class _Top:
    """Running best documents of one tile of queries.

    `scores` and `docs` (t, depth) are in document order, not sorted: later documents are appended, so that the first
    among equals is the one with the lower row number.
    """

    def __init__(self, queries: F32Rows, depth: int, l2: bool, exclude: IntRows | None) -> None:
        self._queries = queries
        self._norms = np.einsum("ij,ij->i", queries, queries)[:, None] if l2 else None
        self._exclude = exclude
        self._depth = depth
        self.scores = np.full((len(queries), depth), -np.inf, np.float32)
        self.docs = np.full((len(queries), depth), -1, np.int64)

    def add(self, rows: F32Rows, terms: F32 | None, start: int) -> None:
        """Take in documents start, start + 1, ...; `terms` are their squared norms under l2."""
        found: list[tuple[IntRows, F32, IntRows]] = []
        waiting = 0
        worst = self._worst()
        buffer = np.empty((len(self._queries), _DOC_TILE), np.float32)
        for at in range(0, len(rows), _DOC_TILE):
            tile = np.s_[at : at + _DOC_TILE]
            scores = self._score(rows[tile], None if terms is None else terms[tile], buffer)
            if self._exclude is not None:
                hit = np.flatnonzero((self._exclude >= start + at) & (self._exclude < start + at + scores.shape[1]))
                scores[hit, self._exclude[hit] - start - at] = -np.inf
            # A later document with the score of the worst kept one loses the tie: strictly greater is exact.
            entries = np.flatnonzero(scores > worst)
            found.append(
                (entries // scores.shape[1], scores.ravel()[entries], entries % scores.shape[1] + (start + at))
            )
            waiting += len(entries)
            if waiting > self.scores.size:
                self._merge(found)
                found, waiting, worst = [], 0, self._worst()
        if waiting:
            self._merge(found)

    def finish(self) -> tuple[IntRows, IntRows, F32]:
        """Counts (t,), documents and scores of the queries, sorted."""
        order = np.argsort(-self.scores, axis=1, kind="stable")
        scores, docs = np.take_along_axis(self.scores, order, 1), np.take_along_axis(self.docs, order, 1)
        kept = docs >= 0
        return kept.sum(axis=1), docs[kept], scores[kept]

    def _worst(self) -> F32:
        return np.asarray(self.scores.min(axis=1, keepdims=True))

    def _score(self, rows: F32Rows, terms: F32 | None, buffer: F32) -> F32:
        scores: F32 = buffer if len(rows) == _DOC_TILE else np.empty((len(buffer), len(rows)), np.float32)
        np.matmul(self._queries, rows.T, out=scores)
        if self._norms is not None and terms is not None:
            scores *= 2
            scores -= terms
            scores -= self._norms
            np.minimum(scores, 0, out=scores)
        return scores

    def _merge(self, found: list[tuple[IntRows, F32, IntRows]]) -> None:
        """Put the found entries behind the kept ones and keep the best `depth` of each query."""
        query = np.concatenate([part[0] for part in found])
        order = np.argsort(query, kind="stable")  # tiles came one after the other: documents stay in order
        query = query[order]
        counts = np.bincount(query, minlength=len(self._queries))
        column = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts) + self._depth
        width = self._depth + int(counts.max())
        scores = np.full((len(self._queries), width), -np.inf, np.float32)
        docs = np.full(scores.shape, -1, np.int64)
        scores[:, : self._depth], docs[:, : self._depth] = self.scores, self.docs
        scores[query, column] = np.concatenate([part[1] for part in found])[order]
        docs[query, column] = np.concatenate([part[2] for part in found])[order]
        keep = _first_best(scores, self._depth)
        self.scores, self.docs = scores[keep].reshape(self.scores.shape), docs[keep].reshape(self.docs.shape)


def _first_best(scores: F32, depth: int) -> npt.NDArray[np.bool_]:
    """Mark the `depth` largest of each row; of equal ones the first."""
    worst = np.partition(scores, scores.shape[1] - depth, axis=1)[:, scores.shape[1] - depth, None]
    keep = scores > worst
    ties = scores == worst
    ties &= np.cumsum(ties, axis=1, dtype=np.int32) <= depth - keep.sum(axis=1, keepdims=True)
    return np.asarray(keep | ties)


def _longest(rows: F32Rows) -> float:
    """Largest norm of the rows, in float64, where squares do not overflow."""
    return float(np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64).max(initial=0)))
