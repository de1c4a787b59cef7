"""Packed codes: the layout that the scan reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.kernels.support import QUADS, in_quads
from vqdistill.kernels import cpu_level, pack_codes, reference, scan_order, unpack_codes

CODES = st.tuples(st.integers(0, 100), st.integers(1, 8).map(lambda pairs: 2 * pairs)).flatmap(
    lambda shape: hnp.arrays(np.uint8, shape, elements=st.integers(0, 15))
)


@given(CODES)
def test_unpack_undoes_pack(codes):
    assert np.array_equal(unpack_codes(pack_codes(codes), len(codes)), codes)


@given(CODES)
def test_pack_equals_reference(codes):
    assert np.array_equal(pack_codes(codes), reference.pack_codes(codes))
    assert np.array_equal(reference.unpack_codes(pack_codes(codes), len(codes)), codes)


@given(CODES)
def test_scan_order_stays_where_it_is_and_can_be_undone(codes):
    packed = pack_codes(codes)
    before = packed.copy()
    ordered = scan_order(packed)
    quads = codes.shape[1] % 8 == 0 and cpu_level() in QUADS
    assert np.array_equal(ordered, in_quads(before) if quads else before)
    assert np.shares_memory(ordered, packed) or not packed.size
    assert np.array_equal(unpack_codes(ordered, len(codes)), codes)
    assert scan_order(ordered) is ordered or quads
    assert np.array_equal(scan_order(ordered), ordered)


def test_scan_order_wants_memory_of_its_own():
    packed = pack_codes(np.zeros((40, 8), np.uint8))
    packed.flags.writeable = False
    if cpu_level() in QUADS:
        with pytest.raises(ValueError, match="not writeable"):
            scan_order(packed)
    for bad in (packed[:, ::2], packed.astype(np.int8), [1]):
        with pytest.raises(TypeError):
            scan_order(bad)


@pytest.mark.parametrize("shape", [(0, 4), (1, 8), (40, 10), (100_000, 64)])
def test_packed_codes_begin_at_a_cache_line(shape):
    assert pack_codes(np.zeros(shape, np.uint8)).ctypes.data % 64 == 0


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 64, 65])
@pytest.mark.parametrize("m", [2, 6, 256])
def test_layout_byte_by_byte(n, m):
    codes = np.random.default_rng(n).integers(0, 16, (n, m)).astype(np.uint8)
    packed = pack_codes(codes)
    assert packed.shape == (-(-n // 32), m // 2, 32)
    for row in range(len(packed) * 32):
        for pair in range(m // 2):
            wanted = codes[row, 2 * pair] | codes[row, 2 * pair + 1] << 4 if row < n else 0
            assert packed[row // 32, pair, row % 32] == wanted


@pytest.mark.parametrize("m", [0, 1, 3, 258])
def test_m_that_no_index_has(m):
    with pytest.raises(ValueError, match=f"m must be even and in 2..256, got {m}"):
        pack_codes(np.zeros((3, m), np.uint8))


def test_code_that_has_no_table_entry():
    codes = np.zeros((40, 4), np.uint8)
    codes[37, 3] = 16
    with pytest.raises(ValueError, match="codes must be below 16"):
        pack_codes(codes)


@pytest.mark.parametrize("bad", [np.zeros((3, 4), np.int64), np.zeros((3, 8), np.uint8)[:, ::2], [[1, 2]], None])
def test_type_that_would_need_a_copy(bad):
    with pytest.raises(TypeError, match=r"codes must be \(n, m\) uint8, got"):
        pack_codes(bad)


def test_unpack_more_rows_than_there_are():
    with pytest.raises(ValueError, match=r"n must be in 0\.\.32, got 33"):
        unpack_codes(np.zeros((1, 2, 32), np.uint8), 33)
    with pytest.raises(ValueError, match=r"packed must be \(nblocks, m / 2, 32\) uint8, got \(1, 2, 31\) uint8"):
        unpack_codes(np.zeros((1, 2, 31), np.uint8), 3)
