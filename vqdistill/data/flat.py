"""Openers of files that hold one array: .npy, .fvecs/.bvecs/.ivecs and .fbin/.u8bin/.i8bin/.ibin."""

from __future__ import annotations

import lzma
import mmap
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from vqdistill.data.tables import ArrayTable, IntRows, check_table, map_array
from vqdistill.errors import InvalidInput, first_line
from vqdistill.objects.store import AnyPath
from vqdistill.types import F32Rows

READ_ERRORS = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SyntaxError, MemoryError),
    *(OverflowError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
"""What NumPy and zipfile are known to raise for damaged .npy and .npz files."""
VECS = {".fvecs": "<f4", ".bvecs": "u1", ".ivecs": "<i4"}
"""Suffix -> element type; each row is preceded by its dimension as int32."""
BINS = {".fbin": "<f4", ".u8bin": "u1", ".i8bin": "i1", ".ibin": "<i4"}
"""Suffix -> element type; the file starts with uint32 rows, uint32 dimensions."""


def open_npy(path: Path) -> ArrayTable:
    """Map a .npy file."""
    with path.open("rb") as file:
        shape, fortran, dtype = read_npy_header(file, str(path))
        offset = file.tell()
    check_table(str(path), shape, dtype.name)
    check_size(path, offset + shape[0] * shape[1] * dtype.itemsize, f"{shape[0]} x {shape[1]} {dtype.name}")
    array, mapping = map_array(path, dtype, shape, offset, fortran)
    return ArrayTable(str(path), array, mapping=mapping)


def read_npy_header(stream: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read shape, whether the order is Fortran's, and element type; `stream` is left at the first element.

    Raises
    ------
    InvalidInput
        If this is no .npy header, or elements are Python objects (pickles are never read).
    """
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except Exception as error:  # the parser lets several kinds through: EOFError, SyntaxError, RecursionError, ...
        raise InvalidInput(f"{name} is not a .npy array: {first_line(error)}") from None
    if dtype.hasobject:
        raise InvalidInput(f"{name} holds Python objects, which are never loaded; store numbers of one type")
    return shape, fortran, dtype


def open_bin(path: Path) -> ArrayTable:
    """Map a big-ann file: uint32 rows, uint32 dimensions, rows."""
    dtype = np.dtype(BINS[path.suffix.lower()])
    n, dim = struct.unpack("<II", _head(path, 8))
    check_table(str(path), (n, dim), dtype.name)
    check_size(path, 8 + n * dim * dtype.itemsize, f"{n} x {dim} {dtype.name}")
    array, mapping = map_array(path, dtype, (n, dim), 8)
    return ArrayTable(str(path), array, mapping=mapping)


def open_vecs(path: Path) -> ArrayTable:
    """Map a TEXMEX file, in which each row carries its dimension."""
    element = np.dtype(VECS[path.suffix.lower()])
    (dim,) = struct.unpack("<i", _head(path, 4))
    row_bytes = 4 + dim * element.itemsize
    size = path.stat().st_size
    if dim <= 0 or size % row_bytes:
        raise InvalidInput(f"{path} starts with dimension {dim}, but its {size} bytes are no whole number of such rows")
    row = np.dtype([("dim", "<i4"), ("row", element, (dim,))])
    array, mapping = map_array(path, row, (size // row_bytes,), 0)
    return _VecsTable(str(path), array, mapping)


class _VecsTable(ArrayTable):
    """Rows with their dimension before each; it is checked wherever a row is read."""

    def __init__(self, name: str, records: npt.NDArray[Any], mapping: mmap.mmap) -> None:
        super().__init__(name, records["row"], mapping=mapping)
        self._dims = records["dim"]

    def _copy(self, index: slice | IntRows) -> F32Rows:
        bad = np.flatnonzero(self._dims[index] != self.dim)
        if bad.size:
            row = int(np.arange(self.n)[index][bad[0]])
            raise InvalidInput(f"{self.name} row {row} has dimension {self._dims[row]}, row 0 has {self.dim}")
        return super()._copy(index)


def check_size(path: AnyPath, wanted: int, content: str) -> None:
    """Refuse a file that is shorter or longer than its header says.

    Raises
    ------
    InvalidInput
        With both sizes.
    """
    size = path.stat().st_size
    if size != wanted:
        raise InvalidInput(
            f"{path} is {'truncated' if size < wanted else 'too long'}: "
            f"its header says {content}, which takes {wanted} bytes, got {size}"
        )


def _head(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        head = file.read(size)
    if len(head) < size:
        raise InvalidInput(f"{path} is truncated: wanted a header of {size} bytes, got {len(head)}")
    return head
