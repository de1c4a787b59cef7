"""Tables: random access to the rows of one stored array, decoded to float32, a few megabytes in memory at a time."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vqdistill.errors import InvalidInput
from vqdistill.types import F32Rows

ELEMENT_TYPES = ("float64", "float32", "float16", "bfloat16", "int8", "uint8", "int32")
"""Names of the element types that a table may have."""
ELEMENT_BYTES = {dtype: int(re.sub(r"\D", "", dtype)) // 8 for dtype in ELEMENT_TYPES}
"""Bytes of one stored element."""
DOCUMENT_KEYS = ("train", "embeddings", "embedding", "vectors", "vector", "emb", "documents", "docs", "corpus", "x")
"""Names under which a container's documents are looked for, in this order, when no key is given."""

_CACHE_BYTES = 128 << 20  # decoded blocks that a compressed table keeps for random access
_GATHER_ROWS = 64  # a page fault maps the pages around it too, up to 2 MiB, until they are given back

IntRows = npt.NDArray[np.int64]
Spans = Iterator[tuple[int, int]]


class Table(Protocol):
    """(n, dim) stored numbers. Rows come out as fresh float32 arrays, not yet checked or normalised."""

    name: str
    """What messages call it: the path, with `:key` where there is one."""
    n: int
    dim: int
    dtype: str
    """Stored element type, one of ELEMENT_TYPES."""

    @property
    def resident_bytes(self) -> int:
        """Bytes held in memory, at most, beyond those of one read."""

    def spans(self, rows: int) -> Spans:
        """Cut 0..n into (start, stop) of at most `rows` rows, along the borders that are cheap to read."""

    def read(self, start: int, stop: int) -> F32Rows:
        """Rows start..stop."""

    def gather(self, rows: IntRows) -> F32Rows:
        """The given rows, which lie in 0..n, in the given order."""


def check_table(name: str, shape: tuple[int, ...], dtype: str) -> None:
    """Refuse what is not a table of numbers.

    Raises
    ------
    InvalidInput
        If the element type is not supported, or `shape` is not (rows, d) with at least one of each.
    """
    if dtype == "object":
        raise InvalidInput(f"{name} holds Python objects, which are never loaded; store numbers of one type")
    if dtype not in ELEMENT_TYPES:
        raise InvalidInput(f"{name} must be one of {', '.join(ELEMENT_TYPES)}, got {dtype}")
    if len(shape) != 2:
        raise InvalidInput(f"{name} must have two dimensions (rows, d), got shape {shape}")
    if shape[0] == 0 or shape[1] == 0:
        raise InvalidInput(f"{name} is empty: its shape is {shape}")


def choose_key(name: str, shapes: Mapping[str, tuple[int, ...]], key: str | None, prefer: tuple[str, ...]) -> str:
    """Name of the array to read: `key`, else the first of `prefer` that exists, else the only two-dimensional one.

    Raises
    ------
    InvalidInput
        If there is no such array; the message lists those that there are.
    """
    listing = ", ".join(sorted(shapes)[:20]) + (", ..." if len(shapes) > 20 else "")
    if key is not None:
        if key in shapes:
            return key
        raise InvalidInput(f"{name} has no array named {key!r}; it holds {listing or 'none'}")
    for candidate in prefer:
        if candidate in shapes:
            return candidate
    wide = [candidate for candidate, shape in shapes.items() if len(shape) == 2]
    if len(wide) == 1:
        return wide[0]
    raise InvalidInput(f"{name} needs a key, as in {name}:KEY; it holds {listing or 'no arrays'}")


def row_spans(n: int, rows: int, granule: int = 1) -> Spans:
    """Cut 0..n into spans of at most `rows`; multiples of `granule`, or parts of one if it is larger."""
    if rows >= granule:
        step = rows - rows % granule
        yield from ((start, min(start + step, n)) for start in range(0, n, step))
        return
    for block in range(0, n, granule):
        stop = min(block + granule, n)
        yield from ((start, min(start + rows, stop)) for start in range(block, stop, rows))


