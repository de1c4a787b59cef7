"""Which queries rank a row that was not there when their lists were made."""

from __future__ import annotations

import numba as nb
import numpy as np
import numpy.typing as npt

from vqdistill import _native
from vqdistill.kernels import cpu_level

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

NOT_RANKED = np.int32(2**31 - 1)


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
        A query that scores a row no higher than the last of what it ranks is not among them.
    """
    order = np.argsort(cells, kind="stable")
    starts = np.searchsorted(cells[order], np.arange(len(offsets)))
    threads = nb.get_num_threads()
    return _native.best_ranks(
        cpu_level(), x, order, starts, offsets, members, queries, scores, most=most, threads=threads
    )
