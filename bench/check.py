"""A guard against losses: a few figures, measured on the sample, must not fall below the stored ones beyond noise.

    python bench/check.py
    python bench/check.py --store

Builds ours, distilled and not, and an index of faiss with `vqdistill bench`, and measures them at settings that are
fixed here: what is chosen by times differs from run to run. Compared are recall, the rows that faiss reads to those
that ours reads, and ratios of queries a CPU second, which other work on the machine hardly changes, but another
processor does: on one that the stored ratios are not from, those are not compared, and a line says so. What is stored,
with the intervals that the timed passes give, is bench/results/check.json. Takes a minute or two.
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
from vqdistill.bench.scoring import Judge, rate_ratio, score_run
from vqdistill.bench.store import runs_below
from vqdistill.bench.summary import Scored
from vqdistill.bench.systems.base import Setting
from vqdistill.bench.tuning import Point

SAMPLE = Path(__file__).parent.parent / "data" / "debian-sample.h5"
STORED = RESULTS / "check.json"
BUDGET = "16B/vec"
OURS, UNDISTILLED, RIVAL = "vqdistill", "vqdistill-undistilled", "faiss-ivfpq"
WAYS = (
    Point(0.9, {"coverage": 0.975, "refine": 24}, None),
    Point(0.95, {"coverage": 0.98, "refine": 200, "confidence": 0.98}, None),
    Point(0.99, {"nprobe": 64, "refine": 90}, None),
)
"""Of searching ours: by calibration of lists, of lists and rows, and by numbers alone, which needs no calibration."""
SETTINGS = {
    OURS: WAYS,
    UNDISTILLED: WAYS[-1:],
    RIVAL: (
        Point(0.9, {"nprobe": 8, "implem": 11, "refine": 24}, None),
        Point(0.95, {"nprobe": 8, "implem": 11, "refine": 63}, None),
        Point(0.99, {"nprobe": 16, "implem": 11, "refine": 71}, None),
    ),
}
SLACK = {"recall": 0.01, "reads": 0.05, "speed": 0.1}
"""Share of a loss that is no loss, beside what the intervals allow: other compilers, caches and libraries."""


@dataclass(frozen=True)
class Figure:
    """What must not fall; larger is better."""

    name: str
    kind: str
    """a key of SLACK"""
    value: float
    low: float
    high: float


def measured(folder: Path, threads: int, repetitions: int, rounds: int) -> list[Figure]:
    """Build and measure everything anew."""
    dataset = prepare(str(SAMPLE), folder, threads=threads)
    cores = tuple(sorted(os.sched_getaffinity(0)))[:threads]
    options = Options(
        budgets=(BUDGET,),
        systems=tuple(SETTINGS),
        cores=cores,
        repetitions=repetitions,
        rounds=rounds,
        memory=False,
        given=SETTINGS,
    )
    if run_all(dataset, options, lambda text: print(text, flush=True))["failed"]:
        raise SystemExit("a run failed")
    judge = Judge.of(dataset.truth_path)
    runs = {str(run.facts["system"]): Scored(run, score_run(run, judge)) for run in runs_below(dataset.folder)}
    found = [recall_of(runs[system], point) for system in (OURS, UNDISTILLED) for point in SETTINGS[system]]
    for mine, theirs in zip(runs[OURS].run.operations, runs[RIVAL].run.operations, strict=True):
        name = named(mine.facts["setting"])
        reads = theirs.facts["reads"] / mine.facts["reads"]
        found.append(Figure(f"reads of {RIVAL} to ours at {name}", "reads", reads, reads, reads))
        speed = rate_ratio(mine, theirs, "cpu_seconds")
        found.append(Figure(f"queries a CPU second to {RIVAL} at {name}", "speed", **speed.facts()))
    return found


def recall_of(scored: Scored, point: Point) -> Figure:
    """Return the recall of a system at a setting."""
    (facts,) = (facts for facts in scored.operations if facts["setting"] == point.setting)
    recall = facts["metrics"]["recall"]["value"]
    return Figure(f"recall of {scored.system} at {named(point.setting)}", "recall", recall, recall, recall)


def named(setting: Setting) -> str:
    """Write a setting in a line."""
    return " ".join(f"{name}={value}" for name, value in sorted(setting.items()))


def comparable(before: list[Figure], stored_on: dict[str, Any], here: dict[str, Any]) -> list[Figure]:
    """Leave out the speeds where the stored ones are another processor's."""
    same = all(stored_on.get(key) == here.get(key) for key in ("processor", "cpu_level"))
    return [figure for figure in before if same or figure.kind != "speed"]


def losses(now: list[Figure], before: list[Figure]) -> list[str]:
    """Name the figures that fell beyond noise, and those that are gone."""
    known = {figure.name: figure for figure in now}
    found = []
    for old in before:
        new = known.get(old.name)
        if new is None:
            found.append(f"{old.name}: was {old.value:.4g}, is not measured any more")
        elif new.high < old.low * (1 - SLACK[old.kind]):
            found.append(f"{old.name}: was {old.value:.4g} ({old.low:.4g} at least), is {new.value:.4g}")
    return found


def main() -> None:
    """Measure, and store or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", action="store_true", help="keep what is measured as what must be reached")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="to build with")
    parser.add_argument("--repetitions", type=int, default=5, help="timed passes a round")
    parser.add_argument("--rounds", type=int, default=3, help="over the systems in turn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        now = measured(Path(folder), options.threads, options.repetitions, options.rounds)
    for figure in now:
        print(f"{figure.name}: {figure.value:.4g} ({figure.low:.4g} to {figure.high:.4g})")
    here = circumstances()
    if options.store:
        facts: dict[str, Any] = {"figures": [vars(figure) for figure in now]} | here
        STORED.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    every = [Figure(**figure) for figure in stored["figures"]]
    before = comparable(every, stored["machine"], here["machine"])
    found = losses(now, before)
    print(*found or [f"no loss in {len(before)} figures"], sep="\n")
    if len(before) < len(every):
        left, there = len(every) - len(before), stored["machine"]["processor"]
        print(f"{left} speeds were not compared: the stored ones are of {there!r}; --store keeps new ones")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
