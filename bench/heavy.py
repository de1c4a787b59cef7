"""Two threads against one on single queries that scan 4 M rows of 16 bytes: the ratio of their speeds.

    python bench/heavy.py

Needs two free cores. Random codes; the times do not depend on what they mean. Medians of interleaved repetitions.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import numpy as np

from vqdistill.kernels import Engine, cpu_level

D, M, NLIST = 32, 32, 2048


def engine(rows: int, rng: np.random.Generator) -> Engine:
    """Return an index of random codes in lists of equal length."""
    lists = rng.standard_normal((NLIST, D), dtype=np.float32)
    return Engine(
        metric="ip",
        residual=False,
        list_offsets=np.linspace(0, rows, NLIST + 1).astype(np.int64),
        router=lists,
        coarse=lists,
        mean=np.zeros(D, np.float32),
        rotation=np.eye(D, dtype=np.float32),
        codewords=rng.standard_normal((M, 16, 1), dtype=np.float32),
        packed=rng.integers(0, 256, (-(-rows // 32), M // 2, 32), dtype=np.uint8),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--repetitions", type=int, default=41)
    options = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("heavy.py needs two cores, got one")
    rng = np.random.default_rng(0)
    index = engine(options.rows, rng)
    queries = rng.standard_normal((options.repetitions + 1, 1, D), dtype=np.float32)
    for name, nprobe in (("flat", NLIST), ("half of the lists", NLIST // 2)):
        times: dict[int, list[float]] = {1: [], 2: []}
        for query in queries:
            for threads, taken in times.items():
                start = time.perf_counter()
                index.search(query, k=100, nprobe=nprobe, refine=0, threads=threads)
                taken.append(time.perf_counter() - start)
        one, two = (1e3 * statistics.median(taken[1:]) for taken in times.values())
        print(
            f"{name}, {options.rows:,} rows of {M // 2} B, {cpu_level()}, single queries: one thread {one:.2f} ms, "
            f"two {two:.2f} ms, ratio {one / two:.2f}"
        )


if __name__ == "__main__":
    main()
