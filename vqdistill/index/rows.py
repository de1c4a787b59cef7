"""Sets of rows of an open index: what is on disk of each row, read only where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from struct import unpack
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.config import BLOCK_ROWS
from vqdistill.errors import CorruptIndex
from vqdistill.index.checks import check_not_missing
from vqdistill.index.files import map_segment, read_bytes, read_rows
from vqdistill.index.spec import PAGE, RowSet, Segment
from vqdistill.kernels import take_integers

I64 = npt.NDArray[np.int64]


class OpenRows:
    """One set of rows, open for reading; rows are counted within the set.

    Parameters
    ----------
    directory : of the index
    rows : what the manifest says of the set
    fds : descriptors of its segments by kind, owned by the reader
    arrays : its resident segments by kind
    """

    def __init__(
        self, directory: Path, rows: RowSet, fds: Mapping[str, int], arrays: Mapping[str, npt.NDArray[Any]]
    ) -> None:
        self.rows, self.fds, self.arrays = rows, fds, arrays
        self._directory = directory
        self._paths: dict[str, Path] = {}
        self._maps: dict[str, I64 | None] = {}

    @property
    def n(self) -> int:
        """Rows."""
        return self.rows.n

    @property
    def first(self) -> int:
        """Position of the first row."""
        return self.rows.first

    @property
    def list_offsets(self) -> I64:
        """First row of each list, and the number of rows: (nlist + 1,) int64."""
        offsets: I64 = self.arrays["list_offsets"]
        return offsets

    def segment(self, kind: str) -> Segment:
        """What the manifest says of a segment."""
        return self.rows.segments[kind]

    def path(self, kind: str) -> Path:
        """File of a segment."""
        found = self._paths.get(kind)
        if found is None:  # joined once: a look-up of one id names three files, and would spend a third on that
            found = self._paths[kind] = self._directory / self.segment(kind).file
        return found

    def read(self, kind: str, rows: I64) -> npt.NDArray[np.uint8]:
        """Read the bytes of rows (b,), in any order, as (b, row_bytes) uint8."""
        return read_rows(self.fds[kind], rows, self.segment(kind).row_bytes, PAGE, self.path(kind))

    def integers(self, kind: str, rows: I64, below: int | None = None) -> I64:
        """Read an integer of each row (b,); -1 for rows that are negative.

        Raises
        ------
        CorruptIndex
            If one that is read is -1, or is not in [0, below).
        """
        numbers = self.mapped(kind)
        if numbers is None:
            found = rows >= 0
            numbers = self.read(kind, rows[found]).view("<i8")[:, 0]
            rows = np.where(found, np.cumsum(found) - 1, -1)
        limits = {} if below is None else {"low": 0, "high": below - 1}
        taken, good = take_integers(numbers, rows, **limits)
        if not good:
            segment = self.segment(kind)
            check_not_missing(taken[rows >= 0], segment)
            raise CorruptIndex(f"{segment.file}: {kind} must be in [0, {below}), got others")
        return taken

    def mapped(self, kind: str) -> I64 | None:
        """Map a segment of integers, whose pages stay the page cache's; None if there is no room to map it."""
        if kind not in self._maps:
            try:
                self._maps[kind] = map_segment(self.fds[kind], self.segment(kind))
            except OSError:
                self._maps[kind] = None
        return self._maps[kind]

    def texts(self, rows: I64) -> Iterator[bytes]:
        """Yield the string ids of sorted rows, in UTF-8.

        Raises
        ------
        CorruptIndex
            If their offsets cannot be.
        """
        ends = self.read("ids_offsets", np.concatenate([rows, rows + 1])).view("<i8")[:, 0]
        for begin, end in ends.reshape(2, -1).T.tolist():
            yield self._text(begin, end)

    def text(self, row: int) -> bytes:
        """String id of a row; raises as `texts`."""
        begin, end = unpack("<2q", read_bytes(self.fds["ids_offsets"], 16, PAGE + 8 * row, self.path("ids_offsets")))
        return self._text(begin, end)

    def _text(self, begin: int, end: int) -> bytes:
        segment = self.segment("ids_bytes")
        if not 0 <= begin < end <= segment.bytes:
            file = self.segment("ids_offsets").file
            raise CorruptIndex(f"{file}: offsets must grow within 0..{segment.bytes}, got {begin} before {end}")
        return read_bytes(self.fds["ids_bytes"], end - begin, PAGE + begin, self.path("ids_bytes"))

    def alone(self) -> OpenRows:
        """The same set, as if there were no other."""
        return OpenRows(self._directory, replace(self.rows, first=0), self.fds, self.arrays)

    def forget(self) -> None:
        """Drop the maps."""
        self._maps.clear()


