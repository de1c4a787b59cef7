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
from vqdistill.kernels import additive, jit
from vqdistill.kernels.additive import RowMetric
from vqdistill.types import F64, F32Rows

U8 = npt.NDArray[np.uint8]

METRIC_ROUNDS = 3
_CG_STEPS = 4
SWEEPS = 10
"""Passes after which practically every descent has ended."""
FIT_ROUNDS = 8
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


def row_metric(own: F32Rows, terms: RowTerms | None) -> RowMetric:
    """Metric of each row: its own direction (`own_directions`) and the queries that rank it."""
    if terms is None:
        none = np.empty((len(own), 0))
        terms = RowTerms(none.astype(np.int32), none.astype(np.float32), np.zeros((1, own.shape[1]), np.float32))
    return RowMetric(own, SELF_WEIGHT * own.shape[1], terms.lists, terms.weights, terms.queries)


def own_directions(x: F32Rows, mean: F32Rows) -> F32Rows:
    """Directions of rows, seen from the mean.

    A common mean, which some encoders have, is no direction of a row's own: kept in, it would claim most of every code.
    """
    return jit.directions(x, mean)


def directions(x: F32Rows) -> F32Rows:
    """Rows scaled to unit norm; zero rows stay zero."""
    return jit.directions(x, np.zeros(x.shape[1], np.float32))


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
        codes = additive.icm(y, metric, codewords, codes, sweeps=SWEEPS, rounds=FIT_ROUNDS)
        codewords = _conjugate_gradients(codewords, y, metric, codes)
    return codewords


def metric_error(y: F32Rows, metric: RowMetric, codewords: F32Rows) -> float:
    """Sum of e_i^T A_i e_i over the rows (n, d), e_i what their own codes leave."""
    left = y - additive.decode(encode_additive(y, metric, codewords), codewords)
    return float((left * additive.apply_metric(left, metric)).sum(dtype=np.float64))


def encode_additive(y: F32Rows, metric: RowMetric, codewords: F32Rows) -> U8:
    """Codes (n, m) uint8 of the rows (n, d); the same for a row whatever rows stand beside it."""
    return additive.icm(y, metric, codewords, sweeps=SWEEPS, rounds=max(_ENCODE_ROUNDS, len(codewords) // 2))


def without_terms(y: F32Rows) -> RowMetric:
    """The Euclidean metric for every row."""
    none = np.empty((len(y), 0))
    return RowMetric(y, 0.0, none.astype(np.int32), none.astype(np.float32), np.zeros((1, y.shape[1]), np.float32))


def least_squares(y: F32Rows, codes: U8, near: F32Rows | None = None) -> F32Rows:
    """Solve for the codewords that minimise sum_i |e_i|^2 + ridge at fixed codes.

    Parameters
    ----------
    y : (n, d) float32 targets
    codes : (n, m) uint8
    near : (m, ksub, d) float32 to stay near where rows are few, see `_tether`; None = wherever it takes them

    Returns
    -------
    (m, ksub, d) float32
    """
    sums, tether = additive.word_sums(y, codes), 0.0
    if near is not None:
        tether = _tether(codes)
        sums += tether * near
    return (_inverse_normal(codes, tether) @ sums.reshape(len(sums) * KSUB, -1)).reshape(sums.shape).astype(np.float32)


def _inverse_normal(codes: U8, tether: float) -> F64:
    """Inverse of B^T B + (ridge + tether) I, B the one-hot matrix of the codes."""
    normal = additive.co_occurrence(codes)
    normal[np.diag_indices_from(normal)] += _ridge(codes) + tether
    return np.asarray(np.linalg.inv(normal), dtype=np.float64)


def _ridge(codes: U8) -> float:
    return _RIDGE * len(codes) / KSUB


def _tether(codes: U8) -> float:
    """Weight of the distance to the codewords before, in rows: nothing where rows abound, all where they are as many as
    codewords. Without it 1,500 rows and 96 codebooks leave twice the error, on other rows, of the product start.
    """
    rows, words = len(codes), codes.shape[1] * KSUB
    return float((words / rows) ** 4 * rows / KSUB)


def _conjugate_gradients(codewords: F32Rows, y: F32Rows, metric: RowMetric, codes: U8) -> F32Rows:
    """A few steps towards the codewords that minimise sum_i e_i^T A_i e_i + ridge + tether at fixed codes.

    The Euclidean normal matrix preconditions: it is the same problem with every A_i = I.
    """
    tether, ridge = _tether(codes), _ridge(codes)
    inverse = _inverse_normal(codes, tether)

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
        image = apply(step) + tether * step
        length = rho / max((step * image).sum(), np.finfo(np.float64).tiny)
        words = words + length * step
        residual = residual - length * image
        z = precondition(residual)
        rho, before = (residual * z).sum(), rho
        step = z + rho / max(before, np.finfo(np.float64).tiny) * step
    return words.astype(np.float32)
