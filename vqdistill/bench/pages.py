"""Page cache and memory of this process, as Linux counts them."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np

PAGE = 4096
_LIBC = ctypes.CDLL(None, use_errno=True)


def evict(paths: list[Path]) -> int:
    """Drop files from the page cache; return the bytes that stay, on a file system that keeps them."""
    left = 0
    for path in paths:
        if path.stat().st_size == 0:
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())  # only clean pages can be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            left += PAGE * resident_pages(file.fileno())
    return left


def resident_pages(fd: int) -> int:
    """Count the pages of a file in the page cache, as mincore tells."""
    size = os.fstat(fd).st_size
    pages = (ctypes.c_ubyte * -(-size // PAGE))()
    # Python gives the address of a map that could be written only; nothing is written.
    with mmap.mmap(fd, size, access=mmap.ACCESS_COPY) as mapped:
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        if _LIBC.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages):
            raise OSError(ctypes.get_errno(), "mincore")
    return int((np.frombuffer(bytes(pages), np.uint8) & 1).sum())


def memory_of_this_process() -> dict[str, int]:
    """Return anonymous, file-backed and private data bytes (VmData, what RLIMIT_DATA bounds)."""
    wanted = {"RssAnon": "anonymous", "RssFile": "file", "VmData": "data"}
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in wanted:
            found[wanted[name]] = 1024 * int(rest.split()[0])
    return found
