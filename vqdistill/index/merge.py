"""Sets of rows become one, a few lists at a time: for additions, compaction and the merge of indexes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vqdistill.config import BLOCK_ROWS
from vqdistill.index.files import FileOps, read_bytes, write_segment
from vqdistill.index.idtable import write_id_table
from vqdistill.index.rows import I64, OpenRows
from vqdistill.index.spec import PAGE, ROW_KINDS, Layout, Segment
from vqdistill.kernels import pack_codes, unpack_codes

CHUNK_BYTES = 16 << 20
"""Bytes of rows that are put into order at a time, unless one row takes more."""
_ID_BYTES = 128
"""What a string id takes in memory, about."""

Column = npt.NDArray[Any]
Done = Callable[[list[Segment]], None]


class RowSource(Protocol):
    """Rows in list order, from memory or disk."""

    @property
    def n(self) -> int:
        """Rows."""

    @property
    def list_offsets(self) -> I64:
        """(nlist + 1,) first row of each list, and the number of rows."""

    def column(self, kind: str, begin: int, end: int) -> Column:
        """Rows begin..end of "codes" (b, m) uint8, "dense" (b, row_bytes) uint8, "rows" or "ids" (b,) int64."""

    def texts(self, begin: int, end: int) -> list[bytes]:
        """String ids of these rows."""

    @property
    def text_bytes(self) -> int:
        """Bytes of all string ids."""


@dataclass(frozen=True)
class StoredRows:
    """A set of rows of an open index."""

    rows: OpenRows

    @property
    def n(self) -> int:
        """Rows."""
        return self.rows.n

    @property
    def list_offsets(self) -> I64:
        """As `RowSource`."""
        return self.rows.list_offsets

    def column(self, kind: str, begin: int, end: int) -> Column:
        """As `RowSource`."""
        if kind == "codes":
            first = begin // BLOCK_ROWS
            blocks = self.rows.arrays["codes"][first : -(-end // BLOCK_ROWS)]
            return unpack_codes(blocks, end - first * BLOCK_ROWS)[begin - first * BLOCK_ROWS :]
        size = self.rows.segment(kind).row_bytes
        data = np.frombuffer(self._bytes(kind, begin * size, end * size), np.uint8)
        return data.reshape(-1, size) if kind == "dense" else data.view("<i8")

    def texts(self, begin: int, end: int) -> list[bytes]:
        """As `RowSource`."""
        if begin == end:
            return []
        cuts = np.frombuffer(self._bytes("ids_offsets", 8 * begin, 8 * end + 8), "<i8").tolist()
        data = self._bytes("ids_bytes", cuts[0], cuts[-1])
        return [data[a - cuts[0] : b - cuts[0]] for a, b in pairwise(cuts)]

    @property
    def text_bytes(self) -> int:
        """As `RowSource`."""
        return self.rows.segment("ids_bytes").bytes

    def _bytes(self, kind: str, begin: int, end: int) -> bytes:
        return read_bytes(self.rows.fds[kind], end - begin, PAGE + begin, self.rows.path(kind))


@dataclass(frozen=True)
class Kept:
    """Rows that go into a merge."""

    source: RowSource
    keeps: Callable[[int, int], npt.NDArray[np.bool_]] | None = None
    """Which of the rows begin..end are kept, (b,); None = all."""
    shift: int = 0
    """What their row numbers grow by."""

    def pick(self, begin: int, end: int) -> npt.NDArray[np.int64] | slice:
        """Those of the rows begin..end that are kept, counted from `begin`."""
        return slice(None) if self.keeps is None else np.flatnonzero(self.keeps(begin, end))

    def column(self, kind: str, begin: int, end: int) -> Column:
        """A column of those of the rows begin..end that are kept."""
        column = self.source.column(kind, begin, end)[self.pick(begin, end)]
        return column + self.shift if kind == "rows" else column

    def texts(self, begin: int, end: int) -> list[bytes]:
        """String ids of those of the rows begin..end that are kept."""
        found, pick = self.source.texts(begin, end), self.pick(begin, end)
        return found if isinstance(pick, slice) else [found[at] for at in pick.tolist()]

    @property
    def text_bytes(self) -> int:
        """Bytes of the string ids of kept rows."""
        if self.keeps is None:
            return self.source.text_bytes
        n, step = self.source.n, max(1, CHUNK_BYTES // _ID_BYTES)
        return sum(sum(map(len, self.texts(begin, min(begin + step, n)))) for begin in range(0, n, step))

    def counts(self) -> I64:
        """Kept rows of each list, (nlist,)."""
        offsets = self.source.list_offsets
        if self.keeps is None:
            return np.diff(offsets)
        counts = np.zeros(len(offsets) - 1, np.int64)
        step = 1 << 20
        for begin in range(0, self.source.n, step):
            end = min(begin + step, self.source.n)
            rows = np.flatnonzero(self.keeps(begin, end)) + begin
            counts += np.bincount(np.searchsorted(offsets, rows, side="right") - 1, minlength=len(counts))
        return counts


class Merge:
    """Writes sets of rows as one. Rows of a list follow each other set by set, in the order of their set.

    Memory: CHUNK_BYTES at a time and a few copies of that; 16 bytes a list and set.
    """

    def __init__(self, kept: Sequence[Kept]) -> None:
        self._kept = kept
        self.counts: I64 = np.sum([part.counts() for part in kept], axis=0)
        """Rows of each list, (nlist,)."""
        self.n = int(self.counts.sum())
        """Rows of the merged set."""

    def layout(self, index: Layout) -> Layout:
        """Layout of the merged set, in an index of that layout."""
        return replace(index, n=self.n, id_bytes=self._text_bytes if index.ids == "str" else 0)

    def write(
        self,
        ops: FileOps,
        directory: Path,
        layout: Layout,
        index_id: bytes,
        generation: int,
        *,
        finished: Sequence[Segment] = (),
        done: Done = lambda segments: None,
    ) -> dict[str, Segment]:
        """Write the files of the merged set.

        Parameters
        ----------
        layout : of the index; that of the set follows from it
        generation : in the names of the files
        finished : segments that an earlier call has written with the same arguments
        done : called with segments that are on stable storage, but for their names

        Returns
        -------
        segments by kind, with checksums
        """
        layout = self.layout(layout)
        planned = {kind: s for kind, s in layout.segments(generation).items() if kind in ROW_KINDS}
        written = {segment.kind: segment for segment in finished}
        for kind, segment in planned.items():
            if kind not in written and not kind.startswith("id_"):
                written[kind] = write_segment(ops, directory, segment, index_id, self._chunks(kind, segment))
                done([written[kind]])
        if "id_order" not in written:
            written |= write_id_table(ops, directory, planned | written, index_id)
            done([written["id_keys"], written["id_order"]])
        return {kind: written[kind] for kind in planned}

    def _chunks(self, kind: str, segment: Segment) -> Iterator[Column]:
        if kind == "list_offsets":
            return iter([np.concatenate([[0], np.cumsum(self.counts)])])
        if kind == "codes":
            return packed(self.columns(kind, 2 * segment.shape[1]))
        if kind == "ids_offsets":
            return self._text_offsets()
        if kind == "ids_bytes":
            return (np.frombuffer(b"".join(texts), np.uint8) for texts in self._texts())
        return self.columns(kind, segment.row_bytes)

    def columns(self, kind: str, row_bytes: int) -> Iterator[Column]:
        """Yield a column of all rows in the merged order, which takes so many bytes a row, a little at a time."""
        for places, order in self._pieces(max(1, CHUNK_BYTES // row_bytes)):
            yield np.concatenate([part.column(kind, begin, end) for part, begin, end in places])[order]

    def _texts(self) -> Iterator[list[bytes]]:
        for places, order in self._pieces(max(1, CHUNK_BYTES // _ID_BYTES)):
            texts: list[bytes] = []
            for part, begin, end in places:
                texts += part.texts(begin, end)
            yield [texts[at] for at in order.tolist()]

    def _text_offsets(self) -> Iterator[Column]:
        end = 0
        yield np.zeros(1, np.int64)
        for texts in self._texts():
            ends = end + np.cumsum([len(text) for text in texts], dtype=np.int64)
            if len(ends):
                end = int(ends[-1])
                yield ends

    @cached_property
    def _text_bytes(self) -> int:
        return sum(part.text_bytes for part in self._kept)

    def _pieces(self, most: int) -> Iterator[tuple[list[tuple[Kept, int, int]], I64]]:
        """Yield rows begin..end of each set for lists that have about `most` rows, and the order of those kept.

        A list with more rows comes in several pieces, since its sets follow each other.
        """
        held = np.sum([np.diff(part.source.list_offsets) for part in self._kept], axis=0)
        first, nlist = 0, len(held)
        ends = np.cumsum(held)
        while first < nlist:
            base = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, base + most, side="right")))
            bounds = [
                (part, int(part.source.list_offsets[first]), int(part.source.list_offsets[last])) for part in self._kept
            ]
            if last == first + 1:
                for part, begin, end in bounds:
                    for at in range(begin, end, most):
                        place = (part, at, min(at + most, end))
                        yield [place], np.arange(_count(*place))
            else:
                lists = [_lists_of(*place) for place in bounds]
                yield bounds, np.argsort(np.concatenate(lists), kind="stable")
            first = last


def _count(part: Kept, begin: int, end: int) -> int:
    return end - begin if part.keeps is None else int(part.keeps(begin, end).sum())


def _lists_of(part: Kept, begin: int, end: int) -> I64:
    """Lists of the rows begin..end that are kept."""
    rows = np.arange(begin, end)[part.pick(begin, end)]
    return np.searchsorted(part.source.list_offsets, rows, side="right") - 1


def packed(chunks: Iterator[Column]) -> Iterator[Column]:
    """Codes as the scan wants them; a block of rows may lie in two chunks."""
    left: Column | None = None
    for chunk in chunks:
        codes = chunk if left is None else np.concatenate([left, chunk])
        whole = len(codes) // BLOCK_ROWS * BLOCK_ROWS
        left = codes[whole:]
        if whole:
            yield pack_codes(np.ascontiguousarray(codes[:whole]))
    if left is not None and len(left):
        yield pack_codes(np.ascontiguousarray(left))
