"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from vqdistill.index.files import temporary_beside, write_error


@contextlib.contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """A path to write a file at, which becomes `out` at the end; nothing stays if the block fails.

    Raises
    ------
    InvalidInput
        If `out` exists, or is in no directory.
    VqdistillError
        If the disk refuses.
    """
    part = temporary_beside(out)
    try:
        with _writing(out):
            yield part
            _sync(part)
            part.rename(out)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_directory(out: Path) -> Iterator[Path]:
    """A new directory to write files in, which becomes `out` at the end; otherwise as `whole_file`."""
    part = temporary_beside(out)
    try:
        with _writing(out):
            part.mkdir()
            yield part
            for path in part.rglob("*"):
                if path.is_file():
                    _sync(path)
            part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(out, error) from error
