"""What payloads must hold: checksums, zero padding, and what each kind of segment promises."""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.config import BLOCK_ROWS
from vqdistill.errors import CorruptIndex
from vqdistill.index import byte_rows
from vqdistill.index.files import read_array, read_bytes
from vqdistill.index.manifest import Manifest
from vqdistill.index.spec import CRC_BYTES, PAGE, TABLE_ROWS, RowSet, Segment

_CHUNK_ITEMS = 1 << 17
"""Integers of a disk segment that are checked together."""
_SPARSE = 64
"""Row numbers for each row from which on they are sorted rather than ticked off."""


def segment_problems(fd: int, segment: Segment, rows: RowSet, manifest: Manifest, path: Path) -> Iterator[str]:
    """Yield one sentence for each wrong checksum, padding that is not zero, and content its kind does not allow."""
    clean = True
    for at, wanted in enumerate(segment.crc32):
        begin = at * CRC_BYTES
        data = read_bytes(fd, min(CRC_BYTES, segment.bytes - begin), PAGE + begin, path)
        if zlib.crc32(data) != wanted:
            clean = False
            yield _checksum_problem(segment, at, wanted, zlib.crc32(data))
    end = PAGE + segment.bytes
    if any(read_bytes(fd, segment.file_bytes - end, end, path)):
        yield f"{segment.file}: padding after byte {end} must be zero, got other values"
    if clean:
        _check_content(fd, segment, rows, manifest, path)


def checksum_problems(segment: Segment, data: memoryview) -> Iterator[str]:
    """Yield one sentence for each part of a whole payload that has another checksum."""
    for at, wanted in enumerate(segment.crc32):
        crc = zlib.crc32(data[at * CRC_BYTES : (at + 1) * CRC_BYTES])
        if crc != wanted:
            yield _checksum_problem(segment, at, wanted, crc)


def _checksum_problem(segment: Segment, at: int, wanted: int, got: int) -> str:
    begin = at * CRC_BYTES
    end = min(begin + CRC_BYTES, segment.bytes)
    return f"{segment.file}: crc32 of payload bytes {begin}..{end - 1} must be {wanted:08x}, got {got:08x}"


def _check_content(fd: int, segment: Segment, rows: RowSet, manifest: Manifest, path: Path) -> None:
    """Require of a payload with the right checksums what its kind promises."""
    if segment.kind == "list_offsets":
        check_list_offsets(read_array(fd, segment, path), rows.n, segment)
    elif segment.kind == "codes":
        last = PAGE + segment.bytes - segment.row_bytes
        _check_last_block(read_bytes(fd, segment.row_bytes, last, path), segment, rows.n)
    elif segment.kind == "rows":
        _check_distinct(fd, segment, manifest.next_row, path)
    elif segment.kind == "id_order":
        _check_distinct(fd, segment, rows.n, path)
    elif segment.kind == "id_keys":
        _check_sorted(fd, segment, path)
    elif segment.kind == "deleted":
        check_deleted(read_array(fd, segment, path), manifest)
    elif segment.kind == "ids":
        for ids in _integer_chunks(fd, segment, path):
            check_not_missing(ids, segment)
    elif segment.kind == "ids_offsets":
        _check_ids_offsets(fd, segment, rows.segments["ids_bytes"].bytes, path)
    elif segment.kind == "ids_bytes":
        _check_text(fd, segment, path)
    elif segment.dtype in ("f2", "f4") and segment.kind != "dense":
        _check_finite(read_array(fd, segment, path), segment)
    elif segment.kind in TABLE_ROWS and segment.dtype == "u1":
        _check_byte_rows(read_array(fd, segment, path), segment)


def check_list_offsets(offsets: npt.NDArray[np.int64], n: int, segment: Segment) -> None:
    """Require that offsets (nlist + 1,) grow from 0 to n; native code relies on it."""
    if offsets[0] != 0 or offsets[-1] != n or (offsets[1:] < offsets[:-1]).any():
        got = f"{offsets[0]}..{offsets[-1]} or a step back"
        raise CorruptIndex(f"{segment.file}: offsets must grow from 0 to {n}, got {got}")


def count_bits(blocks: npt.NDArray[np.uint32]) -> int:
    """Number of bits that are set."""
    parts = (blocks[begin : begin + _CHUNK_ITEMS] for begin in range(0, len(blocks), _CHUNK_ITEMS))
    return sum(int(np.unpackbits(part.view(np.uint8)).sum()) for part in parts)


