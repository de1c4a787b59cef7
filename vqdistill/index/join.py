"""Indexes with the same model become one, such as those that machines have built of parts of a corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from vqdistill.errors import InvalidInput
from vqdistill.index.files import FileOps, publish_manifest, removed_on_failure, temporary_beside, write_segment
from vqdistill.index.manifest import Manifest, read_back
from vqdistill.index.merge import Merge
from vqdistill.index.reader import IndexReader
from vqdistill.index.spec import ID_BYTES, ROW_KINDS
from vqdistill.index.update import kept_rows
from vqdistill.objects.urls import require_local

_CHUNK = 1 << 20
"""Keys looked at together."""


def merge_indexes(paths: Sequence[str | Path], out: str | Path, *, ops: FileOps | None = None) -> Manifest:
    """Write the rows of several indexes with the same model as one new index, out of core.

    Rows come in the order of the indexes. Their row numbers go on where those of the index before end; so do the ids of
    indexes that have no others. Deleted rows are left out. Plan, report and defaults are those of the first index; a
    certificate is none of the whole, and left out.

    Parameters
    ----------
    paths : two or more directories
    out : directory to make; must not exist
    ops : file operations; replaced in tests

    Raises
    ------
    InvalidInput
        If the models differ, or how dense rows or ids are stored, an id is in two of the indexes, or `out` exists.
    CorruptIndex, VqdistillError
        If an index cannot be read, or the disk refuses; nothing is left behind.
    """
    out, ops = require_local(out), FileOps() if ops is None else ops
    if len(paths) < 2:
        raise InvalidInput(f"indexes to merge must be two or more, got {len(paths)}")
    temporary = temporary_beside(out)
    with ExitStack() as stack:
        readers = [stack.enter_context(IndexReader.open(path)) for path in paths]
        for reader in readers[1:]:
            _require_same(readers[0], reader)
        with removed_on_failure(ops, temporary, out):
            ops.make_dir(temporary)
            manifest = _write(ops, temporary, readers)
            publish_manifest(ops, temporary, manifest)
            ops.rename(temporary, out)
            ops.sync_dir(out.parent)
    return manifest


def _require_same(first: IndexReader, other: IndexReader) -> None:
    a, b = first.manifest, other.manifest
    for reader in (first, other):
        if reader.manifest.version < 4:
            raise InvalidInput(
                f"index {reader.path} must be of format version 4 or later, got {reader.manifest.version}"
            )
    if a.model_id != b.model_id:
        raise InvalidInput(
            f"indexes to merge must have the same model, got {a.model_id.hex()} in {first.path} and"
            f" {b.model_id.hex()} in {other.path}"
        )
    for name in ("dense", "ids", "tables"):
        if getattr(a, name) != getattr(b, name):
            raise InvalidInput(
                f"indexes to merge must have the same {name}, got {getattr(a, name)} in {first.path} and"
                f" {getattr(b, name)} in {other.path}"
            )


def _write(ops: FileOps, directory: Path, readers: Sequence[IndexReader]) -> Manifest:
    base, kept, next_row = readers[0].manifest, [], 0
    for reader in readers:
        kept += [kept_rows(rows, reader.alive.only(rows), next_row) for rows in reader.sets]
        next_row += reader.manifest.next_row
    merge, index_id = Merge(kept), _index_id(readers)
    if not merge.n:
        raise InvalidInput("indexes to merge must have at least one row, got none that is not deleted")
    layout = merge.layout(base.layout)
    segments = {
        kind: write_segment(
            ops, directory, replace(segment, file=f"{kind}-1.seg"), index_id, [readers[0].payload(kind)]
        )
        for kind, segment in base.segments.items()
        if kind not in ROW_KINDS | {"deleted"}
    }
    segments |= merge.write(ops, directory, layout, index_id, 1)
    drift = base.drift
    for reader in readers[1:]:
        if drift is not None and reader.manifest.drift is not None:
            for fit in (reader.manifest.drift.compiled, *reader.manifest.drift.added):
                drift = drift.with_added(replace(fit, generation=1))
    manifest = read_back(
        replace(
            base,
            generation=1,
            index_id=index_id,
            n=merge.n,
            segments=segments,
            added=(),
            next_row=next_row,
            deleted=0,
            certificate=None,
            drift=drift,
        )
    )
    if base.ids != "rows":
        _refuse_repeated_ids(directory, manifest)
    return manifest


def _index_id(readers: Sequence[IndexReader]) -> bytes:
    digest = hashlib.blake2b(digest_size=ID_BYTES)
    for reader in readers:
        digest.update(reader.manifest.index_id + reader.manifest.generation.to_bytes(8, "little"))
    return digest.digest()


def _refuse_repeated_ids(directory: Path, manifest: Manifest) -> None:
    with IndexReader.open_files(directory, manifest) as reader:
        keys, order = (reader.sets[0].mapped(kind) for kind in ("id_keys", "id_order"))
        assert keys is not None and order is not None, "an address space without room for a few pages"
        for begin in range(0, manifest.n, _CHUNK):
            part = keys[begin : begin + _CHUNK + 1]
            for at in (np.flatnonzero(part[1:] == part[:-1]) + begin).tolist():
                first, second = reader.ids_of(order[at : at + 2].astype(np.int64)).tolist()
                if first == second:  # and not only their digests, which is possible, if only just
                    raise InvalidInput(f"ids must be unique, got {first!r} in two of the indexes")
