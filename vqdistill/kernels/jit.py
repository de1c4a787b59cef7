"""Training-time kernels (Numba): PQ assignment, sums over codes and their gradients, k-means statistics.

Every public function checks nothing: callers pass C-contiguous arrays of the documented dtypes. Work is split over rows
or queries and never over a sum, so results do not depend on the number of threads.
"""

from __future__ import annotations

import numba as nb
import numpy as np
import numpy.typing as npt

from vqdistill.kernels.additive import LOOSE, dot

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]


@nb.njit(parallel=True, nogil=True, cache=True)
def _pq_assign(z: F32, by_dim: F32, half_norms: F32, out: U8) -> None:
    m, dsub, ksub = by_dim.shape
    for i in nb.prange(z.shape[0]):
        score = np.empty(ksub, np.float32)
        for j in range(m):
            for k in range(ksub):
                score[k] = -half_norms[j, k]
            for t in range(dsub):
                value = z[i, j * dsub + t]
                for k in range(ksub):
                    score[k] += value * by_dim[j, t, k]
            best = 0
            for k in range(1, ksub):
                if score[k] > score[best]:
                    best = k
            out[i, j] = best


def pq_assign(z: F32, codewords: F32) -> U8:
    """Nearest codeword (squared L2) of every sub-vector; ties go to the lowest index.

    Parameters
    ----------
    z : (b, m * dsub) float32
    codewords : (m, ksub, dsub) float32

    Returns
    -------
    (b, m) uint8
    """
    out = np.empty((z.shape[0], codewords.shape[0]), np.uint8)
    half_norms = (0.5 * (codewords.astype(np.float64) ** 2).sum(axis=2)).astype(np.float32)
    _pq_assign(z, np.ascontiguousarray(codewords.transpose(0, 2, 1)), half_norms, out)
    return out


@nb.njit(parallel=True, nogil=True, cache=True)
def _gather_scores(lut: F32, codes: U8, docs: I32, out: F32) -> None:
    m = lut.shape[1]
    for q in nb.prange(docs.shape[0]):
        for i in range(docs.shape[1]):
            row = docs[q, i]
            total = np.float32(0)
            for j in range(m):
                total += lut[q, j, codes[row, j]]
            out[q, i] = total


def gather_scores(lut: F32, codes: U8, docs: I32) -> F32:
    """Scores of each query's own documents by table look-up: sum_j lut[q, j, codes[docs[q, i], j]].

    Parameters
    ----------
    lut : (q, m, ksub) float32
    codes : (n, m) uint8
    docs : (q, l) int32 in [0, n)

    Returns
    -------
    (q, l) float32
    """
    out = np.empty(docs.shape, np.float32)
    _gather_scores(lut, codes, docs, out)
    return out


@nb.njit(parallel=True, nogil=True, cache=True)
def _scatter_grads(grad: F32, codes: U8, docs: I32, out: F32) -> None:
    m = out.shape[1]
    for q in nb.prange(docs.shape[0]):
        for i in range(docs.shape[1]):
            row = docs[q, i]
            for j in range(m):
                out[q, j, codes[row, j]] += grad[q, i]


def scatter_grads(grad: F32, codes: U8, docs: I32, ksub: int) -> F32:
    """Gradient of `gather_scores` with respect to `lut`, given the gradient (q, l) float32 of its result.

    Returns
    -------
    (q, m, ksub) float32
    """
    out = np.zeros((docs.shape[0], codes.shape[1], ksub), np.float32)
    _scatter_grads(grad, codes, docs, out)
    return out


