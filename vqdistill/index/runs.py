"""Runs: encoded rows in list order, a file for every few blocks of input, which merge into the order of the index."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.errors import CorruptIndex
from vqdistill.index.files import FileOps, as_bytes, created, open_regular, read_into

CHUNK_BYTES = 4 << 20
"""Bytes written, and checked, at a time."""
_KEY_BYTES = 32
"""Bytes of an id while ids are sorted to find repeats: key, row, order and a copy."""

_SORT_BYTES = 1 << 20
"""Memory that sorting them takes at least: every part reads all keys."""

Column = npt.NDArray[Any]
Chunks = Iterator[Column]
_Slices = list[tuple[int, int, int]]
"""Runs, with first and last row of each, that hold a bucket of lists."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One file of encoded rows, which are consecutive in the input and in list order within the file."""

    file: str
    start: int
    """Row number of its first row in the input."""
    n: int
    """Rows."""
    text_bytes: int
    """Bytes of string ids."""
    crc32: int
    """zlib.crc32 of the whole file."""

    @property
    def stop(self) -> int:
        """Row number after its last row in the input."""
        return self.start + self.n


@dataclass(frozen=True)
class RunLog:
    """Where runs stay if the process ends before the index is there, and who is told of each that is on disk.

    Attributes
    ----------
    index : Path or None
        Where the index is made; None = beside the path that it gets.
    """

    directory: Path
    finished: Sequence[Run]
    """Runs of an earlier process, checked, from row 0 on without gaps."""
    note: Callable[[Run], None]
    index: Path | None = None


@dataclass(frozen=True)
class EncodedRows:
    """Rows as runs keep them, in the order of the input."""

    lists: npt.NDArray[np.int32]
    """(b,)"""
    codes: npt.NDArray[np.uint8]
    """(b, m)"""
    dense: npt.NDArray[np.uint8] | None
    """(b, row_bytes); None without dense rows"""
    keys: npt.NDArray[np.int64] | None
    """(b,) integer ids, or digests of strings; None if ids are the row numbers"""
    texts: Sequence[bytes] | None
    """(b,) string ids"""


