"""What server and client exchange in binary: arrays as msgpack maps, and the result of a search."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from vqdistill.errors import InvalidInput
from vqdistill.types import WORK, Hits

JSON, MSGPACK, NPY = "application/json", "application/msgpack", "application/x-npy"
_PARTS = ("scores", "ids", "rows", "work")
_MAX_LISTS, _MAX_MAPS = 1 << 16, 1 << 8
"""Lists and maps of one message: each takes fifty times as much memory as it takes bytes to ask for one."""

_MAX_SIDE = 1 << 31


def pack_array(array: npt.NDArray[Any]) -> dict[str, Any]:
    """Return an array as the map that stands for it: `dtype`, such as "<f4", `shape`, and `data` in C order."""
    dtype, name = _little(array.dtype)
    return {"dtype": name, "shape": list(array.shape), "data": array.astype(dtype, copy=False).tobytes()}


@lru_cache(maxsize=64)
def _little(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], str]:
    little = dtype.newbyteorder("<")
    return little, little.str


def unpack_array(value: Any, name: str, kinds: str = "fiuU") -> npt.NDArray[Any]:
    """Read an array back, trusting nothing in the map; it shares the memory of `data`.

    Parameters
    ----------
    name : what messages call it
    kinds : kinds of NumPy dtypes that may come: f, i, u, and U for strings

    Raises
    ------
    InvalidInput
        If it is no such map, or shape and bytes do not agree.
    """
    if not isinstance(value, Mapping) or set(value) != {"dtype", "shape", "data"}:
        raise InvalidInput(f"{name} must be a map of dtype, shape and data, got {type(value).__name__}")
    shape, data = value["shape"], value["data"]
    try:
        dtype = np.dtype(value["dtype"] if isinstance(value["dtype"], str) else None)
    except (TypeError, ValueError, SyntaxError):
        dtype = np.dtype(object)
    if dtype.kind not in kinds or dtype.str[0] not in "<|" or not dtype.itemsize:
        raise InvalidInput(f"{name} must be little-endian of a kind among {', '.join(kinds)}, got {value['dtype']!r}")
    fits = (
        isinstance(shape, list)
        and len(shape) <= 2
        and all(type(side) is int and 0 <= side < _MAX_SIDE for side in shape)
    )
    if not fits or not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
        got = len(data) if isinstance(data, bytes) else type(data).__name__
        raise InvalidInput(f"{name} must hold the bytes of its shape, got {shape!r} {dtype} and {got} bytes")
    if dtype.kind == "U" and data and np.frombuffer(data, "<u4").max() > sys.maxunicode:
        raise InvalidInput(f"{name} must hold characters of Unicode, got others")
    return np.frombuffer(data, dtype).reshape(shape)


def unpack(body: bytes) -> Any:
    """Read a message of msgpack.

    Raises
    ------
    InvalidInput
        If it is none, or holds more lists and maps than any request needs.
    """
    left: dict[type, int] = {list: _MAX_LISTS, dict: _MAX_MAPS}

    def counted(value: Any) -> Any:
        left[type(value)] -= 1
        if left[type(value)] < 0:
            raise ValueError(f"more than {_MAX_LISTS} lists or {_MAX_MAPS} maps")
        return value

    try:
        return msgpack.unpackb(body, list_hook=counted, object_hook=counted)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise InvalidInput(f"the body must be one msgpack message, got {len(body)} bytes: {_said(error)}") from None


def pack(value: Any) -> bytes:
    """Write a message of msgpack."""
    return bytes(msgpack.packb(value))


def pack_hits(hits: Hits) -> bytes:
    """Return the result of a search as a message: a map of its four arrays."""
    degraded = {"degraded": True, "searched": hits.searched} if hits.searched < 1 else {}
    return pack({name: pack_array(getattr(hits, name)) for name in _PARTS} | degraded)


def unpack_hits(body: bytes) -> Hits:
    """Read the result of a search back.

    Raises
    ------
    InvalidInput
        If it is none.
    """
    message = unpack(body)
    degraded = message.pop("degraded", False) if isinstance(message, dict) else False
    searched = message.pop("searched", 1.0) if isinstance(message, dict) else 1.0
    if type(searched) is not float or not 0 < searched <= 1 or (searched < 1) is not degraded:
        raise InvalidInput(f"searched must be a share below 1 of a degraded answer, got {searched!r} and {degraded!r}")
    if not isinstance(message, dict) or set(message) != set(_PARTS):
        raise InvalidInput(f"the message must be a map of {', '.join(_PARTS)}, got {type(message).__name__}")
    scores, ids, rows, work = (unpack_array(message[name], name) for name in _PARTS)
    if not (scores.ndim == 2 and scores.shape == ids.shape == rows.shape and work.shape == (len(scores), len(WORK))):
        raise InvalidInput(f"scores, ids and rows must be of one shape, got {scores.shape}, {ids.shape}, {rows.shape}")
    return Hits(scores, ids, rows, work, searched=searched)


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
