"""Bytes to disk and back: file operations, segments, the atomic publish of a manifest, exact reads."""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import os
import secrets
import shutil
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.errors import CorruptIndex, InvalidInput, VqdistillError
from vqdistill.index.manifest import Manifest
from vqdistill.index.spec import (
    CRC_BYTES,
    MANIFEST_MAX_BYTES,
    PAGE,
    SHARDS,
    VERSION,
    Segment,
    check_header,
    encode_current,
    pack_header,
    parse_current,
)

_LINE = 64
"""Bytes of a cache line."""
CURRENT = "CURRENT"
CURRENT_MAX_BYTES = 256


def write_error(path: Path, error: OSError) -> VqdistillError:
    """Return what a writer of an index raises when the disk refuses."""
    verb = "disk full writing" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "cannot write"
    return VqdistillError(f"{verb} {path}: {error.strerror or error}")


class FileOps:
    """Every operation by which a writer changes the disk; tests replace it to stop, fail and forget."""

    def make_dir(self, path: Path) -> None:
        """Make a directory that must not exist."""
        os.mkdir(path)

    def create(self, path: Path) -> int:
        """Make a file that must not exist and return a descriptor for writing."""
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)

    def write(self, fd: int, data: bytes | memoryview) -> None:
        """Append all of `data`."""
        view = memoryview(data)
        while view.nbytes:
            view = view[os.write(fd, view) :]

    def sync(self, fd: int) -> None:
        """Wait until the content of a file is on stable storage."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """Close a descriptor of `create`."""
        os.close(fd)

    def sync_dir(self, path: Path) -> None:
        """Wait until the names in a directory are on stable storage."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            # Some network and user-space file systems cannot sync a directory; they order names themselves.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Rename, replacing a file atomically; a directory that is not empty is never replaced."""
        os.rename(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        os.unlink(path)

    def remove_tree(self, path: Path) -> None:
        """Remove a directory with all that is in it, as far as that is possible."""
        shutil.rmtree(path, ignore_errors=True)


class Checksums:
    """zlib.crc32 of each CRC_BYTES of a stream of bytes."""

    def __init__(self) -> None:
        self._done: list[int] = []
        self._crc = 0
        self._filled = 0

    def update(self, data: memoryview) -> None:
        """Take the next bytes; `data` has the format "B"."""
        while data.nbytes:
            part = data[: CRC_BYTES - self._filled]
            self._crc = zlib.crc32(part, self._crc)
            self._filled += part.nbytes
            data = data[part.nbytes :]
            if self._filled == CRC_BYTES:
                self._done.append(self._crc)
                self._crc = self._filled = 0

    def values(self) -> tuple[int, ...]:
        """Return the checksums so far; the last may cover less than CRC_BYTES."""
        return (*self._done, self._crc) if self._filled else tuple(self._done)


def as_bytes(array: npt.NDArray[Any]) -> memoryview:
    """View an array, in C order, as bytes."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def write_segment(
    ops: FileOps,
    directory: Path,
    segment: Segment,
    index_id: bytes,
    chunks: Iterable[npt.NDArray[Any]],
    advance: Callable[[int], None] = lambda _: None,
) -> Segment:
    """Write and sync the file of a segment.

    Parameters
    ----------
    segment : what is written; its checksums are ignored
    chunks : arrays whose bytes, one after the other, are the payload
    advance : called with the bytes of each

    Returns
    -------
    Segment
        `segment` with the checksums of the payload.
    """
    sums, written = Checksums(), 0
    with created(ops, directory / segment.file) as fd:
        ops.write(fd, pack_header(segment, index_id))
        for chunk in chunks:
            data = as_bytes(chunk)
            sums.update(data)
            ops.write(fd, data)
            written += data.nbytes
            advance(data.nbytes)
        assert written == segment.bytes, f"{segment.file}: {written} bytes for a shape of {segment.bytes}"
        ops.write(fd, bytes(-written % PAGE))
        ops.sync(fd)
    return replace(segment, crc32=sums.values())


def publish_manifest(ops: FileOps, directory: Path, manifest: Manifest) -> None:
    """Make `manifest`, whose segments are all on disk and synced, the one that CURRENT names.

    A crash at any moment leaves CURRENT naming either the manifest it named before or this one.
    """
    data = manifest.to_bytes()
    # This syncs the directory, and with it the names of the segments, before CURRENT depends on them.
    replace_file(ops, directory, manifest.file, data)
    replace_file(ops, directory, CURRENT, encode_current(manifest.file, data))


def replace_file(ops: FileOps, directory: Path, name: str, data: bytes) -> None:
    """Write a small file of a directory, atomically, and sync both."""
    # The name is unique, so that the leftover of a killed writer is never in the way.
    temporary = temporary_name(directory / name)
    with created(ops, temporary) as fd:
        ops.write(fd, data)
        ops.sync(fd)
    ops.rename(temporary, directory / name)
    ops.sync_dir(directory)


def require_to_make(out: Path, what: str = "output") -> None:
    """Require a path at which something can be made.

    Raises
    ------
    InvalidInput
        If `out` exists, or is in no directory.
    """
    if os.path.lexists(out) or not out.absolute().parent.is_dir():
        raise InvalidInput(f"{what} {out} must not exist, in a directory that does")


def temporary_beside(out: Path) -> Path:
    """Return a name beside `out` to make it under first; raises as `require_to_make`."""
    require_to_make(out)
    return temporary_name(out)


def temporary_name(path: Path) -> Path:
    """Return the path with "tmp-" and 12 random hex digits behind it, by which leftovers of a killed writer are
    recognised.
    """
    return path.with_name(f"{path.name}.tmp-{secrets.token_hex(6)}")


@contextlib.contextmanager
def created(ops: FileOps, path: Path) -> Iterator[int]:
    """Create a file for the time of a `with` block."""
    fd = ops.create(path)
    try:
        yield fd
    finally:
        ops.close(fd)


@contextlib.contextmanager
def removed_on_failure(ops: FileOps, made: Path, target: Path) -> Iterator[None]:
    """Remove `made`, which was to become `target`, if a `with` block fails; and say what the disk refuses."""
    try:
        yield
    except OSError as error:
        ops.remove_tree(made)
        raise write_error(target, error) from error
    except BaseException:
        ops.remove_tree(made)
        raise


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the OSErrors of reading `path` into our exceptions."""
    try:
        yield
    except FileNotFoundError:
        raise CorruptIndex(f"{path.name} of the index {path.parent} is missing") from None
    except OSError as error:
        raise VqdistillError(f"cannot read {path}: {error.strerror or error}") from None


def open_regular(path: Path) -> int:
    """Open a regular file (or a symbolic link to one) for reading.

    Raises
    ------
    CorruptIndex
        If it is missing, or is a directory, pipe or device.
    """
    with reading(path):
        # Without O_NONBLOCK a pipe in the place of a segment would hang the reader.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise CorruptIndex(f"{path.name} must be a regular file, got something else")
    return fd


def open_segment(directory: Path, segment: Segment, index_id: bytes, version: int = VERSION) -> int:
    """Open the file of a segment, checking its size and every byte of its header in a format version.

    Raises
    ------
    CorruptIndex
        If they are not what the manifest says.
    """
    path = directory / segment.file
    fd = open_regular(path)
    try:
        size = os.fstat(fd).st_size
        if size != segment.file_bytes:
            raise CorruptIndex(f"{segment.file}: file size must be {segment.file_bytes} bytes, got {size}")
        check_header(read_bytes(fd, PAGE, 0, path), segment, index_id, version)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_manifest(directory: Path) -> Manifest:
    """Read CURRENT and the manifest that it names.

    Raises
    ------
    InvalidInput
        If `directory` is no directory.
    CorruptIndex, FormatTooNew, FormatTooOld
        If a file is missing, too long, not what its checksum says, or says what it may not.
    """
    if not directory.is_dir():
        raise no_index(directory)
    require_one_piece(directory)
    current = read_small(directory / CURRENT, CURRENT_MAX_BYTES)
    name, crc = parse_current(current)
    try:
        data = read_small(directory / name, MANIFEST_MAX_BYTES)
    except CorruptIndex:
        # A writer may have gone on, and removed this generation.
        if read_small(directory / CURRENT, CURRENT_MAX_BYTES) == current:
            raise
        return read_manifest(directory)
    if zlib.crc32(data) != crc:
        raise CorruptIndex(f"{name}: crc32 must be {crc:08x} as CURRENT says, got {zlib.crc32(data):08x}")
    return Manifest.parse(data, name)


def no_index(directory: Path) -> InvalidInput:
    """What to raise where an index must be and no directory is."""
    found = "a file" if directory.exists() else "nothing"
    return InvalidInput(f"index must be a directory made by vqdistill, got {found} at {directory}")


def require_one_piece(directory: Path) -> None:
    """Refuse an index in shards, where only one of one piece will do.

    Raises
    ------
    InvalidInput
        If it is one.
    """
    if (directory / SHARDS).exists():
        raise InvalidInput(
            f"index {directory} must be of one piece for this, got one in shards; each shard is such an index, as is"
            f" {directory / 'shard-0'}"
        )


def read_small(path: Path, limit: int) -> bytes:
    """Read a whole file of at most `limit` bytes; raises as `open_regular`, and CorruptIndex if it is longer."""
    fd = open_regular(path)
    try:
        size = os.fstat(fd).st_size
        if size > limit:
            raise CorruptIndex(f"{path.name}: file size must be at most {limit} bytes, got {size}")
        return read_bytes(fd, size, 0, path)
    finally:
        os.close(fd)


def read_bytes(fd: int, count: int, offset: int, path: Path) -> bytes:
    """Read exactly `count` bytes.

    Raises
    ------
    CorruptIndex
        If the file ends before.
    """
    buffer = bytearray(count)
    read_into(fd, memoryview(buffer), offset, path)
    return bytes(buffer)


def read_into(fd: int, buffer: memoryview, offset: int, path: Path) -> None:
    """Fill `buffer` (format "B") with the bytes of a file from `offset` on; raises as `read_bytes`."""
    with reading(path):
        while buffer.nbytes:
            got = os.preadv(fd, [buffer], offset)
            if got == 0:
                raise CorruptIndex(
                    f"{path.name}: {buffer.nbytes} more bytes wanted at {offset}, got the end of the file"
                )
            buffer, offset = buffer[got:], offset + got


def aligned_empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return an array that begins at a cache line, as the scan of codes likes it."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _LINE, np.uint8)
    start = -memory.__array_interface__["data"][0] % _LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def read_array(fd: int, segment: Segment, path: Path) -> npt.NDArray[Any]:
    """Read the whole payload of a segment into anonymous memory."""
    array = aligned_empty(segment.shape, np.dtype(f"<{segment.dtype}"))
    read_into(fd, as_bytes(array), PAGE, path)
    return array


def map_segment(fd: int, segment: Segment) -> npt.NDArray[Any]:
    """Map the payload of a segment, whose pages stay the page cache's."""
    file = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
    file.madvise(mmap.MADV_RANDOM)
    dtype = np.dtype(segment.numpy_dtype)
    count = segment.bytes // dtype.itemsize
    return np.frombuffer(file, dtype=dtype, count=count, offset=PAGE).reshape(segment.shape)


def read_rows(
    fd: int, positions: npt.NDArray[np.int64], row_bytes: int, offset: int, path: Path
) -> npt.NDArray[np.uint8]:
    """Read only the rows at `positions`.

    Parameters
    ----------
    positions : (b,) int64, in range; any order, repeats allowed
    row_bytes : bytes of a row
    offset : where row 0 begins in the file

    Returns
    -------
    (b, row_bytes) uint8
    """
    wanted, back = np.unique(positions, return_inverse=True)
    rows = np.empty((wanted.size, row_bytes), dtype=np.uint8)
    # Rows of the same few KiB come in one read: positions are often neighbours, and a read costs more than 4 KiB.
    window = wanted // max(1, PAGE // row_bytes)
    cuts = [0, *(np.flatnonzero(np.diff(window)) + 1).tolist(), wanted.size]
    for begin, end in pairwise(cuts):
        if begin < end:
            first, count = int(wanted[begin]), int(wanted[end - 1] - wanted[begin]) + 1
            part = np.empty((count, row_bytes), dtype=np.uint8)
            read_into(fd, as_bytes(part), offset + first * row_bytes, path)
            rows[begin:end] = part[wanted[begin:end] - first]
    return rows[back.reshape(-1)]
