"""Which queries rank a row that was not there when their lists were made."""

from __future__ import annotations

import numba as nb
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

NOT_RANKED = np.int32(2**31 - 1)


@nb.njit(parallel=True, nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})
def _best_ranks(
    x: F32, cells: I32, offsets: I64, members: I32, queries: F32, scores: F32, lists: I32, ranks: I32
) -> None:
    depth, most = scores.shape[1], lists.shape[1]
    for i in nb.prange(x.shape[0]):
        for at in range(offsets[cells[i]], offsets[cells[i] + 1]):
            query = members[at]
            score = np.float32(0)
            for t in range(x.shape[1]):
                score += x[i, t] * queries[query, t]
            if not score > scores[query, depth - 1]:
                continue
            low, high = 0, depth - 1  # the first score that is not higher lies in low..high
            while low < high:
                middle = (low + high) // 2
                if scores[query, middle] > score:
                    low = middle + 1
                else:
                    high = middle
            place = most
            while place > 0 and ranks[i, place - 1] > low:
                place -= 1
            if place < most:
                for k in range(most - 1, place, -1):
                    ranks[i, k], lists[i, k] = ranks[i, k - 1], lists[i, k - 1]
                ranks[i, place], lists[i, place] = low, query


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
    _best_ranks(x, cells, offsets, members, queries, scores, lists, ranks)
    return lists, ranks
