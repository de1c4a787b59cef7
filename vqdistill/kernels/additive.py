"""Training-time kernels (Numba) of additive codes under a metric of each row's own.

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

from vqdistill.kernels.threads import matmul_t

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]

KSUB = 16
PARTS = 8
"""Parts that sums over rows are split into: fixed, so that they round alike for any number of threads."""
_FLIPS = 4
"""Codes that a perturbation changes."""
_LOOSE = {"contract", "reassoc", "nsz", "arcp"}
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
def _dot(a: F32, b: F32) -> np.float32:
    total = np.float32(0)
    for t in range(a.shape[0]):
        total += a[t] * b[t]
    return total


@nb.njit(parallel=True, nogil=True, cache=True, fastmath=_LOOSE)
def _metric_dots(y: F32, x: F32, lists: I32, queries: F32, out: F32) -> None:
    for i in nb.prange(y.shape[0]):
        out[i, 0] = _dot(x[i], y[i])
        for r in range(lists.shape[1]):
            if lists[i, r] >= 0:
                out[i, r + 1] = _dot(queries[lists[i, r]], y[i])


@nb.njit(nogil=True, cache=True, fastmath=_LOOSE)
def _descend(b: U8, s: F32, gram: F32, terms: F32, sums: F32, weights: F32, count: int, sweeps: int) -> None:
    """Iterated conditional modes: set each code to its best given the others, until nothing changes.

    s[j, k] = <e, C[j, k]> and sums[t] = <term t, e>, e being the error of the codes `b`, are kept up to date.
    """
    m = b.shape[0]
    cost = np.empty(KSUB, np.float32)
    for _ in range(sweeps):
        changed = False
        for j in range(m):
            old = b[j]
            g = gram[j * KSUB + old]
            for k in range(KSUB):
                at = j * KSUB + k
                # |e - (C_k - C_old)|^2 - |e|^2
                cost[k] = gram[at, at] - 2 * g[at] + g[j * KSUB + old] - 2 * (s[j, k] - s[j, old])
            for t in range(count):
                p, w, twice = terms[t, j, old], weights[t], 2 * sums[t]
                for k in range(KSUB):
                    step = terms[t, j, k] - p
                    cost[k] += w * step * (step - twice)
            new, least = old, np.float32(0)
            for k in range(KSUB):
                if cost[k] < least:
                    new, least = k, cost[k]
            if new != old:
                changed = True
                b[j] = new
                h = gram[j * KSUB + new]
                for jj in range(m):
                    for k in range(KSUB):
                        s[jj, k] -= h[jj * KSUB + k] - g[jj * KSUB + k]
                for t in range(count):
                    sums[t] -= terms[t, j, new] - terms[t, j, old]
        if not changed:
            return


@nb.njit(nogil=True, cache=True, fastmath=_LOOSE)
def _errors(b: U8, yc: F32, dots: F32, gram: F32, terms: F32, count: int, s: F32, sums: F32) -> None:
    """Fill `s` and `sums` (see `_descend`) for the codes `b`."""
    m = b.shape[0]
    for j in range(m):
        for k in range(KSUB):
            s[j, k] = yc[j * KSUB + k]
    for a in range(m):
        g = gram[a * KSUB + b[a]]
        for j in range(m):
            for k in range(KSUB):
                s[j, k] -= g[j * KSUB + k]
    for t in range(count):
        sums[t] = dots[t]
        for j in range(m):
            sums[t] -= terms[t, j, b[j]]


@nb.njit(nogil=True, cache=True, fastmath=_LOOSE)
def _greedy(b: U8, yc: F32, gram: F32, s: F32) -> None:
    """Choose the codes one after the other, each the best for what the earlier ones left over."""
    m = b.shape[0]
    for j in range(m):
        for k in range(KSUB):
            s[j, k] = yc[j * KSUB + k]
    for j in range(m):
        least = np.float32(np.inf)
        for k in range(KSUB):
            cost = gram[j * KSUB + k, j * KSUB + k] - 2 * s[j, k]
            if cost < least:
                b[j], least = k, cost
        g = gram[j * KSUB + b[j]]
        for jj in range(j + 1, m):
            for k in range(KSUB):
                s[jj, k] -= g[jj * KSUB + k]


@nb.njit(inline="always")
def _next(state: np.uint64) -> np.uint64:
    state ^= state << np.uint64(13)
    state ^= state >> np.uint64(7)
    return state ^ (state << np.uint64(17))


@nb.njit(parallel=True, nogil=True, cache=True, fastmath=_LOOSE)
def _icm(
    yc: F32,
    xc: F32,
    qc: F32,
    dots: F32,
    gram: F32,
    eta: np.float32,
    lists: I32,
    weights: F32,
    fresh: bool,
    sweeps: int,
    rounds: int,
    codes: U8,
) -> None:
    n, m = codes.shape
    for i in nb.prange(n):
        most = lists.shape[1] + 1
        s = np.empty((m, KSUB), np.float32)
        terms = np.empty((most, m, KSUB), np.float32)
        scale, dot, sums = np.empty(most, np.float32), np.empty(most, np.float32), np.empty(most, np.float32)
        count = 0
        for r in range(most):
            if r == 0:
                if eta == 0:
                    continue
                source, scale[0], dot[0] = xc[i], eta, dots[i, 0]
            else:
                if lists[i, r - 1] < 0:
                    break
                source, scale[count], dot[count] = qc[lists[i, r - 1]], weights[i, r - 1], dots[i, r]
            for j in range(m):
                for k in range(KSUB):
                    terms[count, j, k] = source[j * KSUB + k]
            count += 1
        if fresh:
            _greedy(codes[i], yc[i], gram, s)
        b = codes[i].copy()
        state = np.uint64(0x9E3779B97F4A7C15)
        for j in range(m):
            state = _next(state ^ np.uint64(b[j]))
        least = np.float32(np.inf)
        for trial in range(rounds + 1):
            if trial > 0:
                for j in range(m):
                    b[j] = codes[i, j]
                for _ in range(_FLIPS):
                    state = _next(state)
                    b[(state >> np.uint64(32)) % np.uint64(m)] = (state >> np.uint64(16)) % np.uint64(KSUB)
            _errors(b, yc[i], dot, gram, terms, count, s, sums)
            _descend(b, s, gram, terms, sums, scale, count, sweeps)
            # e^T A e less the constant |y|^2; |e|^2 = |y|^2 - <y, yhat> - <e, yhat>
            cost = np.float32(0)
            for j in range(m):
                cost -= yc[i, j * KSUB + b[j]] + s[j, b[j]]
            for t in range(count):
                cost += scale[t] * sums[t] * sums[t]
            if cost < least:
                least = cost
                for j in range(m):
                    codes[i, j] = b[j]


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
    of which costs one more scalar a row and one more table row a candidate.
    """
    flat = codewords.reshape(-1, codewords.shape[2])
    dots = np.zeros((len(y), metric.lists.shape[1] + 1), np.float32)
    _metric_dots(y, metric.x, metric.lists, metric.queries, dots)
    xc = matmul_t(metric.x, flat) if metric.eta else np.zeros((1, 1), np.float32)
    gram = np.ascontiguousarray(flat @ flat.T)
    fresh = codes is None
    out = np.empty((len(y), len(codewords)), np.uint8) if codes is None else codes
    eta, qc = np.float32(metric.eta), matmul_t(metric.queries, flat)
    _icm(matmul_t(y, flat), xc, qc, dots, gram, eta, metric.lists, metric.weights, fresh, sweeps, rounds, out)
    return out


