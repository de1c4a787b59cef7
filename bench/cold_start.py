"""Seconds from a cold process to the first result of an index, less those of starting Python with NumPy.

    python bench/cold_start.py pypi32.vqd ../shared/data/pypi200k-int8.h5

Fresh processes take turns; medians count. "cold" drops the pages of the index from the cache before each process,
"warm" leaves them. Libraries are in the cache in both. Results go to bench/results/cold_start.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import RESULTS, circumstances

from vqdistill.data.sources import open_source

WANTED_S = 0.5
BARE = "import numpy, sys; q = numpy.load(sys.argv[2])"
SEARCH = "import numpy, sys, vqdistill; q = numpy.load(sys.argv[2]); vqdistill.open(sys.argv[1]).search(q, k=10)"


def main() -> None:
    """Measure, keep and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("dataset", type=Path, help="file with queries under the key test")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS / "cold_start.json")
    options = parser.parse_args()
    test = open_source(options.dataset, metric="cosine").companion("test")
    if test is None:
        raise SystemExit(f"{options.dataset} needs queries under the key test, got none")
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file, test.take(np.arange(1)))
        file.flush()
        result = measure(options.index, file.name, options.repetitions)
    options.out.write_text(json.dumps(result | circumstances(), indent=1, sort_keys=True) + "\n")
    print(json.dumps(result, indent=1))


def measure(index: Path, query: str, repetitions: int) -> dict[str, Any]:
    """Return medians of fresh processes that take turns; the first of each does not count."""
    times: dict[str, list[float]] = {"python_with_numpy": [], "warm": [], "cold": []}
    for _ in range(repetitions + 1):
        for name, seconds in times.items():
            if name == "cold":
                evict(index)
            begin = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", BARE if name == "python_with_numpy" else SEARCH, index, query], check=True
            )
            seconds.append(time.perf_counter() - begin)
    medians = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}
    more = {f"{name}_more_s": medians[name] - medians["python_with_numpy"] for name in ("warm", "cold")}
    return {f"{name}_s": seconds for name, seconds in medians.items()} | more | {"wanted_s": WANTED_S, "raw_s": times}


def evict(index: Path) -> None:
    """Drop the pages of an index from the page cache."""
    for path in index.iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


if __name__ == "__main__":
    main()
