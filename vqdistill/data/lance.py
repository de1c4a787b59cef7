"""Opener of Lance datasets, directories that also a LanceDB database keeps its tables in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.data import arrow
from vqdistill.data.tables import Table
from vqdistill.errors import InvalidInput, VqdistillError, first_line, needed_by
from vqdistill.objects.store import AnyPath

SUFFIX = ".lance"
"""Of the directory."""


def is_dataset(path: AnyPath) -> bool:
    """Whether a directory is called as Lance datasets are."""
    return path.suffix.lower() == SUFFIX and path.is_dir()


def stamp(path: AnyPath) -> tuple[int, str]:
    """Return the bytes of a dataset, and what tells its content from others: the version, whose files never change.

    Raises
    ------
    InvalidInput
        As `LanceContainer`.
    """
    dataset = _open(path)
    with _reading(str(path)):
        newest = max(dataset.versions(), key=lambda each: each["version"])
        files = [file for fragment in dataset.get_fragments() for file in fragment.data_files()]
    made = newest["timestamp"].isoformat()
    return sum(file.file_size_bytes or 0 for file in files), f"version {newest['version']} of {made}"


class LanceContainer:
    """The newest version of a dataset; its list columns are the tables, its flat columns can be ids.

    Rows that were deleted are passed over. A dataset in an object store is read by Lance itself, with the credentials
    of the environment.

    Raises
    ------
    InvalidInput
        If it is no dataset, or damaged.
    MissingDependency
        If Lance is not installed.
    """

    metric = None

    def __init__(self, path: AnyPath) -> None:
        self.name = str(path)
        self._dataset = _open(path)
        import pyarrow.types  # which Lance brings

        self._types = pyarrow.types
        with _reading(self.name):
            self._schema = self._dataset.schema
            self.n = int(self._dataset.count_rows())
        self.shapes = arrow.column_shapes(self._types, self._schema, self.n)

    def table(self, key: str) -> Table:
        """See Container."""
        arrow.require_lists(self._types, self._schema, self.name, key, self.n)
        return _LanceTable(self, key)

    def pieces(self, key: str) -> Iterator[npt.NDArray[Any] | list[Any]]:
        """See Container."""
        starts = range(0, self.n, arrow.PIECE_ROWS)
        columns = (self.column(key, start, min(start + arrow.PIECE_ROWS, self.n)) for start in starts)
        yield from arrow.values_of(self._types, columns, f"{self.name}:{key}")

    def column(self, key: str, start: int, stop: int) -> Any:
        """Return rows start..stop of a column as one Arrow array."""
        with _reading(f"{self.name}:{key}"):
            found = self._dataset.scanner(
                columns=[key], offset=start, limit=stop - start, scan_in_order=True
            ).to_table()
            column = found.column(0).combine_chunks()
        if len(column) != stop - start:
            raise InvalidInput(f"{self.name} is damaged: it ends before its {self.n} rows")
        return column


class _LanceTable(arrow.ListTable):
    """Rows of a list column, asked for as they are needed."""

    def __init__(self, container: LanceContainer, key: str) -> None:
        super().__init__(f"{container.name}:{key}", container.n, container.column(key, 0, 1))
        self._container, self._key = container, key

    def _raw(self, start: int, stop: int) -> npt.NDArray[Any]:
        blocks = [
            arrow.rows_of(self._container.column(self._key, at, min(at + self.granule, stop)), self.dim, self.name, at)
            for at in range(start, stop, self.granule)
        ]
        return np.concatenate(blocks)


def _open(path: AnyPath) -> Any:
    with needed_by(f"reading {SUFFIX}", "pylance", extra="lance"):
        import lance
    with _reading(str(path)):
        return lance.dataset(str(path))


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn what Lance raises into our exceptions: built-in ones of many kinds, and panics where bytes are damaged."""
    try:
        yield
    except (VqdistillError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InvalidInput(f"{name} cannot be read by Lance: {first_line(error)}") from None
