"""Recall by code of our codes at several budgets, with real queries and without, and what compiling costs.

    python bench/quality.py ../shared/data/debian.h5 ../shared/data/pypi200k-int8.h5 --ram 16 24 32 48 64

Each run is stored as bench/results/quality/<dataset>-<bytes>-<queries>.json and is not repeated while that file exists.
Compile runs in a process of its own with nothing cached: its seconds and memory are those of everything.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from measuring import CANDIDATES, RESULTS, K, every_list, markdown, run, stored

QUERIES = {"learn": [], "none": ["--queries", "none"], "start": ["--no-distill"]}
"""Real learn queries of the file, pseudo-queries from the corpus, or the undistilled start; options of `compile`."""
TARGETS = {
    ("debian", 16, "learn"): (0.980, 0.64),
    ("debian", 24, "learn"): (0.992, None),
    ("debian", 32, "learn"): (0.998, 0.78),
    ("pypi200k-int8", 16, "learn"): (0.93, 0.50),
    ("pypi200k-int8", 24, "learn"): (0.976, 0.62),
    ("pypi200k-int8", 32, "learn"): (0.991, 0.68),
    ("pypi200k-int8", 48, "learn"): (None, 0.78),
    ("pypi200k-int8", 64, "learn"): (None, 0.85),
    ("pypi200k-int8", 16, "none"): (0.88, None),
    ("pypi200k-int8", 32, "none"): (0.985, None),
    ("debian", 16, "none"): (0.965, None),
}
"""Least R10@100 and R10@10, by dataset, bytes a vector and queries."""
TARGET_S = {("pypi200k-int8", 16): 240, ("pypi200k-int8", 32): 480}
"""Most seconds of compile on two cores, by dataset and bytes a vector."""
HEADER = (
    "dataset",
    "B/vector",
    "queries",
    f"R{K}@{CANDIDATES} (wanted)",
    f"R{K}@{K} (wanted)",
    f"recall@{K}, defaults",
    "compile s (at most)",
    "peak MiB",
)


def measure(dataset: Path, ram: int, queries: str, threads: int) -> dict[str, Any]:
    """Compile one index, and evaluate it with every list visited and at its defaults."""
    options = ["--metric", "cosine", "--ram", f"{ram}B/vec", "--threads", str(threads)]
    with tempfile.TemporaryDirectory() as directory:
        index = f"{directory}/index.vqd"
        return {
            "dataset": dataset.stem,
            "ram_bytes_per_vector": ram,
            "queries": queries,
            "threads": threads,
            "compile": run("compile", str(dataset), "-o", index, *options, *QUERIES[queries]),
            "eval_all_lists": every_list(index, dataset),
            "eval": run("eval", index, str(dataset), "-k", str(K)),
        }


def result_of(dataset: Path, ram: int, queries: str, threads: int, results: Path = RESULTS) -> dict[str, Any]:
    """Return the stored run, measured now if there is none."""
    path = results / "quality" / f"{dataset.stem}-{ram}-{queries}.json"
    return stored(path, lambda: measure(dataset, ram, queries, threads))


def row(result: dict[str, Any]) -> list[str]:
    """Return one line of the table."""
    every = result["eval_all_lists"]["output"]
    dataset, ram, queries = (result[name] for name in ("dataset", "ram_bytes_per_vector", "queries"))
    candidates, codes_only = TARGETS.get((dataset, ram, queries), (None, None))
    most = TARGET_S.get((dataset, ram))
    return [
        dataset,
        str(ram),
        queries,
        f"{every['candidate_recall']:.4f}{_wanted(candidates)}",
        f"{every['recall_at_k_codes_only']:.3f}{_wanted(codes_only)}",
        f"{result['eval']['output']['recall_at_k']:.4f}",
        f"{result['compile']['seconds']:.0f}{_wanted(most)}",
        f"{result['compile']['peak_rss_bytes'] / 2**20:,.0f}",
    ]


def _wanted(target: float | None) -> str:
    return "" if target is None else f" ({target})"


def main() -> None:
    """Measure what has no stored result yet, then print the table of all that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", type=Path)
    parser.add_argument("--ram", nargs="+", type=int, default=[16, 24, 32, 48, 64], help="bytes a vector")
    parser.add_argument("--queries", nargs="+", choices=QUERIES, default=["learn"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = [
        row(result_of(dataset, ram, queries, options.threads, options.results))
        for dataset in options.datasets
        for queries in options.queries
        for ram in options.ram
    ]
    print(markdown(HEADER, rows))


if __name__ == "__main__":
    main()