@nb.njit(parallel=True, nogil=True, cache=True)
def _subspace_sums(z: F32, codes: U8, sums: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> None:
    dsub = sums.shape[2]
    for j in nb.prange(codes.shape[1]):
        for i in range(codes.shape[0]):
            k = codes[i, j]
            counts[j, k] += 1
            for t in range(dsub):
                sums[j, k, t] += z[i, j * dsub + t]


def subspace_sums(z: F32, codes: U8, ksub: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Sum and count of the sub-vectors of each codeword.

    Parameters
    ----------
    z : (b, m * dsub) float32
    codes : (b, m) uint8

    Returns
    -------
    sums : (m, ksub, dsub) float64
    counts : (m, ksub) int64
    """
    m = codes.shape[1]
    sums = np.zeros((m, ksub, z.shape[1] // m))
    counts = np.zeros((m, ksub), np.int64)
    _subspace_sums(z, codes, sums, counts)
    return sums, counts


@nb.njit(nogil=True, cache=True)
def _list_sums(x: F32, lists: I32, sums: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> None:
    for i in range(x.shape[0]):
        counts[lists[i]] += 1
        for t in range(x.shape[1]):
            sums[lists[i], t] += x[i, t]


def list_sums(x: F32, lists: I32, nlist: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Sum (nlist, d) float64 and count (nlist,) int64 of the rows (b, d) of each list."""
    sums = np.zeros((nlist, x.shape[1]))
    counts = np.zeros(nlist, np.int64)
    _list_sums(x, lists, sums, counts)
    return sums, counts


@nb.njit(inline="always")
def _scale_to_unit(row: F32) -> None:
    norm = np.sqrt(dot(row, row))
    if norm > 0:
        for t in range(row.shape[0]):
            row[t] /= norm


@nb.njit(parallel=True, nogil=True, cache=True, fastmath=LOOSE)
def _directions(x: F32, origin: F32, out: F32) -> None:
    for i in nb.prange(x.shape[0]):
        for t in range(x.shape[1]):
            out[i, t] = x[i, t] - origin[t]
        _scale_to_unit(out[i])


def directions(x: F32, origin: F32) -> F32:
    """Directions of rows x (n, d) float32, seen from `origin` (d,): (n, d) float32 unit rows; itself it is zero."""
    out = np.empty(x.shape, np.float32)
    _directions(x, origin, out)
    return out


@nb.njit(parallel=True, nogil=True, cache=True, fastmath=LOOSE)
def _pulled(own: F32, lists: I32, weights: F32, vectors: F32, shrink: np.float32, out: F32) -> None:
    for i in nb.prange(own.shape[0]):
        pull = out[i]
        pull[:] = 0
        total = shrink
        for r in range(lists.shape[1]):
            total += weights[i, r]
            if lists[i, r] >= 0:
                weight, vector = weights[i, r], vectors[lists[i, r]]
                for t in range(pull.shape[0]):
                    pull[t] += weight * vector[t]
        for t in range(pull.shape[0]):
            pull[t] = own[i, t] + pull[t] / total
        _scale_to_unit(pull)


def pulled(own: F32, lists: I32, weights: F32, vectors: F32, shrink: float) -> F32:
    """Directions of rows that vectors pull at: of own[i] + sum_r weights[i, r] vectors[lists[i, r]] / (shrink + sum_r
    weights[i, r]).

    Parameters
    ----------
    own : (b, d) float32
    lists, weights : (b, r) int32 and float32 of the vectors (v, d) float32; entries of lists below 0 pull nowhere
    shrink : above 0

    Returns
    -------
    (b, d) float32 unit rows; a sum that is zero stays zero
    """
    out = np.empty(own.shape, np.float32)
    _pulled(own, lists, weights, vectors, np.float32(shrink), out)
    return out


@nb.njit(nogil=True, cache=True)
def _members(own: I32, shared: I32, stamp: I32, out: npt.NDArray[np.bool_]) -> None:
    for q in range(own.shape[0]):
        for i in range(own.shape[1]):
            if own[q, i] >= 0:
                stamp[own[q, i]] = q + 1
        for i in range(shared.shape[0]):
            out[q, i] = stamp[shared[i]] == q + 1


def members(own: I32, shared: I32, n: int) -> npt.NDArray[np.bool_]:
    """Mark which shared documents stand in a query's own list, so that no document counts twice.

    Parameters
    ----------
    own : (q, l) int32 in [0, n), negative entries are padding
    shared : (s,) int32 in [0, n)

    Returns
    -------
    (q, s) bool
    """
    out = np.empty((own.shape[0], shared.shape[0]), np.bool_)
    _members(own, shared, np.zeros(n, np.int32), out)
    return out
