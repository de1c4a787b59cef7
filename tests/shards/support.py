"""Small inputs in several files, and jobs over them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

import vqdistill
from vqdistill.shards.parts import encode_shard
from vqdistill.shards.planning import plan_job
from vqdistill.shards.publishing import commit_job
from vqdistill.shards.training import train_job

N, D = 300, 16
CUTS = [0, 130, 131, 300]
"""Where shards begin; one has a single row."""
RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((N, D)).astype(np.float32)
QUERIES = (ROWS[:90] + 0.1 * RNG.standard_normal((90, D))).astype(np.float32)
OPTIONS: dict[str, Any] = {"ram": "4B/vec", "codes": "pq", "distill": False, "threads": 1}


def write_input(place: Path) -> None:
    """Write the folder `rows` of three shards, `queries.npy` and `ids.txt`."""
    (place / "rows").mkdir(parents=True)
    for number, (a, b) in enumerate(itertools.pairwise(CUTS)):
        np.save(place / "rows" / f"{number}.npy", ROWS[a:b])
    np.save(place / "queries.npy", QUERIES)
    (place / "ids.txt").write_text("".join(f"id-{row:05d}\n" for row in range(N)), encoding="utf-8")


def plan(place: Path, job: Path, **options: Any) -> Path:
    plan_job([place / "rows"], job, **OPTIONS | {"queries": place / "queries.npy"} | options)
    return job


def run_all(job: Path, out: Path) -> None:
    """All steps behind the plan."""
    train_job(job, threads=1)
    for number in range(len(CUTS) - 1):
        encode_shard(job, number, threads=1)
    commit_job(job, out, threads=1)


def compile_whole(place: Path, out: Path, **options: Any) -> None:
    given = OPTIONS | {"queries": str(place / "queries.npy")} | options
    vqdistill.compile(str(place / "rows"), out, **given)