def check_deleted(blocks: npt.NDArray[np.uint32], manifest: Manifest) -> None:
    """Require as many bits as the manifest has deleted rows, and none behind the rows of a set."""
    file, got = manifest.segments["deleted"].file, count_bits(blocks)
    if got != manifest.deleted:
        raise CorruptIndex(f"{file}: {manifest.deleted} rows must be deleted, got {got}")
    end = 0
    for rows in manifest.sets:
        end += rows.nblocks
        used = (rows.n - 1) % BLOCK_ROWS + 1
        if int(blocks[end - 1]) >> used:
            raise CorruptIndex(f"{file}: bits behind the {rows.n} rows of a set must be 0, got others")


def _check_byte_rows(rows: npt.NDArray[np.uint8], segment: Segment) -> None:
    found = byte_rows.problem(rows)
    if found is not None:
        raise CorruptIndex(f"{segment.file}: {found}")


def _check_finite(array: npt.NDArray[Any], segment: Segment) -> None:
    if not np.isfinite(array).all():
        raise CorruptIndex(f"{segment.file}: values must be finite, got NaN or infinity")


def _check_last_block(block: bytes, segment: Segment, n: int) -> None:
    rows = np.frombuffer(block, dtype=np.uint8).reshape(segment.shape[1:])
    used = (n - 1) % BLOCK_ROWS + 1
    if rows[:, used:].any():
        raise CorruptIndex(f"{segment.file}: the {BLOCK_ROWS - used} rows of padding must have code 0, got others")


def _integer_chunks(fd: int, segment: Segment, path: Path) -> Iterator[npt.NDArray[np.int64]]:
    for begin in range(0, segment.shape[0], _CHUNK_ITEMS):
        count = min(_CHUNK_ITEMS, segment.shape[0] - begin)
        yield np.frombuffer(read_bytes(fd, 8 * count, PAGE + 8 * begin, path), dtype="<i8")


def _check_distinct(fd: int, segment: Segment, end: int, path: Path) -> None:
    n = segment.shape[0]
    sparse = end > _SPARSE * n
    seen, held = np.zeros(0 if sparse else end, dtype=np.bool_), []
    for rows in _integer_chunks(fd, segment, path):
        if rows.min() < 0 or rows.max() >= end:
            raise CorruptIndex(f"{segment.file}: rows must be in [0, {end}), got {rows.min()}..{rows.max()}")
        if sparse:
            held.append(rows)
        else:
            seen[rows] = True
    if (got := len(np.unique(np.concatenate(held))) if sparse else int(seen.sum())) != n:
        raise CorruptIndex(f"{segment.file}: {n} rows must differ, got {got} that do")


def _check_sorted(fd: int, segment: Segment, path: Path) -> None:
    last = None
    for keys in _integer_chunks(fd, segment, path):
        if (keys[1:] < keys[:-1]).any() or (last is not None and keys[0] < last):
            raise CorruptIndex(f"{segment.file}: keys must never fall, got a step back")
        last = int(keys[-1])


def check_not_missing(numbers: npt.NDArray[np.int64], segment: Segment) -> None:
    """Require that no number says "missing"."""
    if (numbers == -1).any():
        raise CorruptIndex(f"{segment.file}: numbers must not be -1, which marks a missing result, got one that is")


def _check_text(fd: int, segment: Segment, path: Path) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for begin in range(0, segment.bytes, CRC_BYTES):
            decoder.decode(read_bytes(fd, min(CRC_BYTES, segment.bytes - begin), PAGE + begin, path))
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise CorruptIndex(f"{segment.file}: ids must be UTF-8, got other bytes") from None


def _check_ids_offsets(fd: int, segment: Segment, total: int, path: Path) -> None:
    last = -1
    for offsets in _integer_chunks(fd, segment, path):
        if (last < 0 and offsets[0] != 0) or offsets[0] <= last or (offsets[1:] <= offsets[:-1]).any():
            raise CorruptIndex(f"{segment.file}: offsets must grow strictly from 0, got a step that does not")
        last = int(offsets[-1])
    if last != total:
        raise CorruptIndex(f"{segment.file}: the last offset must be {total}, the bytes of all ids, got {last}")
