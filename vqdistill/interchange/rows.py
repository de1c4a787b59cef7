"""The rows of an index that are alive, list by list, as other engines take them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from vqdistill.errors import InvalidInput
from vqdistill.index.merge import Kept
from vqdistill.index.reader import IndexReader
from vqdistill.index.rows import OpenRows
from vqdistill.index.update import kept_rows
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.types import F32Rows

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

_ROWS_AT_ONCE = 1 << 16
_SQUARE = 1e-3
"""Largest entry of R^T R - I of a rotation that keeps distances."""


@dataclass(frozen=True)
class Chunk:
    """Some rows of one list."""

    list: int
    positions: I64
    """(b,)"""
    read_codes: Callable[[], U8]

    @property
    def codes(self) -> U8:
        """(b, m)"""
        return self.read_codes()

    @property
    def pairs(self) -> U8:
        """(b, m / 2), code 2p in the low bits of byte p and code 2p + 1 in the high ones, as faiss has them."""
        codes = self.codes
        return np.ascontiguousarray(codes[:, ::2] | codes[:, 1::2] << 4)


class LiveRows:
    """Walks through an open index, all lists of all sets, without its deleted rows.

    Memory: the chunk of rows at hand.

    Parameters
    ----------
    reader : stays open as long as this is used
    """

    def __init__(self, reader: IndexReader) -> None:
        self._sets = [(rows, kept_rows(rows.alone(), reader.alive.only(rows))) for rows in reader.sets]
        self.counts: I64 = np.asarray(reader.list_sizes, np.int64)
        """(nlist,) rows of each list"""
        self.n = int(self.counts.sum())
        """Rows."""

    def chunks(self) -> Iterator[Chunk]:
        """Yield all rows, by rising list."""
        for at in np.flatnonzero(self.counts).tolist():
            for rows, kept in self._sets:
                begin, end = rows.list_offsets[at : at + 2].tolist()
                for first in range(begin, end, _ROWS_AT_ONCE):
                    last = min(first + _ROWS_AT_ONCE, end)
                    positions = _positions(rows, kept, first, last)
                    if len(positions):
                        yield Chunk(at, positions, partial(kept.column, "codes", first, last))


def keeps_distances(rotation: F32Rows) -> bool:
    """Whether turned vectors have the distances and products of those that are not: a start has, distillation bends."""
    turned = rotation.astype(np.float64)
    return bool(np.abs(turned.T @ turned - np.eye(turned.shape[1])).max() <= _SQUARE)


def require_product(reader: IndexReader, engine: str, vectors: str) -> None:
    """Require an index that an engine can have whose vectors are turned as product codes are.

    Parameters
    ----------
    engine : as people call it
    vectors : what it does with them

    Raises
    ------
    InvalidInput
        If the index has additive codes, adapters, a rotation that distillation has bent, or no dense rows.
    """
    model = reader.model
    if model.additive:
        raise InvalidInput(f"{engine} has product codes only, got an index of additive ones: compile it with codes pq")
    if reader.manifest.dense == "none":
        raise InvalidInput(f"{engine} {vectors}, got an index with dense=none")
    if model.query_adapter is not None or model.verify_adapter is not None:
        raise InvalidInput(f"{engine} has no transforms of queries, got an index with adapters")
    if not keeps_distances(model.rotation):
        raise InvalidInput(f"vectors of {engine} are turned as codes are, got a rotation that changes distances")


def turned(model: IvfPqModel, x: F32Rows) -> F32Rows:
    """Vectors (b, d) as product codes see them, (b, d_out)."""
    return np.ascontiguousarray(x @ model.rotation.T, np.float32)


def words_of_rows(model: IvfPqModel) -> F32Rows:
    """Codewords (m, 16, dsub) of residuals as they are, and of others with the mean in them: of turned rows."""
    if model.residual:
        return model.codewords
    shift = (model.mean @ model.rotation.T).reshape(model.m, 1, model.dsub)
    return np.ascontiguousarray(model.codewords + shift, np.float32)


def _positions(rows: OpenRows, kept: Kept, begin: int, end: int) -> I64:
    picked = kept.pick(begin, end)
    positions = np.arange(begin, end) if isinstance(picked, slice) else picked + begin
    return positions + rows.first
