"""Third step of a job, once for each shard and in any order: its rows encoded, as runs that the index merges."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vqdistill.compiler.trained import Trained
from vqdistill.data.files import resolve, stamp_of
from vqdistill.data.sources import row_bytes
from vqdistill.errors import InvalidInput
from vqdistill.index.files import FileOps
from vqdistill.index.intake import RowIntake
from vqdistill.index.runs import Run, Runs, checksum
from vqdistill.kernels.threads import training_threads
from vqdistill.objects.urls import is_url
from vqdistill.progress import Progress
from vqdistill.shards.job import PROTOCOL, InputShard, Job, open_job
from vqdistill.shards.model import read_model
from vqdistill.shards.sealed import read_record, seal
from vqdistill.types import Block

_RECORD = "part.json"


def encode_shard(
    folder: str | Path,
    number: int,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    model: tuple[Trained, str] | None = None,
    ops: FileOps | None = None,
) -> bool:
    """Encode one shard of a job into its part, reading no other shard.

    Several processes may encode the same shard: all write the same bytes, and the first that is ready wins.

    Parameters
    ----------
    folder : with a plan and a model
    number : of the shard, from 0 on
    threads : None = all cores; the part does not depend on it
    model : as `read_model` gave it, on this machine or another; None = read it
    ops : file operations; replaced in tests

    Returns
    -------
    bool
        False if there is a sound part already, which stays. One that is damaged, or of another model, is made anew.

    Raises
    ------
    InvalidInput
        If there is no such shard, or plan, model or shard are not usable, or no longer what they were.
    VqdistillError
        If the disk refuses; nothing is left behind.
    """
    job, digest = open_job(folder, threads)
    shard = job.shard(number)
    trained, name = read_model(folder, digest) if model is None else model
    target = part_path(folder, number)

    def holds() -> bool:
        try:
            read_part(folder, job, number, digest, name)
        except InvalidInput:
            return False
        return True

    if holds():
        return False
    job.recipe.keep_to_cap()
    ops = FileOps() if ops is None else ops
    with training_threads(job.recipe.wishes.cores):
        runs = _Encoder(job, shard, trained, progress or Progress(), ops)
        seal(ops, target, _RECORD, lambda place: _said(number, digest, name) | {"runs": runs(place)}, holds)
    return True


def read_part(folder: str | Path, job: Job, number: int, digest: str, model: str) -> list[Run]:
    """Check all of a part, and return its runs, whose files lie relative to the folder of the job.

    Parameters
    ----------
    digest, model : digests of the plan and of the model that it must belong to

    Raises
    ------
    InvalidInput
        If it is missing, damaged, or of something else; the message names it.
    """
    path, shard = part_path(folder, number), job.shard(number)
    try:
        record, _ = read_record(path, _RECORD)
    except FileNotFoundError:
        raise InvalidInput(f"{path} is missing") from None
    runs = _runs(record, path)
    for what, wanted in _said(number, digest, model).items():
        if record[what] != wanted:
            raise InvalidInput(f"{path} must be of {what} {wanted}, got {record[what]!r}")
    _require_whole(path, runs, shard)
    return [Run(**vars(run) | {"file": f"{path.name}/{run.file}"}) for run in runs]


def part_path(folder: str | Path, number: int) -> Path:
    """Return where the part of a shard is kept."""
    return Path(folder) / f"part-{number}"


class _Encoder:
    """Writes the runs of a shard into a directory."""

    def __init__(self, job: Job, shard: InputShard, trained: Trained, progress: Progress, ops: FileOps) -> None:
        self._job, self._shard, self._trained = job, shard, trained
        self._progress, self._ops = progress, ops

    def __call__(self, place: Path) -> list[dict[str, Any]]:
        shard, plan, model = self._shard, self._trained.plan, self._trained.model
        before = _stamp(shard)
        src, sizes = self._job.open_shard(shard), self._job.recipe.sizes
        intake = RowIntake(model, dense=plan.dense, ids=plan.ids, tables=plan.model.tables)
        runs = Runs(
            self._ops,
            place,
            intake.widths,
            texts=plan.ids == "str",
            nlist=model.nlist,
            memory_bytes=sizes.run_bytes,
            first=shard.start,
        )
        with self._progress.stage("encode", src.n, unit_bytes=row_bytes(src)) as stage:
            for block in src.blocks(sizes.block_rows(src.dim)):
                here = Block(shard.start + block.start, block.rows)
                ids = src.ids.slice(block.start, block.start + len(block.rows)) if src.ids else None
                runs.add(intake.encode(ids, self._trained.codes_of(here), block.rows, here.start))
                stage.advance(len(block.rows))
        runs.flush()
        if _stamp(shard) != before:
            raise InvalidInput(f"{shard.file.path} has changed while it was encoded: encode it again")
        return [dict(vars(run)) for run in runs.runs]


def _said(number: int, digest: str, model: str) -> dict[str, Any]:
    """What a record says of its part beside the runs."""
    return {"protocol": PROTOCOL, "shard": number, "plan": digest, "model": model}


def _stamp(shard: InputShard) -> tuple[int | str, ...]:
    """What changes with the file of a shard."""
    if is_url(shard.file.path):
        return stamp_of(resolve(shard.file.path)[0][0])
    try:
        return os.stat(shard.file.path).st_ino, *stamp_of(Path(shard.file.path))
    except OSError as error:
        raise InvalidInput(f"{shard.file.path} of the plan cannot be read: {error.strerror}") from None


def _runs(record: dict[str, Any], path: Path) -> list[Run]:
    try:
        if record.keys() != {*_said(0, "", ""), "runs"}:
            raise TypeError
        runs = [Run(**run) for run in record["runs"]]
        if not all(type(getattr(run, name)) is int for run in runs for name in ("start", "n", "text_bytes", "crc32")):
            raise TypeError
    except TypeError:
        raise InvalidInput(f"{path / _RECORD} is no record of a part") from None
    return runs


def _require_whole(path: Path, runs: list[Run], shard: InputShard) -> None:
    """Require runs that follow one another through a shard, and their files alone, as they were written."""
    starts = [shard.start, *(run.stop for run in runs)]
    named = [run.file for run in runs] == [f"run-{number:08d}" for number in range(len(runs))]
    follow = all(run.start == start and run.n > 0 for run, start in zip(runs, starts, strict=False))
    if not (named and follow and starts[-1] == shard.start + shard.rows):
        raise InvalidInput(f"{path} must hold the rows {shard.start}..{shard.start + shard.rows} in runs, got others")
    found = sorted(os.listdir(path))
    wanted = sorted([_RECORD, *(run.file for run in runs)])
    if found != wanted:
        odd = sorted(set(found) ^ set(wanted))[0]
        raise InvalidInput(f"{path} is damaged: {odd} is {'missing' if odd in wanted else 'none of its files'}")
    for run in runs:
        if not _is_file(path / run.file) or checksum(path / run.file) != run.crc32:
            raise InvalidInput(f"{path} is damaged: {run.file} must have crc32 {run.crc32:08x}, got another")


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
