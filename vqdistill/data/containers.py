"""Openers of files that hold several named arrays: .npz and .safetensors; and what such a container must offer."""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from vqdistill.data.flat import READ_ERRORS, check_size, read_npy_header
from vqdistill.data.tables import ArrayTable, BlockTable, Table, check_table, map_array
from vqdistill.errors import InvalidInput
from vqdistill.types import Metric

_BLOCK_BYTES = 4 << 20
_SAFETENSORS_HEADER = 100_000_000  # the cap of the format
_SAFETENSORS_TYPES = {
    "F64": ("float64", "<f8"),
    "F32": ("float32", "<f4"),
    "F16": ("float16", "<f2"),
    "BF16": ("bfloat16", "<u2"),
    "I8": ("int8", "i1"),
    "U8": ("uint8", "u1"),
    "I32": ("int32", "<i4"),
    "I64": ("int64", "<i8"),
}


class Container(Protocol):
    """A file of named arrays."""

    name: str
    shapes: dict[str, tuple[int, ...]]
    """Name -> shape of all arrays; (rows, 0) for a parquet column whose lists have a length that is not known yet."""

    @property
    def metric(self) -> Metric | None:
        """What the file says its vectors are compared by."""

    def table(self, key: str) -> Table:
        """Open the two-dimensional array `key`."""

    def pieces(self, key: str) -> Iterator[npt.NDArray[Any] | list[Any]]:
        """Yield array `key` in consecutive pieces; strings come as lists or string arrays."""


class NpzContainer:
    """A .npz file: stored members are mapped, compressed ones are read as streams."""

    metric = None

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except READ_ERRORS as error:
            raise InvalidInput(f"{path} is not a .npz archive: {error}") from None
        self._infos = {i.filename.removesuffix(".npy"): i for i in self._zip.infolist() if i.filename.endswith(".npy")}
        self.shapes = {key: self._header(key)[0] for key in self._infos}

    def table(self, key: str) -> Table:
        """See Container."""
        name, info = f"{self.name}:{key}", self._infos[key]
        shape, fortran, dtype, header_bytes = self._header(key)
        check_table(name, shape, dtype.name)
        wanted = header_bytes + shape[0] * shape[1] * dtype.itemsize
        if info.file_size != wanted:
            raise InvalidInput(f"{name} is damaged: its shape {shape} takes {wanted} bytes, got {info.file_size}")
        if info.compress_type != zipfile.ZIP_STORED:
            if fortran:
                raise InvalidInput(f"{name} is compressed and in Fortran order; save it in C order or uncompressed")
            return _DeflatedTable(name, self._open(key), header_bytes, shape, dtype)
        offset = self._data_offset(info) + header_bytes
        if offset + wanted - header_bytes > self._path.stat().st_size:
            raise InvalidInput(f"{name} is truncated")
        array, mapping = map_array(self._path, dtype, shape, offset, fortran)
        return ArrayTable(name, array, mapping=mapping)

    def pieces(self, key: str) -> Iterator[npt.NDArray[Any]]:
        """See Container."""
        with self._open(key) as stream:
            try:
                yield np.lib.format.read_array(stream, allow_pickle=False)
            except READ_ERRORS as error:
                raise InvalidInput(f"{self.name}:{key} cannot be read: {error}") from None

    def _open(self, key: str) -> IO[bytes]:
        try:
            return self._zip.open(self._infos[key])
        except READ_ERRORS as error:
            raise InvalidInput(f"{self.name}:{key} cannot be read: {error}") from None

    def _header(self, key: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
        with self._open(key) as stream:
            return (*read_npy_header(stream, f"{self.name}:{key}"), stream.tell())

    def _data_offset(self, info: zipfile.ZipInfo) -> int:
        # The local header repeats the name and may have other extra fields than the central directory.
        with self._path.open("rb") as file:
            file.seek(info.header_offset + 26)
            name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
        return info.header_offset + 30 + int(name_bytes) + int(extra_bytes)


class _DeflatedTable(BlockTable):
    """A compressed npz member; going back in the stream starts it again."""

    def __init__(self, name: str, stream: IO[bytes], offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        super().__init__()
        self.name, self.dtype = name, dtype.name
        self.n, self.dim = shape
        self.granule = max(1, _BLOCK_BYTES // (self.dim * dtype.itemsize))
        self._stream, self._offset, self._stored = stream, offset, dtype

    def _raw(self, start: int, stop: int) -> npt.NDArray[Any]:
        row_bytes = self.dim * self._stored.itemsize
        try:
            self._stream.seek(self._offset + start * row_bytes)
            data = self._stream.read((stop - start) * row_bytes)
        except READ_ERRORS as error:
            raise InvalidInput(f"{self.name} is damaged near row {start}: {error}") from None
        if len(data) != (stop - start) * row_bytes:
            raise InvalidInput(f"{self.name} is truncated near row {start}")
        return np.frombuffer(data, self._stored).reshape(-1, self.dim)


class SafetensorsContainer:
    """A .safetensors file: a JSON header and raw little-endian arrays, which are mapped."""

    metric = None

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        with path.open("rb") as file:
            head = file.read(8)
            header_bytes = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if not 2 <= header_bytes <= min(_SAFETENSORS_HEADER, path.stat().st_size - 8):
                raise InvalidInput(f"{path} is not a safetensors file: its first 8 bytes give no length of a header")
            text = file.read(header_bytes)
        self._start = 8 + int(header_bytes)
        try:
            header = json.loads(text)
            header.pop("__metadata__", None)
            self._entries = {key: _entry(value) for key, value in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidInput(f"{path} is not a safetensors file: its header is damaged ({error!r})") from None
        self.shapes = {key: shape for key, (_, shape, _, _) in self._entries.items()}
        end = max((stop for _, _, _, stop in self._entries.values()), default=0)
        check_size(path, self._start + end, f"{len(self._entries)} arrays in {end} bytes")

    def table(self, key: str) -> Table:
        """See Container."""
        array, mapping, dtype = self._map(key)
        return ArrayTable(f"{self.name}:{key}", array, dtype, mapping)

    def pieces(self, key: str) -> Iterator[npt.NDArray[Any]]:
        """See Container."""
        yield self._map(key)[0]

    def _map(self, key: str) -> tuple[npt.NDArray[Any], Any, str]:
        kind, shape, start, stop = self._entries[key]
        if kind not in _SAFETENSORS_TYPES:
            raise InvalidInput(f"{self.name}:{key} must be one of {', '.join(_SAFETENSORS_TYPES)}, got {kind}")
        dtype, stored = _SAFETENSORS_TYPES[kind]
        wanted = math.prod(shape) * np.dtype(stored).itemsize
        if stop - start != wanted:
            raise InvalidInput(f"{self.name}:{key} is damaged: {shape} {kind} takes {wanted} bytes, got {stop - start}")
        return (*map_array(self._path, np.dtype(stored), shape, self._start + start), dtype)


def _entry(value: dict[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape, start and stop of one array in a safetensors header."""
    shape, (start, stop) = value["shape"], value["data_offsets"]
    numbers = [*shape, start, stop]
    if not all(isinstance(number, int) and number >= 0 for number in numbers) or start > stop:
        raise ValueError(f"shape {shape}, data_offsets {value['data_offsets']}")
    return str(value["dtype"]), tuple(shape), start, stop
