"""Where rows are lost on a query's way through an index: which lists it visits, which rows it reads and keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from vqdistill.errors import InvalidInput
from vqdistill.index.byte_rows import from_bytes, to_bytes
from vqdistill.index.reader import IndexReader
from vqdistill.types import F64, F32Rows, Metric

FOUND, ROUTING, QUANTIZATION, STOPPING, PRECISION = range(5)
"""Fates of a row. Lost by: routing, its list was not visited; quantization, its code was not among the best `refine`;
stopping, it was, but reading stopped before; precision, its stored vector, or the adapter of verification, ranked it
behind the k that were returned."""
CAUSES = ("found", "routing", "quantization", "stopping", "precision")
"""Their names."""
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Trace:
    """What became of wanted rows."""

    fates: npt.NDArray[np.int8]
    """(q, e) FOUND ... PRECISION, or -1 where nothing was wanted"""
    lists: npt.NDArray[np.int64]
    """(q, e) list of each row"""
    list_ranks: npt.NDArray[np.int64]
    """(q, e) place of this list in the order that the query visits lists in, from 0"""
    visited: npt.NDArray[np.int64]
    """(q,) lists visited"""
    read: npt.NDArray[np.int64]
    """(q,) rows read"""
    gaps: F64
    """(q,) score of the k-th of the candidates less that of the last: small where many rows are nearly as good"""


@dataclass(frozen=True)
class Fate:
    """What became of one expected id."""

    id: Any
    fate: str
    """One of CAUSES."""
    list: int
    """List that holds it."""
    list_rank: int
    """Place of the list among those that the query would visit, from 1."""
    lists_visited: int
    """Lists that it did visit."""
    rows_read: int
    """Rows that it read."""


def list_ranks(reader: IndexReader, queries: F32Rows, temperature: float | None) -> npt.NDArray[np.int64]:
    """Place (q, nlist) of every list in the order in which queries visit lists, from 0.

    Parameters
    ----------
    queries : (q, d) float32, prepared
    temperature : of a search by lift; None where lists are visited by score alone
    """
    adapter, router = reader.adapter("query"), reader.router
    seen = queries if adapter is None else adapter(queries)
    # As the engine does before products of bytes.
    seen = from_bytes(to_bytes(seen)) if reader.manifest.tables == "i8" else seen
    scores = seen @ router.T
    if reader.manifest.metric is Metric.L2:
        scores = 2 * scores - np.einsum("ij,ij->i", router, router)
    if temperature is not None:
        sizes = reader.list_sizes
        with np.errstate(divide="ignore"):  # lists without rows come last
            scores = np.where(sizes > 0, scores / np.float32(temperature) - np.log(sizes / sizes.sum()), -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.empty(order.shape, np.int64)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), axis=1)
    return ranks


def lists_of_rows(reader: IndexReader) -> npt.NDArray[np.int32]:
    """List of each row number, -1 where no row has it; reads the row numbers of the whole index, 8 bytes a row."""
    lists = np.full(reader.manifest.next_row, -1, np.int32)
    for rows in reader.sets:
        sizes = np.diff(rows.list_offsets)
        positions = np.arange(rows.first, rows.first + rows.n)
        lists[reader.rows_of(positions)] = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    return lists


def rows_of_ids(reader: IndexReader, ids: Any) -> npt.NDArray[np.int64]:
    """Row numbers (e,) of external ids (e,).

    Raises
    ------
    InvalidInput
        If these are no such ids, or the index does not have one.
    """
    wanted = np.asarray(ids)
    fits = wanted.dtype.kind == "U" if reader.manifest.ids == "str" else wanted.dtype.kind in "iu"
    if wanted.ndim != 1 or not wanted.size or not fits:
        raise InvalidInput(
            f"expected_ids must be a list of ids as the index has them, got {wanted.shape} {wanted.dtype}"
        )
    if reader.manifest.version >= 4:
        positions = reader.positions_of(wanted)
        if (positions < 0).any():
            _refuse_unknown(wanted[positions < 0][0])
        return reader.rows_of(positions)
    keys, back = np.unique(wanted, return_inverse=True)
    rows = np.full(len(keys), -1, np.int64)
    for begin in range(0, reader.manifest.n, _CHUNK):
        positions = np.arange(begin, min(reader.manifest.n, begin + _CHUNK))
        known = reader.ids_of(positions)
        at = np.minimum(np.searchsorted(keys, known), len(keys) - 1)
        hit = keys[at] == known
        rows[at[hit]] = reader.rows_of(positions[hit])
    if (rows < 0).any():
        _refuse_unknown(keys[rows < 0][0])
    return rows[back.reshape(-1)]


def _refuse_unknown(key: Any) -> NoReturn:
    raise InvalidInput(f"expected_ids must be ids of the index, got {key.item()!r}, which it does not have")


def fates(
    rows: npt.NDArray[np.int64],
    returned: npt.NDArray[np.int64],
    candidates: npt.NDArray[np.int64],
    visited: npt.NDArray[np.bool_],
    verified: bool,
) -> npt.NDArray[np.int8]:
    """Fate (q, e) of each wanted row.

    Parameters
    ----------
    rows : (q, e) wanted rows, -1 padding
    returned : (q, k) rows returned, -1 padding
    candidates : (q, r) rows that would have been read without stopping, by falling score of their vectors, -1 padding
    visited : (q, e) whether the list of each was visited
    verified : whether rows were read at all; otherwise `candidates` are of no account
    """
    k = returned.shape[1]
    found = _among(rows, returned)
    lost = np.full(rows.shape, QUANTIZATION, np.int8)
    if verified:
        lost[_among(rows, candidates)] = PRECISION
        lost[_among(rows, candidates[:, :k])] = STOPPING
    lost[~visited] = ROUTING
    return np.where(rows < 0, np.int8(-1), np.where(found, np.int8(FOUND), lost))


def gaps_of(scores: F32Rows, k: int) -> F64:
    """Score of the k-th of (q, r) sorted scores less that of the last: (q,), infinite where some are missing."""
    kth, last = scores[:, min(k, scores.shape[1]) - 1].astype(np.float64), scores[:, -1]
    return np.where(np.isfinite(last), kth - np.where(np.isfinite(last), last, 0), np.inf)


def _among(rows: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    return np.array([np.isin(a, b) for a, b in zip(rows, others, strict=True)]).reshape(rows.shape)
