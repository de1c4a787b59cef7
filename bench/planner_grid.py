"""The planner's choice against a grid search by hand over the same space, and what each costs.

    python bench/planner_grid.py ../shared/data/debian.h5 ../shared/data/pypi200k-int8.h5

Eight indexes within 24 bytes a vector (bytes x lists x dense precision), each with every search setting of a
certificate's ladder: over 100 configurations each. An index is tuned on learn queries that it was not trained on; the
cheapest setting by measured time that reaches the recall there counts. The planner's plan is built and tuned in the
same way. Time is CPU time throughout, so that other work on the machine changes it little; building and tuning of the
grid against the planner's trials, and against these with the building and tuning of its choice. At the end both answer
the test queries, in turns. Stored as bench/results/planner_grid/<dataset>.json; indexes are kept in --work, with what
they took, until then.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from measuring import RESULTS, markdown, stored

from vqdistill.compiler.build import build, search_policy
from vqdistill.compiler.decide import Wishes, decide
from vqdistill.compiler.passes import plan as make_plan
from vqdistill.compiler.plan import CompilePlan
from vqdistill.compiler.supervision import DenseTeacher, supervise
from vqdistill.config import DistillConfig
from vqdistill.data.sources import open_source
from vqdistill.distill.trainer import Distiller
from vqdistill.evaluate.ladder import QuerySet, Setting, attempt, probings, verifications
from vqdistill.evaluate.run import load_test_set
from vqdistill.index.opening import open_index
from vqdistill.kernels.threads import training_threads
from vqdistill.progress import Progress
from vqdistill.searcher import Searcher

RAM, RECALL, K = 24, 0.95, 10
"""Budget in bytes a vector, and the recall wanted."""
CODES, LIST_SHARES, DENSE = (RAM, 2 * RAM), (1 / 4, 1), ("f16", "i8")
"""Codes a row, lists in units of about 1.2 sqrt(n), and precisions of the grid."""
FINALISTS, REPEATS = 8, 7
"""Settings of an index, the cheapest by counted work, that are timed; and how often, of which the fastest counts."""
CHOSEN = "planner"


def plans(dataset: Path, threads: int) -> tuple[dict[str, CompilePlan], dict[str, float]]:
    """Return the plans of the grid and the planner's, by name, and what the planner took."""
    src = open_source(str(dataset), metric="cosine")
    usual = make_plan(src.facts, f"{RAM}B/vec")
    found = {}
    for m in CODES:
        for share in LIST_SHARES:
            for dense in DENSE:
                model = replace(usual.model, m=m, nlist=max(1, round(share * usual.model.nlist)))
                name = f"{m // 2} B/vec, {model.nlist} lists, {dense}"
                found[name] = make_plan(src.facts, usual.budget, dense=dense, chosen=(model, "of a grid"))
    begin, cpu = time.perf_counter(), time.process_time()
    decision = decide(src, Wishes(ram=f"{RAM}B/vec", recall=f"{RECALL}@{K}", threads=threads))
    spent = {"seconds": time.perf_counter() - begin, "cpu_s": time.process_time() - cpu}
    return found | {CHOSEN: decision.plan}, spent


def make(dataset: Path, plan: CompilePlan, index: Path, cache: Path, threads: int) -> dict[str, Any]:
    """Train and write an index; return the held-out queries' numbers and the CPU seconds that it took."""
    src = open_source(str(dataset), metric="cosine")
    begin = time.process_time()
    with training_threads(threads):
        lesson = supervise(src, None, "exact", DenseTeacher(src, cache, 0, threads, Progress()))
        distiller = Distiller(plan.model, DistillConfig(), threads)
        model = distiller.fit(src, lesson.queries, lesson.relevance)
        build(plan, model, src, index, search=search_policy(model, plan.dense, distiller.calibrated))
    held = distiller.held_out
    np.savez(f"{index}.npz", queries=lesson.queries[held], neighbors=lesson.relevance.select(held).padded(K)[0])
    return {"cpu_s": time.process_time() - begin}


def tuned(index: Path) -> dict[str, Any]:
    """Find the fastest setting of an index that reaches the recall on its held-out queries."""
    begin = time.process_time()
    with np.load(f"{index}.npz") as held, open_index(index) as reader:
        asked, searcher, manifest = QuerySet(held["queries"], held["neighbors"]), Searcher(reader), reader.manifest
        settings = [
            Setting(**lists, **rows)
            for lists in probings(manifest)
            for rows in verifications(manifest.search, K, manifest.n)
        ]
        trials = [attempt(searcher, asked, setting, K) for setting in settings]
        able = sorted((trial for trial in trials if trial.recall >= RECALL), key=lambda trial: trial.work["cost"])
        timed = [(_rate(searcher, asked, trial.setting), trial) for trial in able[:FINALISTS]]
    best = max(timed, key=lambda pair: pair[0], default=None)
    told = {"configurations": len(settings), "cpu_s": time.process_time() - begin}
    if best is None:
        return told | {"setting": None, "most": max(trial.recall for trial in trials)}
    return told | {"setting": best[1].setting.options, "recall": best[1].recall, "queries_per_s": best[0]}