def decode_text(data: bytes, segment: Segment) -> str:
    """Return a string id.

    Raises
    ------
    CorruptIndex
        If it is no UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise CorruptIndex(f"{segment.file}: ids must be UTF-8, got {data[:40]!r}") from None


def by_set(sets: list[OpenRows], positions: I64, read: Callable[[OpenRows, I64], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Read something of positions (b,), each from its set.

    Parameters
    ----------
    positions : (b,) int64 in [-1, n); -1 is left to the first set
    read : given a set and rows of it, (c,), returns (c, ...)
    """
    if len(sets) == 1:
        return read(sets[0], positions)
    of = np.searchsorted([rows.first for rows in sets[1:]], positions, side="right")
    parts = [(np.flatnonzero(of == at), rows) for at, rows in enumerate(sets)]
    read_parts = [(at, read(rows, np.where(positions[at] < 0, -1, positions[at] - rows.first))) for at, rows in parts]
    out = np.empty((len(positions), *read_parts[0][1].shape[1:]), np.result_type(*(part for _, part in read_parts)))
    for at, part in read_parts:
        out[at] = part
    return out


class Alive:
    """The rows that are not deleted: one bit a row, in the order of the codes."""

    def __init__(self, sets: list[OpenRows], deleted: npt.NDArray[np.uint32] | None) -> None:
        """Take the payload of the segment `deleted`, which is changed in place; None = nothing is deleted."""
        self._sets = sets
        self.blocks = None if deleted is None else np.invert(deleted, out=deleted)
        """(blocks of all sets,) uint32, bit r of a block = its row r is alive; None = all are"""

    def of(self, positions: I64) -> npt.NDArray[np.bool_]:
        """Whether the rows at positions (b,), in [0, n), are alive."""
        if self.blocks is None:
            return np.ones(len(positions), np.bool_)
        return test_bits(self.blocks, bit_numbers(self._sets, positions))

    def only(self, rows: OpenRows) -> Alive:
        """Return those of one set alone, counted within it; a copy."""
        alive = Alive([rows.alone()], None)
        if self.blocks is not None:
            begin = first_block(self._sets, rows)
            alive.blocks = self.blocks[begin : begin + rows.rows.nblocks].copy()
        return alive

    def remove(self, rows: I64) -> None:
        """Delete rows (b,), of the only set."""
        if self.blocks is None:
            self.blocks = np.full(self._sets[0].rows.nblocks, 2**32 - 1, np.uint32)
        np.bitwise_and.at(self.blocks, rows >> 5, ~(np.uint32(1) << (rows & 31).astype(np.uint32)))

    def deleted_blocks(self) -> npt.NDArray[np.uint32]:
        """What the segment `deleted` says of the only set."""
        if self.blocks is None:
            return np.zeros(self._sets[0].rows.nblocks, np.uint32)
        return ~self.blocks

    def for_engine(self) -> tuple[npt.NDArray[np.uint32], I64] | None:
        """The blocks and the alive rows of each list, (nlist,), as an engine takes them; None = all are."""
        return None if self.blocks is None else (self.blocks, count_by_list(self._sets, self.blocks))


def bit_numbers(sets: list[OpenRows], positions: I64) -> I64:
    """Numbers of the bits of positions (b,) among the blocks of all sets, where each set begins a block."""
    return by_set(sets, positions, lambda rows, local: local + BLOCK_ROWS * first_block(sets, rows))


def first_block(sets: list[OpenRows], rows: OpenRows) -> int:
    """First block of a set among the blocks of all sets."""
    return sum(other.rows.nblocks for other in sets if other.first < rows.first)


def test_bits(blocks: npt.NDArray[np.uint32], bits: I64) -> npt.NDArray[np.bool_]:
    """Whether bits (b,) are set."""
    return np.asarray(blocks[bits >> 5] >> (bits & 31).astype(np.uint32) & 1, np.bool_)


def set_bits(sets: list[OpenRows], positions: I64) -> npt.NDArray[np.uint32]:
    """Return the blocks of all sets with the bits of positions (b,) set."""
    blocks = np.zeros(sum(rows.rows.nblocks for rows in sets), np.uint32)
    bits = bit_numbers(sets, positions)
    np.bitwise_or.at(blocks, bits >> 5, np.uint32(1) << (bits & 31).astype(np.uint32))
    return blocks


_CHUNK_BLOCKS = 1 << 16


def count_by_list(sets: list[OpenRows], blocks: npt.NDArray[np.uint32]) -> I64:
    """Count the bits of each list over all sets, (nlist,); the bits behind the rows of a set do not count."""
    counts = np.zeros(len(sets[0].list_offsets) - 1, np.int64)
    for rows in sets:
        offsets, begin = rows.list_offsets, first_block(sets, rows)
        at_offsets = np.zeros(len(offsets), np.int64)  # bits before each offset
        before = 0
        for chunk in range(0, rows.rows.nblocks, _CHUNK_BLOCKS):
            part = blocks[begin + chunk : begin + min(chunk + _CHUNK_BLOCKS, rows.rows.nblocks)]
            bits = np.unpackbits(part.astype("<u4").view(np.uint8), bitorder="little")
            sums = np.concatenate([[0], np.cumsum(bits, dtype=np.int64)])
            low, high = np.searchsorted(offsets, [BLOCK_ROWS * chunk, BLOCK_ROWS * (chunk + len(part))], side="left")
            at_offsets[low:high] = before + sums[offsets[low:high] - BLOCK_ROWS * chunk]
            before += int(sums[-1])
            tail = offsets[high:] == BLOCK_ROWS * (chunk + len(part))
            at_offsets[high:][tail] = before
        counts += np.diff(at_offsets)
    return counts
