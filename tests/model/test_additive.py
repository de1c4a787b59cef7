"""Additive codebooks: fits that lower what they claim to lower, metrics of rows, encoding in any company."""

from __future__ import annotations

import numpy as np
import pytest

from vqdistill.config import KSUB
from vqdistill.kernels import additive as kernels
from vqdistill.model import additive
from vqdistill.model.additive import (
    SELF_WEIGHT,
    RowTerms,
    directions,
    encode_additive,
    fit_metric,
    own_directions,
    row_metric,
    without_terms,
)
from vqdistill.model.euclidean import train_euclidean
from vqdistill.types import F32Rows


@pytest.fixture(scope="module")
def y(clustered: F32Rows) -> F32Rows:
    return np.asarray(clustered - clustered.mean(axis=0), np.float32)


@pytest.fixture(scope="module")
def words(y: F32Rows) -> F32Rows:
    return train_euclidean(y, 4, np.random.default_rng(0))


def squared_error(y: F32Rows, words: F32Rows) -> float:
    codes = encode_additive(y, without_terms(y), words)
    return float(((y - kernels.decode(codes, words)) ** 2).sum(dtype=np.float64))


def test_directions_keep_zero_rows() -> None:
    got = directions(np.array([[3, 4], [0, 0], [0, -2]], np.float32))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [[0.6, 0.8], [0, 0], [0, -1]], atol=1e-7)


def test_row_metric_without_queries_has_the_own_direction_alone(y: F32Rows) -> None:
    mean = np.full(y.shape[1], 2, np.float32)
    metric = row_metric(own_directions(y, mean), None)
    assert metric.eta == pytest.approx(SELF_WEIGHT * y.shape[1])
    assert metric.lists.shape == metric.weights.shape == (len(y), 0)
    np.testing.assert_allclose(metric.x, directions(y - mean))


def test_terms_of_some_rows() -> None:
    terms = RowTerms(
        np.arange(6, dtype=np.int32).reshape(3, 2), np.ones((3, 2), np.float32), np.eye(6, dtype=np.float32)
    )
    some = terms.take(np.array([2, 0]))
    assert some.lists.tolist() == [[4, 5], [0, 1]] and some.weights.shape == (2, 2) and some.queries is terms.queries


def test_codewords_are_the_least_squares_solution(y: F32Rows) -> None:
    """Against one-hot rows and lstsq; the ridge is small but pulls unused codewords to zero."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, KSUB - 1, (len(y), 3), dtype=np.uint8)
    solved = additive.least_squares(y, codes)
    one_hot = (codes[:, :, None] == np.arange(KSUB)).reshape(len(y), -1).astype(np.float64)
    best = one_hot @ np.linalg.lstsq(one_hot, y.astype(np.float64), rcond=None)[0]
    np.testing.assert_allclose(kernels.decode(codes, solved), best, atol=0.02)
    assert not solved[:, KSUB - 1].any()


def test_conjugate_gradients_lower_the_metric_error_at_fixed_codes(y: F32Rows, words: F32Rows) -> None:
    rng = np.random.default_rng(1)
    queries = directions(rng.standard_normal((6, y.shape[1])).astype(np.float32))
    lists = rng.integers(0, 6, (len(y), 2), dtype=np.int32)
    terms = RowTerms(lists, np.full(lists.shape, 3, np.float32), queries)
    metric = row_metric(directions(y), terms)
    codes = encode_additive(y, metric, words)

    def error(candidate: F32Rows) -> float:
        e = y - kernels.decode(codes, candidate)
        return float((e * kernels.apply_metric(e, metric)).sum(dtype=np.float64))

    assert error(additive._conjugate_gradients(words, y, metric, codes)) < 0.99 * error(words)


def test_conjugate_gradients_without_terms_solve_in_one_step(monkeypatch: pytest.MonkeyPatch, y: F32Rows) -> None:
    """With every A = I the preconditioner is the inverse, so any start leads to the least squares solution."""
    codes = np.random.default_rng(0).integers(0, KSUB, (len(y), 3), dtype=np.uint8)
    solved = additive.least_squares(y, codes)
    monkeypatch.setattr(additive, "_CG_STEPS", 1)
    zeros = np.zeros_like(solved)
    stepped = additive._conjugate_gradients(zeros, y, without_terms(y), codes)
    np.testing.assert_allclose(kernels.decode(codes, stepped), kernels.decode(codes, solved), atol=1e-3)


def test_conjugate_gradients_stay_at_the_solution(y: F32Rows, words: F32Rows) -> None:
    metric, zeros = without_terms(y), np.zeros_like(words)
    codes = encode_additive(y, metric, words)
    still = additive._conjugate_gradients(zeros, np.zeros_like(y), metric, codes)
    assert np.array_equal(still, zeros)


def test_fit_leaves_its_input_alone(y: F32Rows, words: F32Rows) -> None:
    before = words.copy()
    fit_metric(y, row_metric(directions(y), None), words)
    assert np.array_equal(words, before)


def test_fit_lowers_the_own_direction_error(sample: F32Rows) -> None:
    """What <q, x> loses when q looks like x."""
    mean = sample.mean(axis=0)
    y = np.asarray(sample - mean, np.float32)
    words = train_euclidean(y, 8, np.random.default_rng(0))
    metric = row_metric(own_directions(sample, mean), None)

    def parallel(candidate: F32Rows) -> float:
        e = y - kernels.decode(encode_additive(y, metric, candidate), candidate)
        return float(((e * metric.x).sum(axis=1) ** 2).sum())

    assert parallel(fit_metric(y, metric, words)) < 0.9 * parallel(words)


def test_own_sums_are_found_again(words: F32Rows) -> None:
    """Rows that codes stand for exactly come back as they were: with few codebooks the search reaches the optimum."""
    codes = np.random.default_rng(0).integers(0, KSUB, (200, 4), dtype=np.uint8)
    rows = kernels.decode(codes, words)
    back = kernels.decode(encode_additive(rows, without_terms(rows), words), words)
    exact = np.abs(back - rows).max(axis=1) < 1e-4
    assert exact.mean() > 0.8
