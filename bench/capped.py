"""A capped run: searches in little more memory than the index, with a dense file of ten times as much on disk.

    python bench/capped.py pypi24.vqd ../shared/data/pypi200k-int8.h5

Makes a larger index of the given one, out of noisy copies of its rows with float32 dense rows, and answers queries
from it in two processes: one limited to the resident bytes of the index and 64 MiB from its start on, interpreter
included, and one without a limit. The limit is a memory cgroup, which counts the page cache too, where one can be made
below our own; otherwise RLIMIT_DATA, which counts private memory only. Prints one line for each claim, and stores the
raw figures in bench/results/capped.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill import searcher
from vqdistill.bench.caps import Cap
from vqdistill.bench.pages import evict
from vqdistill.index.opening import open_index
from vqdistill.index.reader import IndexReader
from vqdistill.kernels.units import unit_rows
from vqdistill.types import Metric

F32 = npt.NDArray[np.float32]
RESULTS = Path(__file__).parent / "results" / "capped.json"
ALLOWANCE = 64 << 20
NOISE = 0.01
"""Standard deviation added to each element of a copied row; elements of a unit row of 384 have 0.05."""
BATCH = 250
K = 10


def rows_of_copies(base: IndexReader, copies: int) -> Iterator[F32]:
    """Yield blocks of noisy copies of the rows of an index; the first copy is exact."""
    rng = np.random.default_rng(0)
    for copy in range(copies):
        for start in range(0, base.manifest.n, 8192):
            rows = base.dense_rows(np.arange(start, min(start + 8192, base.manifest.n)))
            if copy:
                rows += NOISE * rng.standard_normal(rows.shape, dtype=np.float32)
            yield unit_rows(rows, "rows") if base.manifest.metric is Metric.COSINE else rows


def make_index(base: IndexReader, path: Path, copies: int) -> None:
    """Encode and write the copies with the model of `base`."""
    from vqdistill.index.writer import IndexWriter  # here, because the capped process needs no Numba

    manifest = base.manifest
    with IndexWriter(path, base.model, dense="f32", ids="rows", index_id=bytes(16)) as writer:
        for rows in rows_of_copies(base, copies):
            writer.add(None, base.model.encode(rows), rows)
        writer.publish(manifest.plan, manifest.search, {})


def exact_top(base: IndexReader, copies: int, queries: F32) -> npt.NDArray[np.int64]:
    """Return the true best K rows (q, K) of each query."""
    scores = np.full((len(queries), K), -np.inf, np.float32)
    ids = np.full((len(queries), K), -1)
    start = 0
    for rows in rows_of_copies(base, copies):
        block = queries @ rows.T
        best = np.argpartition(-block, K, axis=1)[:, :K]
        scores = np.concatenate([scores, np.take_along_axis(block, best, axis=1)], axis=1)
        ids = np.concatenate([ids, best + start], axis=1)
        kept = np.argpartition(-scores, K, axis=1)[:, :K]
        scores, ids = np.take_along_axis(scores, kept, axis=1), np.take_along_axis(ids, kept, axis=1)
        start += len(rows)
    return ids


def answer(index: str, queries: str, out: str) -> None:
    """Answer all queries in batches: the work of the processes that are compared."""
    start = time.perf_counter()
    rows = np.load(queries, mmap_mode="r")
    found, totals = np.empty((len(rows), K), np.int64), np.zeros(2, np.int64)
    opened = searcher.open(index)
    for at in range(0, len(rows), BATCH):
        hits = opened.search(np.array(rows[at : at + BATCH]), k=K)
        found[at : at + BATCH] = hits.ids
        totals += hits.stats["dense_rows"], hits.stats["dense_bytes"]
    np.save(out, found)
    figures = {"dense_rows": int(totals[0]), "dense_bytes": int(totals[1]), "peak_rss_bytes": peak_rss_bytes()}
    print(json.dumps(figures | {"seconds": time.perf_counter() - start}))


def peak_rss_bytes() -> int:
    """Return the peak of our resident set, pages of shared files included; getrusage would begin with our parent's."""
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def run(index: Path, queries: Path, out: Path, cap: Cap | None) -> dict[str, Any]:
    """Answer all queries in a process of its own, with the dense file evicted before."""
    evicted(index / "dense-1.seg")
    command = [sys.executable, __file__, "--answer", str(index), str(queries), str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=cap.join if cap else None,
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def evicted(path: Path) -> None:
    """Drop a file from the page cache, and see that it is gone: what is there already is charged to nobody."""
    if left := evict([path]):
        raise SystemExit(f"{left} bytes of {path.name} cannot be evicted on this file system")


def load_queries(dataset: str, split: str, count: int) -> F32:
    """Return `count` queries of a dataset, scaled to unit norm."""
    import h5py  # here, because the capped process needs no h5py

    with h5py.File(dataset) as data:
        rows = unit_rows(data[split][:count].astype(np.float32), "queries")
    if len(rows) < count:
        raise SystemExit(f"{split} has {len(rows)} queries, {count} are wanted")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("--split", default="learn_queries", help="the queries; test sets have too few")
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--judged", type=int, default=2_000, help="queries that recall is measured of")
    parser.add_argument("--copies", type=int, default=3)
    options = parser.parse_args()
    queries = load_queries(options.dataset, options.split, options.queries)
    with tempfile.TemporaryDirectory(dir=options.index.absolute().parent, prefix="capped-") as folder:
        large, path = Path(folder) / "large.vqd", Path(folder) / "queries.npy"
        np.save(path, queries)
        with open_index(options.index) as base:
            make_index(base, large, options.copies)
            truth = exact_top(base, options.copies, queries[: options.judged])
        with open_index(large) as reader:
            resident, dense = reader.resident_bytes, reader.manifest.segments["dense"].bytes
        limit = resident + ALLOWANCE
        runs, found = {}, {}
        for name in ("uncapped", "capped"):
            out = Path(folder) / f"{name}.npy"
            if name == "uncapped":
                runs[name] = run(large, path, out, None)
            else:
                with Cap(limit) as cap:
                    runs[name] = run(large, path, out, cap) | {"limit": cap.kind, "peak_charged": cap.peak_bytes()}
            found[name] = np.load(out)
    recall = {name: recall_at_k(ids, truth) for name, ids in found.items()}
    equal = float((found["capped"] == found["uncapped"]).all(axis=1).mean())
    report(runs, recall, equal, resident, dense, limit, options)


def recall_at_k(ids: npt.NDArray[np.int64], truth: npt.NDArray[np.int64]) -> float:
    """Return the share of the true best rows that were found, over the judged queries."""
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(ids, truth, strict=False)]))


