"""Kills compiles (SIGKILL) at random moments, resumes them, and compares every byte with an undisturbed index."""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import RESULTS, markdown, stored

import vqdistill as vqd

ROWS, DIMS, QUERIES = 12_000, 64, 500
"""First rows, dimensions and learn queries that are used: a compile is short, and yet has several runs."""


def make(dataset: str, place: Path) -> tuple[str, str]:
    """Write rows and learn queries of a dataset, cut to DIMS, as files of their own."""
    src = vqd.open_source(dataset)
    learn = src.companion("learn_queries")
    assert learn is not None
    np.save(place / "rows.npy", np.concatenate([block.rows for block in src.blocks()])[:ROWS, :DIMS])
    np.save(place / "queries.npy", learn.take(np.arange(min(learn.n, QUERIES)))[:, :DIMS])
    return str(place / "rows.npy"), str(place / "queries.npy")


def digest(index: Path) -> str:
    """Return a digest of the names and bytes of all files of an index."""
    found = hashlib.blake2b(digest_size=16)
    for file in sorted(index.iterdir()):
        found.update(f"{file.name} {file.stat().st_size} ".encode() + file.read_bytes())
    return found.hexdigest()


def compile(rows: str, out: Path, options: list[str], *, after: float | None, resume: bool) -> dict[str, Any]:
    """Run a compile, killed `after` so many seconds if it lasts that long; say what it had reached."""
    command = [sys.executable, "-m", "vqdistill", "compile", rows, "-o", str(out), *options]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, *(["--resume"] if resume else [])], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _, said = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        _, said = process.communicate()
    seconds, lines = time.perf_counter() - start, said.strip().splitlines()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"failed: {lines[-1] if lines else process.returncode}")
    return {"seconds": seconds, "killed": process.returncode != 0, "reached": lines[-1].split(":")[0] if lines else ""}


def left(out: Path) -> list[str]:
    """Return what waits in the work directory."""
    work = Path(f"{out}.work")
    return sorted(file.name for file in work.iterdir()) if work.is_dir() else []


def measure(dataset: str, options: list[str], kills: int, seed: int) -> dict[str, Any]:
    """Kill `kills` compiles, each anew at a random moment, then resume each until it ends."""
    rng, trials = random.Random(seed), []
    with tempfile.TemporaryDirectory() as place:
        rows, queries = make(dataset, Path(place))
        given = [*options, "--queries", queries]
        undisturbed = Path(place) / "whole"
        whole = compile(rows, undisturbed, given, after=None, resume=False)
        wanted, until = digest(undisturbed), whole["seconds"]
        while len(trials) < kills:
            out = Path(place) / f"trial-{len(trials)}"
            first = compile(rows, out, given, after=rng.uniform(0, until), resume=False)
            trial = first | {"left": left(out)}
            if out.exists() and not trial["left"]:  # faster than the undisturbed one: no moment of a compile
                shutil.rmtree(out)
                continue
            trial["resumed"] = compile(rows, out, given, after=None, resume=True)
            trials.append(trial | {"identical": digest(out) == wanted, "left_after": left(out)})
            print(len(trials), first["reached"], trials[-1]["identical"], file=sys.stderr, flush=True)
    return {"options": options, "whole": whole, "digest": wanted, "trials": trials}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--option", action="append", default=[], help="of compile, as --option=--ram=8B/vec")
    given = parser.parse_args()
    result = stored(RESULTS / "kill_resume.json", lambda: measure(given.dataset, given.option, given.kills, given.seed))
    rows = [
        [f"{trial['seconds']:.1f} s", trial["reached"], ", ".join(trial["left"]), str(trial["identical"])]
        for trial in result["trials"]
    ]
    print(markdown(["killed after", "last said", "left", "identical"], rows))


if __name__ == "__main__":
    main()
