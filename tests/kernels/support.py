"""Small indexes for the kernel and engine tests, whose scores are exact in any order of operations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.kernels import Engine, pack_codes, scan_order
from vqdistill.kernels.reference import ReferenceEngine

SIZES = [1, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97]
"""Around every lane width."""
QUADS = {"scalar", "avx512"}
"""CPU levels that scan codes in quads."""
STRIDES = {"f32": lambda d: 4 * d, "f16": lambda d: 2 * d, "bf16": lambda d: 2 * d, "i8": lambda d: 4 + d}


def shifted(array: npt.NDArray[Any], offset: int) -> npt.NDArray[Any]:
    """Return a contiguous copy that starts `offset` elements behind a 64-byte boundary."""
    size = array.itemsize
    raw = np.zeros(array.nbytes + 64 + offset * size, np.uint8)
    start = -raw.ctypes.data % 64 + offset * size
    out = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


def in_quads(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return packed codes (nblocks, m / 2, 32) in the order of quads, (nblocks, m / 8, 32, 4)."""
    nblocks, pairs, _ = packed.shape
    return np.ascontiguousarray(packed.reshape(nblocks, pairs // 4, 4, 32).transpose(0, 1, 3, 2))


def bf16_bits(x: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint16]:
    """Return the upper halves of float32: exact for numbers of up to eight significant bits, else cut."""
    return (np.ascontiguousarray(x, dtype="<f4").view(np.uint32) >> 16).astype("<u2")


def encode_dense(dtype: str, rows: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Store rows (n, d) of small integers -> (n, stride) uint8; i8 rows get scales that are powers of two."""
    if dtype == "i8":
        scales = (2.0 ** rng.integers(-2, 3, (len(rows), 1))).astype("<f4")
        return np.concatenate([scales.view(np.uint8), rows.astype(np.int8).view(np.uint8)], axis=1)
    if dtype == "bf16":
        return bf16_bits(rows).view(np.uint8).reshape(len(rows), -1)
    stored = rows.astype({"f32": "<f4", "f16": "<f2"}[dtype])
    return np.ascontiguousarray(stored).view(np.uint8).reshape(len(rows), -1)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a random index looks like."""

    n: int = 500
    d: int = 12
    m: int = 8
    dsub: int = 3
    nlist: int = 6
    metric: str = "ip"
    residual: bool = False
    dense_dtype: str = "none"
    additive: bool = False
    """Whether each codeword has d dimensions; dsub is not used then."""


def small_integers(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    """Float32 integers so small that all sums and products of a search are exact."""
    return rng.integers(-4, 5, shape).astype(np.float32)


def random_arrays(shape: Shape, seed: int = 0) -> dict[str, Any]:
    """Return the keyword arguments of Engine and ReferenceEngine, without dense rows; some lists are empty."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, shape.n + 1, shape.nlist - 1))
    if shape.nlist > 3:
        cuts[1] = cuts[0]
    return {
        "metric": shape.metric,
        "residual": shape.residual,
        "list_offsets": np.concatenate([[0], cuts, [shape.n]]).astype(np.int64),
        "router": small_integers(rng, shape.nlist, shape.d),
        "coarse": small_integers(rng, shape.nlist, shape.d),
        "mean": small_integers(rng, shape.d),
        "rotation": small_integers(rng, 0 if shape.additive else shape.m * shape.dsub, shape.d),
        "codewords": small_integers(rng, shape.m, 16, shape.d if shape.additive else shape.dsub),
        "packed": pack_codes(rng.integers(0, 16, (shape.n, shape.m)).astype(np.uint8)),
    }


@contextmanager
def both_engines(
    shape: Shape, folder: Path, seed: int = 0, **adapters: Any
) -> Iterator[tuple[Engine, ReferenceEngine]]:
    """Open a native engine, codes in its order, dense rows behind 100 bytes of something else, and its reference."""
    arrays = random_arrays(shape, seed) | adapters
    ordered = arrays | {"packed": scan_order(arrays["packed"].copy())}
    if shape.dense_dtype == "none":
        yield Engine(**ordered), ReferenceEngine(**arrays)
        return
    rng = np.random.default_rng(seed + 1)
    dense = encode_dense(shape.dense_dtype, small_integers(rng, shape.n, shape.d).astype(np.float64), rng)
    fd = os.open(folder / "dense", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        os.pwrite(fd, dense.tobytes(), 100)
        native = Engine(**ordered, dense_fd=fd, dense_offset=100, dense_dtype=shape.dense_dtype)
        yield native, ReferenceEngine(**arrays, dense_dtype=shape.dense_dtype, dense=dense)
    finally:
        os.close(fd)


def allowed_rows(index: ReferenceEngine, mask: npt.NDArray[np.bool_] | None) -> Any:
    """Return a mask (n,) of positions as the engine takes it."""
    if mask is None:
        return None
    bits = np.zeros(len(index.packed) * 32, bool)
    bits[: len(mask)] = mask
    per_list = [mask[begin:end].sum() for begin, end in zip(index.list_offsets, index.list_offsets[1:], strict=False)]
    return np.packbits(bits, bitorder="little").view("<u4"), np.array(per_list, np.int64)


def random_tables(rng: np.random.Generator, m: int) -> npt.NDArray[np.uint8]:
    """Tables (m, 16) whose pairs reach the bound of 255, wherever they are split."""
    split = rng.integers(0, 256, m // 2)
    tops = np.stack([split, 255 - split], axis=1).reshape(m, 1)
    tables = (rng.random((m, 16)) * (tops + 1)).astype(np.uint8)
    tables[:, :1] = tops
    return tables
