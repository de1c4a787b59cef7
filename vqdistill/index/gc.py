"""Removal of the files of an index that nobody needs any more."""

from __future__ import annotations

import os
from pathlib import Path

from vqdistill.errors import VqdistillError
from vqdistill.index.files import CURRENT, FileOps, read_manifest, read_small
from vqdistill.index.locks import is_read, lock_writer
from vqdistill.index.manifest import Manifest
from vqdistill.index.shardset import is_sharded, name_of, read_shards
from vqdistill.index.spec import MANIFEST_MAX_BYTES, is_leftover, is_manifest
from vqdistill.objects.urls import require_local


def gc(path: str | Path, *, ops: FileOps | None = None) -> dict[str, int]:
    """Remove generations that nobody has open but the current one, and what killed writers left behind.

    Parameters
    ----------
    path : directory of the index
    ops : file operations; replaced in tests

    Returns
    -------
    dict
        `files` and `bytes` that were removed, and `kept_generations`, those that are still read, or that an index in
        shards is made of.

    Raises
    ------
    InvalidInput, CorruptIndex
        If there is no index.
    VqdistillError
        If another writer is at work, or the disk refuses.
    """
    path, ops = require_local(path), FileOps() if ops is None else ops
    lock = lock_writer(path)
    try:
        current = read_manifest(path)
        names = sorted(os.listdir(path))
        read = [
            kept for name in names if name != current.file and is_manifest(name) and (kept := _if_read(path / name))
        ]
        known = {current.file, *(kept.file for kept in read)}
        read += [kept for kept in _pinned(path, names) if kept.file not in known]
        needed = {CURRENT} | {name for kept in [current, *read] for name in _files(kept)}
        files = freed = 0
        try:
            # Manifests first, so that none is left without its segments for longer than it takes.
            for name in sorted((name for name in names if name not in needed and is_leftover(name)), key=_last):
                freed += (path / name).lstat().st_size
                ops.unlink(path / name)
                files += 1
            ops.sync_dir(path)
        except OSError as error:
            raise VqdistillError(f"cannot remove files of {path}: {error.strerror or error}") from None
    finally:
        os.close(lock)
    return {"files": files, "bytes": freed, "kept_generations": len(read)}


def _pinned(path: Path, names: list[str]) -> list[Manifest]:
    """The generation that an index in shards, of which this is one, is made of."""
    whole = path.absolute().parent
    if not is_sharded(whole):
        return []
    found = [shard.manifest for number, shard in enumerate(read_shards(whole).shards) if name_of(number) == path.name]
    return [Manifest.parse(read_small(path / name, MANIFEST_MAX_BYTES), name) for name in found if name in names]


def _last(name: str) -> tuple[bool, str]:
    return not is_manifest(name), name


def _files(manifest: Manifest) -> list[str]:
    return [manifest.file, *(segment.file for segment in manifest.all_segments)]


def _if_read(path: Path) -> Manifest | None:
    """The manifest of a generation that someone reads; None if nobody does, or it is none."""
    if not is_read(path):
        return None
    try:
        return Manifest.parse(read_small(path, MANIFEST_MAX_BYTES), path.name)
    except VqdistillError:
        return None
