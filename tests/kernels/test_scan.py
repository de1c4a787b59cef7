"""Integer kernels: every CPU level equals the NumPy definition bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.kernels.support import QUADS, SIZES, in_quads, random_tables, shifted
from vqdistill import _native
from vqdistill.kernels import available_levels, pack_codes, reference

LEVELS = available_levels()
MAX_SUM = 128 * 255
MOST_QUERIES = 4


def random_codes(rng, n, m):
    return pack_codes(rng.integers(0, 16, (n, m)).astype(np.uint8))


def tables_of(rng, nq, m):
    return np.stack([random_tables(rng, m) for _ in range(nq)])


def check_scan(level, packed, tables, thresholds, *, allow=None, places=None):
    """Compare with the reference, in quads too if there are such; return each query's hits and the blocks scanned."""
    limit = max(32 * len(packed), 32) if places is None else places
    wanted, blocks = reference.scan(packed, tables, thresholds, allow=allow, places=limit)
    quads = level in QUADS and packed.shape[1] % 4 == 0
    for codes in (packed, *([shifted(in_quads(packed), packed.ctypes.data % 64)] if quads else [])):
        *found, scanned = _native.scan_pq4(level, codes, tables, thresholds, allow=allow, places=limit)
        assert scanned == blocks
        for (rows, sums), (wanted_rows, wanted_sums) in zip(found, wanted, strict=True):
            assert np.array_equal(rows, wanted_rows)
            assert np.array_equal(sums, wanted_sums)
    return [len(rows) for rows, _ in found], scanned


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("offset", range(4))
@pytest.mark.parametrize("m", [10, 16])
def test_scan_by_rows(level, n, offset, m):
    rng = np.random.default_rng(n)
    packed = shifted(random_codes(rng, n, m), offset)
    for nq in range(1, MOST_QUERIES + 1):
        tables = shifted(tables_of(rng, nq, m), offset)
        for threshold in (0, 1, 60 * m, 70 * m, 80 * m, m // 2 * 255, MAX_SUM + 1):
            check_scan(
                level, packed, tables, [threshold + (10 * i if 2 * threshold < 255 * m else 0) for i in range(nq)]
            )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("m", [2, 4, 6, 8, 16, 30, 32, 34, 62, 64, 66, 96, 98, 254, 256])
def test_scan_by_subspaces(level, m):
    rng = np.random.default_rng(m)
    packed = random_codes(rng, 100, m)
    for nq in (1, MOST_QUERIES):
        tables = tables_of(rng, nq, m)
        sums = [reference.scan_sums(packed, lut) for lut in tables]
        for pick in (np.min, np.median, np.max):
            check_scan(level, packed, tables, [int(pick(of_query)) for of_query in sums])
        found, _ = check_scan(level, packed, tables, [int(of_query.max()) + 1 for of_query in sums])
        assert found == [0] * nq


@pytest.mark.parametrize("level", LEVELS)
def test_largest_sum_does_not_overflow(level):
    tables = np.zeros((1, 256, 16), np.uint8)
    tables[:, 0::2] = 200
    tables[:, 1::2] = 55
    packed = pack_codes(np.full((33, 256), 7, np.uint8))
    assert check_scan(level, packed, tables, [MAX_SUM]) == ([64], 2)
    assert check_scan(level, packed, tables, [MAX_SUM + 1]) == ([0], 2)


@pytest.mark.parametrize("level", LEVELS)
def test_odd_rows_do_not_leak_into_even_ones(level):
    """Sums of neighbouring rows share a 32-bit word on the way; one is largest and the other smallest."""
    tables = np.zeros((1, 256, 16), np.uint8)
    tables[0, :, 15] = np.tile([127, 128], 128)
    codes = np.zeros((64, 256), np.uint8)
    for odd in (0, 1):
        codes[odd::2], codes[1 - odd :: 2] = 15, 0
        assert check_scan(level, pack_codes(codes), tables, [0])[0] == [64]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("row", [0, 1, 15, 16, 30, 31])
def test_one_row_of_a_block_is_a_hit(level, row):
    """Every lane is looked at, in a block of which no other row comes near the threshold."""
    codes = np.zeros((96, 64), np.uint8)
    codes[32 + row] = 1
    tables = np.zeros((1, 64, 16), np.uint8)
    tables[0, :, 1] = 2
    assert check_scan(level, pack_codes(codes), tables, [128]) == ([1], 3)
    assert check_scan(level, pack_codes(codes), tables, [129]) == ([0], 3)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("nq", range(1, MOST_QUERIES + 1))
def test_only_allowed_rows_are_found(level, nq):
    rng = np.random.default_rng(nq)
    packed, tables = random_codes(rng, 32 * 40, 16), tables_of(rng, nq, 16)
    allow = rng.integers(0, 2**32, 40, dtype=np.uint32)
    allow[rng.random(40) < 0.4] = 0
    allow[-1] = 1 << 31
    bits = sum(int(mask).bit_count() for mask in allow)
    assert check_scan(level, packed, tables, [0] * nq, allow=shifted(allow, 1))[0] == [bits] * nq
    check_scan(level, packed, tables, [1100 + 50 * i for i in range(nq)], allow=allow)
    assert check_scan(level, packed, tables, [0] * nq, allow=np.zeros(40, np.uint32)) == ([0] * nq, 40)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("nq", range(1, MOST_QUERIES + 1))
@pytest.mark.parametrize("places", [32, 33, 63, 64, 95, 96, 1000])
def test_scan_stops_before_a_block_that_may_not_fit(level, nq, places):
    rng = np.random.default_rng(places)
    packed, tables = random_codes(rng, 32 * 20, 8), tables_of(rng, nq, 8)
    for thresholds in ([0] * nq, [MAX_SUM + 1] * (nq - 1) + [0], [500 + 20 * i for i in range(nq)]):
        rows, scanned = check_scan(level, packed, tables, thresholds, places=places)
        assert max(rows) <= places
        if thresholds[-1] == 0:
            assert scanned == min(places // 32, 20)


@pytest.mark.parametrize("level", sorted(set(LEVELS) - QUADS))
def test_level_that_scans_no_quads(level):
    packed = in_quads(random_codes(np.random.default_rng(0), 40, 8))
    with pytest.raises(
        ValueError, match=rf"packed must be \(nblocks, m / 2, 32\) at CPU level {level}, got \(2, 1, 32, 4\)"
    ):
        _native.scan_pq4(level, packed, np.zeros((1, 8, 16), np.uint8), [0], places=64)


@pytest.mark.parametrize("level", LEVELS)
def test_scan_goes_on_where_it_stopped(level):
    rng = np.random.default_rng(4)
    packed, tables = random_codes(rng, 32 * 50, 12), tables_of(rng, 3, 12)
    thresholds, start, rows = [300, 700, 900], 0, [[], [], []]
    while start < len(packed):
        *found, scanned = _native.scan_pq4(level, packed[start:], tables, thresholds, places=70)
        assert scanned > 0
        for i in range(3):
            rows[i] += (found[i][0] + 32 * start).tolist()
        start += scanned
    whole, _ = reference.scan(packed, tables, thresholds)
    assert rows == [of_query.tolist() for of_query, _ in whole]


@pytest.mark.parametrize("level", LEVELS)
def test_queries_do_not_depend_on_each_other(level):
    rng = np.random.default_rng(6)
    packed, tables = random_codes(rng, 3000, 64), tables_of(rng, MOST_QUERIES, 64)
    thresholds = [4400, 0, 4000, MAX_SUM + 1]
    together = _native.scan_pq4(level, packed, tables, thresholds, places=4000)
    for i in range(MOST_QUERIES):
        alone = _native.scan_pq4(level, packed, tables[i : i + 1], thresholds[i : i + 1], places=4000)
        assert all(np.array_equal(a, b) for a, b in zip(alone[0], together[i], strict=True))


SCANS = st.tuples(st.integers(0, 2**32), st.integers(1, 128), st.integers(0, 9), st.integers(1, MOST_QUERIES))


@given(SCANS, st.sampled_from([32, 40, 64, 1000]), st.floats(0, 1))
def test_scan_equals_reference(scan, places, quantile):
    """Random bytes as codes: what the parametrized cases did not think of."""
    seed, half_m, nblocks, nq = scan
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, (nblocks, half_m, 32), dtype=np.uint8)
    tables = tables_of(rng, nq, 2 * half_m)
    thresholds = [int(np.quantile(reference.scan_sums(packed, lut), quantile)) if nblocks else 0 for lut in tables]
    allow = rng.integers(0, 2**32, nblocks, dtype=np.uint32) if seed % 2 else None
    for level in LEVELS:
        check_scan(level, packed, tables, thresholds, allow=allow, places=places)


def test_scan_of_nothing():
    for level in LEVELS:
        assert check_scan(level, np.zeros((0, 3, 32), np.uint8), np.zeros((2, 6, 16), np.uint8), [0, 0]) == ([0, 0], 0)


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
