"""Training kernels against plain loops; small integers make every sum exact, so that equality is equality."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqdistill.kernels import jit

KSUB = 16
SIZES = [0, 1, 15, 16, 17, 31, 33]


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = numba.get_num_threads()
    yield numba.set_num_threads
    numba.set_num_threads(before)


def small_integers(rng: np.random.Generator, *shape: int) -> Any:
    return rng.integers(-3, 4, shape).astype(np.float32)


def random_codes(rng: np.random.Generator, n: int, m: int) -> Any:
    return rng.integers(0, KSUB, (n, m), dtype=np.uint8)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("m", "dsub"), [(2, 1), (3, 2), (4, 17)])
def test_pq_assign(n: int, m: int, dsub: int) -> None:
    rng = np.random.default_rng(n)
    z, words = small_integers(rng, n, m * dsub), small_integers(rng, m, KSUB, dsub)
    want = np.zeros((n, m), np.uint8)
    for i in range(n):
        for j in range(m):
            distances = ((z[i, j * dsub : (j + 1) * dsub] - words[j]) ** 2).sum(axis=1)
            want[i, j] = distances.argmin()  # the first of equals
    got = jit.pq_assign(z, words)
    assert got.dtype == np.uint8
    assert np.array_equal(got, want)


def test_pq_assign_ties_go_to_the_lowest() -> None:
    words = np.ones((2, KSUB, 3), np.float32)
    words[:, 5] = words[:, 11] = 0
    assert jit.pq_assign(np.zeros((4, 6), np.float32), words).tolist() == [[5, 5]] * 4


def test_pq_assign_of_numbers_that_round() -> None:
    rng = np.random.default_rng(1)
    z, words = rng.standard_normal((33, 24)).astype(np.float32), rng.standard_normal((4, KSUB, 6)).astype(np.float32)
    sub = z.reshape(33, 4, 1, 6).astype(np.float64)
    distances = ((sub - words) ** 2).sum(axis=3)
    chosen = np.take_along_axis(distances, jit.pq_assign(z, words)[..., None].astype(np.int64), 2)[..., 0]
    np.testing.assert_allclose(chosen, distances.min(axis=2), atol=1e-5)


@pytest.mark.parametrize("q", [0, 1, 5])
@pytest.mark.parametrize("length", SIZES)
def test_gather_scores(q: int, length: int) -> None:
    rng = np.random.default_rng(length)
    lut, codes = small_integers(rng, q, 4, KSUB), random_codes(rng, 20, 4)
    docs = rng.integers(0, 20, (q, length), dtype=np.int32)
    want = np.zeros((q, length), np.float32)
    for i in range(q):
        for t in range(length):
            want[i, t] = sum(lut[i, j, codes[docs[i, t], j]] for j in range(4))
    got = jit.gather_scores(lut, codes, docs)
    assert got.dtype == np.float32
    assert np.array_equal(got, want)


@pytest.mark.parametrize("q", [0, 1, 5])
@pytest.mark.parametrize("length", SIZES)
def test_scatter_grads(q: int, length: int) -> None:
    rng = np.random.default_rng(length)
    grad, codes = small_integers(rng, q, length), random_codes(rng, 9, 4)
    docs = rng.integers(0, 9, (q, length), dtype=np.int32)  # documents repeat: their gradients add up
    want = np.zeros((q, 4, KSUB), np.float32)
    for i in range(q):
        for t in range(length):
            for j in range(4):
                want[i, j, codes[docs[i, t], j]] += grad[i, t]
    assert np.array_equal(jit.scatter_grads(grad, codes, docs, KSUB), want)


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(0, 20), st.integers(1, 12), st.integers(1, 9))
@settings(max_examples=40)
def test_scatter_is_the_adjoint_of_gather(seed: int, q: int, length: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    lut, grad, codes = small_integers(rng, q, m, KSUB), small_integers(rng, q, length), random_codes(rng, n, m)
    docs = rng.integers(0, n, (q, length), dtype=np.int32)
    through_scores = (grad * jit.gather_scores(lut, codes, docs)).sum()
    assert through_scores == (jit.scatter_grads(grad, codes, docs, KSUB) * lut).sum()


@pytest.mark.parametrize("n", SIZES)
def test_subspace_sums(n: int) -> None:
    rng = np.random.default_rng(n)
    m, dsub = 3, 5
    z, codes = small_integers(rng, n, m * dsub), random_codes(rng, n, m)
    want, wanted_counts = np.zeros((m, KSUB, dsub)), np.zeros((m, KSUB), np.int64)
    for i in range(n):
        for j in range(m):
            want[j, codes[i, j]] += z[i, j * dsub : (j + 1) * dsub]
            wanted_counts[j, codes[i, j]] += 1
    sums, counts = jit.subspace_sums(z, codes, KSUB)
    assert sums.dtype == np.float64 and counts.dtype == np.int64
    assert np.array_equal(sums, want) and np.array_equal(counts, wanted_counts)


@pytest.mark.parametrize("n", SIZES)
def test_list_sums(n: int) -> None:
    rng = np.random.default_rng(n)
    x, lists = small_integers(rng, n, 7), rng.integers(0, 5, n, dtype=np.int32)
    sums, counts = jit.list_sums(x, lists, 6)
    assert counts.tolist() == np.bincount(lists, minlength=6).tolist()
    for i in range(6):
        assert np.array_equal(sums[i], x[lists == i].sum(axis=0, dtype=np.float64))


def test_sums_do_not_lose_small_addends() -> None:
    x = np.ones((1 << 12, 1), np.float32)
    x[0] = 1 << 26  # where a float32 no longer counts by ones
    lists = np.zeros(len(x), np.int32)
    assert jit.list_sums(x, lists, 1)[0][0, 0] == (1 << 26) + len(x) - 1
    assert jit.subspace_sums(x, lists[:, None].astype(np.uint8), KSUB)[0][0, 0, 0] == (1 << 26) + len(x) - 1


@pytest.mark.parametrize("q", [0, 1, 15, 16, 17, 31, 33])
@pytest.mark.parametrize("length", [0, 1, 6])
def test_members(q: int, length: int) -> None:
    rng = np.random.default_rng(q)
    own, shared = rng.integers(-1, 12, (q, length), dtype=np.int32), rng.permutation(12).astype(np.int32)[:8]
    got = jit.members(own, shared, 12)
    assert got.dtype == np.bool_
    assert got.tolist() == [[document in row for document in shared.tolist()] for row in own.tolist()]


def test_no_shared_documents() -> None:
    assert jit.members(np.zeros((3, 2), np.int32), np.empty(0, np.int32), 1).shape == (3, 0)


def test_results_do_not_depend_on_threads(set_threads: Callable[[int], None]) -> None:
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one core")
    rng = np.random.default_rng(3)
    n, m, dsub, q = 333, 6, 5, 17
    z, words = rng.standard_normal((n, m * dsub), np.float32), rng.standard_normal((m, KSUB, dsub), np.float32)
    lut, codes = rng.standard_normal((q, m, KSUB), np.float32), random_codes(rng, n, m)
    docs, grad = rng.integers(0, n, (q, 97), dtype=np.int32), rng.standard_normal((q, 97), np.float32)
    results = []
    for threads in (1, 2):
        set_threads(threads)
        results.append(
            (
                jit.pq_assign(z, words),
                jit.gather_scores(lut, codes, docs),
                jit.scatter_grads(grad, codes, docs, KSUB),
                *jit.subspace_sums(z, codes, KSUB),
            )
        )
    for one, two in zip(*results, strict=True):
        assert np.array_equal(one, two)
