"""Rows of bytes: what they stand for, and which no writer makes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqdistill.index.byte_rows import from_bytes, problem, to_bytes


@given(st.integers(1, 40), st.integers(0, 2**32), st.floats(1e-30, 1e30))
def test_errors_are_at_most_half_a_step(d: int, seed: int, size: float) -> None:
    x = (np.random.default_rng(seed).standard_normal((3, 2, d)) * size).astype(np.float32)
    rows = to_bytes(x)
    assert rows.shape == (3, 2, 4 + d) and rows.dtype == np.uint8 and problem(rows) is None
    steps = np.abs(x).max(axis=-1, keepdims=True) / 127
    assert (np.abs(from_bytes(rows) - x) <= 0.5001 * steps).all()


def test_values_of_a_row_of_bytes_come_back() -> None:
    x = np.arange(-127, 128, dtype=np.float32)[None] / 4
    assert np.array_equal(from_bytes(to_bytes(x)), x)
    zero = np.zeros((2, 5), np.float32)
    assert np.array_equal(from_bytes(to_bytes(zero)), zero)


@pytest.mark.parametrize(
    ("scale", "byte", "wanted"),
    [(np.inf, 1, "scales must be finite"), (np.nan, 1, "scales must be finite"), (1, -128, "bytes must be in -127")],
)
def test_rows_that_are_refused(scale: float, byte: int, wanted: str) -> None:
    rows = to_bytes(np.ones((2, 3), np.float32))
    rows[1, :4] = np.float32([scale]).view(np.uint8)
    rows[1, 5] = np.int8(byte).view(np.uint8)
    found = problem(rows)
    assert found is not None and found.startswith(wanted)
