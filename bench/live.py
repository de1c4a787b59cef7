"""An index that grows and shrinks against one that is compiled at once: recall, speed, bytes, additions and look-ups.

    python bench/live.py ../shared/data/pypi200k-int8.h5 --work build/live

A random share of the documents is compiled, the rest is added in batches, then some are deleted; ids are strings. Both
indexes are searched in the same way: the same lists, the same candidates, one thread, batch by batch in turns. Seconds
are CPU seconds but where writing counts.
Recall is of the exact neighbours among the documents that are there. Figures go to results/live-<dataset>.json.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from measuring import RESULTS, K, Seconds, stored

import vqdistill as vqd
from vqdistill.compiler.plan import CompilePlan
from vqdistill.data.sources import open_source
from vqdistill.index.gc import gc
from vqdistill.index.verify import verify
from vqdistill.kernels.threads import training_threads
from vqdistill.searcher import Searcher

BATCHES = 20
DELETED = 0.3
REFINE = 100
ROUNDS = 5
"""Times that rows are encoded, and added at once; the medians count."""
PASSES = 7
"""Timed passes over the queries; the medians count."""


def main() -> None:
    """Measure what is not measured yet, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="indexes are kept here")
    parser.add_argument("--share", type=float, default=0.5, help="of the documents, compiled at first")
    parser.add_argument("--ram", default="24B/vec")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    target = RESULTS / f"live-{options.dataset.stem}.json"
    for part, figures in stored(target, lambda: Life(options).measure()).items():
        print(part, figures)