class Runs:
    """Takes rows in the order of the input and gives their columns back in list order, rows of a list as they came.

    Memory: twice `memory_bytes`, but for a list that alone is larger, 16 bytes for each pair of a run and a bucket,
    and 24 bytes a list. On disk, everything once, written in sequence; each column is read once, in list order, in as
    many stretches as there are runs times buckets of lists.

    Parameters
    ----------
    directory : that files are made in
    widths : bytes of a row in each fixed column: "codes", and where they exist "dense" and "keys"
    texts : whether there are string ids
    nlist : lists
    memory_bytes : rows gathered for a run, and of a bucket of lists
    log : keeps finished runs; None = they are gone with the directory
    first : row number of the first row in the input
    """

    def __init__(
        self,
        ops: FileOps,
        directory: Path,
        widths: dict[str, int],
        *,
        texts: bool,
        nlist: int,
        memory_bytes: int,
        log: RunLog | None = None,
        first: int = 0,
    ) -> None:
        self._ops, self._directory, self._log, self._first = ops, directory, log, first
        self._widths = {"lists": 4, "rows": 8} | widths | ({"starts": 8} if texts else {})
        self._texts = texts
        self._memory_bytes = memory_bytes
        self._waiting: list[EncodedRows] = []
        self._waiting_bytes = 0
        self.runs: list[Run] = [] if log is None else list(log.finished)
        """Those on disk."""
        self.n = sum(run.n for run in self.runs)
        """Rows taken so far."""
        self.text_bytes = sum(run.text_bytes for run in self.runs)
        """Bytes of all string ids."""
        self.counts = np.zeros(nlist, np.int64)
        """(nlist,) rows of each list"""
        for number, run in enumerate(self.runs):
            lists = self._lists(number)
            if not 0 <= int(lists.min(initial=0)) <= int(lists.max(initial=0)) < nlist:
                raise CorruptIndex(f"{run.file}: lists must be in [0, {nlist}), got {lists.min()}..{lists.max()}")
            self._count(lists)

    def add(self, rows: EncodedRows) -> None:
        """Take the next rows, whole blocks of the input: a run ends where a block does."""
        self._waiting.append(rows)
        self._waiting_bytes += len(rows.lists) * sum(self._widths.values())
        self._waiting_bytes += sum(map(len, rows.texts or ()))
        self._count(rows.lists)
        self.n += len(rows.lists)
        if self._waiting_bytes >= self._memory_bytes:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait as one run, on stable storage when this returns."""
        rows, self._waiting, self._waiting_bytes = self._waiting, [], 0
        count = sum(len(part.lists) for part in rows)
        if not count:
            return
        lists = np.concatenate([part.lists for part in rows])
        order = np.argsort(lists, kind="stable")
        start, file = self._first + self.n - count, f"run-{len(self.runs):08d}"
        texts = [text for part in rows for text in part.texts or ()]
        lengths = np.array([len(texts[row]) for row in order.tolist()], np.int64) if self._texts else np.empty(0)
        pieces = {"lists": [lists], "rows": [np.arange(start, start + count)]} | {
            name: [getattr(part, name) for part in rows] for name in ("codes", "dense", "keys") if name in self._widths
        }
        del rows
        crc = 0
        with created(self._ops, self._directory / file) as fd:
            for name in self._widths:
                if name == "starts":
                    chunks: Chunks = iter([np.cumsum(lengths) - lengths])
                else:
                    chunks = _gathered(np.concatenate(pieces.pop(name)), order)
                crc = self._append(fd, chunks, crc)
            if self._texts:
                text = b"".join(texts[row] for row in order.tolist())
                crc = self._append(fd, iter([np.frombuffer(text, np.uint8)]), crc)
            self._ops.sync(fd)
        self._keep(Run(file=file, start=start, n=count, text_bytes=int(lengths.sum()), crc32=crc))

    def merged(self, name: str) -> Chunks:
        """Yield a fixed column in list order, in chunks of (b, width) uint8."""
        for slices, order in self._buckets():
            if order is None:
                for part in slices:
                    yield from self._streamed(name, *part)
            else:
                yield from _gathered(np.concatenate([self._column(part[0], name, *part[1:]) for part in slices]), order)

    def merged_texts(self) -> Iterator[tuple[npt.NDArray[np.int64], bytes]]:
        """Yield the lengths of string ids (b,), and their bytes, in list order."""
        for slices, order in self._buckets():
            lengths, texts = [], []
            for number, first, last in slices:
                cuts = self._text_cuts(number, first, last)
                text = self._bytes(number, self._end(number) + int(cuts[0]), int(cuts[-1] - cuts[0])).tobytes()
                places = (cuts - cuts[0]).tolist()
                texts += [text[a:b] for a, b in pairwise(places)]
                lengths.append(np.diff(cuts))
            sizes = np.concatenate(lengths)
            if order is not None:
                sizes, texts = sizes[order], [texts[row] for row in order.tolist()]
            yield sizes, b"".join(texts)

    def suspects(self) -> Iterator[tuple[int, int]]:
        """Yield pairs of rows, in the order of the input, whose keys are equal.

        Keys are sorted in as many parts, by their remainder, as keep within the memory.
        """
        parts = -(-self.n * _KEY_BYTES // max(_SORT_BYTES, self._memory_bytes))
        for part in range(parts):
            keys, rows = [], []
            for number in range(len(self.runs)):
                key, row = (self._column(number, name).view("<i8")[:, 0] for name in ("keys", "rows"))
                # Ids may all be multiples of something: the upper half of a product mixes them.
                mine = (key.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) % np.uint64(parts) == part
                keys.append(key[mine])
                rows.append(row[mine])
            key, row = np.concatenate(keys), np.concatenate(rows)
            order = np.lexsort((row, key))
            same = np.flatnonzero(key[order[1:]] == key[order[:-1]])
            yield from zip(row[order[same]].tolist(), row[order[same + 1]].tolist(), strict=True)

    def key_of(self, row: int) -> int:
        """Return the key of a row of the input."""
        number, at = self._place(row)
        return int(self._column(number, "keys", at, at + 1).view("<i8")[0, 0])

    def text_of(self, row: int) -> str:
        """Return the string id of a row of the input."""
        number, at = self._place(row)
        begin, end = self._text_cuts(number, at, at + 1).tolist()
        return self._bytes(number, self._end(number) + begin, end - begin).tobytes().decode("utf-8")

    def remove(self) -> None:
        """Remove the files."""
        for run in self.runs:
            self._ops.unlink(self._directory / run.file)

    def _streamed(self, name: str, number: int, first: int, last: int) -> Chunks:
        return _in_chunks(self._widths[name], first, last, lambda a, b: self._column(number, name, a, b))

    def _count(self, lists: npt.NDArray[np.int32]) -> None:
        self.counts += np.bincount(lists, minlength=len(self.counts))

    def _append(self, fd: int, chunks: Chunks, crc: int) -> int:
        for chunk in chunks:
            data = as_bytes(chunk)
            self._ops.write(fd, data)
            crc = zlib.crc32(data, crc)
        return crc

    def _keep(self, run: Run) -> None:
        self.runs.append(run)
        self.text_bytes += run.text_bytes
        if self._log is not None:
            self._ops.sync_dir(self._directory)
            self._log.note(run)

    def _buckets(self) -> Iterator[tuple[_Slices, npt.NDArray[np.int64] | None]]:
        """Where the rows of consecutive lists are, a bucket at a time, and their order; None = as they are."""
        edges = self._edges()
        bounds = np.stack([np.searchsorted(self._lists(number), edges) for number in range(len(self.runs))], axis=1)
        for bucket, (first, last) in enumerate(pairwise(bounds)):
            numbers = np.flatnonzero(last > first).tolist()
            slices = [(number, int(first[number]), int(last[number])) for number in numbers]
            if edges[bucket + 1] - edges[bucket] == 1:  # runs follow one another as the rows of a list do
                yield slices, None
            elif slices:
                yield slices, np.argsort(np.concatenate([self._lists(*part) for part in slices]), kind="stable")

    def _edges(self) -> npt.NDArray[np.int64]:
        """First list of each bucket, and the number of lists: as many lists together as fit the memory."""
        widest = max(max(self._widths.values()), 2 * self.text_bytes // max(1, self.n)) + 16
        ends, most = np.concatenate([[0], np.cumsum(self.counts)]), max(1, self._memory_bytes // widest)
        edges = [0]
        while edges[-1] < len(self.counts):
            fits = int(np.searchsorted(ends, ends[edges[-1]] + most, side="right")) - 1
            edges.append(max(edges[-1] + 1, fits))
        return np.array(edges)

    def _place(self, row: int) -> tuple[int, int]:
        """Run of a row of the input, and its place there."""
        number = next(number for number, run in enumerate(self.runs) if row < run.stop)
        return number, int(np.flatnonzero(self._column(number, "rows").view("<i8")[:, 0] == row)[0])

    def _lists(self, number: int, first: int = 0, last: int | None = None) -> Column:
        return self._column(number, "lists", first, last).view("<i4")[:, 0]

    def _text_cuts(self, number: int, first: int, last: int) -> npt.NDArray[np.int64]:
        """Where the string ids first..last of a run begin, and where the last of them ends."""
        run = self.runs[number]
        starts = self._column(number, "starts", first, min(last + 1, run.n)).view("<i8")[:, 0]
        return starts if last < run.n else np.append(starts, run.text_bytes)

    def _end(self, number: int) -> int:
        """Where the fixed columns of a run end."""
        return self.runs[number].n * sum(self._widths.values())

    def _column(self, number: int, name: str, first: int = 0, last: int | None = None) -> Column:
        """Rows first..last of a column of a run, (b, width) uint8."""
        n, width, names = self.runs[number].n, self._widths[name], list(self._widths)
        begin = n * sum(self._widths[before] for before in names[: names.index(name)])
        last = n if last is None else last
        return self._bytes(number, begin + first * width, (last - first) * width).reshape(-1, width)

    def _bytes(self, number: int, offset: int, count: int) -> npt.NDArray[np.uint8]:
        out = np.empty(count, np.uint8)
        path = self._directory / self.runs[number].file
        fd = open_regular(path)
        try:
            read_into(fd, out.data, offset, path)
        finally:
            os.close(fd)
        return out


def checksum(path: Path) -> int:
    """Return zlib.crc32 of a file, read a little at a time."""
    crc, buffer = 0, bytearray(CHUNK_BYTES)
    with path.open("rb") as file:
        while got := file.readinto(buffer):
            crc = zlib.crc32(memoryview(buffer)[:got], crc)
    return crc


def _gathered(column: Column, order: npt.NDArray[np.int64]) -> Chunks:
    """Yield the rows of a column in an order, a chunk at a time."""
    width = max(1, column.nbytes // max(1, len(column)))
    return _in_chunks(width, 0, len(order), lambda a, b: column[order[a:b]])


def _in_chunks(width: int, first: int, last: int, rows: Callable[[int, int], Column]) -> Chunks:
    step = max(1, CHUNK_BYTES // width)
    for at in range(first, last, step):
        yield rows(at, min(last, at + step))
