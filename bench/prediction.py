"""What a plan predicts from 5 % of the rows, held against the index that is then built.

    python bench/prediction.py ../shared/data/pypi200k-int8.h5

Compiles at 24 bytes a vector for a recall of 0.95@10 in a process of its own, then measures the index on the test
queries. The compile's time is that of the whole process without its trials. Stored as
bench/results/prediction-<dataset>.json.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from measuring import RESULTS, K, markdown, run, stored

RAM, RECALL = "24B/vec", 0.95


def measure(dataset: Path, threads: int) -> dict[str, Any]:
    """Compile and evaluate."""
    with tempfile.TemporaryDirectory() as folder:
        index = f"{folder}/index.vqd"
        wanted = ["--ram", RAM, "--recall", f"{RECALL}@{K}", "--metric", "cosine", "--threads", str(threads)]
        compiled = run("compile", str(dataset), "-o", index, *wanted)
        candidates = str(compiled["output"]["prediction"]["candidates"])
        return {
            "dataset": dataset.stem,
            "compile": compiled,
            "eval": run("eval", index, str(dataset), "-k", str(K)),
            "eval_all_lists": run("eval", index, str(dataset), "-k", str(K), "--nprobe", "all", "--refine", candidates),
        }


def rows(result: dict[str, Any]) -> list[list[str]]:
    """Return a line for each figure: what, predicted, measured, their difference or ratio."""
    predicted, compiled = result["compile"]["output"]["prediction"], result["compile"]
    measured, every = result["eval"]["output"], result["eval_all_lists"]["output"]
    by_code = predicted["recall_by_candidates"][str(predicted["candidates"])]["recall"]
    found = [
        [f"recall@{K} by default", predicted["recall"], measured["recall_at_k"]],
        [f"R{K}@{predicted['candidates']} by code", by_code, every["candidate_recall"]],
        ["bytes in memory", predicted["ram_bytes"], measured["ram_bytes"]],
        ["queries/s", predicted["queries_per_s"], measured["queries_per_s"]],
        ["compile, CPU s", predicted["compile_cpu_s"], compiled["cpu_s"] - predicted["trials_cpu_s"]],
        ["compile, s", predicted["compile_s"], compiled["seconds"] - predicted["trials_s"]],
        ["peak MiB", predicted["peak_rss_bytes"] / 2**20, compiled["peak_rss_bytes"] / 2**20],
    ]
    return [[result["dataset"], what, _text(a), _text(b), _apart(what, a, b)] for what, a, b in found]


def _text(value: float) -> str:
    return f"{value:.4f}" if value < 1 else f"{value:,.0f}"


def _apart(what: str, a: float, b: float) -> str:
    return f"{a - b:+.4f}" if what[0] in "rR" else f"x {a / b:.3f}"


def main() -> None:
    """Measure what has no stored result yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    lines = []
    for dataset in options.datasets:
        path = options.results / f"prediction-{dataset.stem}.json"
        lines += rows(stored(path, lambda dataset=dataset: measure(dataset, options.threads)))
    print(markdown(("dataset", "figure", "predicted", "measured", "predicted - or / measured"), lines))


if __name__ == "__main__":
    main()
