"""Sorted tables of external ids: written from the ids of a set of rows, in as many parts as keep within the memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from vqdistill.index.files import FileOps, open_regular, read_bytes, write_segment
from vqdistill.index.lookup import text_key
from vqdistill.index.rows import I64
from vqdistill.index.spec import PAGE, Segment

MEMORY_BYTES = 64 << 20
"""Of what is sorted at a time."""
_ROW_BYTES = 32
"""Bytes of a row while it is sorted: key, row, order and a copy."""
_CHUNK_ROWS = 1 << 16

Keys = Callable[[], Iterator[I64]]
Parts = Callable[[], Iterator[tuple[I64, I64]]]


def write_id_table(
    ops: FileOps,
    directory: Path,
    segments: Mapping[str, Segment],
    index_id: bytes,
    memory_bytes: int = MEMORY_BYTES,
) -> dict[str, Segment]:
    """Write the segments `id_keys` and `id_order` of a set of rows whose other segments are there.

    Parameters
    ----------
    segments : all segments of the set, by kind
    memory_bytes : that are sorted at a time; ids are read once more for each such part

    Returns
    -------
    both segments, with checksums
    """
    with _Ids(directory, segments) as ids:
        n, most = segments["rows"].shape[0], max(1, memory_bytes // _ROW_BYTES)
        if n <= most:  # read and sorted once, for both
            keys = np.concatenate(list(ids.keys()))
            order = np.argsort(keys, kind="stable")
            table = keys[order], order
            parts: Parts = lambda: iter([table])  # noqa: E731
        else:
            parts = _parts(ids.keys, _bounds(ids.keys, most))
        return {
            kind: write_segment(ops, directory, segments[kind], index_id, (part[at] for part in parts()))
            for at, kind in enumerate(("id_keys", "id_order"))
        }


class _Ids:
    """Keys of a set of rows, in the order of their positions."""

    def __init__(self, directory: Path, segments: Mapping[str, Segment]) -> None:
        self._segments = segments
        self._kind = next(kind for kind in ("ids_offsets", "ids", "rows") if kind in segments)
        wanted = {self._kind, "ids_bytes"} & set(segments)
        self._paths = {kind: directory / segments[kind].file for kind in wanted}
        self._fds = {kind: open_regular(path) for kind, path in self._paths.items()}

    def __enter__(self) -> _Ids:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds.values():
            os.close(fd)

    def keys(self) -> Iterator[I64]:
        """Yield them a little at a time."""
        n = self._segments["rows"].shape[0]
        for begin in range(0, n, _CHUNK_ROWS):
            count = min(_CHUNK_ROWS, n - begin)
            yield self._text_keys(begin, count) if self._kind == "ids_offsets" else self._numbers(begin, count)

    def _numbers(self, begin: int, count: int) -> I64:
        data = read_bytes(self._fds[self._kind], 8 * count, PAGE + 8 * begin, self._paths[self._kind])
        return np.frombuffer(data, dtype="<i8")

    def _text_keys(self, begin: int, count: int) -> I64:
        cuts = self._numbers(begin, count + 1)
        first = int(cuts[0])
        data = read_bytes(self._fds["ids_bytes"], int(cuts[-1]) - first, PAGE + first, self._paths["ids_bytes"])
        places = (cuts - first).tolist()
        keys = (text_key(data[a:b]) for a, b in pairwise(places))
        return np.frombuffer(b"".join(keys), dtype="<i8")


def _bounds(keys: Keys, most: int) -> list[int]:
    """Rising keys, of which the first is the lowest and the last above all: between two there are about `most`."""
    lows, highs = zip(*((int(part.min()), int(part.max())) for part in keys()), strict=True)
    low, high = min(lows), max(highs) + 1
    bins = 1 << 16
    shift = max(0, (high - low).bit_length() - 16)
    counts = np.zeros(bins + 1, np.int64)
    for part in keys():
        # Unsigned, since the span of all int64 is beyond them.
        counts += np.bincount(
            ((part - np.int64(low)).view(np.uint64) >> np.uint64(shift)).astype(np.int64), minlength=bins + 1
        )
    bounds, held = [low], 0
    for at, count in enumerate(counts.tolist()):
        if held and held + count > most:
            bounds.append(low + (at << shift))
            held = 0
        held += count
    return [*bounds, high]


def _parts(keys: Keys, bounds: list[int]) -> Parts:
    def parts() -> Iterator[tuple[I64, I64]]:
        for low, high in pairwise(bounds):
            found, rows, begin = [], [], 0
            for part in keys():
                mine = np.flatnonzero((part >= low) & (part <= high - 1))
                found.append(part[mine])
                rows.append(mine + begin)
                begin += len(part)
            key, row = np.concatenate(found), np.concatenate(rows)
            order = np.argsort(key, kind="stable")
            yield key[order], row[order]

    return parts
