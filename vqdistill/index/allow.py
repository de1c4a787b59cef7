"""Allow: the rows that a search may find, prepared once for any number of searches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.errors import InvalidInput
from vqdistill.index.reader import IndexReader
from vqdistill.index.rows import count_by_list, set_bits

_CHUNK = 1 << 16
"""Positions whose rows or ids are looked up together."""


@dataclass(frozen=True)
class Allow:
    """A filter over one generation of an index: one bit a row, in the order of the codes."""

    index_id: bytes
    """Of the index that it was made for."""
    generation: int
    """Of the index."""
    blocks: npt.NDArray[np.uint32]
    """(blocks of all sets,) bit r of block b of a set = its row 32 b + r"""
    per_list: npt.NDArray[np.int64]
    """(nlist,) allowed rows of each list"""

    @property
    def count(self) -> int:
        """Rows allowed."""
        return int(self.per_list.sum())


def prepare_allow(reader: IndexReader, allow: Any) -> Allow:
    """Turn a mask of rows, or a collection of external ids, into a filter; deleted rows are never allowed.

    Parameters
    ----------
    allow : bool, one for each row number that the index has given, (n,) if nothing was deleted; or external ids, as the
        index has them (row numbers, integers or strings), in any order. Ids that it does not have allow nothing.

    Raises
    ------
    InvalidInput
        If `allow` is neither.
    """
    manifest = reader.manifest
    wanted = np.asarray(allow)
    if wanted.dtype == np.bool_:
        if wanted.shape != (manifest.next_row,):
            raise InvalidInput(f"allow must be a mask of {manifest.next_row} rows, got shape {wanted.shape}")
        return _filter(reader, _by_position(reader, lambda positions: wanted[reader.rows_of(positions)]))
    ids = _checked_ids(wanted, manifest.ids)
    if manifest.version >= 4:
        found = reader.positions_of(ids)
        return _filter(reader, found[found >= 0])
    keys = np.unique(ids)
    return _filter(reader, _by_position(reader, lambda positions: _in_sorted(reader.ids_of(positions), keys)))


def _checked_ids(ids: npt.NDArray[Any], kind: str) -> npt.NDArray[Any]:
    fits = ids.dtype.kind == "U" if kind == "str" else ids.dtype.kind in "iu"
    if ids.ndim == 1 and (fits or ids.size == 0):
        return ids if ids.size else np.zeros(0, np.str_ if kind == "str" else np.int64)
    name = "strings" if kind == "str" else "integers"
    raise InvalidInput(f"allow must be a mask of rows or a list of ids, which are {name}, got {ids.shape} {ids.dtype}")


def _in_sorted(ids: npt.NDArray[Any], keys: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if not keys.size:
        return np.zeros(len(ids), np.bool_)
    return np.asarray(keys[np.minimum(np.searchsorted(keys, ids), len(keys) - 1)] == ids)


def _by_position(reader: IndexReader, allowed: Any) -> npt.NDArray[np.int64]:
    """Positions that `allowed`, which tells of any of them, allows."""
    n = reader.manifest.n
    chunks = (np.arange(begin, min(n, begin + _CHUNK)) for begin in range(0, n, _CHUNK))
    return np.concatenate([positions[allowed(positions)] for positions in chunks])


def _filter(reader: IndexReader, positions: npt.NDArray[np.int64]) -> Allow:
    positions = positions[reader.alive.of(positions)]
    blocks = set_bits(reader.sets, positions)
    manifest = reader.manifest
    return Allow(manifest.index_id, manifest.generation, blocks, count_by_list(reader.sets, blocks))
