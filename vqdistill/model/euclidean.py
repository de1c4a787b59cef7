"""Additive codebooks that reconstruct rows, before anything is known of who asks for them."""

from __future__ import annotations

import numpy as np

from vqdistill.config import KSUB
from vqdistill.kernels import additive
from vqdistill.kernels.threads import matmul_t
from vqdistill.model.additive import FIT_ROUNDS, SWEEPS, U8, least_squares, without_terms
from vqdistill.model.product import lloyd, random_product
from vqdistill.types import F32Rows

_MOST_RESIDUAL = 0.15
"""Codebooks a dimension up to which codebooks start as greedy residual ones, if there are enough rows; else as product
ones. At 0.125 of 384 dimensions the residual start leaves 3 % less error, at 0.17 1 % more for twice the time, and at
0.33 more than twice as much; at 0.125 to 0.19 of 128 dimensions they are alike."""
_FEWEST_ROWS = 45
"""Training rows for each codeword from which that holds. With 23 rows and 32 codebooks the residual start leaves 3 %
more error, with 47 rows 5 % less."""
_RESIDUAL_ROWS = 8192
_RESIDUAL_ROUNDS = 3
_PRODUCT_ROUNDS = 12
_RELAXED = 20
"""Rounds of codes, then codewords, from a residual start; half as many from a product start, which settles soon."""
_NOISE = 3.0
"""Noise of relaxation at its start, in standard deviations of the rows over m. Against none, 15 rounds leave 2 % less
error at 16 bytes; with 6 they leave more."""


def train_euclidean(y: F32Rows, m: int, rng: np.random.Generator, rounds: int = _RELAXED) -> F32Rows:
    """Learn codebooks that minimise sum_i |e_i|^2 over codes and codewords.

    Parameters
    ----------
    y : (n, d) float32 targets
    m : codebooks
    rng : chooses the start, and the noise
    rounds : of codes, then codewords; half of them where the start needs no more

    Returns
    -------
    (m, ksub, d) float32

    References
    ----------
    Babenko, Lempitsky: Additive quantization, CVPR 2014. Martinez et al.: LSQ++, ECCV 2018, section 3.2: stochastic
    relaxation of the codewords (SR-D).
    """
    bold = m <= _MOST_RESIDUAL * y.shape[1] and len(y) >= _FEWEST_ROWS * m * KSUB
    if bold:
        codewords = _residual_start(y[np.sort(rng.permutation(len(y))[:_RESIDUAL_ROWS])], m, rng)
    else:
        codewords, rounds = _product_start(y, m, rng), -(-rounds // 2)
    metric, spread = without_terms(y), y.std(axis=0)
    codes = additive.icm(y, metric, codewords, sweeps=SWEEPS, rounds=FIT_ROUNDS)
    for done in range(1, rounds + 1):
        codewords = least_squares(y, codes, None if bold else codewords)
        if done == rounds:
            break
        # The last codes are chosen without noise.
        scale = _NOISE * np.sqrt(1 - done / (rounds - 1)) / m if bold else 0.0
        moved = codewords + scale * spread * rng.standard_normal(codewords.shape) if scale else codewords
        additive.icm(y, metric, moved.astype(np.float32), codes, sweeps=SWEEPS, rounds=FIT_ROUNDS)
    return codewords


def _product_start(y: F32Rows, m: int, rng: np.random.Generator) -> F32Rows:
    """Codewords of a product quantizer after a random rotation, rotated back."""
    rotation, codewords = random_product(y, m, rng)
    codewords = lloyd(matmul_t(y, rotation), codewords, _PRODUCT_ROUNDS)
    axes = rotation.reshape(m, -1, y.shape[1])
    return np.ascontiguousarray(np.einsum("jkt,jtd->jkd", codewords, axes, optimize=True), np.float32)


def _residual_start(y: F32Rows, m: int, rng: np.random.Generator) -> F32Rows:
    """Greedy residual quantization: 16-means of what the codebooks before have left."""
    left = y.copy()
    codewords = np.empty((m, KSUB, y.shape[1]), np.float32)
    for j in range(m):
        words = left[np.resize(rng.permutation(len(left)), KSUB)].copy()
        for _ in range(_RESIDUAL_ROUNDS):
            codes = _nearest(left, words)[:, None]
            counts = np.bincount(codes[:, 0], minlength=KSUB)[:, None]
            words = np.where(counts > 0, additive.word_sums(left, codes)[0] / np.maximum(counts, 1), words)
            words = words.astype(np.float32)
        codewords[j] = words
        left -= words[_nearest(left, words)]
    return codewords


def _nearest(y: F32Rows, words: F32Rows) -> U8:
    return np.asarray((y @ words.T - 0.5 * (words**2).sum(axis=1)).argmax(axis=1), dtype=np.uint8)
