"""Work of one run in a process of its own: `python -m vqdistill.bench.worker STAGE JOB.json`."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vqdistill.bench import systems
from vqdistill.bench.datasets import Dataset, open_prepared, read_qrels
from vqdistill.bench.machine import machine, versions
from vqdistill.bench.measure import measure, measure_again
from vqdistill.bench.pages import memory_of_this_process
from vqdistill.bench.store import Run, read_run, write_run
from vqdistill.bench.systems.base import Index, Task, files_bytes
from vqdistill.bench.tuning import K, Point, Questions, tune
from vqdistill.bench.verify import best_of, map_rows
from vqdistill.errors import InvalidInput, VqdistillError

INDEX = "index"
RESULT = "result.json"


def build(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Build the index of a job in `folder`/index."""
    dataset = open_prepared(Path(job["dataset"]))
    docs = np.array(dataset.rows("docs"))
    learn = dataset.path("learn")
    task = Task(
        docs=docs,
        docs_path=dataset.path("docs"),
        metric=dataset.metric,
        learn=learn if learn.exists() else None,
        budget=job["budget"],
        allowance_bytes=job["allowance_bytes"],
        threads=job["threads"],
        seed=job["seed"],
    )
    system = systems.load(job["system"])
    begin = time.perf_counter()
    options = system.build(task, folder / INDEX)
    seconds = time.perf_counter() - begin
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sizes = {"disk_bytes": files_bytes(folder / INDEX), "peak_rss_bytes": peak}
    return {"options": options, "seconds": seconds, "threads": job["threads"]} | sizes


def _opened(job: dict[str, Any], folder: Path) -> tuple[Dataset, Index]:
    dataset = open_prepared(Path(job["dataset"]))
    return dataset, systems.load(job["system"]).open(folder / INDEX, dataset.f16(), dataset.metric)


def tuned(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Choose the settings of the index of a job."""
    dataset, index = _opened(job, folder)
    questions = Questions.of(dataset.rows("tune"), dataset.truth("tune"))
    begin = time.perf_counter()
    points = tune(index, questions, job["targets"], begin + job["tune_seconds"])
    return {"points": [asdict(point) for point in points], "seconds": time.perf_counter() - begin}


def measured(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Measure the index of a job at the settings chosen; the run goes to `folder`/measured.h5."""
    dataset, index = _opened(job, folder)
    points = [Point(**point) for point in job["tuned"]["points"]]
    deep = read_qrels(dataset.truth_path) is not None
    operations, yardstick = measure(job["system"], index, dataset, points, job["repetitions"], deep)
    facts = {
        "dataset": dataset.origin | {"name": dataset.name, "n": dataset.n, "dim": dataset.dim},
        "bytes": index.bytes,
        "tune_s": job["tuned"]["seconds"],
        "yardstick_s": yardstick,
        "rounds": 1,
        "machine": machine(),
        "versions": versions(),
    }
    write_run(Run(facts | {name: job[name] for name in _OF_JOB}, operations), folder / "measured.h5")
    return {"operations": len(operations)}


def again(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Add a round of timed passes to the run of a job; the longer run goes to `folder`/measured.h5."""
    dataset, index = _opened(job, folder)
    run = read_run(Path(job["run"]))
    run.facts["yardstick_s"] += measure_again(index, dataset, run.operations, job["repetitions"])
    run.facts["rounds"] = run.facts.get("rounds", 1) + 1
    write_run(run, folder / "measured.h5")
    return {"rounds": run.facts["rounds"]}


_OF_JOB = ("system", "budget", "allowance_bytes", "repeat", "seed", "targets", "core")


def probe(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Open the index, see what memory that takes, and answer queries one at a time, the last of some passes timed."""
    dataset = Dataset(**{**job["facts"], "folder": Path(job["dataset"])})
    system = systems.load(job["system"])
    rows = map_rows(dataset.f16_path)
    queries = np.load(job["queries"])
    # What is compiled or loaded at the first call is no part of an index.
    best_of(np.zeros((1, dataset.dim), np.float16), queries[:1], np.zeros((1, 1), np.int64), 1)
    before = memory_of_this_process()
    index = system.open(folder / INDEX, rows, dataset.metric)
    opened = memory_of_this_process()
    for _ in range(job["passes"]):
        seconds, found = [], []
        for query in queries[:, None]:
            begin = time.perf_counter()
            found.append(index.search(query, K, job["setting"]).ids[0])
            seconds.append(time.perf_counter() - begin)
    answered = memory_of_this_process()
    np.savez(job["answers"], ids=np.array(found), seconds=np.array(seconds))
    return {"before": before, "opened": opened, "answered": answered}


STAGES = {"build": build, "tune": tuned, "measure": measured, "again": again, "probe": probe}


def main(stage: str, path: str) -> None:
    """Run a stage; its result, or the sentence of its failure, goes to result.json beside the job."""
    job = json.loads(Path(path).read_text())
    folder = Path(path).parent
    try:
        result = STAGES[stage](job, folder)
    except (VqdistillError, MemoryError) as error:
        kind = "input" if isinstance(error, InvalidInput) else "error"
        (folder / RESULT).write_text(json.dumps({kind: str(error) or "there is not enough memory"}))
        sys.exit(3)
    unfinished = folder / f".{RESULT}.{os.getpid()}"
    unfinished.write_text(json.dumps(result))
    unfinished.replace(folder / RESULT)


if __name__ == "__main__":
    main(*sys.argv[1:])
