"""Who writes an index, and who reads which generation of it: locks of the system, which end with their processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from vqdistill.errors import VqdistillError
from vqdistill.index.files import no_index, open_regular
from vqdistill.index.manifest import Manifest

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EBADF, errno.EINVAL)
"""What file systems without such locks answer."""


def lock_writer(directory: Path) -> int:
    """Become the one writer of an index, as long as the returned descriptor of its directory is open.

    Raises
    ------
    InvalidInput
        If there is no directory.
    VqdistillError
        If another process or thread writes the index, or the file system has no locks.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise no_index(directory) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            raise VqdistillError(f"index {directory} is being written by another writer; try again later") from None
        raise VqdistillError(f"index {directory} cannot be locked for writing: {error.strerror}") from None
    return fd


def lock_generation(directory: Path, manifest: Manifest) -> int:
    """Keep a generation from being removed, as long as the returned descriptor of its manifest is open.

    Where the file system has no locks nothing is kept, and a reader lives off the files that it has opened.

    Raises
    ------
    CorruptIndex
        If the manifest is gone.
    """
    fd = open_regular(directory / manifest.file)
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def is_read(manifest: Path) -> bool:
    """Whether someone keeps the generation of a manifest file; where there are no locks, nobody does."""
    fd = open_regular(manifest)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _NO_LOCKS
    finally:
        os.close(fd)
    return False
