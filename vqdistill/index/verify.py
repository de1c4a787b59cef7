"""Checks of every byte that an index has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vqdistill.errors import CorruptIndex, VqdistillError
from vqdistill.index.checks import segment_problems
from vqdistill.index.files import CURRENT, open_segment, read_manifest, reading
from vqdistill.index.manifest import Manifest
from vqdistill.index.shardset import is_sharded, name_of, read_shard, read_shards
from vqdistill.index.spec import SHARDS, is_leftover
from vqdistill.objects.urls import require_local


def verify(path: str | Path) -> list[str]:
    """Check every byte of every file of an index; takes one bit to one byte of memory a row.

    Parameters
    ----------
    path : directory of the index

    Returns
    -------
    list of str
        One sentence for each problem; empty if there is none.

    Raises
    ------
    InvalidInput
        If `path` is a URL or no directory.
    FormatTooNew, FormatTooOld
        If the index cannot be checked by this version.
    """
    return list(_problems(require_local(path)))


def _problems(path: Path) -> Iterator[str]:
    try:
        if is_sharded(path):
            yield from _problems_of_shards(path)
            return
        manifest = read_manifest(path)
    except CorruptIndex as error:
        yield str(error)
        return
    yield from _problems_of(path, manifest)


def _problems_of_shards(path: Path) -> Iterator[str]:
    shards = read_shards(path)
    folders = [name_of(number) for number in range(len(shards.shards))]
    with reading(path):
        names = sorted(set(os.listdir(path)) - {SHARDS, *folders})
    strays = (name for name in names if not is_leftover(name))
    yield from (f"{name}: the directory must hold the index only, got this besides" for name in strays)
    first = read_shard(path, shards, 0)
    shards.policy(first)
    for number, folder in enumerate(folders):
        try:
            manifest = read_shard(path, shards, number)
            shards.require_shard(number, manifest, first)
        except CorruptIndex as error:
            yield str(error)
            continue
        yield from (f"{folder}/{problem}" for problem in _problems_of(path / folder, manifest))


def _problems_of(path: Path, manifest: Manifest) -> Iterator[str]:
    known = {CURRENT, manifest.file, *(segment.file for segment in manifest.all_segments)}
    with reading(path):
        strays = sorted(name for name in os.listdir(path) if name not in known and not is_leftover(name))
    yield from (f"{name}: the directory must hold the index only, got this besides" for name in strays)
    for rows, segments in zip(manifest.sets, manifest.segments_by_set, strict=True):
        for segment in segments.values():
            try:
                fd = open_segment(path, segment, manifest.index_id, manifest.version)
            except VqdistillError as error:
                yield str(error)
                continue
            try:
                yield from segment_problems(fd, segment, rows, manifest, path / segment.file)
            except VqdistillError as error:
                yield str(error)
            finally:
                os.close(fd)
