"""Float kernels: every CPU level stays within the error budget of csrc/dispatch.h against float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.support import SIZES, STRIDES, bf16_bits, encode_dense, shifted
from vqdistill import _native
from vqdistill.kernels import available_levels, reference

LEVELS = available_levels()
EPS = 2.0**-24
DTYPES = list(STRIDES)


def budget(d, terms):
    """Largest error of a sum of d terms that are added in eight lanes."""
    return 2 * (d / 8 + 8) * EPS * terms


def stored_rows(dtype, n, d, rng):
    if dtype == "i8":
        scales = rng.uniform(0.001, 0.1, (n, 1)).astype("<f4").view(np.uint8)
        return np.concatenate([scales, rng.integers(0, 256, (n, d)).astype(np.uint8)], axis=1)
    rows = rng.standard_normal((n, d))
    if dtype == "bf16":
        return bf16_bits(rows).view(np.uint8).reshape(n, -1)
    rows = rows.astype({"f32": "<f4", "f16": "<f2"}[dtype])
    return rows.view(np.uint8).reshape(n, -1)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [*SIZES, 384, 1000])
def test_dense_scores(level, metric, dtype, d):
    rng = np.random.default_rng(d)
    query = rng.standard_normal(d).astype(np.float32)
    rows = stored_rows(dtype, 5, d, rng)
    x = reference.decode_dense(dtype, rows)
    terms = (np.abs(query * x) if metric == "ip" else (query - x) ** 2).sum(axis=1)
    wanted = reference.dense_scores(metric, dtype, query, rows)
    for offset in range(4):
        got = _native.dense_scores(level, metric, dtype, shifted(query, offset), shifted(rows, offset))
        assert (np.abs(got - wanted) <= budget(d, terms) + 1e-30).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_scores_of_small_integers_are_exact(level, metric, dtype):
    rng = np.random.default_rng(3)
    for d in SIZES:
        rows = encode_dense(dtype, rng.integers(-9, 10, (4, d)).astype(np.float64), rng)
        query = rng.integers(-9, 10, d).astype(np.float32)
        wanted = reference.dense_scores(metric, dtype, query, rows)
        assert np.array_equal(_native.dense_scores(level, metric, dtype, query, rows), wanted.astype(np.float32))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("d", [1, 32])
def test_every_half_is_converted_exactly(level, dtype, d):
    """Each of the 65,536 patterns, alone (the tails of the kernels) and behind 31 zeros (their loops)."""
    patterns = np.arange(65536, dtype="<u2")
    halves = np.zeros((65536, d), "<u2")
    halves[:, -1] = patterns
    query = np.zeros(d, np.float32)
    query[-1] = 1
    rows = halves.view(np.uint8).reshape(65536, -1)
    wanted = patterns.view("<f2").astype("<f4") if dtype == "f16" else (patterns.astype("<u4") << 16).view("<f4")
    got = _native.dense_scores(level, "ip", dtype, query, rows)
    nan = np.isnan(wanted)
    assert np.array_equal(got[~nan], wanted[~nan])
    assert np.isnan(got[nan]).all()


@pytest.mark.parametrize("level", LEVELS)
def test_l2_does_not_cancel(level):
    query = np.full(33, 1000.0, np.float32)
    row = query + np.float32(0.125)
    assert _native.dense_scores(level, "l2", "f32", query, row.view(np.uint8)[None])[0] == -33 / 64


def product(level, a, b):
    """Compute a @ b.T with the kernel for the dtype of b."""
    if b.dtype == np.float16:
        return _native.gemm_nt_f16(level, a, b.view(np.uint16))
    return _native.gemm_nt(level, a, b)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("d", [*SIZES, 384])
def test_gemm(level, dtype, d):
    rng = np.random.default_rng(d)
    for na, nb in [(1, 1), (1, 7), (1, 8), (1, 17), (2, 5), (3, 4), (4, 3), (7, 9)]:
        a, b = rng.standard_normal((na, d)).astype(np.float32), rng.standard_normal((nb, d)).astype(dtype)
        got = product(level, shifted(a, na % 4), shifted(b, nb % 4))
        error = np.abs(got - reference.gemm_nt(a, b))
        assert (error <= budget(d, np.abs(a).astype(np.float64) @ np.abs(b.astype(np.float64)).T)).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("d", [5, 32, 97])
def test_gemm_elements_do_not_depend_on_their_neighbours(level, dtype, d):
    rng = np.random.default_rng(d)
    a, b = rng.standard_normal((11, d)).astype(np.float32), rng.standard_normal((23, d)).astype(dtype)
    whole = product(level, a, b)
    for i in range(11):
        assert np.array_equal(product(level, a[i : i + 1], b)[0], whole[i])
    for j in range(23):
        assert np.array_equal(product(level, a, b[j : j + 1])[:, 0], whole[:, j])
    for na, nb in [(2, 23), (3, 9), (4, 8), (5, 5), (11, 12)]:
        assert np.array_equal(product(level, a[:na], b[:nb]), whole[:na, :nb])


@pytest.mark.parametrize("level", LEVELS)
def test_halves_and_floats_of_one_value_have_one_product(level):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 71)).astype(np.float32), rng.standard_normal((9, 71)).astype(np.float16)
    assert np.array_equal(product(level, a, b), product(level, a, b.astype(np.float32)))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("d", [*SIZES, 384, 1000])
def test_products_of_bytes_are_exact(level, d):
    rng = np.random.default_rng(d)
    for na, nb in [(1, 1), (1, 4), (1, 7), (2, 5), (3, 4), (5, 9)]:
        a, b = (stored_rows("i8", n, d, rng) for n in (na, nb))
        for rows in (a, b):
            rows[:, 4:] = np.maximum(rows[:, 4:].view(np.int8), -127).view(np.uint8)
        a[0, 4:], b[0, 4:] = 129, rng.choice([127, 129], d)  # the largest products, of one sign or both
        sums = a[:, 4:].view(np.int8).astype(np.int64) @ b[:, 4:].view(np.int8).astype(np.int64).T
        scales = a[:, :4].copy().view("<f4") * b[:, :4].copy().view("<f4").T
        got = _native.gemm_nt_i8(level, shifted(a, na % 4), shifted(b, nb % 4))
        assert np.array_equal(got, sums.astype(np.float32) * scales)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("m", [2, 6, 256])
@pytest.mark.parametrize("dsub", [1, 2, 3, 7, 8, 12])
def test_pq_tables(level, m, dsub):
    rng = np.random.default_rng(m)
    rotated = rng.standard_normal(m * dsub).astype(np.float32)
    words = rng.standard_normal((m, 16, dsub)).astype(np.float32)
    init = rng.standard_normal((m, 16)).astype(np.float32)
    words_t = np.ascontiguousarray(words.transpose(0, 2, 1))
    got = _native.pq_tables(level, shifted(rotated, 1), shifted(words_t, 2), shifted(init, 3))
    terms = reference.pq_tables(np.abs(rotated), np.abs(words), np.abs(init))
    assert (np.abs(got - reference.pq_tables(rotated, words, init)) <= 2 * (dsub + 1) * EPS * terms).all()


NAMES = ["gemm_nt", "gemm_nt_f16", "gemm_nt_i8", "pq_tables", "dense_scores", "scan_pq4", "quantize_tables"]


@pytest.mark.parametrize("name", NAMES)
def test_unknown_level_names_itself(name):
    f32, u8 = np.ones((2, 16), np.float32), np.zeros((1, 2, 16), np.uint8)
    arguments = {
        "gemm_nt": (f32, f32),
        "gemm_nt_f16": (f32, np.ones((2, 16), np.uint16)),
        "gemm_nt_i8": (f32.view(np.uint8), f32.view(np.uint8)),
        "pq_tables": (f32[0, :2].copy(), f32.reshape(2, 1, 16), f32),
        "dense_scores": ("ip", "f32", f32[0], f32.view(np.uint8)),
        "scan_pq4": (np.zeros((1, 1, 32), np.uint8), u8, [0]),
        "quantize_tables": (f32,),
    }
    options = {"places": 32} if name == "scan_pq4" else {}
    with pytest.raises(ValueError, match="'mmx'"):
        getattr(_native, name)("mmx", *arguments[name], **options)
