"""From external ids to positions, through sorted tables on disk: nothing of them is held in memory."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.errors import CorruptIndex, InvalidInput
from vqdistill.index.rows import I64, Alive, OpenRows

_FEW = 4
"""Ids up to which each is looked up by itself."""


def text_key(text: bytes) -> bytes:
    """Return the 8 bytes, little-endian, that a string id is sorted by."""
    return hashlib.blake2b(text, digest_size=8).digest()


@dataclass(frozen=True)
class WantedIds:
    """External ids as they are looked up."""

    keys: I64
    """(b,) what tables are sorted by"""
    texts: list[bytes] | None
    """Strings in UTF-8; None for integers."""


def wanted_ids(ids: Any, kind: str) -> WantedIds:
    """Return how external ids (b,) are looked up.

    Raises
    ------
    InvalidInput
        If they are not of this kind: integers for "rows" and "int64", strings for "str".
    """
    if kind == "str":
        if isinstance(ids, str) or not all(isinstance(text, str) for text in ids):
            raise InvalidInput(f"ids must be strings, as the index has them, got {_show(ids)}")
        return stored_ids([str(text).encode("utf-8", "surrogatepass") for text in ids], kind)
    try:
        array = np.asarray(ids)
    except ValueError:  # lists of several lengths
        raise InvalidInput("ids must be integers, as the index has them, got lists") from None
    if array.size == 0:
        return WantedIds(np.zeros(0, np.int64), None)
    if array.ndim != 1 or array.dtype.kind not in "iu" or (array.dtype.kind == "u" and array.max() > 2**63 - 1):
        raise InvalidInput(f"ids must be integers, as the index has them, got {_show(ids)}")
    return WantedIds(array.astype(np.int64), None)


def stored_ids(ids: list[Any], kind: str) -> WantedIds:
    """Return how ids that are as they are stored are looked up."""
    if kind == "str":
        return WantedIds(np.frombuffer(b"".join(map(text_key, ids)), dtype="<i8"), ids)
    return WantedIds(np.array(ids, np.int64), None)


def shown(ids: Any, at: int) -> str:
    """Show an id in a message."""
    value = ids[at]
    return repr(value.item() if isinstance(value, np.generic) else value)


def find(sets: Sequence[OpenRows], alive: Alive, wanted: WantedIds) -> I64:
    """Return the position of each id, -1 where no row that is alive has it; see `IndexReader.positions_of`."""
    keys, texts = wanted.keys, wanted.texts
    if len(keys) <= _FEW:
        return np.array(
            [_find_one(sets, alive, key, None if texts is None else texts[at]) for at, key in enumerate(keys.tolist())],
            np.int64,
        )
    found = np.full(len(keys), -1, np.int64)
    for rows in sets:
        open_at = np.flatnonzero(found < 0)
        if not len(open_at):
            break
        local = _find_in(rows, keys[open_at], None if texts is None else [texts[at] for at in open_at.tolist()])
        hit = local >= 0
        positions = local[hit] + rows.first
        living = alive.of(positions)
        found[open_at[hit][living]] = positions[living]
    return found


def _find_one(sets: Sequence[OpenRows], alive: Alive, key: int, text: bytes | None) -> int:
    """The same for one id, without the price of arrays."""
    for rows in sets:
        table, order = rows.mapped("id_keys"), rows.mapped("id_order")
        assert table is not None and order is not None, "an address space without room for a few pages"
        keys = table.data
        at = bisect_left(keys, key)
        while at < rows.n and keys[at] == key:
            row = int(order[at])
            if not 0 <= row < rows.n:
                raise CorruptIndex(f"{rows.segment('id_order').file}: rows must be in [0, {rows.n}), got {row}")
            if text is None or rows.text(row) == text:
                if alive.blocks is None or alive.of(np.array([rows.first + row]))[0]:
                    return rows.first + row
                break
            at += 1
    return -1


def _find_in(rows: OpenRows, keys: I64, texts: list[bytes] | None) -> I64:
    """Rows (b,) of one set, -1 where it has no such id."""
    table, order = rows.mapped("id_keys"), rows.mapped("id_order")
    assert table is not None and order is not None, "an address space without room for a few pages"
    at = np.searchsorted(table, keys)
    out = np.full(len(keys), -1, np.int64)
    open_at = np.flatnonzero(at < rows.n)
    while len(open_at):
        places = at[open_at]
        open_at = open_at[table[places] == keys[open_at]]
        if not len(open_at):
            break
        candidates = order[at[open_at]]
        if candidates.min() < 0 or candidates.max() >= rows.n:
            raise CorruptIndex(f"{rows.segment('id_order').file}: rows must be in [0, {rows.n}), got others")
        if texts is None:
            out[open_at] = candidates
            break
        same = _has_texts(rows, candidates, [texts[i] for i in open_at.tolist()])
        out[open_at[same]] = candidates[same]
        # Different strings may have the same key, if only just: those stand next to each other.
        open_at = open_at[~same]
        at[open_at] += 1
        open_at = open_at[at[open_at] < rows.n]
    return out


def _has_texts(rows: OpenRows, candidates: I64, wanted: list[bytes]) -> npt.NDArray[np.bool_]:
    order = np.argsort(candidates, kind="stable")
    same = np.zeros(len(candidates), np.bool_)
    for at, text in zip(order.tolist(), rows.texts(candidates[order]), strict=True):
        same[at] = text == wanted[at]
    return same


def _show(ids: Any) -> str:
    if isinstance(ids, np.ndarray):
        return f"{ids.shape} {ids.dtype}"
    return type(ids).__name__ if isinstance(ids, str) or not hasattr(ids, "__len__") else f"{len(ids)} others"
