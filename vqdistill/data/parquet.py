"""Opener of Parquet files whose vectors are a list or fixed-size-list column."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.data.tables import BlockTable, Table, check_table
from vqdistill.errors import InvalidInput, MissingDependency
from vqdistill.objects.store import READ_BYTES, AnyPath, RemotePath

_BLOCK_BYTES = 4 << 20
_READ_BYTES = 1 << 20
_PIECE_ROWS = 65536


def require_pyarrow() -> tuple[Any, Any]:
    """Import pyarrow and pyarrow.parquet.

    Raises
    ------
    MissingDependency
        With the line that installs it.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingDependency("reading .parquet needs pyarrow: pip install 'vqdistill[parquet]'") from None
    return pyarrow, pyarrow.parquet


class ParquetContainer:
    """An open Parquet file; its list columns are the tables, its flat columns can be ids."""

    metric = None

    def __init__(self, path: AnyPath) -> None:
        arrow, parquet = require_pyarrow()
        self.name = str(path)
        self._types = arrow.types
        self._failures = (arrow.ArrowException, OSError, ValueError)
        try:
            # Otherwise whole column chunks are read at once, and those of a row group of default size can be gigabytes.
            remote = isinstance(path, RemotePath)
            size = READ_BYTES if remote else _READ_BYTES
            self._file = parquet.ParquetFile(path.open("rb") if remote else path, buffer_size=size, pre_buffer=False)
            fields = list(self._file.schema_arrow)
        except self._failures as error:
            raise InvalidInput(f"{path} is not a readable Parquet file: {_first_line(error)}") from None
        self.n = int(self._file.metadata.num_rows)
        self.shapes: dict[str, tuple[int, ...]] = {
            field.name: (self.n, 0) if _is_list(arrow.types, field.type) else (self.n,) for field in fields
        }

    def table(self, key: str) -> Table:
        """See Container."""
        kind = self._file.schema_arrow.field(key).type
        if len(self.shapes[key]) != 2 or not _is_number(self._types, kind.value_type):
            raise InvalidInput(f"{self.name}:{key} must be a column of lists of numbers, got {kind}")
        if self.n == 0:
            raise InvalidInput(f"{self.name} is empty: it has no rows")
        return _ParquetTable(self, key)

    def pieces(self, key: str) -> Iterator[npt.NDArray[Any] | list[Any]]:
        """See Container."""
        for batch in self.batches(key, 0, _PIECE_ROWS):
            column = batch.column(0)
            if column.null_count:
                raise InvalidInput(f"{self.name}:{key} has {column.null_count} nulls, wanted a value in each row")
            yield column.to_numpy() if _is_number(self._types, column.type) else column.to_pylist()

    def batches(self, key: str, row_group: int, rows: int) -> Iterator[Any]:
        """Yield record batches of column `key` from a row group on, at most `rows` rows each."""
        groups = list(range(row_group, self._file.metadata.num_row_groups))
        try:
            yield from self._file.iter_batches(batch_size=rows, row_groups=groups, columns=[key])
        except self._failures as error:
            raise InvalidInput(f"{self.name}:{key} is damaged: {_first_line(error)}") from None

    def group_starts(self) -> npt.NDArray[np.int64]:
        """(row groups + 1,) first row of each row group, and n."""
        metadata = self._file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


class _ParquetTable(BlockTable):
    """Rows of a list column. A cursor follows the scan; going back starts again at a row group."""

    def __init__(self, container: ParquetContainer, key: str) -> None:
        super().__init__()
        self.name, self.n = f"{container.name}:{key}", container.n
        self._container, self._key = container, key
        self._starts = container.group_starts()
        self._next_row = -1
        self._rest: list[Any] = []
        first = next(container.batches(key, 0, 1)).column(0)
        self.dim = 0 if first.null_count else len(first[0])
        if self.dim == 0:
            raise InvalidInput(f"{self.name} row 0 is null or an empty list")
        values = self._values(first, 0)
        self.dtype = values.dtype.name
        check_table(self.name, (self.n, self.dim), self.dtype)
        self.granule = max(1, _BLOCK_BYTES // (self.dim * values.dtype.itemsize))

    def _raw(self, start: int, stop: int) -> npt.NDArray[Any]:
        if start != self._next_row:
            self._seek(start)
        parts, row = [], start
        while row < stop:
            column = self._rest.pop() if self._rest else self._next()
            if len(column) > stop - row:
                self._rest.append(column[stop - row :])
                column = column[: stop - row]
            parts.append(self._values(column, row))
            row += len(column)
        self._next_row = stop
        return np.concatenate(parts)

    def _seek(self, start: int) -> None:
        group = int(np.searchsorted(self._starts, start, side="right")) - 1
        at = self._next_row
        if not self._starts[group] <= at <= start:
            self._cursor = self._container.batches(self._key, group, self.granule)
            self._rest.clear()
            at = int(self._starts[group])
        while at < start:
            column = self._rest.pop() if self._rest else self._next()
            if len(column) > start - at:
                self._rest.append(column[start - at :])
            at += min(start - at, len(column))

    def _next(self) -> Any:
        batch = next(self._cursor, None)
        if batch is None:
            raise InvalidInput(f"{self.name} is damaged: it ends before its {self.n} rows")
        return batch.column(0)

    def _values(self, column: Any, row: int) -> npt.NDArray[Any]:
        lengths = np.asarray(column.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False))
        bad = np.flatnonzero((lengths != self.dim) | np.asarray(column.is_null()))
        if bad.size:
            got = "null" if lengths[bad[0]] < 0 or column[int(bad[0])].as_py() is None else f"{lengths[bad[0]]} numbers"
            raise InvalidInput(f"{self.name} row {row + int(bad[0])} must be a list of {self.dim} numbers, got {got}")
        flat = column.flatten()
        if flat.null_count:
            where = row + int(np.flatnonzero(np.asarray(flat.is_null()))[0]) // self.dim
            raise InvalidInput(f"{self.name} row {where} holds a null")
        return np.asarray(flat.to_numpy()).reshape(-1, self.dim)


def _is_list(types: Any, kind: Any) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_number(types: Any, kind: Any) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
