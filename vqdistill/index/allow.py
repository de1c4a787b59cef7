"""Allow: the rows that a search may find, prepared once for any number of searches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.config import BLOCK_ROWS
from vqdistill.errors import InvalidInput
from vqdistill.index.reader import IndexReader

_CHUNK = 1 << 16
"""Positions whose rows or ids are looked up together; a multiple of BLOCK_ROWS."""


@dataclass(frozen=True)
class Allow:
    """A filter over one index: one bit a row, in the order of the codes."""

    index_id: bytes
    """Of the index that it was made for."""
    blocks: npt.NDArray[np.uint32]
    """(nblocks,) bit r of block b = position 32 b + r"""
    per_list: npt.NDArray[np.int64]
    """(nlist,) allowed rows of each list"""

    @property
    def count(self) -> int:
        """Rows allowed."""
        return int(self.per_list.sum())


def prepare_allow(reader: IndexReader, allow: Any) -> Allow:
    """Turn a mask of rows, or a collection of external ids, into a filter.

    Parameters
    ----------
    allow : (n,) bool, one for each row of the compiled source; or external ids, as the index has them (row numbers,
        integers or strings), in any order. Ids that the index does not have allow nothing.

    Raises
    ------
    InvalidInput
        If `allow` is neither.
    """
    manifest = reader.manifest
    wanted = np.asarray(allow)
    if wanted.dtype == np.bool_:
        if wanted.shape != (manifest.n,):
            raise InvalidInput(f"allow must be a mask of {manifest.n} rows, got shape {wanted.shape}")
        return _by_position(reader, lambda positions: wanted[reader.rows_of(positions)])
    keys = np.unique(_checked_ids(wanted, manifest.ids))
    return _by_position(reader, lambda positions: _in_sorted(reader.ids_of(positions), keys))


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


def _by_position(reader: IndexReader, allowed: Any) -> Allow:
    n = reader.manifest.n
    bits = np.zeros(-(-n // BLOCK_ROWS) * BLOCK_ROWS, np.bool_)
    for begin in range(0, n, _CHUNK):
        positions = np.arange(begin, min(n, begin + _CHUNK))
        bits[positions] = allowed(positions)
    blocks = np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)
    before = np.concatenate([[0], np.cumsum(bits, dtype=np.int64)])
    return Allow(reader.manifest.index_id, blocks, np.diff(before[reader.list_offsets]))