@nb.njit(parallel=True, nogil=True, cache=True, fastmath=_LOOSE)
def _apply_metric(y: F32, x: F32, eta: np.float32, lists: I32, weights: F32, queries: F32, out: F32) -> None:
    for i in nb.prange(y.shape[0]):
        out[i] = y[i]
        if eta > 0:
            s = eta * _dot(x[i], y[i])
            for t in range(y.shape[1]):
                out[i, t] += s * x[i, t]
        for r in range(lists.shape[1]):
            if lists[i, r] >= 0:
                query = queries[lists[i, r]]
                s = weights[i, r] * _dot(query, y[i])
                for t in range(y.shape[1]):
                    out[i, t] += s * query[t]


def apply_metric(y: F32, metric: RowMetric) -> F32:
    """A_i y_i of each row (n, d)."""
    out = np.empty_like(y)
    _apply_metric(y, metric.x, np.float32(metric.eta), metric.lists, metric.weights, metric.queries, out)
    return out


@nb.njit(parallel=True, nogil=True, cache=True, fastmath=_LOOSE)
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


@nb.njit(parallel=True, nogil=True, cache=True, fastmath=_LOOSE)
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


@nb.njit(nogil=True, cache=True)
def _co_occurrence(codes: U8, out: F64) -> None:
    n, m = codes.shape
    for i in range(n):
        for a in range(m):
            for b in range(m):
                out[a * KSUB + codes[i, a], b * KSUB + codes[i, b]] += 1


def co_occurrence(codes: U8) -> F64:
    """How often two codewords meet in a row: B^T B of the one-hot matrix B of the codes. (m ksub, m ksub) float64."""
    size = codes.shape[1] * KSUB
    out = np.zeros((size, size))
    _co_occurrence(codes, out)
    return out
