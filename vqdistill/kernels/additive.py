"""Training-time kernels of additive codes under a metric of each row's own: the search for codes is native, sums over
rows are Numba.

Row i has the metric A_i = I + eta x_i x_i^T + sum_r weights[i, r] q_r q_r^T, with q_r the queries of `lists[i]` (-1 =
none).
Callers pass C-contiguous arrays of the documented dtypes, which nothing checks here. Sums over rows are split into a
fixed number of parts, so results do not depend on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt

from vqdistill._native import cpu_level, encode_additive
from vqdistill.types import F64

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]

KSUB = 16
PARTS = 8
"""Parts that sums over rows are split into: fixed, so that they round alike for any number of threads."""
LOOSE = {"contract", "reassoc", "nsz", "arcp"}
"""Sums may be reordered for SIMD; NaN and infinity keep their meaning."""


@dataclass(frozen=True)
class RowMetric:
    """What shapes the metric of each row."""

    x: F32
    """(n, d) the rows themselves"""
    eta: float
    """Weight of the row's own direction; 0 switches it off."""
    lists: I32
    """(n, r) queries that rank the row, -1 padding at the end"""
    weights: F32
    """(n, r) weight of each"""
    queries: F32
    """(q, d) the queries; one row of zeros if there are none"""

    def take(self, rows: npt.NDArray[Any] | slice) -> RowMetric:
        """The metric of the given rows."""
        return RowMetric(self.x[rows], self.eta, self.lists[rows], self.weights[rows], self.queries)


@nb.njit(inline="always")
def dot(a: F32, b: F32) -> np.float32:
    """Inner product, inlined into what calls it."""
    total = np.float32(0)
    for t in range(a.shape[0]):
        total += a[t] * b[t]
    return total


def icm(y: F32, metric: RowMetric, codewords: F32, codes: U8 | None = None, *, sweeps: int, rounds: int) -> U8:
    """Find additive codes: minimise e^T A e, e = y - sum_j codewords[j, codes[j]], over the codes of each row.

    Parameters
    ----------
    y : (n, d) float32 targets
    metric : A of each row
    codewords : (m, ksub, d) float32
    codes : (n, m) uint8 to start from, improved in place; None = start from greedy ones
    sweeps : most passes of iterated conditional modes over the m codes
    rounds : further descents from the best codes so far with a few changed at random; the better are kept. What is
        random depends on the codes alone, so a row gets the same codes in any block.

    Returns
    -------
    (n, m) uint8

    References
    ----------
    Martinez et al.: LSQ++, ECCV 2018, section 3 (ICM with perturbations). The metric is a sum of rank-one terms, each
    of which costs one more scalar a row and one more table row a candidate. csrc/code_search.h has the loop, and
    `kernels.reference.encode_additive` its definition.
    """
    used, lists = _renumber(metric.lists, len(metric.queries))
    found = encode_additive(
        cpu_level(),
        y,
        metric.x,
        metric.eta,
        lists,
        metric.weights,
        metric.queries[used],
        codewords,
        codes,
        sweeps=sweeps,
        rounds=rounds,
        threads=nb.get_num_threads(),
    )
    if codes is None:
        return found
    codes[:] = found
    return codes


def _renumber(lists: I32, n: int) -> tuple[npt.NDArray[np.bool_], I32]:
    """Which of n queries occur in the lists, and the lists in terms of these alone; -1 stays."""
    used = np.zeros(n + 1, np.bool_)
    used[lists] = True  # -1 marks the last entry, which is none of the n
    used[n] = False
    places = np.append(np.cumsum(used[:n], dtype=np.int32) - 1, np.int32(-1))
    return used[:n], places[lists]


@nb.njit(parallel=True, nogil=True, cache=True, fastmath=LOOSE)
def _apply_metric(y: F32, x: F32, eta: np.float32, lists: I32, weights: F32, queries: F32, out: F32) -> None:
    for i in nb.prange(y.shape[0]):
        out[i] = y[i]
        if eta > 0:
            s = eta * dot(x[i], y[i])
            for t in range(y.shape[1]):
                out[i, t] += s * x[i, t]
        for r in range(lists.shape[1]):
            if lists[i, r] >= 0:
                query = queries[lists[i, r]]
                s = weights[i, r] * dot(query, y[i])
                for t in range(y.shape[1]):
                    out[i, t] += s * query[t]


def apply_metric(y: F32, metric: RowMetric) -> F32:
    """A_i y_i of each row (n, d)."""
    out = np.empty_like(y)
    _apply_metric(y, metric.x, np.float32(metric.eta), metric.lists, metric.weights, metric.queries, out)
    return out


@nb.njit(parallel=True, nogil=True, cache=True, fastmath=LOOSE)
def _decode(codes: U8, codewords: F32, out: F32) -> None:
    for i in nb.prange(codes.shape[0]):
        out[i] = 0
        for j in range(codes.shape[1]):
            word = codewords[j, codes[i, j]]
            for t in range(word.shape[0]):
                out[i, t] += word[t]


def decode(codes: U8, codewords: F32) -> F32:
    """Sum of the codewords (m, ksub, d) of each row of codes (n, m). Returns (n, d) float32."""
    out = np.empty((len(codes), codewords.shape[2]), np.float32)
    _decode(codes, codewords, out)
    return out


@nb.njit(parallel=True, nogil=True, cache=True, fastmath=LOOSE)
def _word_sums(rows: F32, codes: U8, out: F32) -> None:
    n, m = codes.shape
    for part in nb.prange(out.shape[0]):
        for i in range(part * n // out.shape[0], (part + 1) * n // out.shape[0]):
            for j in range(m):
                total = out[part, j, codes[i, j]]
                for t in range(rows.shape[1]):
                    total[t] += rows[i, t]


def word_sums(rows: F32, codes: U8) -> F64:
    """Sum (m, ksub, d) float64 of the rows (n, d) that use each codeword: the transpose of `decode`."""
    out = np.zeros((PARTS, codes.shape[1], KSUB, rows.shape[1]), np.float32)
    _word_sums(rows, codes, out)
    total: F64 = out.sum(axis=0, dtype=np.float64)
    return total


@nb.njit(parallel=True, nogil=True, cache=True)
def _co_occurrence(codes: U8, out: F64) -> None:
    n, m = codes.shape
    for a in nb.prange(m):  # each has rows of its own in `out`
        for i in range(n):
            for b in range(m):
                out[a * KSUB + codes[i, a], b * KSUB + codes[i, b]] += 1


def co_occurrence(codes: U8) -> F64:
    """How often two codewords meet in a row: B^T B of the one-hot matrix B of the codes. (m ksub, m ksub) float64."""
    size = codes.shape[1] * KSUB
    out = np.zeros((size, size))
    _co_occurrence(codes, out)
    return out
