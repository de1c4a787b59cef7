"""Each stage of distillation on and off, all losses and samplers, other codes, other queries: what each one brings.

    python bench/ablate.py ../shared/data/debian.h5 ../shared/data/pypi200k-int8.h5 --ram 16 32
    python bench/ablate.py ../shared/data/debian.h5 --group stages --ram 16
    python bench/ablate.py --table --write docs/ABLATION.md

A run is a model trained as `compile` does with one thing changed, and an index of it, in a process of its own; it is
stored as bench/results/ablate/<dataset>-<bytes>-<name>.json and not repeated while that file exists. Runs share the
teacher's lists in a cache folder, so no time of theirs is a run's; times are CPU seconds of all threads, which other
work on the machine moves little. --table prints what is stored and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from measuring import CANDIDATES, RESULTS, K, line, markdown, stored, with_block

from vqdistill.compiler.build import build, search_policy
from vqdistill.compiler.passes import plan as make_plan
from vqdistill.compiler.supervision import DenseTeacher, supervise
from vqdistill.config import LOSSES, SAMPLERS, STAGES, DistillConfig
from vqdistill.data.sources import open_source
from vqdistill.distill.trainer import Distiller
from vqdistill.evaluate.run import evaluate
from vqdistill.index.opening import open_index
from vqdistill.kernels.threads import training_threads
from vqdistill.progress import Progress

GROUPS = ("stages", "losses", "samplers", "codes", "queries")
SCRIPT = "bench/ablate.py"
"""What the lines of a document name between which the table is written."""


@dataclass(frozen=True)
class Variant:
    """One run: what differs from the defaults."""

    name: str
    group: str
    change: dict[str, Any] = field(default_factory=dict)
    """Fields of DistillConfig."""
    codes: str = "additive"
    queries: str | None = None
    """As for compile."""

    @property
    def stem(self) -> str:
        """The name, fit for a file."""
        return self.name.replace(", ", "-").replace(" ", "_")


def _variants() -> Iterator[Variant]:
    """Yield all runs, the defaults first."""
    default = DistillConfig()
    yield Variant("defaults", "stages")
    for stage in STAGES:
        yield Variant(f"without {stage}", "stages", {"skip": (stage,)})
    for stage in STAGES:
        yield Variant(f"only {stage}", "stages", {"skip": tuple(other for other in STAGES if other != stage)})
    yield Variant("start", "stages", {"enabled": False})
    for loss in LOSSES:
        if loss != default.loss:
            yield Variant(f"loss {loss}", "losses", {"loss": loss})
    yield Variant("temperature of each query", "losses", {"temperature": "query"})
    for sampler in SAMPLERS:
        if sampler != default.sampler:
            yield Variant(f"sampler {sampler}", "samplers", {"sampler": sampler})
    yield Variant("shared documents debiased", "samplers", {"debias": True})
    yield Variant("product codes", "codes", codes="pq")
    yield Variant("product codes, start", "codes", {"enabled": False}, codes="pq")
    yield Variant("pseudo-queries", "queries", queries="none")


VARIANTS = tuple(_variants())


def measure(dataset: Path, ram: int, variant: Variant, cache: Path, threads: int) -> dict[str, Any]:
    """Train one variant, write its index and evaluate it; as `compile`, but with any DistillConfig."""
    config = DistillConfig(**variant.change)
    src = open_source(str(dataset), metric="cosine")
    plan = make_plan(src.facts, f"{ram}B/vec", codes=variant.codes, dense="f16", seed=config.seed)
    with tempfile.TemporaryDirectory() as folder, training_threads(threads):
        index = Path(folder) / "index.vqd"
        lesson = supervise(src, variant.queries, "exact", DenseTeacher(src, cache, config.seed, threads, Progress()))
        begin = time.process_time()
        distiller = Distiller(plan.model, config, threads)
        model = distiller.fit(src, lesson.queries, lesson.relevance)
        trained = time.process_time()
        build(plan, model, src, index, search=search_policy(model, plan.dense, distiller.calibrated))
        encoded = time.process_time()
        with open_index(index) as reader:
            nlist = reader.manifest.nlist
        return {
            "dataset": dataset.stem,
            "rows": src.n,
            "ram_bytes_per_vector": ram,
            "variant": variant.name,
            "group": variant.group,
            "threads": threads,
            "report": distiller.report,
            "train_cpu_s": trained - begin,
            "encode_cpu_s": encoded - trained,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "test_all_lists": evaluate(index, dataset, k=K, nprobe=nlist, refine=CANDIDATES),
            "test": evaluate(index, dataset, k=K),
        }


def in_fresh_process(dataset: Path, ram: int, variant: Variant, cache: Path, threads: int) -> dict[str, Any]:
    """Measure where no earlier run has left compiled code, threads or memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, dataset, ram, variant, cache, threads).result()


