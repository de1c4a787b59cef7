"""IndexUpdater: adds and deletes rows of an index, and publishes the result as its next generation."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.errors import InvalidInput, VqdistillError
from vqdistill.index.batch import Batch
from vqdistill.index.checks import count_bits
from vqdistill.index.compaction import CompactionLog
from vqdistill.index.drift import FitMeter
from vqdistill.index.files import (
    FileOps,
    map_segment,
    open_segment,
    publish_manifest,
    read_manifest,
    require_one_piece,
    write_error,
    write_segment,
)
from vqdistill.index.locks import lock_writer
from vqdistill.index.lookup import WantedIds, find, shown, stored_ids, wanted_ids
from vqdistill.index.manifest import Manifest, read_back
from vqdistill.index.merge import Kept, Merge, RowSource, StoredRows
from vqdistill.index.reader import IndexReader
from vqdistill.index.rows import I64, Alive, OpenRows
from vqdistill.index.spec import ROW_KINDS, Layout, RowSet, Segment, name_generation
from vqdistill.objects.urls import require_local
from vqdistill.types import Codes, F32Rows

BATCH_BYTES = 64 << 20
"""Encoded rows of an addition in memory at a time."""
SMALL_ROWS = 1024
"""Sets up to this size are always merged with what is added: each costs every search a little."""
FIRST_SET_PRICE = 2
"""Rows that must be added for each of the first set before that is merged too: one set more costs a search less than
writing again what was compiled or compacted."""


@dataclass
class _Part:
    """A set of rows of the next generation."""

    rows: OpenRows
    alive: Alive
    published: bool
    """Whether a generation has it already."""
    deleted: int
    """Rows of it that are not alive."""

    @property
    def live(self) -> int:
        return self.rows.n - self.deleted

    def kept(self, shift: int = 0) -> Kept:
        return kept_rows(self.rows, self.alive, shift)


def _parts_of(reader: IndexReader) -> list[_Part]:
    parts = []
    for rows in reader.sets:
        alive = reader.alive.only(rows)
        parts.append(_Part(rows.alone(), alive, published=True, deleted=count_bits(alive.deleted_blocks())))
    return parts


def kept_rows(rows: OpenRows, alive: Alive, shift: int = 0) -> Kept:
    """Rows of a set that are alive, for a merge; `alive` counts within the set, and may be of one set only."""
    if alive.blocks is None:
        return Kept(StoredRows(rows), None, shift)
    return Kept(StoredRows(rows), lambda begin, end: alive.of(np.arange(begin, end)), shift)


class IndexUpdater:
    """The one writer of an index that exists; use it as a context manager.

    Rows are added as a set of their own, behind those that are there. Small sets become one on the way, so that each
    is larger than all behind it together: there are few, and a row is written about log2(n / rows added at a time)
    times. What is done before `publish` appears at once, or not at all; a failure, or leaving the block without it,
    removes the files that were written, and what a killed process leaves is in nobody's way.
    Memory: an open index, BATCH_BYTES of encoded rows, a few chunks of what is merged (see `Merge`).

    Parameters
    ----------
    path : directory of the index
    sharing : an open reader of the index, whose memory is shared
    ops : file operations; replaced in tests

    Raises
    ------
    InvalidInput
        If there is no index, or its format version is below 4.
    VqdistillError
        If another writer is at work, the index is damaged, or the disk refuses.
    """

    def __init__(self, path: str | Path, *, sharing: IndexReader | None = None, ops: FileOps | None = None) -> None:
        self._path = require_local(path)
        self._ops = FileOps() if ops is None else ops
        self._lock: int | None = lock_writer(self._path)
        self._fds: list[int] = []
        self._written: list[str] = []
        try:
            require_one_piece(self._path)
            self.reader = IndexReader.open(self._path) if sharing is None else sharing.reopen()
            """The generation that is changed."""
            if self.manifest.version < 4:
                raise InvalidInput(
                    f"index {self._path} must be of format version 4 or later to be changed, got"
                    f" {self.manifest.version}; compile it again"
                )
            names = max((name_generation(name) for name in os.listdir(self._path)), default=0)
        except BaseException:
            self._release()
            raise
        self._generation = max(names, self.manifest.generation) + 1
        """Number of the files to be written next; those of a killed writer are never written to."""
        self._first_generation = self._generation
        self._parts = _parts_of(self.reader)
        self._next_row = self.manifest.next_row
        self._batch = self._new_batch()
        self._meter = FitMeter(self.manifest.nlist)
        self._changed = False

    @property
    def manifest(self) -> Manifest:
        """That of the generation that is changed."""
        return self.reader.manifest

    def add(self, ids: Sequence[Any] | npt.NDArray[Any] | None, x: F32Rows, *, replace: bool = False) -> None:
        """Encode rows with the index's own model and append them.

        Parameters
        ----------
        ids : (b,) external ids of the kind that the index has; None for row numbers, which are then the next ones
        x : (b, d) float32, prepared rows (unit rows under cosine)
        replace : rows with these ids are deleted; otherwise ids that the index has are refused

        Raises
        ------
        InvalidInput
            If ids or rows do not fit, or an id repeats among all that this updater adds; all changes are given up.
        VqdistillError
            If the disk refuses; all changes are given up.
        """
        with self._all_or_nothing():
            if (ids is None) != (self.manifest.ids == "rows"):
                wanted = "None: rows are numbered" if self.manifest.ids == "rows" else f"{self.manifest.ids}"
                raise InvalidInput(f"ids must be {wanted}, got {type(ids).__name__}")
            if ids is not None and len(ids) != len(x):
                raise InvalidInput(f"ids must be one for each of {len(x)} rows, got {len(ids)}")
            keys = None if ids is None else self._make_room(ids, replace)
            codes = self.reader.model.encode_new(x)
            self._measure(codes, x)
            self._batch.add(keys, codes, x, self._next_row)
            self._next_row += len(x)
            self._changed = True
            if self._batch.nbytes >= BATCH_BYTES:
                self._flush()

    def delete(self, ids: Any) -> int:
        """Delete the rows with these external ids, and return how many there were; other ids are passed over.

        Raises
        ------
        InvalidInput
            If the ids are of another kind than those of the index; all changes are given up.
        """
        with self._all_or_nothing():
            self._flush()
            return self._delete(wanted_ids(ids, self.manifest.ids))

    def compact(self) -> None:
        """Merge all sets into one, without the rows that are deleted.

        Raises
        ------
        InvalidInput
            If every row is deleted: an index has at least one.
        """
        with self._all_or_nothing():
            self._flush()
            if len(self._parts) == 1 and not self._parts[0].deleted:
                return
            if not any(part.live for part in self._parts):
                raise InvalidInput(f"index {self._path} must keep at least one row, got all of them deleted")
            self._merge(0, None, CompactionLog(self._ops, self._path, self.manifest))
            self._changed = True

    def publish(self) -> Manifest:
        """Make the changes the current generation; without any, the index stays as it is.

        Raises
        ------
        VqdistillError
            If the disk refuses; the index stays as it was.
        """
        with self._all_or_nothing():
            self._flush()
            if not self._changed:
                return self.manifest
            # A set without a living row is dropped; the first one is there as long as there is no other.
            living = [part for part in self._parts if part.live] or self._parts[:1]
            self._parts = living
            manifest = self._next_manifest()
            publish_manifest(self._ops, self._path, manifest)
            self._release()
        return manifest

    def abort(self) -> None:
        """Give up all changes; does nothing after `publish` or a failure."""
        if self._lock is None:
            return
        try:
            # Where CURRENT changed, and only making it durable failed, the new files are what it names.
            if read_manifest(self._path).file == self.manifest.file:
                for name in self._written:
                    with contextlib.suppress(OSError):
                        self._ops.unlink(self._path / name)
        except VqdistillError:
            pass
        finally:
            self._release()

    def __enter__(self) -> IndexUpdater:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        fds, self._fds = self._fds, []
        if hasattr(self, "reader"):
            self.reader.close()
        for fd in fds if lock is None else [*fds, lock]:
            os.close(fd)

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        if self._lock is None:
            raise InvalidInput(f"the updater of {self._path} is closed")
        try:
            yield
        except OSError as error:
            self.abort()
            raise write_error(self._path, error) from error
        except BaseException:
            self.abort()
            raise

    def _new_batch(self) -> Batch:
        manifest = self.manifest
        return Batch(nlist=manifest.nlist, dense=manifest.dense, ids=manifest.ids)

    def _measure(self, codes: Codes, x: F32Rows) -> None:
        model = self.reader.model
        self._meter.add(codes, x, self._next_row, model.decode)

    def _make_room(self, ids: Sequence[Any] | npt.NDArray[Any], replacing: bool) -> list[Any]:
        """Refuse ids that repeat; delete the rows that have them, or refuse these too. Return ids as stored."""
        keys = self._batch.require_new(ids)
        fresh = [part for part in self._parts if not part.published]
        wanted = stored_ids(keys, self.manifest.ids)
        if len(repeated := self._which(wanted, fresh)):
            raise InvalidInput(f"ids must be unique, got {shown(ids, int(repeated[0]))} twice")
        if replacing:
            self._delete(wanted)
        elif len(known := self._which(wanted, self._parts)):
            raise InvalidInput(
                f"ids must be new to the index, got {shown(ids, int(known[0]))}, which it has; upsert replaces rows"
            )
        return keys

    @staticmethod
    def _which(wanted: WantedIds, parts: list[_Part]) -> I64:
        """Which of the ids (b,) some living row of these sets has."""
        has = np.zeros(len(wanted.keys), np.bool_)
        for part in parts:
            has |= find([part.rows], part.alive, wanted) >= 0
        return np.flatnonzero(has)

    def _delete(self, wanted: WantedIds) -> int:
        total = 0
        for part in self._parts:
            found = find([part.rows], part.alive, wanted)
            local = np.unique(found[found >= 0])
            part.alive.remove(local)
            part.deleted += len(local)
            total += len(local)
        self._changed = self._changed or total > 0
        return total

    def _flush(self) -> None:
        """Write the rows that wait, together with the sets that are no larger than they and all behind."""
        if not self._batch.n:
            return
        begin, size = len(self._parts), self._batch.n
        while begin and self._parts[begin - 1].live * (FIRST_SET_PRICE if begin == 1 else 1) <= max(size, SMALL_ROWS):
            begin -= 1
            size += self._parts[begin].live
        batch, self._batch = self._batch, self._new_batch()
        self._merge(begin, batch.sorted())

    def _merge(self, begin: int, more: RowSource | None, log: CompactionLog | None = None) -> None:
        """Replace the sets from `begin` on by one that also has the rows `more`."""
        old = self._parts[begin:]
        kept = [part.kept() for part in old if part.live] + ([] if more is None else [Kept(more)])
        self._parts[begin:] = [self._write(Merge(kept), log)]
        for part in old:
            if not part.published:
                self._remove(part)

    def _write(self, merge: Merge, log: CompactionLog | None) -> _Part:
        layout, index_id = self.manifest.layout, self.manifest.index_id
        generation, self._generation = self._generation, self._generation + 1
        finished: list[Segment] = []
        if log is not None:
            generation, finished = log.resume(merge.layout(layout), generation)
        names = [segment.file for kind, segment in layout.segments(generation).items() if kind in ROW_KINDS]
        self._written += names
        if log is None:
            segments = merge.write(self._ops, self._path, layout, index_id, generation)
        else:
            segments = self._resumed(merge, layout, generation, finished, log)
        rows = self._open(RowSet(n=merge.n, first=0, segments=segments), merge.counts)
        return _Part(rows, Alive([rows], None), published=False, deleted=0)

    def _resumed(
        self, merge: Merge, layout: Layout, generation: int, finished: list[Segment], log: CompactionLog
    ) -> dict[str, Segment]:
        """Write a set so that, if this ends, what is finished stays for the next compaction."""
        self._written.append(log.FILE)
        try:
            segments = merge.write(
                self._ops,
                self._path,
                layout,
                self.manifest.index_id,
                generation,
                finished=finished,
                done=lambda segments: log.note(generation, segments),
            )
        except (OSError, VqdistillError):
            raise
        except BaseException:
            kept = {segment.file for segment in log.finished} | {log.FILE}
            self._written = [name for name in self._written if name not in kept]
            raise
        self._ops.unlink(self._path / log.FILE)
        self._written.remove(log.FILE)
        return segments

    def _open(self, rows: RowSet, counts: I64) -> OpenRows:
        """Open a set that was just written; its codes are mapped, not read."""
        fds = {}
        for kind, segment in rows.segments.items():
            fds[kind] = open_segment(self._path, segment, self.manifest.index_id)
            self._fds.append(fds[kind])
        arrays = {
            "list_offsets": np.concatenate([[0], np.cumsum(counts)]),
            "codes": map_segment(fds["codes"], rows.segments["codes"]),
        }
        return OpenRows(self._path, rows, fds, arrays)

    def _remove(self, part: _Part) -> None:
        for segment in part.rows.rows.segments.values():
            self._ops.unlink(self._path / segment.file)
            self._written.remove(segment.file)

    def _next_manifest(self) -> Manifest:
        sets, first = [], 0
        for part in self._parts:
            sets.append(replace(part.rows.rows, first=first))
            first += part.rows.n
        # That of the last files, where some were written.
        generation = max(self._generation - 1, self._first_generation)
        deleted = sum(part.deleted for part in self._parts)
        shared = {kind: s for kind, s in self.manifest.segments.items() if kind not in ROW_KINDS | {"deleted"}}
        if deleted:
            shared["deleted"] = self._write_deleted(generation)
        certificate, drift = self.manifest.certificate, self.manifest.drift
        fit = self._meter.fit(generation)
        return read_back(
            replace(
                self.manifest,
                generation=generation,
                n=first,
                segments=shared | dict(sets[0].segments),
                added=tuple(sets[1:]),
                next_row=self._next_row,
                deleted=deleted,
                certificate=None if certificate is None or certificate.k > first else replace(certificate, stale=True),
                drift=drift if drift is None or fit is None else drift.with_added(fit),
            )
        )

    def _write_deleted(self, generation: int) -> Segment:
        blocks = [part.alive.deleted_blocks() for part in self._parts]
        layout = replace(self.manifest.layout, deleted_blocks=sum(map(len, blocks)))
        segment = layout.segments(generation)["deleted"]
        self._written.append(segment.file)
        return write_segment(self._ops, self._path, segment, self.manifest.index_id, blocks)
