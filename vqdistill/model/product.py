"""Product codebooks: a rotation, and 16 codewords in each of m subspaces."""

from __future__ import annotations

import numpy as np

from vqdistill.config import KSUB
from vqdistill.kernels import jit
from vqdistill.kernels.threads import matmul_t
from vqdistill.types import F32Rows

_OPQ_ROUNDS = 30
_FIRST_ROUNDS = 4


def random_product(y: F32Rows, m: int, rng: np.random.Generator) -> tuple[F32Rows, F32Rows]:
    """Draw a rotation (m dsub, d) with orthonormal columns; cluster the rows (n, d) by codewords (m, ksub, dsub)."""
    d = y.shape[1]
    dsub = -(-d // m)
    rotation = np.linalg.qr(rng.standard_normal((m * dsub, d)))[0].astype(np.float32)
    z = matmul_t(y, rotation)
    picks = np.resize(rng.permutation(len(y)), KSUB)
    codewords = np.ascontiguousarray(z[picks].reshape(KSUB, m, dsub).transpose(1, 0, 2))
    return rotation, lloyd(z, codewords, _FIRST_ROUNDS)


def train_opq(y: F32Rows, m: int, rng: np.random.Generator) -> tuple[F32Rows, F32Rows]:
    """Train rotation (m dsub, d) and codewords (m, ksub, dsub) to reconstruct the rows (n, d).

    References
    ----------
    Ge, He, Ke, Sun: Optimized product quantization, CVPR 2013, section 3.2 (the non-parametric solution).
    """
    rotation, codewords = random_product(y, m, rng)
    z = matmul_t(y, rotation)
    for _ in range(_OPQ_ROUNDS):
        codewords = lloyd(z, codewords, 1)
        words = codewords[np.arange(m), jit.pq_assign(z, codewords)].reshape(len(y), -1)
        # Orthogonal Procrustes: the rotation that brings the rows closest to what their codes stand for.
        u, _, vt = np.linalg.svd(words.T @ y, full_matrices=False)
        rotation = np.ascontiguousarray(u @ vt, dtype=np.float32)
        z = matmul_t(y, rotation)
    return rotation, codewords


def lloyd(z: F32Rows, codewords: F32Rows, rounds: int) -> F32Rows:
    """Move codewords (m, ksub, dsub) to the means of the rotated rows (n, m dsub) that use them, `rounds` times."""
    for _ in range(rounds):
        sums, counts = jit.subspace_sums(z, jit.pq_assign(z, codewords), KSUB)
        means = sums / np.maximum(counts, 1)[..., None]
        codewords = np.where(counts[..., None] > 0, means, codewords).astype(np.float32)
    return codewords
