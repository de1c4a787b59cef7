"""Cold disk: reads of a query's candidates with the dense file evicted from the page cache before each of them.

    python bench/cold_disk.py pypi32.vqd ../shared/data/pypi200k-int8.h5

The candidates are the best by code of real queries; their rows are read and scored in four ways, taking turns.
Sequential pread is the plain baseline: the same rows, sorted by offset and merged by page, one read after another.
Prints one line for each claim with its ratio, and stores the raw figures in bench/results/cold_disk.json. Evicting and
counting need a copy of the file that nobody else reads: it is made beside the index.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from measuring import circumstances

import vqdistill
from vqdistill._native import RowReader
from vqdistill.bench.pages import PAGE, resident_pages
from vqdistill.kernels.units import unit_rows
from vqdistill.types import Metric, as_f32_rows

RESULTS = Path(__file__).parent / "results" / "cold_disk.json"
WAYS = {"io_uring": "uring", "sequential pread": "pread", "pread pool": "pread", "automatic": "auto"}
DEPTH = 128
"""Reads under way at the same time, but for sequential pread."""
I64 = npt.NDArray[np.int64]


class ColdFile:
    """A private copy of a file, with its page cache in view."""

    def __init__(self, source: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(dir=source.parent.parent, prefix="cold-disk-")
        path = Path(self._folder.name) / source.name
        shutil.copyfile(source, path)
        self.fd = os.open(path, os.O_RDWR)
        os.fsync(self.fd)  # only clean pages can be evicted
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_RANDOM)
        self.map = mmap.mmap(self.fd, 0, access=mmap.ACCESS_READ)
        self.map.madvise(mmap.MADV_RANDOM)

    def evict(self) -> None:
        """Drop the file from the page cache, and see that it is gone."""
        self.map.madvise(mmap.MADV_DONTNEED)  # mapped pages stay otherwise
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        left = resident_pages(self.fd)
        if left:
            raise SystemExit(f"{left} pages of the dense file cannot be evicted on this file system")


def pages_of(rows: I64, stride: int) -> int:
    """Count the distinct pages that hold rows (r,) of a dense file."""
    begins = PAGE + rows * stride
    first, last = begins // PAGE, (begins + stride - 1) // PAGE
    longest = int((last - first).max(initial=0))
    return len(np.unique([np.minimum(first + i, last) for i in range(longest + 1)]))


def measure(file: ColdFile, index: vqdistill.IndexReader, queries: Any, candidates: I64) -> dict[str, Any]:
    """Read the candidates of each query in every way, in turns."""
    manifest = index.manifest
    readers = {
        name: RowReader(
            fd=file.fd,
            map=file.map if io == "auto" else None,
            offset=PAGE,
            dtype=manifest.dense,
            d=manifest.d,
            io=io,
            depth=1 if name == "sequential pread" else DEPTH,
        )
        for name, io in WAYS.items()
    }
    metric = "l2" if manifest.metric is Metric.L2 else "ip"
    figures: dict[str, Any] = {name: {"ns": [], "pages_read": [], "pages_counted": []} for name in WAYS}
    for at in range(len(queries)):
        answers = []
        for turn in range(len(WAYS)):
            name = list(WAYS)[(at + turn) % len(WAYS)]
            file.evict()
            start = time.perf_counter_ns()
            scores, counts = readers[name].rerank(metric, queries[at : at + 1], candidates[at : at + 1])
            figures[name]["ns"].append(time.perf_counter_ns() - start)
            figures[name]["pages_read"].append(resident_pages(file.fd))
            figures[name]["pages_counted"].append(int(counts[0, 1]))
            answers.append(scores)
        assert all(np.array_equal(answer, answers[0]) for answer in answers)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--split", default="test", help="the queries: test, or learn_queries")
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--candidates", type=int, default=100)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with h5py.File(options.dataset) as data:
        queries = as_f32_rows(data[options.split][: options.queries], "queries")
    with vqdistill.open_index(options.index) as index:
        manifest = index.manifest
        queries = unit_rows(queries, "queries") if manifest.metric is Metric.COSINE else queries
        found = index.engine().search(queries, k=options.candidates, nprobe=manifest.search.nprobe, refine=0, threads=1)
        candidates = found[1]
        dense = manifest.segments["dense"]
        file = ColdFile(options.index / dense.file)
        figures = measure(file, index, queries, candidates)
        input_rows = index.rows_of(candidates)
    needed = [pages_of(rows, dense.row_bytes) for rows in candidates]
    in_input_order = [pages_of(rows, dense.row_bytes) for rows in input_rows]
    report(figures, needed, in_input_order, options)


def report(figures: dict[str, Any], needed: list[int], in_input_order: list[int], options: argparse.Namespace) -> None:
    """Print the lines and store the raw figures."""
    p50 = {name: float(np.median(figure["ns"])) / 1e6 for name, figure in figures.items()}
    base = p50["sequential pread"]
    print(f"{len(needed)} queries of {options.split}, {options.candidates} candidates each, file evicted before each")
    for name in ("io_uring", "automatic", "pread pool"):
        print(f"{name}: p50 {p50[name]:.2f} ms, sequential pread {base:.2f} ms, ratio {p50[name] / base:.2f}")
    read, distinct = np.mean(figures["io_uring"]["pages_read"]), np.mean(needed)
    print(f"io_uring: {read:.1f} pages read a query, {distinct:.1f} distinct pages needed, ratio {read / distinct:.3f}")
    plain = np.mean(in_input_order)
    print(f"list order: {distinct:.1f} pages a query, input order {plain:.1f}, ratio {distinct / plain:.2f}")
    raw = {
        "index": options.index.name,
        "split": options.split,
        "candidates": options.candidates,
        "pages_needed": needed,
        "pages_needed_in_input_order": in_input_order,
        "ways": figures,
    } | circumstances()
    RESULTS.write_text(json.dumps(raw, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
