"""Changes of shards become the next generation of the index that they make up."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from vqdistill.errors import InvalidInput
from vqdistill.index.files import FileOps, read_manifest, write_error
from vqdistill.index.locks import lock_writer
from vqdistill.index.reader import IndexReader
from vqdistill.index.sharded import ShardedReader
from vqdistill.index.shardset import ShardSet, is_sharded, name_of, read_shards, shard_of, write_shards

_CHUNK = 1 << 16
"""Ids looked up together."""


def publish_shards(path: str | Path, *, ops: FileOps | None = None) -> ShardSet:
    """Make the present generations of all shards, together, the present generation of the index.

    Until then readers of the index see none of the changes: rows that were deleted from a shard, or added to the last.

    Parameters
    ----------
    path : index in shards
    ops : file operations; replaced in tests

    Returns
    -------
    ShardSet
        What is published now; that which was, if no shard has changed.

    Raises
    ------
    InvalidInput
        If `path` is no index in shards, or an id is in two shards.
    CorruptIndex
        If a shard does not belong to the others; rows may be added to the last shard only, whose row numbers go on.
    VqdistillError
        If another writer is at work, or the disk refuses.
    """
    path, ops = Path(path), FileOps() if ops is None else ops
    if not is_sharded(path):
        raise InvalidInput(f"index must be in shards, got another, or nothing, at {path}")
    lock = lock_writer(path)
    try:
        before = read_shards(path)
        manifests = [read_manifest(path / name_of(number)) for number in range(len(before.shards))]
        shards = tuple(
            shard_of(manifest, old.first_row) for manifest, old in zip(manifests, before.shards, strict=True)
        )
        if shards == before.shards:
            return before
        certificate = before.certificate and {**before.certificate, "stale": True}
        after = replace(before, generation=before.generation + 1, shards=shards, certificate=certificate)
        reader = ShardedReader.open_shards(path, after, codes=False)
        with reader:
            changed = [number for number, shard in enumerate(shards) if shard != before.shards[number]]
            _refuse_repeated_ids(reader.parts, changed)
        write_shards(ops, path, after)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        os.close(lock)
    return after


def _refuse_repeated_ids(parts: list[IndexReader], changed: list[int]) -> None:
    """Require that no living row of a shard that was changed has the id of one in another."""
    for number in changed:
        part = parts[number]
        if part.manifest.ids == "rows":
            continue
        for begin in range(0, part.manifest.n, _CHUNK):
            positions = np.arange(begin, min(begin + _CHUNK, part.manifest.n))
            ids = part.ids_of(positions[part.alive.of(positions)])
            for other, found in ((other, parts[other].positions_of(ids)) for other in range(len(parts))):
                if other != number and (found >= 0).any():
                    twice = ids[int(np.flatnonzero(found >= 0)[0])].item()
                    raise InvalidInput(
                        f"ids must be unique, got {twice!r} in {name_of(number)} and {name_of(other)}; delete one"
                    )
