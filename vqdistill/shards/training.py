"""Second step of a job: one model for all shards."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from vqdistill.compiler.store import load_trained, write_trained
from vqdistill.compiler.train import Trained
from vqdistill.data.teacher import ExactSearch, ExactTeacher
from vqdistill.errors import InvalidInput
from vqdistill.index.files import FileOps, created
from vqdistill.kernels.threads import training_threads
from vqdistill.progress import Progress
from vqdistill.shards.job import PROTOCOL, StoredFile, open_job, require_unchanged
from vqdistill.shards.sealed import read_record, seal

MODEL = "model"
_RECORD, _FILE = "model.json", "trained.npz"


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
    if _holds(target, digest):
        return False
    require_unchanged(job.files)
    src, cores = job.open_source(), job.recipe.wishes.cores
    dense = job.recipe.dense_teacher(src, cache_of(folder), progress, exact)
    with training_threads(cores):
        trained = job.recipe.reported(job.recipe.train(dense))
    ops = FileOps() if ops is None else ops
    seal(ops, target, _RECORD, lambda place: _write(ops, place, trained, digest), lambda: _holds(target, digest))
    return True


def read_model(folder: str | Path, digest: str) -> tuple[Trained, str]:
    """Read the model of a job.

    Parameters
    ----------
    digest : of the plan of the folder, see `open_job`

    Returns
    -------
    What was trained, and the digest by which parts know it.

    Raises
    ------
    InvalidInput
        If there is none, it is damaged, or is that of another plan.
    """
    target = Path(folder) / MODEL
    name = _require_sound(target, digest)
    return load_trained(target / _FILE), name


def cache_of(folder: str | Path) -> Path:
    """Where finished lists of the exact teacher are kept."""
    return Path(folder) / "cache"


def _write(ops: FileOps, place: Path, trained: Trained, digest: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    write_trained(trained, buffer)
    with created(ops, place / _FILE) as fd:
        ops.write(fd, buffer.getbuffer())
        ops.sync(fd)
    file = StoredFile.of(place / _FILE)
    return {"protocol": PROTOCOL, "plan": digest, "trained": {"bytes": file.bytes, "digest": file.digest}}


def _holds(target: Path, digest: str) -> bool:
    """Whether there is a model of the plan; one that is damaged, or of another plan, is refused."""
    if not target.exists():
        return False
    _require_sound(target, digest)
    return True


def _require_sound(target: Path, digest: str) -> str:
    """Check all of a model, and return its digest."""
    try:
        record, name = read_record(target, _RECORD)
    except FileNotFoundError:
        raise InvalidInput(f"{target} is missing: train it with `vqdistill shard train {target.parent}`") from None
    if record.get("protocol") != PROTOCOL or record.get("plan") != digest:
        got = f"{record.get('protocol')!r}, {record.get('plan')!r}"
        raise InvalidInput(f"{target} must be a model of protocol {PROTOCOL} and plan {digest}, got {got}")
    try:
        whole = StoredFile(str(target / _FILE), **record["trained"]).is_same()
    except (OSError, KeyError, TypeError):
        whole = False
    if not whole:
        raise InvalidInput(f"{target / _FILE} is damaged: remove {target} and train again")
    return name
