"""Integer kernels: every CPU level equals the NumPy definition bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.kernels.support import SIZES, random_tables, shifted
from vqdistill import _native
from vqdistill.kernels import available_levels, pack_codes, reference

LEVELS = available_levels()
MAX_SUM = 128 * 255


def check_scan(level, packed, tables, threshold):
    sums = reference.scan_sums(packed, tables)
    rows, found = _native.scan_pq4(level, packed, tables, threshold)
    assert np.array_equal(rows, np.flatnonzero(sums >= threshold))
    assert np.array_equal(found, sums[sums >= threshold])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("offset", range(4))
def test_scan_by_rows(level, n, offset):
    rng = np.random.default_rng(n)
    packed = shifted(pack_codes(rng.integers(0, 16, (n, 10)).astype(np.uint8)), offset)
    tables = shifted(random_tables(rng, 10), offset)
    for threshold in (0, 1, 600, 700, 800, 5 * 255, MAX_SUM + 1):
        check_scan(level, packed, tables, threshold)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("m", [2, 4, 6, 8, 16, 30, 32, 34, 62, 64, 66, 96, 98, 254, 256])
def test_scan_by_subspaces(level, m):
    rng = np.random.default_rng(m)
    packed = pack_codes(rng.integers(0, 16, (100, m)).astype(np.uint8))
    tables = random_tables(rng, m)
    sums = reference.scan_sums(packed, tables)
    for threshold in (0, int(np.median(sums)), int(sums.max()), int(sums.max()) + 1):
        check_scan(level, packed, tables, threshold)


@pytest.mark.parametrize("level", LEVELS)
def test_largest_sum_does_not_overflow(level):
    tables = np.zeros((256, 16), np.uint8)
    tables[0::2] = 200
    tables[1::2] = 55
    packed = pack_codes(np.full((33, 256), 7, np.uint8))
    check_scan(level, packed, tables, MAX_SUM)
    assert len(_native.scan_pq4(level, packed, tables, MAX_SUM)[0]) == 64
    assert len(_native.scan_pq4(level, packed, tables, MAX_SUM + 1)[0]) == 0


@pytest.mark.parametrize("level", LEVELS)
def test_odd_rows_do_not_leak_into_even_ones(level):
    """Sums of neighbouring rows share a 32-bit word on the way; one is largest and the other smallest."""
    tables = np.zeros((256, 16), np.uint8)
    tables[:, 15] = np.tile([127, 128], 128)
    codes = np.zeros((64, 256), np.uint8)
    for odd in (0, 1):
        codes[odd::2], codes[1 - odd :: 2] = 15, 0
        check_scan(level, pack_codes(codes), tables, 0)


@pytest.mark.parametrize("level", LEVELS)
def test_scan_random_blocks(level):
    """Random bytes as codes, in bulk: what the parametrized cases did not think of."""
    rng = np.random.default_rng(7)
    for m in (8, 64, 130):
        packed = rng.integers(0, 256, (400, m // 2, 32)).astype(np.uint8)
        tables = random_tables(rng, m)
        threshold = int(np.quantile(reference.scan_sums(packed, tables), rng.random()))
        check_scan(level, packed, tables, threshold)


def test_scan_of_nothing():
    for level in LEVELS:
        rows, _ = _native.scan_pq4(level, np.zeros((0, 3, 32), np.uint8), np.zeros((6, 16), np.uint8), 0)
        assert len(rows) == 0


FLOATS = st.floats(-1e6, 1e6, width=32)
LUTS = st.integers(1, 6).flatmap(lambda pairs: hnp.arrays(np.float32, (2 * pairs, 16), elements=FLOATS))


@given(LUTS)
def test_quantize_equals_reference(lut):
    tables, bias, step = reference.quantize_tables(lut)
    for level in LEVELS:
        found = _native.quantize_tables(level, lut)
        assert np.array_equal(found[0], tables)
        assert found[1:] == (pytest.approx(bias, rel=1e-14, abs=1e-9), step)


@given(LUTS)
def test_quantize_error_and_pair_bound(lut):
    tables, bias, step = _native.quantize_tables(LEVELS[-1], lut)
    low = lut.min(axis=1, keepdims=True).astype(np.float64)
    slack = 1e-6 * np.abs(lut).max() + 1e-37
    assert np.abs(lut - (low + step * tables.astype(np.float64))).max() <= step / 2 + slack
    assert bias == pytest.approx(low.sum(), rel=1e-12, abs=1e-9)
    tops = tables.max(axis=1).astype(int)
    assert (tops[0::2] + tops[1::2]).max() <= reference.MAX_PAIR_SUM


@pytest.mark.parametrize("m", [2, 8, 64, 256])
def test_quantize_levels_agree_on_normal_tables(m):
    lut = np.random.default_rng(m).standard_normal((m, 16)).astype(np.float32)
    wanted = reference.quantize_tables(lut)
    for level in LEVELS:
        for offset in range(4):
            tables, _, step = _native.quantize_tables(level, shifted(lut, offset))
            assert np.array_equal(tables, wanted[0]) and step == wanted[2]
    assert wanted[0].max() > 100, "a test that only sees zeros proves nothing"


@pytest.mark.parametrize("value", [0.0, 3.5, -1e30, 1e-40])
def test_quantize_flat_tables(value):
    lut = np.full((4, 16), value, np.float32)
    for level in LEVELS:
        tables, bias, step = _native.quantize_tables(level, lut)
        assert not tables.any() and step == 0.0 and bias == 4 * float(np.float32(value))


def test_quantize_range_too_small_to_invert():
    lut = np.zeros((2, 16), np.float32)
    lut[0, 3] = 1e-40
    for level in LEVELS:
        tables, bias, step = _native.quantize_tables(level, lut)
        assert not tables.any() and step == 0.0 and bias == 0.0


@pytest.mark.parametrize("big", [np.inf, -np.inf, 3e38])
def test_quantize_overflow_gives_no_scores(big):
    lut = np.full((4, 16), -3e38, np.float32)
    lut[1, 5] = big
    if big == -np.inf:
        lut[0, 0] = 3e38
    for level in LEVELS:
        tables, bias, step = _native.quantize_tables(level, lut)
        assert not tables.any() and np.isnan(bias) and step == 0.0
