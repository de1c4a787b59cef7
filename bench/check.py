"""A guard against losses: a few ratios, measured on the sample, must not fall below the stored ones beyond noise.

    python bench/check.py
    python bench/check.py --store

Builds and measures ours, distilled and not, and an index of faiss with `vqdistill bench`; compares ratios of queries a
CPU second, which other work on the machine hardly changes, and of rows read. The stored ratios, with the intervals that
the timed passes give, are bench/results/check.json. Takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import RESULTS, circumstances

from vqdistill.bench.datasets import prepare
from vqdistill.bench.runner import Options, run_all
from vqdistill.bench.scoring import Interval, Judge, rate_ratio, score_run
from vqdistill.bench.store import runs_below
from vqdistill.bench.summary import Scored

SAMPLE = Path(__file__).parent.parent / "data" / "debian-sample.h5"
STORED = RESULTS / "check.json"
SYSTEMS = ("vqdistill", "vqdistill-undistilled", "faiss-ivfpq")
BUDGET, TARGETS = "16B/vec", (0.8, 0.9)
SLACK = {"speed": 0.1, "reads": 0.05}
"""Share of a loss that is no loss, beside what the intervals allow: other compilers, caches and libraries."""


@dataclass(frozen=True)
class Ratio:
    """One figure that must not fall; larger is better."""

    name: str
    kind: str
    """a key of SLACK"""
    value: float
    low: float
    high: float


def measured(folder: Path, threads: int, repetitions: int) -> list[Ratio]:
    """Build and measure everything anew."""
    dataset = prepare(str(SAMPLE), folder, threads=threads)
    cores = tuple(sorted(os.sched_getaffinity(0)))[:threads]
    options = Options(
        budgets=(BUDGET,), systems=SYSTEMS, targets=TARGETS, cores=cores, repetitions=repetitions, memory=False
    )
    if run_all(dataset, options, lambda text: print(text, flush=True))["failed"]:
        raise SystemExit("a run failed")
    judge = Judge.of(dataset.truth_path)
    runs = {str(run.facts["system"]): Scored(run, score_run(run, judge)) for run in runs_below(dataset.folder)}
    return [ratio for target in TARGETS for ratio in ratios(runs, target)]


def ratios(runs: dict[str, Scored], target: float) -> list[Ratio]:
    """Compare us with the others at one recall; what somebody does not reach is left out."""
    found = []
    mine = runs["vqdistill"].at(target)
    for name in SYSTEMS[1:]:
        theirs = runs[name].at(target)
        if mine is None or theirs is None:
            continue
        speed = rate_ratio(mine[1], theirs[1], "cpu_seconds")
        found.append(_ratio(f"queries a CPU second to {name} at {target}", "speed", speed))
        reads = theirs[0]["reads"] / mine[0]["reads"]
        found.append(_ratio(f"reads of {name} to ours at {target}", "reads", Interval(reads, reads, reads)))
    return found


def _ratio(name: str, kind: str, interval: Interval) -> Ratio:
    return Ratio(name, kind, interval.value, interval.low, interval.high)


def losses(now: list[Ratio], before: list[Ratio]) -> list[str]:
    """Name the ratios that fell beyond noise, and those that are gone."""
    known = {ratio.name: ratio for ratio in now}
    found = []
    for old in before:
        new = known.get(old.name)
        if new is None:
            found.append(f"{old.name}: was {old.value:.2f}, is not reached any more")
        elif new.high < old.low * (1 - SLACK[old.kind]):
            found.append(f"{old.name}: was {old.value:.2f} ({old.low:.2f} at least), is {new.value:.2f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", action="store_true", help="keep what is measured as what must be reached")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="to build with")
    parser.add_argument("--repetitions", type=int, default=5, help="timed passes a round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        now = measured(Path(folder), options.threads, options.repetitions)
    for ratio in now:
        print(f"{ratio.name}: {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})")
    if options.store:
        facts: dict[str, Any] = {"ratios": [vars(ratio) for ratio in now]} | circumstances()
        STORED.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return
    before = [Ratio(**ratio) for ratio in json.loads(STORED.read_text(encoding="utf-8"))["ratios"]]
    found = losses(now, before)
    print(*found or ["no loss"], sep="\n")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
