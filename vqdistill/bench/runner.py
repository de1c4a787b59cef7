"""Runs systems one after the other in fresh processes, and times them in rounds; what is finished is never repeated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vqdistill.bench import memory, store
from vqdistill.bench.budgets import UNLIMITED, allowance_bytes
from vqdistill.bench.datasets import Dataset
from vqdistill.bench.processes import Place, RunFailed, run_stage
from vqdistill.bench.systems import SYSTEMS, Entry
from vqdistill.bench.tuning import Point
from vqdistill.errors import BudgetInfeasible

FRONTIER = (0.8, 0.9, 0.95, 0.98, 0.99)
"""Recalls that systems are tuned to beside the targets, for the curves."""
MEMORY_AT = 0.95
"""Recall of the setting that memories are measured with."""


@dataclass(frozen=True)
class Options:
    """How to run."""

    budgets: tuple[str, ...]
    systems: tuple[str, ...]
    targets: tuple[float, ...] = (0.9, 0.95, 0.98)
    time_limit_s: float = 1800.0
    """of a build, and of a measurement"""
    cores: tuple[int, ...] = (0,)
    """builds use all of them, searches the first"""
    repetitions: int = 3
    """timed passes of a round"""
    rounds: int = 3
    """over all runs: when the machine is slow for a minute, no system has all its passes in it"""
    repeats: int = 1
    """measurements of each index, which is built and tuned once"""
    seed: int = 0
    memory: bool = True
    """whether to measure memories and the cold page cache"""
    retry: bool = False
    """whether what failed before is tried again"""
    given: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    """settings to measure instead of tuned ones, by system"""


@dataclass(frozen=True)
class Planned:
    """One run to be done."""

    entry: Entry
    budget: str
    allowance_bytes: int
    repeat: int
    seed: int

    @property
    def index_name(self) -> str:
        """Of the folder of its index: repeats share it."""
        return f"{self.entry.name}-{self.budget.replace('/', '')}-seed{self.seed}"

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.index_name}-{self.repeat}"


def planned(dataset: Dataset, options: Options) -> Iterator[Planned]:
    """Yield the runs of all installed systems that were asked for; references have one budget, none."""
    chosen = [entry for entry in SYSTEMS if entry.name in options.systems and entry.available]
    for repeat in range(options.repeats):
        for budget in options.budgets:
            allowed = allowance_bytes(budget, dataset.facts)
            for entry in chosen:
                if not entry.reference:
                    yield Planned(entry, budget, allowed, repeat, options.seed)
        for entry in chosen:
            if entry.reference:
                yield Planned(entry, UNLIMITED, 0, repeat, options.seed)


def run_all(dataset: Dataset, options: Options, say: Callable[[str], None]) -> dict[str, int]:
    """Do what is not done yet; return how many runs are done, were kept from before, and failed."""
    counts = {"done": 0, "kept": 0, "failed": 0}
    _record_missing(dataset, options)
    for run in planned(dataset, options):
        path, failure = (dataset.folder / f"{run.name}{suffix}" for suffix in (store.SUFFIX, store.FAILED))
        if path.exists() or (failure.exists() and not options.retry):
            counts["kept" if path.exists() else "failed"] += 1
            say(f"{run.name}: {'kept' if path.exists() else 'failed before, see ' + failure.name}")
            continue
        try:
            _do(dataset, options, run, path)
        except (RunFailed, BudgetInfeasible) as error:
            counts["failed"] += 1
            facts = {"system": run.entry.name, "budget": run.budget, "repeat": run.repeat, "reason": str(error)}
            failure.write_text(json.dumps(facts, indent=1, sort_keys=True))
            say(f"{run.name}: {error}")
        else:
            failure.unlink(missing_ok=True)
            counts["done"] += 1
            say(f"{run.name}: done")
    for number in range(1, options.rounds):
        for run in planned(dataset, options):
            path = dataset.folder / f"{run.name}{store.SUFFIX}"
            try:
                if path.exists() and _again(dataset, options, run, path, number):
                    say(f"{run.name}: round {number + 1} of {options.rounds}")
            except RunFailed as error:
                say(f"{run.name}: round {number + 1} is missing: {error}")
    return counts


def _record_missing(dataset: Dataset, options: Options) -> None:
    """Keep which systems were asked for and are not installed: the report lists them."""
    missing = [
        {"system": entry.name, "install": entry.install}
        for entry in SYSTEMS
        if entry.name in options.systems and not entry.available
    ]
    (dataset.folder / "missing.json").write_text(json.dumps(missing, indent=1))


def _job(dataset: Dataset, options: Options, run: Planned) -> tuple[Path, dict[str, Any]]:
    """Return the folder that a run works in, and what all its stages are told."""
    job = {
        "dataset": str(dataset.folder),
        "system": run.entry.name,
        "budget": run.budget,
        "allowance_bytes": run.allowance_bytes,
        "threads": len(options.cores),
        "seed": run.seed,
        "repetitions": options.repetitions,
    }
    return dataset.folder / "work" / run.index_name, job


def _do(dataset: Dataset, options: Options, run: Planned, path: Path) -> None:
    folder, job = _job(dataset, options, run)
    if not (folder / "built.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "index").mkdir(parents=True)
    built = _once("build", "built.json", job, folder, Place(options.cores, options.time_limit_s))
    one = Place(options.cores[:1], options.time_limit_s)
    job["targets"] = sorted({*options.targets, *FRONTIER})
    if run.entry.name in options.given:
        tuned = {"points": [asdict(point) for point in options.given[run.entry.name]], "seconds": 0.0}
    else:
        job["tune_seconds"] = min(600.0, options.time_limit_s / 3)
        tuned = _once("tune", "tuned.json", job, folder, one, ("targets", "tune_seconds"))
    more = {"tuned": tuned, "repeat": run.repeat, "core": options.cores[0]}
    run_stage("measure", job | more, folder, one)
    measured = store.read_run(folder / "measured.h5")
    measured.facts |= {"build": built, "memory": None}
    if options.memory and measured.operations:
        prober = memory.Prober(dataset, run.entry.name, _setting(measured), folder, one)
        measured.facts["memory"] = memory.memories(prober)
    store.write_run(measured, path)
    (folder / "measured.h5").unlink()


def _again(dataset: Dataset, options: Options, run: Planned, path: Path, number: int) -> bool:
    """Add round `number` to the timed passes of a run, unless it has it; its index is in the work folder still."""
    folder, job = _job(dataset, options, run)
    if store.read_facts(path).get("rounds", 1) > number:
        return False
    if not (folder / "built.json").exists():
        raise RunFailed(f"{folder} does not have its index any more")
    run_stage("again", job | {"run": str(path)}, folder, Place(options.cores[:1], options.time_limit_s))
    (folder / "measured.h5").replace(path)
    return True


def _once(
    stage: str, name: str, job: dict[str, Any], folder: Path, place: Place, same: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Run a stage, or return what came of it before, kept as `name`, if these keys of its job are still the same."""
    done = folder / name
    if done.exists():
        before = json.loads(done.read_text())
        if all(before["job"][key] == job[key] for key in same):
            return dict(before["result"])
    result = run_stage(stage, job, folder, place)
    unfinished = folder / f".{name}"
    unfinished.write_text(json.dumps({"job": job, "result": result}))
    unfinished.replace(done)
    return result


def _setting(run: store.Run) -> dict[str, Any]:
    """Return the setting that memories are measured with: that of recall 0.95, or the next best."""
    reached = [op for op in run.operations if op.facts["target"] >= MEMORY_AT]
    operation = min(reached or run.operations, key=lambda op: abs(op.facts["target"] - MEMORY_AT))
    return dict(operation.facts["setting"])
