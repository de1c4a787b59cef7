"""A compile that goes on from the model of nine tenths of the rows, against one from nothing: recall and CPU seconds.

    python bench/warm_start.py ../shared/data/pypi200k-int8.h5 --work build/warm

Training time is the CPU time of all stages but teaching, encoding, certifying and writing, which both have in common.
Figures go to results/warm-<dataset>.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from measuring import RESULTS, K, Seconds, stored

import vqdistill as vqd

COMMON = (
    "exact teacher",
    "index teacher",
    "read training rows",
    "encode",
    "write index",
    "certificate",
    "pseudo-queries",
)
"""Stages that a warm start leaves as they are."""
OLD_SHARE = 0.9
REFINE = 100


def main() -> None:
    """Measure, unless the result is there, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="indexes are kept here")
    parser.add_argument("--ram", default="24B/vec")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(stored(RESULTS / f"warm-{options.dataset.stem}.json", lambda: measure(options)))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Compile nine tenths, then all rows both ways."""
    with h5py.File(options.dataset) as file:
        scale = file.attrs.get("scale", 1.0)
        x, queries, learn = (
            file[name][:].astype(np.float32) * np.float32(scale) for name in ("train", "test", "learn_queries")
        )
        wanted = file["neighbors"][:, :K]
    old = np.sort(np.random.default_rng(0).permutation(len(x))[: round(OLD_SHARE * len(x))])
    out: dict[str, Any] = {"documents": len(x), "old": len(old)}
    for name, rows, start in (("old", old, None), ("scratch", slice(None), None), ("warm", slice(None), "old")):
        path, progress = options.work / f"{name}.vqd", Seconds()
        warm = None if start is None else options.work / f"{start}.vqd"
        fixed = {"queries": learn, "ram": options.ram, "threads": options.threads, "progress": progress}
        report = vqd.compile(x[rows], path, warm_start=warm, **fixed)
        if name == "old":
            continue
        training = sum(spent for stage, spent in progress.spent.items() if stage not in COMMON)
        searcher = vqd.open(path)
        nprobe = searcher.reader.manifest.nlist // 4
        recalls = {}
        for way, ask in {
            "defaults": {},
            "quarter of the lists": {"nprobe": nprobe, "refine": REFINE},
            "codes only": {"nprobe": searcher.reader.manifest.nlist, "refine": 0},
        }.items():
            ids = searcher.search(queries, K, **ask).ids
            recalls[way] = float(
                np.mean([len(set(a) & set(b)) / K for a, b in zip(ids.tolist(), wanted.tolist(), strict=True)])
            )
        stages = report["report"].get("stages", [])
        out[name] = {"training_s": training, "stages_s": progress.spent, "recall": recalls, "stages": stages}
    out["share_of_time"] = out["warm"]["training_s"] / out["scratch"]["training_s"]
    return out


if __name__ == "__main__":
    main()
