"""One writer at a time: a lock of the system on a file, which ends with its process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from vqdistill.errors import VqdistillError

_POLL_S = 0.01


class Busy(VqdistillError):
    """Another writer holds the lock."""


@contextlib.contextmanager
def exclusive(path: Path, wait_s: float) -> Iterator[None]:
    """Hold a lock, against other threads as well, for the time of a `with` block.

    Parameters
    ----------
    path : file of the lock; made if it is not there
    wait_s : seconds to wait for it

    Raises
    ------
    Busy
        If another one holds it for so long.
    VqdistillError
        If the disk refuses.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise VqdistillError(f"lock {path} cannot be opened: {error.strerror}") from None
    try:
        end = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise Busy(
                        f"{path.parent} is being changed by another writer, and still was after {wait_s:g} s"
                    ) from None
                time.sleep(_POLL_S)
            except OSError as error:
                raise VqdistillError(f"{path.parent} cannot be locked for writing: {error.strerror}") from None
        yield
    finally:
        os.close(fd)