HEADER = (
    "run",
    f"R{K}@{CANDIDATES}, held-out",
    f"R{K}@{CANDIDATES}",
    f"R{K}@{K}",
    f"recall@{K}, defaults",
    "rows scanned",
    "train, CPU s",
    "encode, CPU s",
)


def row(result: dict[str, Any]) -> list[str]:
    """Return one line of a table."""
    every, defaults, held_out = result["test_all_lists"], result["test"], result["report"].get("candidate_recall")
    return [
        result["variant"],
        "-" if held_out is None else f"{held_out:.4f}",
        f"{every['candidate_recall']:.4f}",
        f"{every['recall_at_k_codes_only']:.4f}",
        f"{defaults['recall_at_k']:.4f}",
        f"{100 * defaults['codes_scanned_per_query'] / result['rows']:.1f} %",
        f"{result['train_cpu_s']:.0f}",
        f"{result['encode_cpu_s']:.1f}",
    ]


def tables(results: Path) -> str:
    """Return a titled table for each dataset and budget with stored runs, in the order of VARIANTS."""
    order = {variant.name: place for place, variant in enumerate(VARIANTS)}
    stored_runs = [json.loads(path.read_text()) for path in sorted((results / "ablate").glob("*.json"))]
    by_case: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for result in stored_runs:
        by_case.setdefault((result["dataset"], result["ram_bytes_per_vector"]), []).append(result)
    parts = []
    for (dataset, ram), runs in sorted(by_case.items()):
        lines = [row(run) for run in sorted(runs, key=lambda run: order.get(run["variant"], len(order)))]
        parts.append(f"### {dataset}, {ram} bytes a vector\n\n{markdown(HEADER, lines)}")
    return "\n\n".join(parts)


def main() -> None:
    """Measure what has no stored result yet; print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", type=Path)
    parser.add_argument("--ram", nargs="+", type=int, default=[16, 32], help="bytes a vector")
    parser.add_argument("--group", nargs="+", choices=GROUPS, default=GROUPS, help="of runs; default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "vqdistill-ablate")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the tables of all stored runs; measure nothing")
    parser.add_argument("--write", type=Path, help="with --table: write them between the markers of this document")
    options = parser.parse_args()
    if options.table == bool(options.datasets) or (options.write and not options.table):
        parser.error("give datasets to measure, or --table, and --write only with --table")
    if options.table:
        if options.write is None:
            print(tables(options.results))
        else:
            options.write.write_text(with_block(options.write.read_text(), SCRIPT, tables(options.results)))
        return
    if len(os.sched_getaffinity(0)) < options.threads:
        raise SystemExit(f"ablate.py needs {options.threads} cores, got {len(os.sched_getaffinity(0))}")
    for dataset in options.datasets:
        for ram in options.ram:
            print(f"{dataset.stem}, {ram} B\n{markdown(HEADER, [])}", flush=True)
            for variant in (variant for variant in VARIANTS if variant.group in options.group):
                path = options.results / "ablate" / f"{dataset.stem}-{ram}-{variant.stem}.json"
                run = partial(in_fresh_process, dataset, ram, variant, options.cache, options.threads)
                print(line(row(stored(path, run))), flush=True)


if __name__ == "__main__":
    main()
