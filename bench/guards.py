"""Bad teachers and queries must do no harm: the emitted model against the undistilled start, on test queries.

    python bench/guards.py ../shared/data/debian.h5

Five compiles: exact lists whose documents are exchanged for others, exact lists whose scores are shuffled, few learn
queries, Gaussian ones, and real ones for comparison. All are evaluated with every list visited. Exit status 1 if one
finds more than 0.3 points less than the start of the same codes or than product codes. Runs are stored as
bench/results/guards/<dataset>-<bytes>-<seed>-<case>.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from measuring import CANDIDATES, RESULTS, K, every_list, markdown, run, stored

from vqdistill.compiler.supervision import DEPTH
from vqdistill.data.relevance import Relevance
from vqdistill.data.sources import TableSource, open_source
from vqdistill.data.teacher import CachedTeacher, ExactTeacher

FEW = 50
"""Learn queries of the case with few."""
MOST_LOST = 0.3
"""Points below a start that count as harm."""
STARTS = {"start": ["--no-distill", "--codes", "additive"], "start, product codes": ["--no-distill"]}
CASES = ("real queries", "documents exchanged", "scores shuffled", f"{FEW} queries", "Gaussian queries")

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Workshop:
    """Files of one run, made when they are needed."""

    dataset: Path
    folder: Path
    ram: int
    seed: int
    threads: int

    def measure(self, name: str) -> dict[str, Any]:
        """Compile one case or start, and evaluate it with every list visited."""
        index = self.folder / "index.vqd"
        options = ["--metric", "cosine", "--ram", f"{self.ram}B/vec", "--seed", str(self.seed)]
        given = STARTS[name] if name in STARTS else self.supervision(name)
        compiled = run("compile", str(self.dataset), "-o", str(index), *options, "--threads", str(self.threads), *given)
        evaluated = every_list(index, self.dataset)
        shutil.rmtree(index)
        return {
            "dataset": self.dataset.stem,
            "ram_bytes_per_vector": self.ram,
            "seed": self.seed,
            "case": name,
            "compile": compiled,
            "eval_all_lists": evaluated,
        }

    def supervision(self, name: str) -> list[str]:
        """Return the options that give compile the teacher and queries of a case."""
        rng = np.random.default_rng(self.seed)
        if name == "real queries":
            return []
        src = open_source(str(self.dataset), metric="cosine")
        learn = src.companion("learn_queries")
        if learn is None:
            raise SystemExit(f"guards.py needs learn_queries in {self.dataset}")
        queries = learn.take(np.arange(learn.n))
        if name == f"{FEW} queries":
            return ["--queries", self._save_queries(queries[np.sort(rng.permutation(learn.n)[:FEW])])]
        if name == "Gaussian queries":
            return ["--queries", self._save_queries(rng.standard_normal(queries.shape, dtype=np.float32))]
        lists = self._exact(src, queries)
        spoil = exchange_documents if name == "documents exchanged" else shuffle_scores
        docs, scores = spoil(lists, src.n, rng)
        path = self.folder / "scores.npz"
        np.savez(path, qids=lists.query_of_entries(), docids=docs, scores=scores)
        return ["--teacher", f"scores:{path}"]

    def _exact(self, src: TableSource, queries: F32) -> Relevance:
        return CachedTeacher(ExactTeacher(src, self.threads), self.folder / "lists").relevance(queries, DEPTH)

    def _save_queries(self, queries: F32) -> str:
        path = self.folder / "queries.npy"
        np.save(path, queries)
        return str(path)


def exchange_documents(lists: Relevance, n: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.int64], F32]:
    """Permute the n documents: every list keeps its scores, and names documents that have nothing to do with it."""
    return rng.permutation(n)[lists.docs], lists.scores


def shuffle_scores(lists: Relevance, n: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.int64], F32]:
    """Permute the scores within each list: it keeps its documents, in an order that means nothing."""
    return lists.docs, lists.scores[np.lexsort((rng.random(lists.nnz), lists.query_of_entries()))]


def found(result: dict[str, Any]) -> tuple[float, float]:
    """R10@100 and R10@10 of a run, in points."""
    output = result["eval_all_lists"]["output"]
    return 100 * output["candidate_recall"], 100 * output["recall_at_k_codes_only"]


def kept(result: dict[str, Any]) -> str:
    """Return what the guards decided at each stage."""
    report = result["compile"]["output"]["report"]
    stages = [f"{stage['stage']} {'kept' if stage['kept'] else 'refused'}" for stage in report.get("stages", [])]
    return ", ".join(stages) or report.get("skipped", "-")


def main() -> None:
    """Measure what has no stored result yet, print the table, and fail on harm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--ram", type=int, default=16, help="bytes a vector")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(options.dataset, Path(folder), options.ram, options.seed, options.threads)
        for name in (*STARTS, *CASES):
            stem = f"{options.dataset.stem}-{options.ram}-{options.seed}-{name.replace(',', '').replace(' ', '_')}"
            path = options.results / "guards" / f"{stem}.json"
            results[name] = stored(path, lambda name=name: workshop.measure(name))
    starts = [found(results[name])[0] for name in STARTS]
    rows, harmed = [], []
    for name, result in results.items():
        candidates, codes_only = found(result)
        apart = [candidates - start for start in starts]
        rows.append([name, f"{candidates:.2f}", f"{codes_only:.2f}", *(f"{x:+.2f}" for x in apart), kept(result)])
        if name in CASES and min(apart) < -MOST_LOST:
            harmed.append(name)
    against = [f"points above {name}" for name in STARTS]
    print(markdown(("case", f"R{K}@{CANDIDATES}", f"R{K}@{K}", *against, "guards"), rows))
    if harmed:
        sys.exit(f"more than {MOST_LOST} points below a start: {', '.join(harmed)}")


if __name__ == "__main__":
    main()