def decode(raw: npt.NDArray[Any], dtype: str) -> F32Rows:
    """Copy stored elements to float32; bfloat16 may come as uint16. Overflow gives infinity, to be refused."""
    if dtype == "bfloat16" and raw.dtype == np.uint16:
        return np.ascontiguousarray(raw.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return np.array(raw, dtype=np.float32, order="C")


def map_array(
    path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int, fortran: bool = False
) -> tuple[npt.NDArray[Any], mmap.mmap]:
    """Map an array that lies uncompressed in a file; the caller has checked that it fits."""
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.ndarray(shape, dtype, buffer=mapping, offset=offset, order="F" if fortran else "C"), mapping


class ArrayTable:
    """A table over a NumPy array, in memory or mapped from a file.

    Parameters
    ----------
    name : for messages
    array : (n, dim) numbers; uint16 stands for bfloat16 if `dtype` says so
    dtype : stored element type; None = that of the array
    mapping : the mapping behind `array`; its pages are given back after each read, so that a scan grows nothing
    """

    def __init__(
        self, name: str, array: npt.NDArray[Any], dtype: str | None = None, mapping: mmap.mmap | None = None
    ) -> None:
        self.name = name
        self.dtype = dtype or array.dtype.name
        check_table(name, array.shape, self.dtype)
        self.n, self.dim = array.shape
        self._array = array
        self._mapping = mapping

    @property
    def resident_bytes(self) -> int:
        """See Table."""
        return self._array.nbytes if self._mapping is None else 0

    def spans(self, rows: int) -> Spans:
        """See Table."""
        return row_spans(self.n, rows)

    def read(self, start: int, stop: int) -> F32Rows:
        """See Table."""
        return self._copy(np.s_[start:stop])

    def gather(self, rows: IntRows) -> F32Rows:
        """See Table."""
        out = np.empty((len(rows), self.dim), np.float32)
        for start in range(0, len(rows), _GATHER_ROWS):
            out[start : start + _GATHER_ROWS] = self._copy(rows[start : start + _GATHER_ROWS])
        return out

    def _copy(self, index: slice | IntRows) -> F32Rows:
        out = decode(self._array[index], self.dtype)
        if self._mapping is not None:
            self._mapping.madvise(mmap.MADV_DONTNEED)
        return out


class TensorTable:
    """A table over a torch tensor; torch itself is never imported here."""

    def __init__(self, name: str, tensor: Any) -> None:
        self.name = name
        self.dtype = str(tensor.dtype).removeprefix("torch.")
        check_table(name, tuple(tensor.shape), self.dtype)
        self.n, self.dim = map(int, tensor.shape)
        self._tensor = tensor.detach()

    @property
    def resident_bytes(self) -> int:
        """See Table."""
        return int(self._tensor.numel() * self._tensor.element_size())

    def spans(self, rows: int) -> Spans:
        """See Table."""
        return row_spans(self.n, rows)

    def read(self, start: int, stop: int) -> F32Rows:
        """See Table."""
        return decode(self._tensor[start:stop].cpu().float().numpy(), "float32")

    def gather(self, rows: IntRows) -> F32Rows:
        """See Table."""
        return decode(self._tensor[rows].cpu().float().numpy(), "float32")


class BlockTable:
    """Base of tables that are stored in compressed blocks of rows: a block is never read twice for one scan.

    For random access the first 128 MiB of blocks that are asked for stay in memory; nothing is evicted, because takes
    go through a file in row order, where dropping the least recent block would always drop the next one needed.
    A child sets name, n, dim, dtype and `granule` (rows of a block), and reads stored elements in `_raw`.
    """

    name: str
    n: int
    dim: int
    dtype: str
    granule: int
    scale: float | None = None
    """Factor that turns stored integers into values."""

    def __init__(self) -> None:
        self._blocks: dict[int, npt.NDArray[Any]] = {}
        self._cached_bytes = 0
        self._last: tuple[int, npt.NDArray[Any]] | None = None

    def _raw(self, start: int, stop: int) -> npt.NDArray[Any]:
        raise NotImplementedError

    @property
    def resident_bytes(self) -> int:
        """See Table."""
        stored = self.dim * ELEMENT_BYTES[self.dtype]
        return min(_CACHE_BYTES, self.n * stored) + 2 * self.granule * stored

    def spans(self, rows: int) -> Spans:
        """See Table."""
        return row_spans(self.n, rows, self.granule)

    def read(self, start: int, stop: int) -> F32Rows:
        """See Table."""
        size = self.granule
        if start % size == 0 and (stop % size == 0 or stop == self.n):
            return self._decode(self._raw(start, stop))
        blocks = range(start // size, (stop - 1) // size + 1)
        parts = [self._block(i)[max(start - i * size, 0) : stop - i * size] for i in blocks]
        return self._decode(np.concatenate(parts))

    def gather(self, rows: IntRows) -> F32Rows:
        """See Table."""
        out = np.empty((len(rows), self.dim), np.float32)
        order = np.argsort(rows, kind="stable")
        blocks = rows[order] // self.granule
        for part in np.split(order, np.flatnonzero(np.diff(blocks)) + 1):
            if part.size:
                block = int(rows[part[0]]) // self.granule
                out[part] = self._decode(self._block(block)[rows[part] - block * self.granule])
        return out

    def _decode(self, raw: npt.NDArray[Any]) -> F32Rows:
        out = decode(raw, self.dtype)
        if self.scale is not None:
            out *= np.float32(self.scale)
        return out

    def _block(self, block: int) -> npt.NDArray[Any]:
        if block in self._blocks:
            return self._blocks[block]
        if self._last is not None and self._last[0] == block:
            return self._last[1]
        raw = self._raw(block * self.granule, min((block + 1) * self.granule, self.n))
        if self._cached_bytes + raw.nbytes <= _CACHE_BYTES:
            self._blocks[block] = raw
            self._cached_bytes += raw.nbytes
        else:
            self._last = (block, raw)
        return raw


def widest(dtypes: set[str]) -> str | None:
    """The widest of element types of one kind (float and bfloat, int, uint); None if the kinds differ."""
    kinds = {re.sub(r"^b|\d+", "", dtype) for dtype in dtypes}
    return max(dtypes, key=ELEMENT_BYTES.__getitem__) if len(kinds) == 1 else None
