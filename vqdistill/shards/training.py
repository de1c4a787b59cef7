"""Second step of a job: one model for all shards."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from vqdistill.compiler.store import write_trained
from vqdistill.compiler.train import train
from vqdistill.compiler.trained import Trained
from vqdistill.data.teacher import ExactSearch, ExactTeacher
from vqdistill.index.files import FileOps, created
from vqdistill.kernels.threads import training_threads
from vqdistill.progress import Progress
from vqdistill.shards.job import PROTOCOL, StoredFile, job_cache, open_job, require_unchanged
from vqdistill.shards.model import FILE, MODEL, RECORD, holds_model
from vqdistill.shards.sealed import seal


def train_job(
    folder: str | Path,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    exact: ExactSearch = ExactTeacher,
    ops: FileOps | None = None,
) -> bool:
    """Train the model of a job, as a compile of all shards together would, and keep it in its folder.

    Parameters
    ----------
    folder : with a plan
    threads : None = all cores; the model does not depend on it
    exact : searches exactly, in place of this process
    ops : file operations; replaced in tests

    Returns
    -------
    bool
        False if there is a model already, which stays.

    Raises
    ------
    InvalidInput
        If the plan or an input is not usable, or is no longer what it was.
    VqdistillError
        If the disk refuses; nothing is left behind.
    """
    job, digest = open_job(folder, threads)
    target, progress = Path(folder) / MODEL, progress or Progress()
    if holds_model(target, digest):
        return False
    require_unchanged(job.files)
    job.recipe.keep_to_cap()
    src, cores = job.open_source(), job.recipe.wishes.cores
    dense = job.recipe.dense_teacher(src, job_cache(folder), progress, exact)
    with training_threads(cores):
        trained = job.recipe.reported(train(job.recipe, dense))
    ops = FileOps() if ops is None else ops
    seal(ops, target, RECORD, lambda place: _write(ops, place, trained, digest), lambda: holds_model(target, digest))
    return True


def _write(ops: FileOps, place: Path, trained: Trained, digest: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    write_trained(trained, buffer)
    with created(ops, place / FILE) as fd:
        ops.write(fd, buffer.getbuffer())
        ops.sync(fd)
    file = StoredFile.of(place / FILE)
    return {"protocol": PROTOCOL, "plan": digest, "trained": {"bytes": file.bytes, "digest": file.digest}}
