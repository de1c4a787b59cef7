"""What files behind Arrow have in common: columns of lists are tables of numbers, flat columns can be ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.data.tables import BlockTable, check_table
from vqdistill.errors import InvalidInput

_BLOCK_BYTES = 4 << 20
"""Rows that are read at a time."""
PIECE_ROWS = 65536
"""Values that are read at a time."""


def column_shapes(types: Any, schema: Any, n: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each column, (n, 0) of lists; `types` is pyarrow.types."""
    return {field.name: (n, 0) if _is_list(types, field.type) else (n,) for field in schema}


def require_lists(types: Any, schema: Any, name: str, key: str, n: int) -> None:
    """Refuse what is no column of lists of numbers.

    Raises
    ------
    InvalidInput
        If it is not, or has no rows.
    """
    kind = schema.field(key).type
    if not _is_list(types, kind) or not _is_number(types, kind.value_type):
        raise InvalidInput(f"{name}:{key} must be a column of lists of numbers, got {kind}")
    if n == 0:
        raise InvalidInput(f"{name} is empty: it has no rows")


def values_of(types: Any, columns: Iterable[Any], name: str) -> Iterator[npt.NDArray[Any] | list[Any]]:
    """Yield flat columns as numbers or as lists of strings; raises InvalidInput for nulls."""
    for column in columns:
        if column.null_count:
            raise InvalidInput(f"{name} has {column.null_count} nulls, wanted a value in each row")
        yield column.to_numpy(zero_copy_only=False) if _is_number(types, column.type) else column.to_pylist()


def rows_of(column: Any, dim: int, name: str, row: int) -> npt.NDArray[Any]:
    """Return a column of lists as (rows, dim) numbers.

    Parameters
    ----------
    name, row : of the table and of its first row here, for messages

    Raises
    ------
    InvalidInput
        If a list is null, has a null in it, or another length.
    """
    lengths = np.asarray(column.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False))
    bad = np.flatnonzero((lengths != dim) | np.asarray(column.is_null()))
    if bad.size:
        got = "null" if lengths[bad[0]] < 0 or column[int(bad[0])].as_py() is None else f"{lengths[bad[0]]} numbers"
        raise InvalidInput(f"{name} row {row + int(bad[0])} must be a list of {dim} numbers, got {got}")
    flat = column.flatten()
    if flat.null_count:
        where = row + int(np.flatnonzero(np.asarray(flat.is_null()))[0]) // dim
        raise InvalidInput(f"{name} row {where} holds a null")
    return np.asarray(flat.to_numpy()).reshape(-1, dim)


class ListTable(BlockTable):
    """Rows of a column of lists; a child reads them.

    Parameters
    ----------
    name, n : of the column, and its rows
    first : column of the first row

    Raises
    ------
    InvalidInput
        If the first row is null or empty, or its elements are of no type that there is.
    """

    def __init__(self, name: str, n: int, first: Any) -> None:
        super().__init__()
        self.name, self.n = name, n
        self.dim = 0 if first.null_count else len(first[0])
        if self.dim == 0:
            raise InvalidInput(f"{self.name} row 0 is null or an empty list")
        values = rows_of(first, self.dim, self.name, 0)
        self.dtype = values.dtype.name
        check_table(self.name, (self.n, self.dim), self.dtype)
        self.granule = max(1, _BLOCK_BYTES // (self.dim * values.dtype.itemsize))


def _is_list(types: Any, kind: Any) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_number(types: Any, kind: Any) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind))
