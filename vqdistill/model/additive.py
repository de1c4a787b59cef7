"""Additive 4-bit codes: m codebooks of 16 full-dimensional codewords, fitted to each row's own metric.

A row's score is still a sum of m look-ups, so the scan and its bytes are those of product quantization, which is the
special case of codewords with disjoint supports.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vqdistill.config import KSUB
from vqdistill.kernels import additive
from vqdistill.kernels.additive import RowMetric
from vqdistill.types import F64, F32Rows

U8 = npt.NDArray[np.uint8]

_INIT_ROWS = 8192
_INIT_ROUNDS = 3
_PLAIN_ROUNDS = 6
METRIC_ROUNDS = 3
_CG_STEPS = 4
_SWEEPS = 10
"""Passes after which practically every descent has ended."""
_FIT_ROUNDS = 8
"""Perturbations between two updates of the codebooks. With 1 the trained codebooks leave 1.5 % more error than with 4,
with 12 they leave 0.7 % less."""
_ENCODE_ROUNDS = 16
"""Fewest perturbations of a row's codes; m / 2 if that is more. Against 2, 16 take off about 5 % of the error at 16
bytes and 10 % at 32; 40 would take off 1 % and 3 % more, for nearly twice the time."""
_RIDGE = 1e-3
"""Weight of the ridge on a codeword, in rows that use it on average."""


SELF_WEIGHT = 0.005
"""Weight, in units of d, of the error along a row's own direction against the error as a whole. 0.005 to 0.01 serve
alike with queries; 0.03 already costs recall at 10."""


@dataclass(frozen=True)
class RowTerms:
    """For each row, the queries that rank it: its codes keep their scores right before all else."""

    lists: npt.NDArray[np.int32]
    """(b, r) query numbers, -1 padding at the end"""
    weights: F32Rows
    """(b, r)"""
    queries: F32Rows
    """(q, d) unit directions"""

    def take(self, rows: npt.NDArray[np.int64] | slice) -> RowTerms:
        """Terms of the given rows."""
        return RowTerms(self.lists[rows], self.weights[rows], self.queries)


class TermsOfRows(Protocol):
    """Knows the terms of every row of a corpus."""

    def take(self, rows: npt.NDArray[np.int64]) -> RowTerms:
        """Terms of the rows with these numbers."""
        ...


def row_metric(x: F32Rows, mean: F32Rows, terms: RowTerms | None) -> RowMetric:
    """Metric of each row: its own direction, seen from the mean, and the queries that rank it.

    A common mean, which some encoders have, is no direction of its own: kept in, it would claim most of every code.
    """
    if terms is None:
        none = np.empty((len(x), 0))
        terms = RowTerms(none.astype(np.int32), none.astype(np.float32), np.zeros((1, x.shape[1]), np.float32))
    eta = SELF_WEIGHT * x.shape[1]
    return RowMetric(directions(x - mean), eta, terms.lists, terms.weights, terms.queries)


def directions(x: F32Rows) -> F32Rows:
    """Rows scaled to unit norm; zero rows stay zero."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(norms > 0, norms, 1), dtype=np.float32)


def train_euclidean(y: F32Rows, m: int, rng: np.random.Generator) -> F32Rows:
    """Learn codebooks that minimise sum_i |e_i|^2 over codes and codewords.

    Parameters
    ----------
    y : (n, d) float32 targets
    m : codebooks

    Returns
    -------
    (m, ksub, d) float32

    References
    ----------
    Babenko, Lempitsky: Additive quantization, CVPR 2014. Martinez et al.: LSQ++, ECCV 2018.
    """
    codewords = _residual_start(y[np.sort(rng.permutation(len(y))[:_INIT_ROWS])], m, rng)
    euclidean = without_terms(y)
    codes = additive.icm(y, euclidean, codewords, sweeps=_SWEEPS, rounds=_FIT_ROUNDS)
    for _ in range(_PLAIN_ROUNDS):
        normal = _normal_matrix(codes)
        codewords = _least_squares(normal, additive.word_sums(y, codes))
        additive.icm(y, euclidean, codewords, codes, sweeps=_SWEEPS, rounds=_FIT_ROUNDS)
    return codewords