def report(
    runs: dict[str, Any],
    recall: dict[str, float],
    equal: float,
    resident: int,
    dense: int,
    limit: int,
    options: argparse.Namespace,
) -> None:
    """Print the lines and store the raw figures."""
    from measuring import circumstances  # here, because the capped process needs no Numba

    mib = 1 << 20
    capped, free = runs["capped"], runs["uncapped"]
    peak = capped["peak_charged"] or capped["peak_rss_bytes"]
    print(f"limit ({capped['limit']}): {resident / mib:.1f} MiB resident + 64 MiB = {limit / mib:.1f} MiB")
    print(f"dense file: {dense / mib:.0f} MiB, ratio to the limit {dense / limit:.1f}")
    print(
        f"peak charged: {peak / mib:.1f} MiB, peak RSS with shared libraries {capped['peak_rss_bytes'] / mib:.1f} MiB"
    )
    print(
        f"recall@{K} of {options.judged} queries: capped {recall['capped']:.4f}, uncapped {recall['uncapped']:.4f}; "
        f"{equal:.2%} of {options.queries} answers equal"
    )
    print(
        f"{options.queries} queries: capped {capped['seconds']:.1f} s, uncapped {free['seconds']:.1f} s, "
        f"ratio {capped['seconds'] / free['seconds']:.2f}"
    )
    raw = {
        "index": options.index.name,
        "queries": options.queries,
        "judged": options.judged,
        "resident_bytes": resident,
        "dense_bytes": dense,
        "limit_bytes": limit,
        "recall": recall,
        "equal_answers": equal,
        "runs": runs,
    } | circumstances()
    RESULTS.write_text(json.dumps(raw, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answer"]:
        answer(*sys.argv[2:])
    else:
        main()
