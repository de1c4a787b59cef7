"""Encoded rows in memory, on their way into a set of rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.errors import InvalidInput
from vqdistill.index.encodings import encode_dense, encode_int_ids, encode_text_id
from vqdistill.index.lookup import shown
from vqdistill.index.rows import I64
from vqdistill.types import Codes, F32Rows, require_finite

_ID_BYTES = 100
"""What an id takes in memory, about."""


@dataclass(frozen=True)
class MemoryRows:
    """Rows in list order; a `merge.RowSource`."""

    list_offsets: I64
    columns: dict[str, npt.NDArray[Any]]
    """"codes" (n, m) and "dense" (n, row_bytes) uint8, "rows" and "ids" (n,) int64, as far as the index has them"""
    strings: list[bytes]
    """String ids, if the index has them."""

    @property
    def n(self) -> int:
        """Rows."""
        return int(self.list_offsets[-1])

    def column(self, kind: str, begin: int, end: int) -> npt.NDArray[Any]:
        """As `RowSource`."""
        return self.columns[kind][begin:end]

    def texts(self, begin: int, end: int) -> list[bytes]:
        """As `RowSource`."""
        return self.strings[begin:end]

    @property
    def text_bytes(self) -> int:
        """As `RowSource`."""
        return sum(map(len, self.strings))


class Batch:
    """Takes encoded rows in the order in which they come.

    Parameters
    ----------
    nlist, dense, ids : of the index
    """

    def __init__(self, *, nlist: int, dense: str, ids: str) -> None:
        self._nlist, self._dense, self._ids = nlist, dense, ids
        self._lists: list[npt.NDArray[np.int32]] = []
        self._columns: dict[str, list[npt.NDArray[Any]]] = {}
        self._texts: list[bytes] = []
        self._seen: set[Any] = set()
        self.n = 0
        """Rows."""
        self.nbytes = 0
        """What they take in memory, about."""

    def add(self, keys: list[Any] | None, codes: Codes, x: F32Rows, start: int) -> None:
        """Append rows.

        Parameters
        ----------
        keys : (b,) what `require_new` gave for their ids; None for row numbers
        codes, x : encoded rows and (b, d) the rows themselves
        start : row number of the first

        Raises
        ------
        InvalidInput
            If a row holds NaN, infinity, or what the dense encoding cannot hold.
        """
        require_finite(x, "vectors", start)
        columns: dict[str, npt.NDArray[Any]] = {"codes": codes.codes, "rows": np.arange(start, start + len(x))}
        if self._dense != "none":
            columns["dense"] = (
                np.ascontiguousarray(encode_dense(x, self._dense, start)).view(np.uint8).reshape(len(x), -1)
            )
        if keys is not None:
            self._seen.update(keys)
            if self._ids == "str":
                self._texts += keys
            else:
                columns["ids"] = np.array(keys, np.int64)
        for kind, column in columns.items():
            self._columns.setdefault(kind, []).append(column)
        self._lists.append(codes.lists)
        self.n += len(x)
        self.nbytes += sum(column.nbytes for column in columns.values()) + (0 if keys is None else _ID_BYTES * len(x))

    def require_new(self, ids: Sequence[Any] | npt.NDArray[Any]) -> list[Any]:
        """Require ids of the right kind that neither repeat nor are there, and return them as they are stored.

        Raises
        ------
        InvalidInput
            If they are not.
        """
        keys = self._keys(ids)
        seen: set[Any] = set()
        for at, key in enumerate(keys):
            if key in seen or key in self._seen:
                raise InvalidInput(f"ids must be unique, got {shown(ids, at)} twice")
            seen.add(key)
        return keys

    def sorted(self) -> MemoryRows:
        """Return the rows in list order, rows of a list as they came."""
        lists = np.concatenate(self._lists)
        order = np.argsort(lists, kind="stable")
        offsets = np.zeros(self._nlist + 1, np.int64)
        np.cumsum(np.bincount(lists, minlength=self._nlist), out=offsets[1:])
        columns = {kind: np.concatenate(parts)[order] for kind, parts in self._columns.items()}
        return MemoryRows(offsets, columns, [self._texts[at] for at in order.tolist()] if self._texts else [])

    def _keys(self, ids: Iterable[Any]) -> list[Any]:
        if self._ids == "str":
            return [encode_text_id(text, self.n + at) for at, text in enumerate(ids)]
        keys: list[int] = encode_int_ids(np.asarray(ids)).tolist()
        return keys
