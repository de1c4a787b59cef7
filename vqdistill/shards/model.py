"""The model of a job, as its folder keeps it."""

from __future__ import annotations

from pathlib import Path

from vqdistill.compiler.store import load_trained
from vqdistill.compiler.trained import Trained
from vqdistill.errors import InvalidInput
from vqdistill.shards.job import PROTOCOL, StoredFile
from vqdistill.shards.sealed import read_record

MODEL = "model"
"""Folder in that of the job."""
RECORD, FILE = "model.json", "trained.npz"


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
    return load_trained(target / FILE), name


def holds_model(target: Path, digest: str) -> bool:
    """Whether there is a model of the plan; one that is damaged, or of another plan, is refused."""
    if not target.exists():
        return False
    _require_sound(target, digest)
    return True


def _require_sound(target: Path, digest: str) -> str:
    """Check all of a model, and return its digest."""
    try:
        record, name = read_record(target, RECORD)
    except FileNotFoundError:
        raise InvalidInput(f"{target} is missing: train it with `vqdistill shard train {target.parent}`") from None
    if record.get("protocol") != PROTOCOL or record.get("plan") != digest:
        got = f"{record.get('protocol')!r}, {record.get('plan')!r}"
        raise InvalidInput(f"{target} must be a model of protocol {PROTOCOL} and plan {digest}, got {got}")
    try:
        whole = StoredFile(str(target / FILE), **record["trained"]).is_same()
    except (OSError, KeyError, TypeError):
        whole = False
    if not whole:
        raise InvalidInput(f"{target / FILE} is damaged: remove {target} and train again")
    return name
