"""How dense rows and external ids are encoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.errors import InvalidInput
from vqdistill.index.byte_rows import to_bytes
from vqdistill.types import F32Rows

_MAX_ID_BYTES = 65535


def encode_dense(x: F32Rows, dense: str, start: int = 0) -> npt.NDArray[Any]:
    """Convert prepared rows to what the dense segment holds.

    Parameters
    ----------
    x : (b, d) float32, finite
    dense : "f32", "f16", "bf16" or "i8"
    start : row number of `x[0]`, for messages

    Returns
    -------
    (b, d) float32, float16 or uint16 (the upper halves of rounded float32); or (b, 4 + d) uint8, see `byte_rows`

    Raises
    ------
    InvalidInput
        If a value is beyond float16 or bfloat16.
    """
    if dense == "f32":
        return x
    if dense == "f16":
        with np.errstate(over="ignore", under="ignore"):
            half = x.astype(np.float16)
        _require_in_range(np.isinf(half), "float16", start)
        return half
    if dense == "bf16":
        bits = x.view(np.uint32)
        upper = ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype("<u2")  # to the nearest, ties to even
        _require_in_range((upper & 0x7F80) == 0x7F80, "bfloat16", start)
        return upper
    return to_bytes(x)


def _require_in_range(beyond: npt.NDArray[np.bool_], dtype: str, start: int) -> None:
    bad = np.flatnonzero(beyond.any(axis=1))
    if bad.size:
        row = start + int(bad[0])
        raise InvalidInput(f"vectors row {row} holds values beyond {dtype}; store dense rows as f32 or i8")


def encode_int_ids(ids: Sequence[Any] | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return ids as (b,) int64.

    Raises
    ------
    InvalidInput
        If they are no integers of 64 bits, or one is -1.
    """
    array = np.asarray(ids)
    fits = array.dtype.kind == "i" or (array.dtype.kind == "u" and (array <= 2**63 - 1).all())
    if array.ndim != 1 or not fits:
        raise InvalidInput(f"ids must be (rows,) int64, got {array.shape} {array.dtype}")
    if (array == -1).any():
        raise InvalidInput("ids must not be -1, which marks a missing result")
    return array.astype(np.int64)


def encode_text_id(text: Any, row: int) -> bytes:
    """Return an id as UTF-8; `row` is for the message.

    Raises
    ------
    InvalidInput
        If it is no text, empty, longer than 65535 bytes, holds NUL or a lone surrogate.
    """
    wanted = f"id of row {row} must be text of 1..{_MAX_ID_BYTES} bytes in UTF-8 without NUL"
    if not isinstance(text, str):
        raise InvalidInput(f"{wanted}, got {type(text).__name__}")
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidInput(f"{wanted}, got {ascii(text)[:80]}") from None
    if not 0 < len(data) <= _MAX_ID_BYTES or 0 in data:
        raise InvalidInput(f"{wanted}, got {len(data)} bytes: {ascii(text)[:80]}")
    return data
