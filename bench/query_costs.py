"""Fits what a query costs (vqdistill/evaluate/work.py) to searches of some indexes, in batches on one core.

    python bench/query_costs.py ../shared/data/pypi200k-int8.h5 INDEX.vqd ...

The indexes are of additive codes, of different numbers of lists, bytes a vector and dense precisions, such as those
that bench/planner_grid.py leaves in its --work. CPU time is counted; figures go to results/query_costs.json.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import RESULTS, stored
from scipy.optimize import nnls

import vqdistill as vqd
from vqdistill.compiler.cost import query_ns, query_work
from vqdistill.config import IvfPqConfig
from vqdistill.evaluate.work import dense_bytes

NAMES = ("a query", "a multiplication", "a list", "a byte of codes", "a read", "a byte read")
COVERAGES, REFINES = (0.9, 0.95, 0.98, 0.99), (0, 50, 100, 200, 400)
QUERIES, REPEATS = 2000, 5
"""Queries of a batch, and how often it is searched, of which the fastest counts."""


def measured(path: Path, queries: Any) -> list[dict[str, Any]]:
    """Return how often each thing was done for a query of the batch, the ns it took, and what was thought."""
    with vqd.open_index(path) as reader:
        searcher, manifest = vqd.Searcher(reader), reader.manifest
        model = IvfPqConfig(nlist=manifest.nlist, m=manifest.m, codes="additive")
        products = query_work(manifest.n, manifest.d, model, nprobe=0).multiplications
        found = []
        for coverage, refine in itertools.product(COVERAGES, REFINES):
            ns, hits = min(
                (_timed(searcher, queries, coverage, refine) for _ in range(REPEATS)), key=lambda pair: pair[0]
            )
            lists, codes, reads = (
                float(hits.query_stats[name].mean()) for name in ("lists_probed", "codes_scanned", "dense_rows")
            )
            spent = {"scanned": codes / manifest.n, "lists": lists, "reads": reads}
            thought = query_ns(manifest.n, manifest.d, model, manifest.dense, **spent)
            counts = (
                1,
                products,
                lists,
                codes * manifest.m / 2,
                reads,
                reads * dense_bytes(manifest.d, manifest.dense),
            )
            settings = {"index": path.stem, "coverage": coverage, "refine": refine}
            found.append(settings | {"counts": counts, "ns": ns, "thought_ns": thought})
    return found


def _timed(searcher: vqd.Searcher, queries: Any, coverage: float, refine: int) -> tuple[float, vqd.Hits]:
    begin = time.process_time()
    hits = searcher.search(queries, 10, coverage=coverage, refine=refine)
    return 1e9 * (time.process_time() - begin) / len(queries), hits


def measure(dataset: Path, indexes: list[Path]) -> dict[str, Any]:
    """Search all indexes, and fit relative errors."""
    learn = vqd.open_source(dataset, metric="cosine").companion("learn_queries")
    assert learn is not None
    queries = learn.take(np.arange(min(learn.n, QUERIES)))
    points = [point for path in indexes for point in measured(path, queries)]
    ns = np.array([point["ns"] for point in points])
    fitted, _ = nnls(np.array([point["counts"] for point in points]) / ns[:, None], np.ones(len(points)))
    said = np.array([point["counts"] for point in points]) @ fitted / ns
    thought = np.array([point["thought_ns"] for point in points]) / ns
    return {
        "searches": len(points),
        "ns": dict(zip(NAMES, fitted.tolist(), strict=True)),
        "fit_to_measured": np.percentile(said, [0, 10, 50, 90, 100]).tolist(),
        "constants_to_measured": np.percentile(thought, [0, 10, 50, 90, 100]).tolist(),
        "points": points,
    }


def main() -> None:
    """Measure, unless the result is there, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("indexes", nargs="+", type=Path)
    options = parser.parse_args()
    found = stored(RESULTS / "query_costs.json", lambda: measure(options.dataset, options.indexes))
    for name, ns in found["ns"].items():
        print(f"{name}: {ns:.3g} ns")
    for name, text in {"fit_to_measured": "this fit", "constants_to_measured": "the constants"}.items():
        least, low, middle, high, most = found[name]
        print(f"{text}: {middle:.2f} of the time, four of five {low:.2f} to {high:.2f}, all {least:.2f} to {most:.2f}")


if __name__ == "__main__":
    main()
