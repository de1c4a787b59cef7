"""The rows of a job as several indexes of consecutive files, under one manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vqdistill.compiler.build import index_id_of
from vqdistill.compiler.memory import Sizes
from vqdistill.compiler.proof import Proof
from vqdistill.compiler.trained import Trained
from vqdistill.data.sources import EmbeddingSource
from vqdistill.errors import InvalidInput, VqdistillError
from vqdistill.index.files import FileOps, removed_on_failure, require_to_make, temporary_name
from vqdistill.index.manifest import Manifest
from vqdistill.index.runs import RunLog
from vqdistill.index.sharded import ShardedReader
from vqdistill.index.shardset import MAX_SHARDS, ShardSet, name_of, read_shards, shard_of, write_shards
from vqdistill.index.spec import ID_BYTES
from vqdistill.index.writer import IndexWriter
from vqdistill.progress import Progress
from vqdistill.shards.job import InputShard


def split(files: Sequence[InputShard], count: int) -> list[range]:
    """Return the rows of each of `count` shards, which are consecutive files with about as many rows.

    Raises
    ------
    InvalidInput
        If there are fewer files, or more shards than an index may have.
    """
    if not 1 <= count <= min(len(files), MAX_SHARDS):
        raise InvalidInput(f"shards must be in 1..{min(len(files), MAX_SHARDS)}, the files of the job, got {count}")
    n, ends, groups, begin = files[-1].start + files[-1].rows, [file.start + file.rows for file in files], [], 0
    first = 0
    for number in range(count):
        most = len(files) - (count - 1 - number)  # so that there is a file for each of those behind
        wanted = n * (number + 1) / count
        last = min(range(first, most), key=lambda at: abs(ends[at] - wanted))
        groups.append(range(begin, ends[last] if number + 1 < count else n))
        begin, first = groups[-1].stop, last + 1
    return groups


def write_split(
    groups: Sequence[range],
    done: Trained,
    src: EmbeddingSource,
    out: Path,
    progress: Progress,
    sizes: Sizes,
    log: RunLog,
    proof: Proof | None = None,
    ops: FileOps | None = None,
) -> Manifest:
    """Publish the rows of each group as an index, and all of them as one at `out`, unless it is there already.

    Parameters
    ----------
    groups : rows of each shard, one after the other
    log : with the runs of all rows, none of which reaches into two groups
    done, src, progress, sizes, proof, ops : as for `compiler.build.encode`

    Returns
    -------
    Manifest
        What one index of all rows would say.
    """
    ops, identity = FileOps() if ops is None else ops, _identity(done, src, len(groups))
    if os.path.lexists(out):
        return _require_same(out, identity)
    require_to_make(out)
    place = temporary_name(out) if log.index is None else log.index
    with removed_on_failure(ops, place, out):
        if os.path.lexists(place):  # half an index of a killed process
            ops.remove_tree(place)
        ops.make_dir(place)
        manifests = []
        with progress.stage("write index", len(groups), "shards") as stage:
            for number, rows in enumerate(groups):
                manifests.append(_write_shard(place / name_of(number), rows, done, identity, log, sizes, ops))
                stage.advance(1)
        shards = ShardSet(
            generation=1,
            index_id=identity,
            model_id=manifests[0].model_id,
            search=done.search.to_json(),
            certificate=None,
            shards=tuple(shard_of(manifest, rows.start) for manifest, rows in zip(manifests, groups, strict=True)),
        )
        shards, manifest = _certified(place, shards, proof)
        write_shards(ops, place, shards)
        ops.rename(place, out)
        ops.sync_dir(out.parent)
    return manifest


def _write_shard(
    path: Path, rows: range, done: Trained, identity: bytes, log: RunLog, sizes: Sizes, ops: FileOps
) -> Manifest:
    runs = [run for run in log.finished if rows.start <= run.start < rows.stop]
    index_id = hashlib.blake2b(identity + path.name.encode(), digest_size=ID_BYTES).digest()
    with IndexWriter(
        path,
        done.model,
        dense=done.plan.dense,
        ids=done.plan.ids,
        index_id=index_id,
        tables=done.plan.model.tables,
        memory_bytes=sizes.run_bytes,
        first_row=rows.start,
        log=replace(log, finished=runs, index=None),
        ops=ops,
    ) as writer:
        assert writer.n == len(rows), "runs that end where the files do"
        return writer.publish(done.plan.to_json(), done.search, done.report)


def _certified(place: Path, shards: ShardSet, proof: Proof | None) -> tuple[ShardSet, Manifest]:
    with ShardedReader.open_shards(place, shards, codes=proof is not None) as reader:
        manifest = reader.manifest
        if proof is None:
            return shards, manifest
        search, certificate = proof(reader)
    manifest = replace(manifest, search=search, certificate=certificate)
    return replace(shards, search=search.to_json(), certificate=certificate.to_json()), manifest


def _identity(done: Trained, src: EmbeddingSource, count: int) -> bytes:
    whole = index_id_of(done.plan, done.model, src)
    return hashlib.blake2b(whole + f"{count} shards".encode(), digest_size=ID_BYTES).digest()


def _require_same(out: Path, identity: bytes) -> Manifest:
    try:
        shards = read_shards(out)
        if shards.index_id == identity:
            with ShardedReader.open_shards(out, shards, codes=False) as reader:
                return reader.manifest
    except VqdistillError:  # it is no index in shards, or none that can be read
        pass
    raise InvalidInput(f"{out} exists already, and is not what this job leads to; remove it or choose another name")
