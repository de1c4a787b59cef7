"""Rows of a .npy file in an object store, of which only those that are asked for are fetched."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vqdistill.data.flat import check_size, read_npy_header
from vqdistill.data.tables import IntRows, Spans, check_table, decode, row_spans
from vqdistill.errors import InvalidInput
from vqdistill.objects.store import READ_BYTES, RemotePath
from vqdistill.types import F32Rows

_HEADER_BYTES = 64 << 10
_NEAR_BYTES = 1 << 20  # rows so near come in one range: a request takes as long as about so many bytes
_AT_ONCE = 64  # ranges fetched at the same time, hence at most 64 MiB


class RangeTable:
    """A table that starts at an offset of a file; see Table."""

    resident_bytes = 0

    def __init__(self, file: RemotePath, offset: int, shape: tuple[int, int], dtype: np.dtype[np.generic]) -> None:
        self.name, self.dtype = str(file), dtype.name
        self.n, self.dim = shape
        self._file, self._offset, self._stored = file, offset, dtype
        self._row_bytes = self.dim * dtype.itemsize

    def spans(self, rows: int) -> Spans:
        """See Table."""
        return row_spans(self.n, rows)

    def read(self, start: int, stop: int) -> F32Rows:
        """See Table."""
        step = max(1, READ_BYTES // self._row_bytes)
        cuts = [*range(start, stop, step), stop]
        return np.concatenate([decode(rows, self.dtype) for rows in self._fetch(list(pairwise(cuts)))])

    def gather(self, rows: IntRows) -> F32Rows:
        """See Table."""
        out = np.empty((len(rows), self.dim), np.float32)
        order = np.argsort(rows, kind="stable")
        near = rows[order] // max(1, _NEAR_BYTES // self._row_bytes)
        parts = [part for part in np.split(order, np.flatnonzero(np.diff(near)) + 1) if part.size]
        for at in range(0, len(parts), _AT_ONCE):
            some = parts[at : at + _AT_ONCE]
            spans = [(int(rows[part[0]]), int(rows[part[-1]]) + 1) for part in some]
            for part, (first, _), found in zip(some, spans, self._fetch(spans), strict=True):
                out[part] = decode(found[rows[part] - first], self.dtype)
        return out

    def _fetch(self, spans: list[tuple[int, int]]) -> list[npt.NDArray[np.generic]]:
        """Stored rows of each span."""
        offset, size = self._offset, self._row_bytes
        parts = self._file.read_spans([(offset + size * start, offset + size * stop) for start, stop in spans])
        return [np.frombuffer(part, self._stored).reshape(-1, self.dim) for part in parts]


def open_npy_by_ranges(file: RemotePath) -> RangeTable:
    """Open a .npy file of an object store.

    Raises
    ------
    InvalidInput
        If it is no table of numbers, truncated, or stored column by column, of which no row is one range.
    """
    stream = io.BytesIO(file.read(0, min(file.size, _HEADER_BYTES)))
    shape, fortran, dtype = read_npy_header(stream, str(file))
    check_table(str(file), shape, dtype.name)
    n, dim = shape
    offset = stream.tell()
    check_size(file, offset + n * dim * dtype.itemsize, f"{n} x {dim} {dtype.name}")
    if fortran:
        raise InvalidInput(f"{file} must be in C order to be read from an object store, got Fortran order")
    return RangeTable(file, offset, (n, dim), dtype)