def _rate(searcher: Searcher, asked: QuerySet, setting: Setting, repeats: int = REPEATS) -> float:
    """Queries a CPU second of one batch."""
    spent = []
    for _ in range(repeats):
        begin = time.process_time()
        searcher.search(asked.queries, K, **setting.options)
        spent.append(time.process_time() - begin)
    return len(asked.queries) / min(spent)


def finals(dataset: Path, work: Path, names: list[str], runs: dict[str, Any]) -> dict[str, Any]:
    """Answer the test queries with some indexes at their best settings, in turns."""
    found: dict[str, Any] = {name: {"queries_per_s": 0.0} for name in names}
    for turn in range(REPEATS):
        for name in names:
            setting = Setting(**runs[name]["tuned"]["setting"])
            with open_index(_path(work, dataset, name)) as reader:
                searcher, test = Searcher(reader), load_test_set(dataset, reader, K, 1)
                rate = _rate(searcher, test, setting, 1)
                found[name]["queries_per_s"] = max(rate, found[name]["queries_per_s"])
                if turn == 0:
                    found[name]["recall"] = attempt(searcher, test, setting, K).recall
    return found


def _path(work: Path, dataset: Path, name: str) -> Path:
    return work / f"{dataset.stem}-{name.replace(', ', '-').replace('/', '_').replace(' ', '_')}.vqd"


def _fresh(task: Callable[[], Any]) -> Any:
    """Run in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(task).result()


def measure(dataset: Path, work: Path, threads: int) -> dict[str, Any]:
    """Build, tune and compare."""
    chosen, planning = _fresh(partial(plans, dataset, threads))
    runs: dict[str, Any] = {}
    for name, plan in chosen.items():
        index, log = _path(work, dataset, name), _path(work, dataset, name).with_suffix(".json")
        if not log.exists():
            spent = _fresh(partial(make, dataset, plan, index, work / f"{dataset.stem}.cache", threads))
            log.write_text(json.dumps({"made": spent, "tuned": _fresh(partial(tuned, index))}))
        shape = {"nlist": plan.model.nlist, "m": plan.model.m, "dense": plan.dense, "ram_bytes": plan.ram_bytes}
        runs[name] = shape | json.loads(log.read_text())
        print(name, runs[name]["tuned"], flush=True)
    able = [name for name in runs if name != CHOSEN and runs[name]["tuned"]["setting"] is not None]
    best = max(able, key=lambda name: runs[name]["tuned"]["queries_per_s"])
    return {
        "dataset": dataset.stem,
        "recall": RECALL,
        "ram_bytes_per_vector": RAM,
        "planning": planning,
        "runs": runs,
        "best_of_grid": best,
        "test": _fresh(partial(finals, dataset, work, [CHOSEN, best], runs)),
    }


def row(result: dict[str, Any]) -> list[str]:
    """Return one line of the table."""
    grid = {name: run for name, run in result["runs"].items() if name != CHOSEN}
    spent = sum(run[part]["cpu_s"] for run in grid.values() for part in ("made", "tuned"))
    own = result["planning"]["cpu_s"]
    built = own + sum(result["runs"][CHOSEN][part]["cpu_s"] for part in ("made", "tuned"))
    chosen, best = result["test"][CHOSEN], result["test"][result["best_of_grid"]]
    run = result["runs"][CHOSEN]
    return [
        result["dataset"],
        str(sum(run["tuned"]["configurations"] for run in grid.values())),
        result["best_of_grid"],
        f"{best['queries_per_s']:,.0f} ({best['recall']:.4f})",
        f"{run['m'] // 2} B/vec, {run['nlist']} lists, {run['dense']}",
        f"{chosen['queries_per_s']:,.0f} ({chosen['recall']:.4f})",
        f"{chosen['queries_per_s'] / best['queries_per_s']:.2f}",
        f"{own:,.0f} + {built - own:,.0f} of {spent:,.0f} ({100 * own / spent:.0f} %, {100 * built / spent:.0f} %)",
    ]


HEADER = (
    "dataset",
    "configurations",
    "best of the grid",
    "queries/s (test recall)",
    "planner's choice",
    "queries/s (test recall)",
    "ratio",
    "CPU s: trials + its index, of the grid",
)


def main() -> None:
    """Measure what has no stored result yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "vqdistill-grid")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for dataset in options.datasets:
        path = options.results / "planner_grid" / f"{dataset.stem}.json"
        rows.append(row(stored(path, partial(measure, dataset, options.work, options.threads))))
    print(markdown(HEADER, rows))


if __name__ == "__main__":
    main()
