"""An input in three shards, and a job over it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.shards.support import CUTS, compile_whole, plan, write_input
from vqdistill.shards.parts import encode_shard
from vqdistill.shards.publishing import commit_job
from vqdistill.shards.training import train_job


@pytest.fixture(scope="session")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Input, the index of a plain compile (`whole`), a job with all parts (`job`), and its index in two shards
    (`split`); to be copied, not changed.
    """
    place = tmp_path_factory.mktemp("shards") / "origin"
    write_input(place)
    compile_whole(place, place / "whole")
    train_job(plan(place, place / "job"), threads=1)
    for number in range(len(CUTS) - 1):
        encode_shard(place / "job", number, threads=1)
    commit_job(place / "job", place / "split", threads=1, shards=2)
    return place


@pytest.fixture
def job(origin: Path, tmp_path: Path) -> Path:
    """A copy of the job, to be damaged."""
    return Path(shutil.copytree(origin / "job", tmp_path / "job"))
