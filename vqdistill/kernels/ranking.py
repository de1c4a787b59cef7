"""Which queries rank a row that was not there when their lists were made."""

from __future__ import annotations

from typing import TypeAlias

import numba as nb
import numpy as np
import numpy.typing as npt

from vqdistill.kernels.additive import LOOSE

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
_Four: TypeAlias = "tuple[np.float32, np.float32, np.float32, np.float32]"

NOT_RANKED = np.int32(2**31 - 1)


@nb.njit(parallel=True, nogil=True, cache=True, fastmath=LOOSE)
def _best_ranks(
    x: F32, rows: I64, row_offsets: I64, offsets: I64, members: I32, queries: F32, scores: F32, lists: I32, ranks: I32
) -> None:
    for cell in nb.prange(len(offsets) - 1):
        mine = rows[row_offsets[cell] : row_offsets[cell + 1]]
        if len(mine) == 0:
            continue
        # Each query once for all rows of the cell: they are what does not fit into the cache. Four rows and two
        # queries, of which the last may be the same, share what is loaded of them.
        tried = members[offsets[cell] : offsets[cell + 1]]
        last = len(mine) - 1
        for j in range(0, len(tried), 2):
            two = tried[j], tried[min(j + 1, len(tried) - 1)]
            for at in range(0, len(mine), 4):
                four = mine[at], mine[min(at + 1, last)], mine[min(at + 2, last)], mine[min(at + 3, last)]
                found = _dots(x[four[0]], x[four[1]], x[four[2]], x[four[3]], queries[two[0]], queries[two[1]])
                for k in range(min(2, len(tried) - j)):
                    falling = scores[two[k]]
                    for i in range(min(4, len(mine) - at)):
                        if found[k][i] > falling[-1]:
                            _place(two[k], _rank(found[k][i], falling), lists[four[i]], ranks[four[i]])


@nb.njit(inline="always")
def _dots(a: F32, b: F32, c: F32, d: F32, p: F32, q: F32) -> tuple[_Four, _Four]:
    """Inner products of four rows with each of two queries: as many sums at a time as keep a core's adders busy."""
    ap = bp = cp = dp = aq = bq = cq = dq = np.float32(0)
    for t in range(q.shape[0]):
        ap += a[t] * p[t]
        bp += b[t] * p[t]
        cp += c[t] * p[t]
        dp += d[t] * p[t]
        aq += a[t] * q[t]
        bq += b[t] * q[t]
        cq += c[t] * q[t]
        dq += d[t] * q[t]
    return (ap, bp, cp, dp), (aq, bq, cq, dq)


@nb.njit(nogil=True, cache=True, inline="always")
def _rank(score: np.float32, falling: F32) -> int:
    """How many scores are higher, of which the last is not."""
    low, high = 0, len(falling) - 1
    while low < high:
        middle = (low + high) // 2
        if falling[middle] > score:
            low = middle + 1
        else:
            high = middle
    return low


@nb.njit(nogil=True, cache=True, inline="always")
def _place(query: np.int32, rank: int, lists: I32, ranks: I32) -> None:
    """Keep a query among the best of a row, behind those of equal rank."""
    most = len(ranks)
    place = most
    while place > 0 and ranks[place - 1] > rank:
        place -= 1
    if place < most:
        for k in range(most - 1, place, -1):
            ranks[k], lists[k] = ranks[k - 1], lists[k - 1]
        ranks[place], lists[place] = rank, query


def best_ranks(x: F32, cells: I32, offsets: I64, members: I32, queries: F32, scores: F32, most: int) -> tuple[I32, I32]:
    """Rank rows among what some queries rank already.

    Parameters
    ----------
    x : (b, d) float32 rows
    cells : (b,) int32 cell of each
    offsets, members : (cells + 1,) int64 and (nnz,) int32; the queries that are tried for the rows of cell c are
        members[offsets[c] : offsets[c + 1]], rising
    queries : (q, d) float32
    scores : (q, r) float32 inner products of what each query ranks, falling
    most : queries kept for a row, those that rank it best

    Returns
    -------
    lists, ranks : (b, most) int32
        Queries and the ranks that they give the row, best first, equal ranks by query; -1 and `NOT_RANKED` behind.
    """
    lists = np.full((len(x), most), -1, np.int32)
    ranks = np.full((len(x), most), NOT_RANKED, np.int32)
    rows = np.argsort(cells, kind="stable")
    row_offsets = np.searchsorted(cells[rows], np.arange(len(offsets)))
    _best_ranks(x, rows, row_offsets, offsets, members, queries, scores, lists, ranks)
    return lists, ranks
