"""Rows of unit norm, as cosine compares them."""

from __future__ import annotations

from vqdistill import _native
from vqdistill.errors import InvalidInput
from vqdistill.types import F32Rows, require_finite


def unit_rows(rows: F32Rows, name: str, start: int = 0) -> F32Rows:
    """Scale each row to unit Euclidean norm, computed in double.

    Parameters
    ----------
    rows : (b, d) float32, C-contiguous
    name : what messages call them

    Raises
    ------
    InvalidInput
        If a row is zero, or holds NaN or infinity; the message names its number, counted from `start`.
    """
    units, bad = _native.unit_rows(rows)
    if bad >= 0:
        require_finite(rows, name, start)
        raise InvalidInput(f"{name} row {start + bad} is a zero vector, which has no direction under metric cosine")
    return units
