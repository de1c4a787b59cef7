"""Kernels of additive codes against NumPy: sums exact on small integers, codes by what they cost in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqdistill.kernels import additive, jit
from vqdistill.kernels.additive import KSUB, PARTS, RowMetric

SIZES = [0, 1, PARTS - 1, 15, 16, 17, 31, 33]
ROUNDING = 1e-4
"""What float32 sums may hide of a cost; costs in these tests are of the order of 10."""


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = numba.get_num_threads()
    yield numba.set_num_threads
    numba.set_num_threads(before)


def normal(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape, np.float32)


def small_integers(rng: np.random.Generator, *shape: int) -> Any:
    return rng.integers(-3, 4, shape).astype(np.float32)


def random_codes(rng: np.random.Generator, n: int, m: int) -> Any:
    return rng.integers(0, KSUB, (n, m), dtype=np.uint8)


def random_metric(rng: np.random.Generator, n: int, d: int, *, most: int = 3, eta: float = 0.4) -> RowMetric:
    """Unit directions; every row has 0..most queries, padded with -1."""
    x, queries = normal(rng, n, d), normal(rng, 5, d)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    lists = rng.integers(0, 5, (n, most), dtype=np.int32)
    lists[np.arange(most) >= rng.integers(0, most + 1, n)[:, None]] = -1
    return RowMetric(x, eta, lists, rng.uniform(0.1, 2, (n, most)).astype(np.float32), queries)


def euclidean(y: Any) -> RowMetric:
    none = np.empty((len(y), 0))
    return RowMetric(y, 0.0, none.astype(np.int32), none.astype(np.float32), np.zeros((1, y.shape[1]), np.float32))


def matrices(metric: RowMetric, n: int, d: int) -> Any:
    """The A of each row (n, d, d), written out."""
    out = np.tile(np.eye(d), (n, 1, 1))
    for i in range(n):
        x = metric.x[i].astype(np.float64)
        out[i] += metric.eta * np.outer(x, x)
        for r, weight in zip(metric.lists[i], metric.weights[i], strict=True):
            if r >= 0:
                query = metric.queries[r].astype(np.float64)
                out[i] += weight * np.outer(query, query)
    return out


def costs(y: Any, metric: RowMetric, words: Any, codes: Any) -> Any:
    """e^T A e (n,) in float64."""
    e = y.astype(np.float64) - words.astype(np.float64)[np.arange(len(words)), codes].sum(axis=1)
    return np.einsum("ia,iab,ib->i", e, matrices(metric, *y.shape), e)


def greedy(y: Any, words: Any) -> Any:
    """Codes chosen one after the other, each nearest to what the earlier ones left over."""
    left, codes = y.astype(np.float64), np.empty((len(y), len(words)), np.uint8)
    for j, book in enumerate(words.astype(np.float64)):
        codes[:, j] = ((left[:, None] - book) ** 2).sum(axis=2).argmin(axis=1)
        left = left - book[codes[:, j]]
    return codes


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("m", "d"), [(2, 1), (3, 17)])
def test_decode(n: int, m: int, d: int) -> None:
    rng = np.random.default_rng(n)
    words, codes = small_integers(rng, m, KSUB, d), random_codes(rng, n, m)
    got = additive.decode(codes, words)
    assert got.dtype == np.float32 and got.shape == (n, d)
    for i in range(n):
        assert np.array_equal(got[i], sum(words[j, codes[i, j]] for j in range(m)))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("m", "d"), [(2, 1), (3, 17)])
def test_word_sums(n: int, m: int, d: int) -> None:
    rng = np.random.default_rng(n)
    rows, codes = small_integers(rng, n, d), random_codes(rng, n, m)
    want = np.zeros((m, KSUB, d))
    for i in range(n):
        for j in range(m):
            want[j, codes[i, j]] += rows[i]
    got = additive.word_sums(rows, codes)
    assert got.dtype == np.float64
    assert np.array_equal(got, want)


@given(st.integers(0, 2**32), st.integers(0, 40), st.integers(1, 9), st.integers(1, 20))
@settings(max_examples=40)
def test_word_sums_is_the_adjoint_of_decode(seed: int, n: int, m: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    words, rows, codes = small_integers(rng, m, KSUB, d), small_integers(rng, n, d), random_codes(rng, n, m)
    assert (additive.decode(codes, words) * rows).sum() == (additive.word_sums(rows, codes) * words).sum()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("m", [1, 2, 5])
def test_co_occurrence(n: int, m: int) -> None:
    codes = random_codes(np.random.default_rng(n), n, m)
    one_hot = (codes[:, :, None] == np.arange(KSUB)).reshape(n, m * KSUB).astype(np.float64)
    assert np.array_equal(additive.co_occurrence(codes), one_hot.T @ one_hot)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("most", [0, 1, 4])
@pytest.mark.parametrize("eta", [0.0, 2.5])
def test_apply_metric(n: int, most: int, eta: float) -> None:
    rng = np.random.default_rng(n)
    y, metric = normal(rng, n, 17), random_metric(rng, n, 17, most=most, eta=eta)
    want = np.einsum("iab,ib->ia", matrices(metric, n, 17), y)
    np.testing.assert_allclose(additive.apply_metric(y, metric), want, atol=1e-5)


def test_the_metric_of_some_rows() -> None:
    rng = np.random.default_rng(0)
    metric = random_metric(rng, 9, 5)
    for some in (metric.take(slice(2, 6)), metric.take(np.arange(2, 6))):
        assert np.array_equal(matrices(some, 4, 5), matrices(metric, 9, 5)[2:6])
        assert some.queries is metric.queries


@pytest.mark.parametrize("n", [0, 1, 16, 17, 33])
@pytest.mark.parametrize("metric_of", [euclidean, lambda y: random_metric(np.random.default_rng(7), *y.shape)])
@pytest.mark.parametrize("rounds", [0, 3])
def test_icm_is_no_worse_than_its_greedy_start(n: int, metric_of: Callable[[Any], RowMetric], rounds: int) -> None:
    rng = np.random.default_rng(n)
    y, words = normal(rng, n, 12), normal(rng, 4, KSUB, 12)
    metric = metric_of(y)
    codes = additive.icm(y, metric, words, sweeps=3, rounds=rounds)
    assert codes.dtype == np.uint8 and codes.shape == (n, 4) and (codes < KSUB).all()
    assert (costs(y, metric, words, codes) <= costs(y, metric, words, greedy(y, words)) + ROUNDING).all()


def test_without_a_sweep_codes_are_the_greedy_ones() -> None:
    rng = np.random.default_rng(0)
    y, words = normal(rng, 33, 12), normal(rng, 4, KSUB, 12)
    got = additive.icm(y, random_metric(rng, 33, 12), words, sweeps=0, rounds=0)
    assert np.array_equal(got, greedy(y, words))


@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(0, 3), st.integers(0, 4))
@settings(max_examples=30)
def test_icm_never_worsens_given_codes(seed: int, m: int, sweeps: int, rounds: int) -> None:
    rng = np.random.default_rng(seed)
    y, words, start = normal(rng, 9, 6), normal(rng, m, KSUB, 6), random_codes(rng, 9, m)
    metric = random_metric(rng, 9, 6)
    codes = start.copy()
    assert additive.icm(y, metric, words, codes, sweeps=sweeps, rounds=rounds) is codes
    assert (costs(y, metric, words, codes) <= costs(y, metric, words, start) + ROUNDING * m).all()


@pytest.mark.parametrize("rounds", [0, 2])
def test_no_single_change_lowers_the_cost(rounds: int) -> None:
    rng = np.random.default_rng(5)
    n, m, d = 33, 6, 10
    y, words, metric = normal(rng, n, d), normal(rng, m, KSUB, d), random_metric(rng, n, d)
    codes = additive.icm(y, metric, words, sweeps=50, rounds=rounds)
    reached = costs(y, metric, words, codes)
    for j, k in product(range(m), range(KSUB)):
        changed = codes.copy()
        changed[:, j] = k
        assert (costs(y, metric, words, changed) >= reached - ROUNDING).all(), (j, k)


def test_more_rounds_cost_no_more_and_gain_something() -> None:
    rng = np.random.default_rng(6)
    y, words, metric = normal(rng, 64, 12), normal(rng, 8, KSUB, 12), random_metric(rng, 64, 12)
    few, many = (costs(y, metric, words, additive.icm(y, metric, words, sweeps=9, rounds=rounds)) for rounds in (0, 8))
    assert (many <= few + ROUNDING).all()
    assert many.mean() < 0.95 * few.mean()


def test_two_codebooks_come_close_to_the_exhaustive_optimum() -> None:
    rng = np.random.default_rng(8)
    n = 64
    y, words, metric = normal(rng, n, 5), normal(rng, 2, KSUB, 5), random_metric(rng, n, 5)
    pairs = np.array(list(product(range(KSUB), repeat=2)), np.uint8)
    best = np.min([costs(y, metric, words, np.tile(pair, (n, 1))) for pair in pairs], axis=0)
    reached = costs(y, metric, words, additive.icm(y, metric, words, sweeps=9, rounds=16))
    assert (reached >= best - ROUNDING).all()
    assert (reached <= best + ROUNDING).mean() > 0.95
    assert reached.mean() <= 1.03 * best.mean()


@pytest.mark.parametrize("n", [1, 17, 33])
def test_disjoint_supports_are_product_quantization(n: int) -> None:
    rng = np.random.default_rng(n)
    m, dsub = 4, 3
    y, books = normal(rng, n, m * dsub), normal(rng, m, KSUB, dsub)
    words = np.zeros((m, KSUB, m * dsub), np.float32)
    for j in range(m):
        words[j, :, j * dsub : (j + 1) * dsub] = books[j]
    codes = additive.icm(y, euclidean(y), words, sweeps=3, rounds=2)
    assert np.array_equal(codes, jit.pq_assign(y, books))


def test_heavy_queries_are_served_first() -> None:
    rng = np.random.default_rng(9)
    y, words, plain = normal(rng, 64, 12), normal(rng, 6, KSUB, 12), random_metric(rng, 64, 12, most=1, eta=0.0)
    heavy = RowMetric(plain.x, 0.0, np.zeros((64, 1), np.int32), np.full((64, 1), 100, np.float32), plain.queries)

    def error_seen_by_the_query(metric: RowMetric) -> float:
        codes = additive.icm(y, metric, words, sweeps=9, rounds=4)
        return float((((y - additive.decode(codes, words)) @ plain.queries[0]) ** 2).mean())

    assert error_seen_by_the_query(heavy) < 0.1 * error_seen_by_the_query(euclidean(y))


@pytest.mark.parametrize("block", [1, 2, 7, 16, 33])
def test_codes_do_not_depend_on_the_rows_beside(block: int) -> None:
    rng = np.random.default_rng(10)
    n = 99
    y, words, metric = normal(rng, n, 24), normal(rng, 8, KSUB, 24), random_metric(rng, n, 24)
    whole = additive.icm(y, metric, words, sweeps=3, rounds=2)
    for at in range(0, n, block):
        part = additive.icm(y[at : at + block], metric.take(slice(at, at + block)), words, sweeps=3, rounds=2)
        assert np.array_equal(part, whole[at : at + block])


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**-8, 2.0**12])
def test_codes_do_not_depend_on_the_unit_of_the_rows(scale: float) -> None:
    """A power of two changes no digit of any sum, so it must change no code."""
    rng = np.random.default_rng(11)
    y, words, metric = normal(rng, 64, 12), normal(rng, 6, KSUB, 12), random_metric(rng, 64, 12)
    unit = np.float32(scale)
    codes = additive.icm(y * unit, metric, words * unit, sweeps=9, rounds=2)
    assert np.array_equal(codes, additive.icm(y, metric, words, sweeps=9, rounds=2))


def test_results_do_not_depend_on_threads(set_threads: Callable[[int], None]) -> None:
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one core")
    rng = np.random.default_rng(12)
    n, m, d = 203, 6, 24
    y, words, metric = normal(rng, n, d), normal(rng, m, KSUB, d), random_metric(rng, n, d)
    results = []
    for threads in (1, 2):
        set_threads(threads)
        codes = additive.icm(y, metric, words, sweeps=3, rounds=2)
        results.append(
            (codes, additive.decode(codes, words), additive.word_sums(y, codes), additive.apply_metric(y, metric))
        )
    for one, two in zip(*results, strict=True):
        assert np.array_equal(one, two)
