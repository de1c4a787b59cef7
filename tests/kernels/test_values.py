"""Unit rows and look-ups of integers: what a search does besides searching."""

from __future__ import annotations

import numpy as np
import pytest

from vqdistill import _native
from vqdistill.errors import InvalidInput
from vqdistill.kernels import take_integers
from vqdistill.kernels.units import unit_rows

NUMBERS = np.array([5, 0, 9, -1, -7], np.int64)


@pytest.mark.parametrize("d", [1, 7, 8, 9, 100])
@pytest.mark.parametrize("b", [0, 1, 3, 70_000])
def test_unit_rows_are_rows_divided_by_their_norm_in_double(b: int, d: int) -> None:
    if b * d > 1_000_000:
        b //= 50
    rows = (np.random.default_rng(d).standard_normal((b, d)) + 3).astype(np.float32)
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    units, bad = _native.unit_rows(rows)
    assert (units.dtype, units.shape, bad) == (np.float32, (b, d), -1)
    np.testing.assert_allclose(units, rows / norms, rtol=2**-23)


def test_sizes_whose_squares_no_float_holds_have_directions() -> None:
    rows = np.array([[3e38, 3e38], [1e-45, 0], [2e-38, -2e-38]], np.float32)
    np.testing.assert_allclose(unit_rows(rows, "queries"), [[0.5**0.5] * 2, [1, 0], [0.5**0.5, -(0.5**0.5)]], rtol=1e-7)


@pytest.mark.parametrize(
    ("row", "value", "said"),
    [
        (1, 0.0, "queries row 11 is a zero vector"),
        (2, np.nan, "queries row 12 holds NaN or infinity"),
        (0, np.inf, "queries row 10 holds NaN or infinity"),
        (0, -np.inf, "queries row 10 holds NaN or infinity"),
    ],
)
def test_rows_without_direction_are_named(row: int, value: float, said: str) -> None:
    rows = np.ones((3, 9), np.float32)
    rows[row] = value
    with pytest.raises(InvalidInput, match=said):
        unit_rows(rows, "queries", 10)


def test_infinity_is_named_before_a_zero_row() -> None:
    rows = np.array([[0, 0], [np.inf, 1]], np.float32)
    with pytest.raises(InvalidInput, match="row 1 holds NaN or infinity"):
        unit_rows(rows, "queries")


@pytest.mark.parametrize(
    ("rows", "limits", "taken", "good"),
    [
        ([2, -1, 0, -3], {}, [9, -1, 5, -1], True),
        ([4, 2], {}, [-7, 9], True),
        ([3], {}, [-1], False),
        ([0, 3, 0], {}, [5, -1, 5], False),
        ([0, 1, 2], {"low": 0, "high": 9}, [5, 0, 9], True),
        ([0, 1, 2], {"low": 0, "high": 8}, [5, 0, 9], False),
        ([4], {"low": 0, "high": 9}, [-7], False),
        ([], {"low": 0, "high": 9}, [], True),
    ],
)
def test_integers_are_taken_at_rows(rows: list[int], limits: dict[str, int], taken: list[int], good: bool) -> None:
    found, fits = take_integers(NUMBERS, np.array(rows, np.int64), **limits)
    assert (found.dtype, found.tolist(), fits) == (np.int64, taken, good)


def test_rows_behind_the_last_number_are_refused() -> None:
    with pytest.raises(ValueError, match="rows must be below 5, got 5"):
        take_integers(NUMBERS, np.array([0, 5], np.int64))
    with pytest.raises(TypeError, match=r"rows must be \(b,\) int64, got"):
        take_integers(NUMBERS, np.zeros(2, np.int32))  # type: ignore[arg-type]
