"""Rows of signed bytes: x = scale * byte, with a float32 scale before the bytes of each row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.types import F32Rows

SCALE_BYTES = 4


def to_bytes(x: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Round the last axis of x (..., d) to bytes -127..127: (..., 4 + d) uint8, a little-endian scale = max |x| / 127.

    The error is at most scale / 2 an element.
    """
    scale = np.abs(x).max(axis=-1, keepdims=True).astype(np.float32) / np.float32(127)
    # A zero row has scale 0; dividing it by 1 leaves it zero.
    steps = np.rint(x / np.where(scale > 0, scale, np.float32(1))).clip(-127, 127).astype(np.int8)
    return np.concatenate([scale.astype("<f4").view(np.uint8), steps.view(np.uint8)], axis=-1)


def from_bytes(rows: npt.NDArray[np.uint8]) -> F32Rows:
    """What rows (..., 4 + d) stand for: (..., d) float32."""
    x: F32Rows = _scales(rows) * rows[..., SCALE_BYTES:].view(np.int8)
    return x


def problem(rows: npt.NDArray[np.uint8]) -> str | None:
    """Say what is wrong with rows that nothing vouches for."""
    if not np.isfinite(_scales(rows)).all():
        return "scales must be finite, got NaN or infinity"
    # Products of bytes are added in pairs of 16 bits, which hold those of -127..127.
    if (rows[..., SCALE_BYTES:].view(np.int8) == -128).any():
        return "bytes must be in -127..127, got -128"
    return None


def _scales(rows: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    return rows[..., :SCALE_BYTES].copy().view("<f4")
