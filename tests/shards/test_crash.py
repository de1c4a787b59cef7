"""A stop at any file operation of a step leaves what was there before, or all of what it makes."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.index.disk import FailingDisk, ForgetfulDisk, PowerCutError
from tests.index.support import snapshot
from tests.shards.support import plan
from vqdistill.compiler.store import load_trained
from vqdistill.errors import VqdistillError
from vqdistill.index.files import FileOps
from vqdistill.shards import training
from vqdistill.shards.parts import encode_shard
from vqdistill.shards.publishing import commit_job
from vqdistill.shards.training import train_job

HOWS = ["synced", "names", "all"]
STEPS: dict[str, tuple[str, list[str], Callable[[Path, Path, FileOps], Any]]] = {
    "plan": ("job", [], lambda origin, root, ops: plan(origin, root / "job", ops=ops)),
    "train": ("job/model", ["plan.json"], lambda origin, root, ops: train_job(root / "job", threads=1, ops=ops)),
    "encode": (
        "job/part-2",
        ["plan.json", "model"],
        lambda origin, root, ops: encode_shard(root / "job", 2, threads=1, ops=ops),
    ),
    "commit": (
        "out",
        ["plan.json", "model", "part-0", "part-1", "part-2"],
        lambda origin, root, ops: commit_job(root / "job", root / "out", threads=1, ops=ops),
    ),
    "commit in shards": (
        "split",
        ["plan.json", "model", "part-0", "part-1", "part-2"],
        lambda origin, root, ops: commit_job(root / "job", root / "split", threads=1, shards=2, ops=ops),
    ),
}
"""What a step makes, what of the job there must be, and the step."""
STRIDE = {"commit": 9, "commit in shards": 23}
"""The steps of the writer have a crash test of their own."""


@pytest.fixture(autouse=True)
def no_training(origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = load_trained(origin / "job" / "model" / "trained.npz")
    monkeypatch.setattr(training, "train", lambda *_: trained)


def prepared(origin: Path, root: Path, step: str) -> Path:
    root.mkdir()
    for name in STEPS[step][1]:
        source, target = origin / "job" / name, root / "job" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    return root


def wanted(origin: Path, step: str) -> dict[str, bytes]:
    place = origin / {"out": "whole"}.get(STEPS[step][0], STEPS[step][0])
    return {"plan.json": (place / "plan.json").read_bytes()} if step == "plan" else snapshot(place)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("step", STEPS)
def test_a_power_cut_leaves_all_or_nothing(origin: Path, tmp_path: Path, step: str, how: str) -> None:
    made, _, act = STEPS[step]
    outcomes = []
    for stop in itertools.count(0, STRIDE.get(step, 1)):
        root, found = prepared(origin, tmp_path / f"run{stop}", step), tmp_path / f"found{stop}"
        disk = ForgetfulDisk(root, stop)
        finished = False
        try:
            act(origin, root, disk)
            finished = True
        except PowerCutError:
            pass
        disk.survivors(found, how)
        there = (found / made).exists()
        outcomes.append(there)
        if there:
            assert snapshot(found / made) == wanted(origin, step), f"stop before step {stop}"
        else:
            act(origin, found, FileOps())  # what is left is in nobody's way
            assert snapshot(found / made) == wanted(origin, step)
        if finished:
            break
    assert outcomes[-1] and outcomes == sorted(outcomes) and not outcomes[0]


@pytest.mark.parametrize("step", STEPS)
def test_a_failing_disk_leaves_nothing(origin: Path, tmp_path: Path, step: str) -> None:
    made, _, act = STEPS[step]
    root = prepared(origin, tmp_path / "root", step)
    before = sorted(path.name for path in root.rglob("*"))
    for at in itertools.count(0, STRIDE.get(step, 1)):
        try:
            act(origin, root, FailingDisk(at, lambda: OSError(28, "No space left on device")))
        except VqdistillError as error:
            assert "No space left on device" in str(error) and "\n" not in str(error)
        else:
            break
        if (root / made).exists():  # only the last sync has failed
            break
        assert sorted(path.name for path in root.rglob("*") if path.name != "cache") == before
    assert at > 3 and snapshot(root / made) == wanted(origin, step)
