"""Last step of a job: its parts become one index in list order, or several under one manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from vqdistill.compiler.build import encode
from vqdistill.data.teacher import ExactSearch, ExactTeacher
from vqdistill.errors import InvalidInput
from vqdistill.index.files import FileOps
from vqdistill.index.manifest import Manifest
from vqdistill.index.remote import Destination
from vqdistill.index.runs import Run, RunLog
from vqdistill.kernels.threads import training_threads
from vqdistill.objects.urls import is_url
from vqdistill.progress import Progress
from vqdistill.shards.job import Job, job_cache, open_job
from vqdistill.shards.model import read_model
from vqdistill.shards.parts import read_part
from vqdistill.shards.splitting import split, write_split

_NAMED = 5
"""Parts that a message names at most."""


def commit_job(
    folder: str | Path,
    out: str | Path,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    shards: int = 1,
    exact: ExactSearch = ExactTeacher,
    scratch: Path | None = None,
    ops: FileOps | None = None,
) -> Manifest:
    """Check all parts of a job, and publish what a compile of all shards would have written, byte for byte.

    Parameters
    ----------
    folder : with a plan, a model and a part for each shard; stays as it is
    out : index to make, a directory or a URL to which it is uploaded out of `folder`; one that this job has made
        already stays, and is returned
    shards : 1, or how many indexes the rows become: consecutive files each, about as many rows in all, under one
        manifest, in a directory. Searched together they are the index of one piece, certificate included.
    threads : None = all cores; the index does not depend on it
    exact : searches exactly, in place of this process
    scratch : where the index is made, on the same file system as `out`; what is there is removed first. None = a new
        name beside `out`
    ops : file operations; replaced in tests

    Raises
    ------
    InvalidInput
        If plan, model, parts and shards do not belong together, or one is missing or damaged: the message names it.
    BudgetInfeasible
        If the index does not reach the wanted recall.
    VqdistillError
        If the disk refuses; nothing is left at `out`.
    """
    if shards > 1 and is_url(str(out)):
        raise InvalidInput(f"an index in shards must be published on a local disk, got {out}")
    place = Destination(out, Path(folder))
    place.require_writable()
    job, digest = open_job(folder, threads)
    if not 1 <= shards <= len(job.shards):
        raise InvalidInput(f"shards must be in 1..{len(job.shards)}, the files of the job, got {shards}")
    trained, name = read_model(folder, digest)
    progress = progress or Progress()
    with progress.stage("check parts", len(job.shards), "parts") as stage:
        runs = _all_runs(folder, job, digest, name, stage.advance)
    src, recipe = job.open_source(), job.recipe
    recipe.keep_to_cap()
    dense = recipe.dense_teacher(src, job_cache(folder), progress, exact)
    log = RunLog(Path(folder), runs, _refuse_more, scratch)
    proof = recipe.proof(trained, dense)
    with training_threads(recipe.wishes.cores):
        if shards > 1:
            groups = split(job.shards, shards)
            return write_split(groups, trained, src, Path(out), progress, recipe.sizes, log, proof, ops)
        return encode(trained, src, place, progress, recipe.sizes, log, proof, ops)


def _all_runs(folder: str | Path, job: Job, digest: str, model: str, advance: Callable[[int], None]) -> tuple[Run, ...]:
    """Runs of all parts, whose complaints come together."""
    runs: list[Run] = []
    wrong: list[str] = []
    for number in range(len(job.shards)):
        try:
            runs += read_part(folder, job, number, digest, model)
        except InvalidInput as error:
            wrong.append(str(error))
        advance(1)
    if wrong:
        more = f" (and {len(wrong) - _NAMED} more)" if len(wrong) > _NAMED else ""
        shown = "; ".join(wrong[:_NAMED])
        raise InvalidInput(f"{len(wrong)} of {len(job.shards)} parts must be encoded first: {shown}{more}")
    return tuple(runs)


def _refuse_more(run: Run) -> NoReturn:
    raise AssertionError(f"all rows are in parts, but {run} was written")