def fit_metric(y: F32Rows, metric: RowMetric, codewords: F32Rows, rounds: int = METRIC_ROUNDS) -> F32Rows:
    """Move codebooks towards those that minimise sum_i e_i^T A_i e_i over codes and codewords.

    Parameters
    ----------
    y : (n, d) float32 targets
    metric : A of each row
    codewords : (m, ksub, d) float32 to start from
    rounds : of codes, then codewords

    Returns
    -------
    (m, ksub, d) float32
    """
    codes = None
    for _ in range(rounds):
        codes = additive.icm(y, metric, codewords, codes, sweeps=_SWEEPS, rounds=_FIT_ROUNDS)
        codewords = _conjugate_gradients(codewords, y, metric, codes)
    return codewords


def encode_additive(y: F32Rows, metric: RowMetric, codewords: F32Rows) -> U8:
    """Codes (n, m) uint8 of the rows (n, d); the same for a row whatever rows stand beside it."""
    return additive.icm(y, metric, codewords, sweeps=_SWEEPS, rounds=max(_ENCODE_ROUNDS, len(codewords) // 2))


def without_terms(y: F32Rows) -> RowMetric:
    """The Euclidean metric for every row."""
    none = np.empty((len(y), 0))
    return RowMetric(y, 0.0, none.astype(np.int32), none.astype(np.float32), np.zeros((1, y.shape[1]), np.float32))


def _residual_start(y: F32Rows, m: int, rng: np.random.Generator) -> F32Rows:
    """Greedy residual quantization: 16-means of what the codebooks before have left."""
    left = y.copy()
    codewords = np.empty((m, KSUB, y.shape[1]), np.float32)
    for j in range(m):
        words = left[np.resize(rng.permutation(len(left)), KSUB)].copy()
        for _ in range(_INIT_ROUNDS):
            codes = _nearest(left, words)[:, None]
            counts = np.bincount(codes[:, 0], minlength=KSUB)[:, None]
            words = np.where(counts > 0, additive.word_sums(left, codes)[0] / np.maximum(counts, 1), words)
            words = words.astype(np.float32)
        codewords[j] = words
        left -= words[_nearest(left, words)]
    return codewords


def _nearest(y: F32Rows, words: F32Rows) -> U8:
    return np.asarray((y @ words.T - 0.5 * (words**2).sum(axis=1)).argmax(axis=1), dtype=np.uint8)


def _normal_matrix(codes: U8) -> F64:
    """B^T B + ridge of the one-hot matrix B of the codes."""
    normal = additive.co_occurrence(codes)
    normal[np.diag_indices_from(normal)] += _ridge(codes)
    return normal


def _ridge(codes: U8) -> float:
    return _RIDGE * len(codes) / KSUB


def _least_squares(normal: F64, sums: F64) -> F32Rows:
    return (_inverse(normal) @ sums.reshape(len(normal), -1)).reshape(sums.shape).astype(np.float32)


def _inverse(normal: F64) -> F64:
    return np.asarray(np.linalg.inv(normal), dtype=np.float64)


def _conjugate_gradients(codewords: F32Rows, y: F32Rows, metric: RowMetric, codes: U8) -> F32Rows:
    """A few steps towards the codewords that minimise sum_i e_i^T A_i e_i + ridge at fixed codes.

    The Euclidean normal matrix preconditions: it is the same problem with every A_i = I.
    """
    inverse = _inverse(_normal_matrix(codes))
    ridge = _ridge(codes)

    def apply(words: F64) -> F64:
        rows = additive.apply_metric(additive.decode(codes, words.astype(np.float32)), metric)
        return additive.word_sums(rows, codes) + ridge * words

    def precondition(residual: F64) -> F64:
        return (inverse @ residual.reshape(len(inverse), -1)).reshape(residual.shape)

    words = codewords.astype(np.float64)
    residual = additive.word_sums(additive.apply_metric(y, metric), codes) - apply(words)
    z = precondition(residual)
    step, rho = z, (residual * z).sum()
    for _ in range(_CG_STEPS):
        image = apply(step)
        length = rho / max((step * image).sum(), np.finfo(np.float64).tiny)
        words = words + length * step
        residual = residual - length * image
        z = precondition(residual)
        rho, before = (residual * z).sum(), rho
        step = z + rho / max(before, np.finfo(np.float64).tiny) * step
    return words.astype(np.float32)
