"""ShardedReader: an index in shards, open as the one index that its rows would be."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.config import BLOCK_ROWS
from vqdistill.errors import CorruptIndex, InvalidInput
from vqdistill.index.files import aligned_empty, map_segment, reading
from vqdistill.index.locks import lock_generation
from vqdistill.index.lookup import find, wanted_ids
from vqdistill.index.manifest import Manifest
from vqdistill.index.merge import Kept, Merge, StoredRows, packed
from vqdistill.index.reader import IndexReader
from vqdistill.index.rows import I64, Alive, OpenRows, set_bits
from vqdistill.index.shardset import ShardSet, name_of, read_shard, read_shards
from vqdistill.index.spec import ROW_KINDS, SHARDS, RowSet, Segment
from vqdistill.index.verify import verify as problems_in
from vqdistill.kernels import Engine, scan_order


class Interleaved:
    """Positions of rows that lie in several sets: list by list, and within a list set by set, as if they were merged.

    Parameters
    ----------
    offsets : (nlist + 1,) int64 of each set, as `OpenRows.list_offsets`
    """

    def __init__(self, offsets: Sequence[I64]) -> None:
        self.offsets: I64 = np.stack(offsets)
        """(sets, nlist + 1)"""
        sizes: I64 = np.diff(self.offsets).T.reshape(-1)
        ends = np.cumsum(sizes)
        self.starts: I64 = ends - sizes
        """(nlist * sets,) position of the first row of each list in each set"""
        self.list_offsets: I64 = np.concatenate([[0], ends[len(self.offsets) - 1 :: len(self.offsets)]])
        """(nlist + 1,) first position of each list, and the number of rows"""

    def places(self, positions: I64) -> tuple[I64, I64]:
        """Sets of positions (b,), and rows within them."""
        at = np.searchsorted(self.starts, positions, side="right") - 1
        lists, sets = np.divmod(at, len(self.offsets))
        return sets, self.offsets[sets, lists] + positions - self.starts[at]

    def positions(self, number: int, rows: I64) -> I64:
        """Positions of rows (b,) of a set."""
        offsets = self.offsets[number]
        lists = np.searchsorted(offsets, rows, side="right") - 1
        return np.asarray(self.starts[lists * len(self.offsets) + number] + rows - offsets[lists])


class SpreadRows(OpenRows):
    """Rows of several sets, as one set in their merged order."""

    def __init__(self, path: Path, rows: RowSet, parts: Sequence[OpenRows], order: Interleaved) -> None:
        super().__init__(path, rows, {}, {"list_offsets": order.list_offsets})
        self.parts, self.order = list(parts), order

    def read(self, kind: str, rows: I64) -> npt.NDArray[np.uint8]:
        """As `OpenRows`."""
        return self._gather(rows, lambda part, local: part.read(kind, local))

    def integers(self, kind: str, rows: I64, below: int | None = None) -> I64:
        """As `OpenRows`."""
        out, found = np.full(rows.shape, -1, np.int64), rows >= 0
        out[found] = self._gather(rows[found], lambda part, local: part.integers(kind, local, below))
        return out

    def texts(self, rows: I64) -> Iterator[bytes]:
        """As `OpenRows`, in any order."""
        texts: dict[int, bytes] = {}
        for part, at, local in self._by_part(rows):
            order = np.argsort(local, kind="stable")
            texts |= zip(at[order].tolist(), part.texts(local[order]), strict=True)
        return iter([texts[at] for at in range(len(rows))])

    def _by_part(self, rows: I64) -> Iterator[tuple[OpenRows, I64, I64]]:
        sets, local = self.order.places(rows)
        for number, part in enumerate(self.parts):
            at = np.flatnonzero(sets == number)
            if len(at):
                yield part, at, local[at]

    def _gather(self, rows: I64, read: Any) -> npt.NDArray[Any]:
        out: npt.NDArray[Any] | None = None
        for part, at, local in self._by_part(rows):
            values = read(part, local)
            if out is None:
                out = np.empty((len(rows), *values.shape[1:]), values.dtype)
            out[at] = values
        return np.empty(0, np.int64) if out is None else out


class ShardedReader(IndexReader):
    """One generation of an index in shards, or of some of them; safe under concurrent use by threads.

    Its codes are merged in memory, so that searches do what they do in one index of the same rows, and positions are
    those in that index. All else is read from the shards.

    Attributes
    ----------
    shards : the manifest of the set
    parts : readers of all shards, without codes
    """

    def __init__(self, path: Path, shards: ShardSet, parts: Sequence[IndexReader], mine: range, codes: bool) -> None:
        """Take readers of all shards, opened without codes; called by `open`."""
        self.path, self.shards, self.parts = path, shards, list(parts)
        self._mine = mine
        first = parts[0]
        self._models, self._stored = first._models, first._stored
        self._whole = Interleaved([rows.list_offsets for part in parts for rows in part.sets])
        self._own = [parts[number] for number in mine]
        own = [rows for part in self._own for rows in part.sets]
        order = self._whole if len(mine) == len(parts) else Interleaved([rows.list_offsets for rows in own])
        self.manifest = _manifest(shards, [part.manifest for part in self._own], first.manifest)
        self.spread = SpreadRows(path, self.manifest.sets[0], own, order)
        self.sets = [self.spread]
        self.alive = Alive(self.sets, None)
        if any(part.manifest.deleted for part in parts):
            self.alive.blocks = set_bits(self.sets, self._living())
        if codes:
            self.spread.arrays = dict(self.spread.arrays) | {"codes": _merged_codes(own, self.manifest)}

    @classmethod
    def open(cls, path: str | Path, verify: str = "headers") -> ShardedReader:
        """Open the index in shards at `path`; as `IndexReader.open`."""
        path = Path(path)
        if verify not in ("headers", "full"):
            raise InvalidInput(f"verify must be one of headers, full, got {verify!r}")
        if verify == "full" and (problems := problems_in(path)):
            raise CorruptIndex(f"{problems[0]} (first of {len(problems)} problems)")
        return cls.open_shards(path)

    @classmethod
    def open_shards(
        cls,
        path: Path,
        shards: ShardSet | None = None,
        mine: range | None = None,
        codes: bool = True,
        older: IndexReader | None = None,
    ) -> ShardedReader:
        """Open some of the shards of an index.

        Parameters
        ----------
        shards : generation to open; None = the current one
        mine : shards whose rows are searched; None = all
        codes : False for a reader that finds rows and ids, but has no engine
        older : reader of another generation, whose memory is shared

        Raises
        ------
        InvalidInput, CorruptIndex, FormatTooNew, FormatTooOld, VqdistillError
            As `IndexReader.open`.
        """
        while True:
            found = read_shards(path) if shards is None else shards
            try:
                with ExitStack() as stack:
                    parts = _open_parts(path, found, older, stack)
                    reader = cls(path, found, parts, range(len(parts)) if mine is None else mine, codes)
                    reader._closer = weakref.finalize(reader, stack.pop_all().close)
                    return reader
            except CorruptIndex:
                # Between the manifest and what it led to, a writer may have gone on and removed it.
                if shards is not None or read_shards(path).generation == found.generation:
                    raise

    def newest(self) -> IndexReader:
        """As `IndexReader.newest`."""
        self._require_open()
        shards = read_shards(self.path)
        return self if (shards.index_id, shards.generation) == self._generation else self.reopen()

    def reopen(self) -> IndexReader:
        """As `IndexReader.reopen`."""
        shards = read_shards(self.path)
        if shards.index_id != self.shards.index_id:
            raise InvalidInput(f"index {self.path} must be the one that was opened, but is another one now")
        codes = "codes" in self.spread.arrays
        return self.open_shards(self.path, shards, self._mine, codes, self.parts[0])

    def positions_of(self, ids: Any) -> I64:
        """As `IndexReader.positions_of`."""
        self._require_open()
        wanted = wanted_ids(ids, self.manifest.ids)
        found = np.full(len(wanted.keys), -1, np.int64)
        parts = [(part, rows) for part in self._own for rows in part.sets]
        for number, (part, rows) in enumerate(parts):
            alone = find([rows.alone()], part.alive.only(rows), wanted)
            hit = np.flatnonzero(alone >= 0)
            found[hit] = self.spread.order.positions(number, alone[hit])
        return found

    @property
    def disk_bytes(self) -> int:
        """Bytes of all files of this generation."""
        with reading(self.path / SHARDS):
            return sum(part.disk_bytes for part in self.parts) + (self.path / SHARDS).stat().st_size

    @cached_property
    def whole_sizes(self) -> I64:
        """Rows of each list that are alive, those of shards that are not searched here included, (nlist,)."""
        return np.asarray(np.sum([part.list_sizes for part in self.parts], axis=0))

    @cached_property
    def shifts(self) -> I64:
        """What is added to the positions in each list to get those in the whole, (nlist,)."""
        before = sum(len(self.parts[number].sets) for number in range(self._mine.start))
        first = self._whole.starts[before :: len(self._whole.offsets)]
        return np.asarray(first - self.spread.list_offsets[:-1])

    def planner(self) -> Engine:
        """Return an engine that has no rows, but plans searches of the whole; see `Engine.plan`."""
        self._require_open()
        whole, nlist, m = self.whole_sizes, self.manifest.nlist, self.manifest.m
        deleted = any(part.manifest.deleted for part in self.parts)
        return self._engine_over(
            list_offsets=np.zeros(nlist + 1, np.int64),
            packed=np.empty((0, m // 2, BLOCK_ROWS), np.uint8),
            whole=whole,
            alive=(np.empty(0, np.uint32), whole) if deleted else None,
        )

    def _rows_for_engine(self, io: str) -> dict[str, Any]:
        rows, alive = self.spread, self.alive.blocks
        files = [
            (part.list_offsets, part.fds.get("dense", -1), self._map_dense(part, io)) for part in self.spread.parts
        ]
        some = len(self._own) < len(self.parts)
        return {
            "list_offsets": rows.list_offsets,
            "packed": rows.arrays["codes"],
            "spread": files,
            "whole": self.whole_sizes if some else None,
            "alive": None if alive is None else (alive, self.whole_sizes),
        }

    def _living(self) -> I64:
        """Positions of the rows that are alive."""
        found, number = [], 0
        for part in self._own:
            for rows in part.sets:
                local = np.flatnonzero(part.alive.only(rows).of(np.arange(rows.n)))
                found.append(self.spread.order.positions(number, local))
                number += 1
        return np.concatenate(found)


def _open_parts(path: Path, shards: ShardSet, older: IndexReader | None, stack: ExitStack) -> list[IndexReader]:
    """Open all shards without their codes; the model is in memory once."""
    parts: list[IndexReader] = []
    first: Manifest | None = None
    for number in range(len(shards.shards)):
        manifest, folder = read_shard(path, shards, number), path / name_of(number)
        first = manifest if first is None else first
        shards.require_shard(number, manifest, first)
        stack.callback(os.close, lock_generation(folder, manifest))
        part = IndexReader.open_files(folder, manifest, parts[0] if parts else older, codes=False)
        stack.callback(part.close)
        parts.append(part)
    return parts


def _manifest(shards: ShardSet, manifests: Sequence[Manifest], first: Manifest) -> Manifest:
    """What one index of all rows of some shards would say, but for checksums."""
    n, deleted = sum(each.n for each in manifests), sum(each.deleted for each in manifests)
    sets = [rows for each in manifests for rows in each.sets]
    texts = sum(rows.segments["ids_bytes"].bytes for rows in sets) if first.ids == "str" else 0
    layout = replace(first.layout, n=n, id_bytes=texts, deleted_blocks=-(-n // BLOCK_ROWS) if deleted else 0)
    planned: dict[str, Segment] = layout.segments()
    search, certificate = shards.policy(first)
    return replace(
        first,
        generation=shards.generation,
        index_id=shards.index_id,
        n=n,
        search=search,
        certificate=certificate,
        segments={
            kind: segment if kind in ROW_KINDS | {"deleted"} else first.segments[kind]
            for kind, segment in planned.items()
        },
        added=(),
        next_row=max(each.next_row for each in manifests),
        deleted=deleted,
        drift=None,
    )


def _merged_codes(parts: Sequence[OpenRows], manifest: Manifest) -> npt.NDArray[np.uint8]:
    """Codes of all rows in memory, of which those on disk are read once."""
    kept = []
    for rows in parts:
        rows.arrays = dict(rows.arrays) | {"codes": map_segment(rows.fds["codes"], rows.segment("codes"))}
        kept.append(Kept(StoredRows(rows)))
    codes = aligned_empty(manifest.segments["codes"].shape, np.uint8)
    done = 0
    for blocks in packed(Merge(kept).columns("codes", manifest.m)):
        codes[done : done + len(blocks)] = blocks
        done += len(blocks)
    for rows in parts:
        rows.arrays = {kind: array for kind, array in rows.arrays.items() if kind != "codes"}
    return scan_order(codes)
