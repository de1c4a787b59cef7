"""Exact scores of candidates from float16 rows: one compiled loop for every system whose codes only name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numba
import numba.extending
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import types

from vqdistill.types import F32Rows

F16Rows = npt.NDArray[np.float16]
_PREFETCH_ROWS = 4
"""Rows between the one that is scored and the one that is prefetched."""
_LINE = 32
"""float16 values of a cache line."""


def best_of(
    rows: F16Rows, queries: F32Rows, candidates: npt.NDArray[np.int64], k: int, l2: bool = False
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return scores and ids (q, k) of the best candidates of each query, best first.

    Parameters
    ----------
    rows : (n, d) float16, C-contiguous
    queries : (q, d) float32
    candidates : (q, R) int64, -1 where missing
    k : results; -inf and -1 where there are fewer candidates
    l2 : score -|q - x|^2 instead of <q, x>
    """
    scores, ids = _best(rows.view(np.uint16), queries, candidates, k, l2)
    return scores, ids


def map_rows(path: Path) -> F16Rows:
    """Map float16 rows of a .npy."""
    rows: F16Rows = np.load(path, mmap_mode="r")
    return rows


def _emit_as_float(typing: Any, bits: Any) -> Any:
    """Convert the bits of a float16 with the instruction of the machine, which LLVM applies to whole vectors."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), emit


def _emit_prefetch(typing: Any, array: Any, at: Any) -> Any:
    """Ask for the cache line of array.ravel()[at], for reading."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, i32, i32, i32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
        builder.call(function, [address, i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


# Any: the first argument is filled in, which their type forgets.
_as_float: Any = numba.extending.intrinsic(_emit_as_float)
_prefetch: Any = numba.extending.intrinsic(_emit_prefetch)


@numba.njit(nogil=True, cache=True, fastmath=True)
def _best(rows: Any, queries: Any, candidates: Any, k: int, l2: bool) -> Any:
    q, d, refine = len(queries), rows.shape[1], candidates.shape[1]
    ids = np.full((q, k), -1, np.int64)
    scores = np.full((q, k), np.float32(-np.inf), np.float32)
    for i in range(q):
        query, best, named = queries[i], scores[i], ids[i]
        for j in range(refine):
            ahead = candidates[i, min(j + _PREFETCH_ROWS, refine - 1)]
            if ahead >= 0:
                for column in range(0, d, _LINE):
                    _prefetch(rows, ahead * d + column)
            row = candidates[i, j]
            if row < 0:
                continue
            values, score = rows[row], np.float32(0)
            if l2:
                for column in range(d):
                    difference = _as_float(values[column]) - query[column]
                    score -= difference * difference
            else:
                for column in range(d):
                    score += _as_float(values[column]) * query[column]
            if score <= best[k - 1]:
                continue
            at = k - 1
            while at > 0 and best[at - 1] < score:
                best[at], named[at] = best[at - 1], named[at - 1]
                at -= 1
            best[at], named[at] = score, row
    return scores, ids
