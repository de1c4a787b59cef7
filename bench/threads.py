"""Two threads against one on batches of 256 queries of an index: the ratio of their speeds.

    python bench/threads.py pypi32.vqd ../shared/data/pypi200k-int8.h5

Needs two free cores. Medians of interleaved repetitions; each passes over several batches, one a call.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

import vqdistill
from vqdistill.data.sources import open_source
from vqdistill.kernels import cpu_level

BATCH, RATIO = 256, 1.8
"""Queries of a call; ratio that is wanted."""


def seconds(index: vqdistill.Searcher, batches: list[npt.NDArray[np.float32]], threads: int) -> float:
    """Time one pass over the batches, at the settings that compile calibrated."""
    start = time.perf_counter()
    for batch in batches:
        index.search(batch, k=10, threads=threads)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("dataset", type=Path, help="file with queries under the key test")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=9)
    options = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("threads.py needs two cores, got one")
    index = vqdistill.open(options.index)
    test = open_source(options.dataset, metric=index.reader.manifest.metric).companion("test")
    if test is None:
        raise SystemExit(f"{options.dataset} needs queries under the key test, got none")
    queries = test.take(np.arange(options.batches * BATCH) % test.n)
    batches = [queries[first : first + BATCH] for first in range(0, len(queries), BATCH)]
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.repetitions + 1):
        for threads, passes in times.items():
            passes.append(seconds(index, batches, threads))
    one, two = (len(queries) / statistics.median(passes[1:]) for passes in times.values())
    print(
        f"{options.index.name}, {cpu_level()}, batches of {BATCH}: one thread {one:,.0f} q/s, "
        f"two {two:,.0f} q/s, ratio {two / one:.2f} (target {RATIO})"
    )


if __name__ == "__main__":
    main()
