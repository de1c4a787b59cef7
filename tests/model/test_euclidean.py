"""Additive codebooks before any metric: their starts, and what training makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from vqdistill.kernels import additive as kernels
from vqdistill.kernels import jit
from vqdistill.kernels.threads import matmul_t
from vqdistill.model import euclidean
from vqdistill.model.additive import encode_additive, without_terms
from vqdistill.model.euclidean import train_euclidean
from vqdistill.model.product import lloyd, random_product, train_opq
from vqdistill.types import F32Rows


@pytest.fixture(scope="module")
def y(sample: F32Rows) -> F32Rows:
    return np.asarray(sample - sample.mean(axis=0), np.float32)


def squared_error(y: F32Rows, words: F32Rows) -> float:
    codes = encode_additive(y, without_terms(y), words)
    return float(((y - kernels.decode(codes, words)) ** 2).sum(dtype=np.float64))


def forced(monkeypatch: pytest.MonkeyPatch, product: bool) -> None:
    monkeypatch.setattr(euclidean, "_MOST_RESIDUAL", 0.0 if product else 1e9)
    monkeypatch.setattr(euclidean, "_FEWEST_ROWS", 0)


@pytest.mark.parametrize(("m", "fewest_rows", "product"), [(4, 23, False), (4, 24, True), (64, 0, True)])
def test_few_codebooks_with_many_rows_start_residual(
    monkeypatch: pytest.MonkeyPatch, y: F32Rows, m: int, fewest_rows: int, product: bool
) -> None:
    monkeypatch.setattr(euclidean, "_FEWEST_ROWS", fewest_rows)
    chosen = train_euclidean(y, m, np.random.default_rng(0), 2)
    forced(monkeypatch, product)
    assert np.array_equal(chosen, train_euclidean(y, m, np.random.default_rng(0), 2))


@pytest.mark.parametrize("product", [False, True])
def test_training_beats_its_start(monkeypatch: pytest.MonkeyPatch, y: F32Rows, product: bool) -> None:
    forced(monkeypatch, product)
    start = euclidean._product_start if product else euclidean._residual_start
    before = start(y, 8, np.random.default_rng(0))
    assert squared_error(y, train_euclidean(y, 8, np.random.default_rng(0))) < 0.97 * squared_error(y, before)


def test_long_codes_gain_by_the_product_start(monkeypatch: pytest.MonkeyPatch, y: F32Rows) -> None:
    m = y.shape[1] // 3
    errors = []
    for product in (False, True):
        forced(monkeypatch, product)
        errors.append(squared_error(y, train_euclidean(y, m, np.random.default_rng(0), 2)))
    assert errors[1] < 0.8 * errors[0]


def test_the_product_start_decodes_as_its_quantizer(y: F32Rows) -> None:
    """Also where m does not divide d, so that the rotation has more rows than columns."""
    m = 5
    assert y.shape[1] % m
    words = euclidean._product_start(y, m, np.random.default_rng(3))
    rotation, codewords = random_product(y, m, np.random.default_rng(3))
    z = matmul_t(y, rotation)
    codewords = lloyd(z, codewords, euclidean._PRODUCT_ROUNDS)
    codes = jit.pq_assign(z, codewords)
    decoded = codewords[np.arange(m), codes].reshape(len(y), -1) @ rotation
    np.testing.assert_allclose(kernels.decode(np.asarray(codes, np.uint8), words), decoded, atol=1e-4)


def test_a_trained_rotation_beats_a_random_one(y: F32Rows) -> None:
    errors = []
    for train in (random_product, train_opq):
        rotation, codewords = train(y, 8, np.random.default_rng(0))
        z = matmul_t(y, rotation)
        codewords = lloyd(z, codewords, 8)
        left = z - codewords[np.arange(8), jit.pq_assign(z, codewords)].reshape(z.shape)
        errors.append(float((left**2).sum()))
    assert errors[1] < 0.95 * errors[0]
