"""Queries that a model has learned from: they serve rows that are added later as they served those of the compile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vqdistill.kernels.ranking import best_ranks
from vqdistill.kernels.threads import for_tiles, one_library_thread
from vqdistill.model.additive import RowTerms, directions
from vqdistill.model.space import Space
from vqdistill.types import F32Rows

DEPTH = 100
"""Teacher ranks that count."""
PER_ROW = 16
"""Queries kept for a document, those that rank it best. Against 8 they bring 0.5 to 1 point of recall@10 by code."""
QUERY_WEIGHT = 0.01
"""Weight of a query's term at rank 0, in units of d; 0.03 is too strong, 0.003 too weak."""
_RANK_SCALE = 10
"""A query's weight halves at this rank."""
_LISTS_SHARE = 32
"""A query is tried for the rows of its best lists, one in so many. On pypi200k, one list in 16 has 87 % of the first
100 rows of a query, and 7 % of all, one in 8 93 %; one in 32 finds 9 % fewer ranks than one in 16, in half the time."""
_FEWEST_LISTS = 8


def rank_weights(d: int, ranks: npt.NDArray[np.number]) -> F32Rows:
    """Weights of queries (float32, shape of `ranks`) for what they rank at `ranks`, counted from 0."""
    return np.asarray(d * QUERY_WEIGHT / (1 + ranks / _RANK_SCALE), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class LearnQueries:
    """The queries, and where in their rankings a new row would stand."""

    queries: F32Rows
    """(q, d), prepared"""
    scores: F32Rows
    """(q, r) inner products with the documents that each ranks best, falling; behind them the lowest float32"""
    codes: bool
    """Whether codes serve them; lists do where the model has anchors."""

    @classmethod
    def ranking(cls, queries: F32Rows, offsets: npt.NDArray[np.int64], scores: F32Rows, codes: bool) -> LearnQueries:
        """Keep the best scores of queries (q, d), which are `scores[offsets[i] : offsets[i + 1]]`, falling."""
        counts = np.diff(offsets)
        depth = max(1, min(DEPTH, int(counts.max(initial=0))))
        best = np.full((len(queries), depth), np.finfo(np.float32).min, np.float32)
        real = np.arange(depth) < counts[:, None]
        best[real] = scores[(offsets[:-1, None] + np.arange(depth))[real]]
        return cls(queries, best, codes)


class TermFinder:
    """Finds the queries that rank rows which the teacher has not seen.

    A query is tried only for rows of the lists that it would visit first.

    Parameters
    ----------
    learned : the queries
    router : (nlist, d) float32, what ranks the lists for queries
    space : coordinates of the codes, if they are others than those of rows
    """

    def __init__(self, learned: LearnQueries, router: F32Rows, space: Space | None) -> None:
        self._learned = learned
        moved = learned.queries if space is None else space.queries(learned.queries)
        self._seen = directions(moved - moved.mean(axis=0))
        self._offsets, self._members = _tried(learned.queries, router)

    def find(self, x: F32Rows, lists: npt.NDArray[np.int32]) -> RowTerms:
        """Terms of rows (b, d), prepared, that are in lists (b,) without any."""
        queries, scores = self._learned.queries, self._learned.scores
        lists, ranks = best_ranks(x, lists, self._offsets, self._members, queries, scores, min(PER_ROW, len(queries)))
        weights = np.where(lists < 0, np.float32(0), rank_weights(x.shape[1], ranks))
        return RowTerms(lists, weights, self._seen)


@one_library_thread()
def _tried(queries: F32Rows, router: F32Rows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Queries of each list, those that have it among their best: offsets (nlist + 1,) and members, rising."""
    nlist = len(router)
    visited = min(nlist, max(_FEWEST_LISTS, nlist // _LISTS_SHARE))
    best = np.empty((len(queries), visited), np.int64)

    def tile(rows: slice) -> None:
        best[rows] = np.argpartition(queries[rows] @ router.T, nlist - visited, axis=1)[:, nlist - visited :]

    for_tiles(len(queries), tile)
    order = np.argsort(best.ravel(), kind="stable")
    offsets = np.zeros(nlist + 1, np.int64)
    np.cumsum(np.bincount(best.ravel(), minlength=nlist), out=offsets[1:])
    return offsets, (order // visited).astype(np.int32)
