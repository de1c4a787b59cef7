"""Folders that are there whole or not at all, and the record in each that vouches for what is in it."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vqdistill.errors import InvalidInput, VqdistillError
from vqdistill.index.fields import parse_json
from vqdistill.index.files import FileOps, created, read_small, removed_on_failure, temporary_name
from vqdistill.objects.store import AnyPath, RemotePath

_DIGEST_BYTES = 16
_RECORD_MAX_BYTES = 256 << 20
_CHUNK_BYTES = 4 << 20
_ATTEMPTS = 8


def seal(
    ops: FileOps,
    target: Path,
    name: str,
    fill: Callable[[Path], Mapping[str, Any]],
    taken: Callable[[], bool],
) -> None:
    """Make a folder under a temporary name, and give it its own by one rename when all is on stable storage.

    Parameters
    ----------
    target : folder to make
    name : of the record
    fill : called with the temporary folder; writes and syncs its files, and returns the record
    taken : called if there is a folder at `target`, such as one that another process has made meanwhile; True leaves
        it, and False puts the new one in its place

    Raises
    ------
    VqdistillError
        If the disk refuses; nothing is left behind.
    """
    temporary = temporary_name(target)
    with removed_on_failure(ops, temporary, target):
        ops.make_dir(temporary)
        record = dict(fill(temporary))
        with created(ops, temporary / name) as fd:
            ops.write(fd, _signed(record))
            ops.sync(fd)
        ops.sync_dir(temporary)
        if _put(ops, temporary, target, taken):
            ops.sync_dir(target.parent)
        else:
            ops.remove_tree(temporary)


def read_record(folder: Path, name: str) -> tuple[dict[str, Any], str]:
    """Read the record of a folder.

    Returns
    -------
    The record, and its digest, which tells it from others.

    Raises
    ------
    FileNotFoundError
        If there is none.
    InvalidInput
        If it is damaged; the message names it.
    """
    path = folder / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing")
    try:
        record = parse_json(read_small(path, _RECORD_MAX_BYTES), name)
        said = record.pop("digest", None) if isinstance(record, dict) else None
        if said is None or said != _digest(record):
            raise InvalidInput("its digest is not that of its content")
    except VqdistillError as error:
        raise InvalidInput(f"{path} is damaged: {error}") from None
    return record, said


def digest_of_file(path: str | AnyPath) -> str:
    """Hex digest (BLAKE2b) of a file, read a little at a time."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with (path if isinstance(path, RemotePath) else Path(path)).open("rb") as file:
        while data := file.read(_CHUNK_BYTES):
            digest.update(data)
    return digest.hexdigest()


def _put(ops: FileOps, temporary: Path, target: Path, taken: Callable[[], bool]) -> bool:
    """Rename to `target`; False if what is there already stays."""
    for attempt in range(_ATTEMPTS):
        try:
            ops.rename(temporary, target)
            return True
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR) or attempt == _ATTEMPTS - 1:
                raise
        if taken():
            return False
        aside = temporary_name(target)
        try:
            ops.rename(target, aside)
        except FileNotFoundError:  # another process was faster
            continue
        ops.remove_tree(aside)
    return False


def _signed(record: dict[str, Any]) -> bytes:
    return json.dumps(record | {"digest": _digest(record)}, sort_keys=True, indent=1).encode() + b"\n"


def _digest(record: dict[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True).encode()
    return hashlib.blake2b(text, digest_size=_DIGEST_BYTES).hexdigest()
