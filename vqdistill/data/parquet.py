"""Opener of Parquet files whose vectors are a list or fixed-size-list column."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.data import arrow
from vqdistill.data.tables import Table
from vqdistill.errors import InvalidInput, first_line, needed_by
from vqdistill.objects.store import READ_BYTES, AnyPath, RemotePath

_READ_BYTES = 1 << 20


class ParquetContainer:
    """An open Parquet file; its list columns are the tables, its flat columns can be ids."""

    metric = None

    def __init__(self, path: AnyPath) -> None:
        with needed_by("reading .parquet", "pyarrow", extra="parquet"):
            import pyarrow
            import pyarrow.parquet as parquet
        self.name = str(path)
        self._types = pyarrow.types
        self._failures = (pyarrow.ArrowException, OSError, ValueError)
        try:
            # Otherwise whole column chunks are read at once, and those of a row group of default size can be gigabytes.
            remote = isinstance(path, RemotePath)
            size = READ_BYTES if remote else _READ_BYTES
            self._file = parquet.ParquetFile(path.open("rb") if remote else path, buffer_size=size, pre_buffer=False)
            self._schema = self._file.schema_arrow
        except self._failures as error:
            raise InvalidInput(f"{path} is not a readable Parquet file: {first_line(error)}") from None
        self.n = int(self._file.metadata.num_rows)
        self.shapes = arrow.column_shapes(self._types, self._schema, self.n)

    def table(self, key: str) -> Table:
        """See Container."""
        arrow.require_lists(self._types, self._schema, self.name, key, self.n)
        return _ParquetTable(self, key)

    def pieces(self, key: str) -> Iterator[npt.NDArray[Any] | list[Any]]:
        """See Container."""
        columns = (batch.column(0) for batch in self.batches(key, 0, arrow.PIECE_ROWS))
        yield from arrow.values_of(self._types, columns, f"{self.name}:{key}")

    def batches(self, key: str, row_group: int, rows: int) -> Iterator[Any]:
        """Yield record batches of column `key` from a row group on, at most `rows` rows each."""
        groups = list(range(row_group, self._file.metadata.num_row_groups))
        try:
            yield from self._file.iter_batches(batch_size=rows, row_groups=groups, columns=[key])
        except self._failures as error:
            raise InvalidInput(f"{self.name}:{key} is damaged: {first_line(error)}") from None

    def group_starts(self) -> npt.NDArray[np.int64]:
        """(row groups + 1,) first row of each row group, and n."""
        metadata = self._file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


class _ParquetTable(arrow.ListTable):
    """Rows of a list column. A cursor follows the scan; going back starts again at a row group."""

    def __init__(self, container: ParquetContainer, key: str) -> None:
        super().__init__(f"{container.name}:{key}", container.n, next(container.batches(key, 0, 1)).column(0))
        self._container, self._key = container, key
        self._starts = container.group_starts()
        self._next_row = -1
        self._rest: list[Any] = []

    def _raw(self, start: int, stop: int) -> npt.NDArray[Any]:
        if start != self._next_row:
            self._seek(start)
        parts, row = [], start
        while row < stop:
            column = self._rest.pop() if self._rest else self._next()
            if len(column) > stop - row:
                self._rest.append(column[stop - row :])
                column = column[: stop - row]
            parts.append(arrow.rows_of(column, self.dim, self.name, row))
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
