"""Coordinates in which codes are learned: a linear change that keeps every score, and shapes which errors codes avoid.

With a symmetric positive definite A, documents become x A and queries q A^-1: <q A^-1, x A> = <q, x>. Codes that keep
the squared error small there keep e A A e^T small here, so A A is the metric that all documents share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vqdistill.errors import InvalidInput
from vqdistill.kernels.threads import matmul_t
from vqdistill.types import F64, F32Rows

_ROWS_AT_ONCE = 8192
_RIDGE = 0.01
"""Share of the mean variance added to every direction before a whitening, whose inverse would be unbounded else."""


@dataclass(frozen=True)
class Space:
    """A change of coordinates, and its inverse."""

    forward: F32Rows
    """(d, d) symmetric; documents become x @ forward"""
    inverse: F32Rows
    """(d, d) symmetric; queries, and all that is multiplied with them, become q @ inverse"""

    @classmethod
    def of_metric(cls, metric: F64) -> Space:
        """Space in which the squared length of an error e is e metric e^T, scaled to a mean eigenvalue of 1.

        Parameters
        ----------
        metric : (d, d) float64, symmetric positive definite
        """
        values, vectors = np.linalg.eigh(metric)
        forward = _symmetric((vectors * np.sqrt(values / values.mean())) @ vectors.T)
        return cls(forward, _symmetric(np.linalg.inv(forward.astype(np.float64))))

    @classmethod
    def of_forward(cls, forward: F32Rows) -> Space | None:
        """Space whose documents are x @ forward, a symmetric (d, d); None for the identity.

        Raises
        ------
        InvalidInput
            If `forward` has no inverse or is not symmetric.
        """
        if np.array_equal(forward, np.eye(len(forward), dtype=np.float32)):
            return None
        values = np.linalg.eigvalsh(forward.astype(np.float64))
        if not np.array_equal(forward, forward.T) or not values[0] > 0:
            raise InvalidInput(
                f"a space must be symmetric and positive definite, got a smallest eigenvalue of {values[0]:g}"
            )
        return cls(forward, _symmetric(np.linalg.inv(forward.astype(np.float64))))

    def docs(self, x: F32Rows, out: F32Rows | None = None) -> F32Rows:
        """Documents (n, d) in this space; `out` may be `x`."""
        return matmul_t(x, self.forward, out)

    def queries(self, q: F32Rows, out: F32Rows | None = None) -> F32Rows:
        """Queries (q, d), or vectors that documents of this space are multiplied with; `out` may be `q`."""
        return matmul_t(q, self.inverse, out)


def sphering(queries: F32Rows, share: float) -> Space:
    """Space that cares more for the directions that queries have: the metric (1 - share) I + share S.

    Parameters
    ----------
    queries : (q, d) float32
    share : in 0..1, of the query second moment S, scaled to a mean eigenvalue of 1. S is not centred: along a mean that
        all queries share, an error moves a document in every ranking. Few queries count for less: S is shrunk to I.

    References
    ----------
    Tepper et al.: LeanVec, TMLR 2024, section 3 (query-aware metrics); GleanVec, 2024 (sphering).
    """
    count, d = queries.shape
    q = queries.astype(np.float64)
    square = float((q**2).sum())
    if not square > 0:
        return Space.of_metric(np.eye(d))
    trust = share * count / (count + d)
    return Space.of_metric((1 - trust) * np.eye(d) + trust * d / square * (q.T @ q))


def isotropy(x: F32Rows) -> Space:
    """Space in which documents (n, d) vary alike in every direction (ZCA whitening): all directions count alike."""
    mean, covariance = x.mean(axis=0, dtype=np.float64), np.zeros((x.shape[1], x.shape[1]))
    for at in range(0, len(x), _ROWS_AT_ONCE):
        centred = x[at : at + _ROWS_AT_ONCE] - mean
        covariance += centred.T @ centred / len(x)
    ridge = _RIDGE * max(np.trace(covariance) / len(covariance), np.finfo(np.float64).tiny)
    return Space.of_metric(np.linalg.inv(covariance + ridge * np.eye(len(covariance))))


def _symmetric(a: F64) -> F32Rows:
    return np.ascontiguousarray(0.5 * (a + a.T), dtype=np.float32)