class Life:
    """One dataset, and the indexes made of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        with h5py.File(options.dataset) as file:
            scale = file.attrs.get("scale", 1.0)
            self.x, self.queries, self.learn = (
                file[name][:].astype(np.float32) * np.float32(scale) for name in ("train", "test", "learn_queries")
            )
        for rows in (self.x, self.queries):
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        order = np.random.default_rng(0).permutation(len(self.x))
        first = round(options.share * len(order))
        self.half, self.rest = np.sort(order[:first]), order[first:]
        self.ids = np.array([f"doc/{row:09d}" for row in range(len(self.x))])

    def compiled(self, name: str, rows: np.ndarray) -> Path:
        """Compile some of the documents, unless that was done."""
        path = self.options.work / f"{name}.vqd"
        if not path.exists():
            vqd.compile(
                self.x[rows],
                path,
                queries=self.learn,
                ids=self.ids[rows].tolist(),
                ram=self.options.ram,
                threads=self.options.threads,
            )
        return path

    def measure(self) -> dict[str, Any]:
        """Return all figures."""
        once = self.compiled("once", np.arange(len(self.x)))
        grown = self.options.work / "grown.vqd"
        shutil.rmtree(grown, ignore_errors=True)
        shutil.copytree(self.compiled("half", self.half), grown)
        figures: dict[str, Any] = {"documents": len(self.x), "compiled": len(self.half)}
        figures["add"] = self.adding(grown)
        searcher = vqd.open(grown)
        figures["look-ups"] = self.look_ups(searcher)
        all_rows = np.arange(len(self.x))
        sets = [rows.n for rows in searcher.reader.manifest.sets]
        figures["grown"] = {"sets": sets} | self.compare(vqd.open(once), searcher, all_rows)
        searcher.compact()
        figures["compacted"] = self.compare(vqd.open(once), searcher, all_rows)
        figures["deleted"] = self.deletions(searcher)
        return figures

    def adding(self, grown: Path) -> dict[str, Any]:
        """Rows a second of the encoding stage, of adding the rest at once, to copies, and in batches, to `grown`."""
        encoding, whole = [], []
        for _ in range(ROUNDS):
            encoding.append(self.encoding_rate(grown))
            copy = shutil.copytree(grown, self.options.work / "whole.vqd")
            whole.append(self.adding_rate(copy, 1))
            shutil.rmtree(copy)
        rates = {"encode": encoding, "at once": whole, "in batches": [self.adding_rate(grown, BATCHES)]}
        medians = {name: statistics.median(each) for name, each in rates.items()}
        shares = {name: rate / medians["encode"] for name, rate in medians.items() if name != "encode"}
        return {"rows_per_s": rates, "share_of_encode": shares}

    def adding_rate(self, path: Path, batches: int) -> float:
        """Rows a second of adding the rest to an index."""
        searcher, begin = vqd.open(path), time.perf_counter()
        for part in np.array_split(self.rest, batches):
            with training_threads(self.options.threads):
                searcher.add(self.x[part], self.ids[part].tolist())
        return len(self.rest) / (time.perf_counter() - begin)

    def encoding_rate(self, path: Path) -> float:
        """Rows a second of the encoding stage of a compile of the rows that are added, whose queries it knows."""
        progress = Seconds(time.perf_counter)
        with vqd.open_index(path) as reader, training_threads(self.options.threads):
            model, drawn = reader.model, CompilePlan.from_json(reader.manifest.plan)
            x = self.x[self.rest]
            terms = model.later_terms(x)
            known = replace(model, terms=terms, list_terms=terms)
            ids = self.ids[self.rest].tolist()
            src = open_source(x, metric="cosine", ids=ids)
            with tempfile.TemporaryDirectory(dir=self.options.work) as folder:
                vqd.build(replace(drawn, facts=src.facts), known, src, Path(folder) / "x.vqd", progress=progress)
        return len(self.rest) / progress.spent["encode"]

    def look_ups(self, searcher: Searcher) -> dict[str, float]:
        """Look up 10,000 random ids, one a call and all in one."""
        wanted = np.random.default_rng(1).choice(self.ids, 10_000).tolist()
        reader = searcher.reader
        reader.positions_of(wanted[:1])
        before, begin = _anonymous(), time.perf_counter()
        for key in wanted:
            reader.positions_of([key])
        one = time.perf_counter() - begin
        begin = time.perf_counter()
        assert (reader.positions_of(wanted) >= 0).all()
        return {
            "us_one_a_call": 1e6 * one / len(wanted),
            "us_in_one_call": 1e6 * (time.perf_counter() - begin) / len(wanted),
            "anonymous_bytes": _anonymous() - before,
        }

    def compare(self, once: Searcher, other: Searcher, rows: np.ndarray) -> dict[str, Any]:
        """Recall and queries a second of two indexes, searched in the same way."""
        wanted = self.ids[rows][self.exact(rows)]
        out: dict[str, Any] = {}
        nlist = once.reader.manifest.nlist
        for name, options in {
            "quarter of the lists": {"nprobe": nlist // 4, "refine": REFINE},
            "codes only": {"nprobe": nlist // 4, "refine": 0},
        }.items():
            recalls = [self.recall(searcher, wanted, options) for searcher in (once, other)]
            out[name] = {"recall": recalls} | self.speeds(once, other, options)
        out["resident_bytes"] = [searcher.reader.resident_bytes for searcher in (once, other)]
        return out

    def exact(self, rows: np.ndarray) -> np.ndarray:
        """True neighbours (q, K) of the queries among some of the documents, as places in `rows`."""
        found = np.empty((len(self.queries), K), np.int64)
        for at in range(0, len(found), 256):
            scores = self.queries[at : at + 256] @ self.x[rows].T
            found[at : at + 256] = np.argpartition(-scores, K, axis=1)[:, :K]
        return found

    def recall(self, searcher: Searcher, wanted: np.ndarray, options: dict[str, Any]) -> float:
        """Recall@K."""
        ids = searcher.search(self.queries, K, **options).ids
        return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(ids.tolist(), wanted.tolist(), strict=True)]))

    def speeds(self, once: Searcher, other: Searcher, options: dict[str, Any]) -> dict[str, Any]:
        """Queries a second of both, which take turns at batches of 256, and the ratio; the medians of the passes."""
        spent = np.zeros((PASSES, 2))
        for taken in spent:
            for at in range(0, len(self.queries), 256):
                for place, searcher in enumerate((once, other)):
                    begin = time.process_time()
                    searcher.search(self.queries[at : at + 256], K, threads=1, **options)
                    taken[place] += time.process_time() - begin
        rates = len(self.queries) / np.median(spent, axis=0)
        return {"queries_per_s": rates.tolist(), "speed_ratio": float(np.median(spent[:, 0] / spent[:, 1]))}

    def deletions(self, searcher: Searcher) -> dict[str, Any]:
        """Delete a random part; what comes back, and what is found of the rest."""
        gone = np.sort(np.random.default_rng(2).permutation(len(self.x))[: round(DELETED * len(self.x))])
        left = np.setdiff1d(np.arange(len(self.x)), gone)
        options = {"nprobe": searcher.reader.manifest.nlist // 4, "refine": REFINE}
        before = self.recall(searcher, self.ids[self.exact(np.arange(len(self.x)))], options)
        gc(searcher.reader.path)
        size, begin = _disk(searcher.reader.path), time.perf_counter()
        deleted = searcher.delete(self.ids[gone].tolist())
        out: dict[str, Any] = {"rows": deleted, "seconds": time.perf_counter() - begin}
        many = np.concatenate([self.queries, self.x[gone]])[:10_000]
        came_back = np.isin(searcher.search(many, 100, **options).ids, self.ids[gone]).sum()
        wanted = self.ids[left][self.exact(left)]
        out |= {"queries": len(many), "came_back": int(came_back), "recall_before": before}
        out["recall"] = self.recall(searcher, wanted, options)
        searcher.compact()
        gc(searcher.reader.path)
        out |= {"recall_compacted": self.recall(searcher, wanted, options), "problems": verify(searcher.reader.path)}
        return out | {"disk_bytes": [size, _disk(searcher.reader.path)]}


def _disk(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


def _anonymous() -> int:
    """Resident bytes of this process that are no file's."""
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
