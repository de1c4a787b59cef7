"""What deciding for each query saves: rows read and vectors scanned, against fixed numbers at equal recall@10.

    python bench/adaptive.py pypi24.vqd ../shared/data/pypi200k-int8.h5

Fixed settings come first; the adaptive one that is as good is chosen on learn queries that the index has never seen,
and both are then measured on the test queries, where their recall may differ a little. So a second figure compares the
fixed setting with the curve of adaptive ones at its very recall on the test queries. Prints one line for each fixed
setting; raw figures go to a JSON file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from unseen import unseen_learn_queries

import vqdistill
from vqdistill.data.sources import open_source
from vqdistill.data.teacher import ExactTeacher
from vqdistill.evaluate.metrics import recall_at_k

K = 10
REFINES, NPROBES = (100, 150, 200), (0.125, 0.25, 0.375)
"""Fixed numbers of rows read, with all lists visited; and shares of the lists visited, with VERIFIED rows read."""
VERIFIED, MOST = 200, 400
"""Rows read while probing is judged, and at most while reading is."""
CONFIDENCES = tuple(np.round(1 - np.geomspace(0.1, 0.001, 97), 6))
COVERAGES = tuple(np.round(1 - np.geomspace(0.1, 0.005, 97), 6))
WANTED = {"rows read": 0.30, "vectors scanned": 0.25}


class Questions:
    """Queries with their exact neighbours."""

    def __init__(self, queries: npt.NDArray[np.float32], right: npt.NDArray[np.int64]) -> None:
        self.queries, self.right = queries, right

    def measure(self, index: vqdistill.Searcher, options: dict[str, Any]) -> dict[str, float]:
        """Return recall@10, and rows read and vectors scanned per query."""
        hits = index.search(self.queries, K, **options)
        work = {name: hits.stats[key] / len(self.queries) for name, key in COLUMNS.items()}
        return {"recall": float(recall_at_k(hits.rows, self.right, K).mean())} | work


TOLERANCE = 0.0015
"""Recall that may be lost on learn queries; 0.002 on test queries counts as equal."""
COLUMNS = {"rows read": "dense_rows", "vectors scanned": "codes_scanned"}


def first_as_good(
    measure: Callable[[dict[str, Any]], dict[str, float]], wanted: float, ladder: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the first settings of a ladder of growing recall that reach the wanted one; the last if none does."""
    low, high = 0, len(ladder) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if measure(ladder[middle])["recall"] >= wanted else (middle + 1, high)
    return ladder[low]


def work_at(
    measure: Callable[[dict[str, Any]], dict[str, float]], recall: float, ladder: list[dict[str, Any]], column: str
) -> float:
    """Return the work at a recall, between the first settings of a ladder that reach it and the ones before."""
    first = ladder.index(first_as_good(measure, recall, ladder))
    ends = [measure(options) for options in ladder[max(0, first - 1) : first + 1]]
    return float(np.interp(recall, [end["recall"] for end in ends], [end[column] for end in ends]))


def compare(
    index: vqdistill.Searcher,
    learn: Questions,
    test: Questions,
    fixed: dict[str, Any],
    ladder: list[dict[str, Any]],
    column: str,
) -> dict[str, Any]:
    """Choose on learn queries, measure on test queries, print the line."""
    wanted = learn.measure(index, fixed)["recall"] - TOLERANCE
    adaptive = first_as_good(lambda options: learn.measure(index, options), wanted, ladder)
    results = [test.measure(index, options) for options in (fixed, adaptive)]
    saved = 1 - results[1][column] / results[0][column]
    work = work_at(lambda options: test.measure(index, options), results[0]["recall"], ladder, column)
    at_equal = 1 - work / results[0][column]
    ends = [f"{result['recall']:.4f} with {result[column]:,.1f}" for result in results]
    print(f"{column}: fixed {fixed} {ends[0]}; adaptive {adaptive} {ends[1]}; saved {saved:.0%}", end="")
    print(f" (wanted {WANTED[column]:.0%}), recall {results[1]['recall'] - results[0]['recall']:+.4f}", end="")
    print(f"; at equal recall on the curve {at_equal:.0%}", flush=True)
    saving = {"saved": saved, "saved_at_equal_recall": at_equal}
    return {"fixed": fixed, "adaptive": adaptive, "test": results, "column": column} | saving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("dataset", type=Path, help="what the index was compiled from, with learn and test queries")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "adaptive.json")
    options = parser.parse_args()
    index = vqdistill.open(options.index)
    manifest = index.reader.manifest
    src = open_source(options.dataset, metric=manifest.metric)
    sides = []
    for key in ("learn_queries", "test"):
        queries = src.companion(key)
        if queries is None:
            raise SystemExit(f"{options.dataset} needs queries under the key {key}, got none")
        rows = unseen_learn_queries(queries, manifest) if key == "learn_queries" else np.arange(queries.n)
        x = queries.take(rows)
        sides.append(Questions(x, ExactTeacher(src).relevance(x, K).docs.reshape(len(x), K).astype(np.int64)))
    every = {"nprobe": manifest.nlist}
    runs = []
    for refine in REFINES:
        ladder = [every | {"refine": MOST, "confidence": share} for share in CONFIDENCES]
        runs.append(compare(index, *sides, every | {"refine": refine}, ladder, "rows read"))
    for share in NPROBES:
        fixed = {"nprobe": int(share * manifest.nlist), "refine": VERIFIED}
        ladder = [{"coverage": coverage, "refine": VERIFIED} for coverage in COVERAGES]
        runs.append(compare(index, *sides, fixed, ladder, "vectors scanned"))
    options.results.write_text(json.dumps({"index": options.index.name, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
