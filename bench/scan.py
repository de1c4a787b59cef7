"""Exhaustive scan of 4-bit codes with the best R kept: vqdistill against faiss.IndexPQFastScan, one thread, same codes.

    python bench/scan.py --rows 200000 --m 64 --best 100

Prints a line for single queries and one for a batch: million codes a second of both, medians of interleaved
repetitions, and their ratio. Random codes and codebooks; the times do not depend on what the codes mean.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import faiss
import numpy as np
import numpy.typing as npt

from vqdistill.kernels import Engine, cpu_level, pack_codes, scan_order

D = 384
F32 = npt.NDArray[np.float32]
Search = Callable[[F32], npt.NDArray[np.int64]]


def ours(codes: npt.NDArray[np.uint8], codewords: F32, best: int) -> Search:
    """Return an exhaustive search of one list."""
    zeros = np.zeros((1, D), np.float32)
    engine = Engine(
        metric="ip",
        residual=False,
        list_offsets=np.array([0, len(codes)]),
        router=zeros,
        coarse=zeros,
        mean=zeros[0],
        rotation=np.eye(D, dtype=np.float32),
        codewords=codewords,
        packed=scan_order(pack_codes(codes)),
    )
    return lambda queries: engine.search(queries, k=best, nprobe=1, refine=0, threads=1)[1]


def theirs(codes: npt.NDArray[np.uint8], codewords: F32, best: int) -> Search:
    """Return the search of a faiss index with the same codes and codewords."""
    flat: Any = faiss.IndexPQ(D, codes.shape[1], 4, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(codewords.ravel(), flat.pq.centroids)
    faiss.copy_array_to_vector((codes[:, 0::2] | codes[:, 1::2] << 4).ravel(), flat.codes)
    flat.is_trained, flat.ntotal = True, len(codes)
    index = faiss.IndexPQFastScan(flat)
    return lambda queries: index.search(queries, best)[1]


def seconds(search: Search, batches: list[F32]) -> float:
    """Time one pass over the batches."""
    start = time.perf_counter()
    for batch in batches:
        search(batch)
    return time.perf_counter() - start


def compare(name: str, searches: tuple[Search, Search], batches: list[F32], rows: int, repetitions: int) -> str:
    """Time both in turns; return the line."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repetitions + 1):
        for search, passes in zip(searches, times, strict=True):
            passes.append(seconds(search, batches))
    scanned = rows * sum(len(batch) for batch in batches) / 1e6
    mine, other = (scanned / statistics.median(passes[1:]) for passes in times)
    return f"{name}: vqdistill {mine:.0f} M/s, faiss {other:.0f} M/s, ratio {mine / other:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--m", type=int, default=64, help="subspaces, a divisor of 384; a row takes m / 2 bytes")
    parser.add_argument("--best", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=9)
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (options.rows, options.m), dtype=np.uint8)
    codewords = rng.standard_normal((options.m, 16, D // options.m), dtype=np.float32)
    queries = rng.standard_normal((256, D), dtype=np.float32)
    searches = ours(codes, codewords, options.best), theirs(codes, codewords, options.best)
    shared = np.mean([len(set(a) & set(b)) for a, b in zip(*(search(queries) for search in searches), strict=True)])
    print(f"{options.rows} rows, m={options.m}, {cpu_level()}, best {options.best}: {shared:.1f} of them in common")
    singles = [queries[i : i + 1] for i in range(64)]
    for name, batches in (("single", singles), ("batch of 256", [queries])):
        print(compare(name, searches, batches, options.rows, options.repetitions), flush=True)


if __name__ == "__main__":
    main()
