"""An index in faiss against itself: how many results are equal, and how fast each is.

    python bench/exports.py ../shared/data/debian.h5 ../shared/data/pypi200k-int8.h5 --ram 16
    python bench/exports.py ../shared/data/pypi200k-int8.h5 --ram 16 --codes pq --refine 4000

An index is compiled, exported and opened by `faiss.read_index`. Results are compared rank by rank on all test queries:
at the same number of lists, which faiss picks without rounding queries to bytes and so now and then another last one;
and in the very lists that ours visits. One thread, passes in turn. Runs are stored as
bench/results/exports/<dataset>-<bytes>-<codes>-<candidates>.json and not repeated while that file exists.

Tables are rounded to bytes in both engines, each in its own way. Where few candidates of weak codes hardly reach the
true neighbours, many of these are the last candidate of one engine and none of the other; with more candidates that
ends.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import h5py
import numpy as np
from measuring import RESULTS, K, markdown, run, stored

import vqdistill as vqd
from vqdistill.index.trace import list_ranks
from vqdistill.interchange.agreement import refining
from vqdistill.interchange.faiss_files import names, read_faiss
from vqdistill.searcher import Searcher

SHARE, PASSES = 8, 3
"""One list in so many is visited; passes of which the median counts."""
HEADER = (
    "dataset",
    "B/vector",
    "codes",
    "candidates",
    "equal, same lists",
    "equal, as many lists",
    "queries/s",
    "of faiss",
)


def measure(dataset: Path, ram: int, codes: str, refine: int, threads: int) -> dict[str, Any]:
    """Compile, export and compare."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = f"{folder}/index.vqd", f"{folder}/index.faiss"
        options = ["--metric", "cosine", "--ram", f"{ram}B/vec", "--threads", str(threads), "--codes", codes]
        run("compile", str(dataset), "-o", path, *options, *(["--no-distill"] if codes == "pq" else []))
        report = vqd.export_index(path, out, to="faiss", numbered=True)
        searcher, index = vqd.open(path), read_faiss(Path(out))
        figures = compare(searcher, index, test_queries(dataset), refine)
    del report["out"]
    return {"dataset": dataset.stem, "ram_bytes_per_vector": ram, "codes": codes, "export": report} | figures


def test_queries(dataset: Path) -> Any:
    """Unit test queries (q, d) float32."""
    with h5py.File(dataset) as file:
        queries = file["test"][:].astype(np.float32)
    return queries / np.linalg.norm(queries, axis=1, keepdims=True)


def compare(searcher: Searcher, index: faiss.Index, queries: Any, refine: int) -> dict[str, Any]:
    """Shares of equal (query, rank) pairs, and queries a second."""
    faiss.omp_set_num_threads(1)
    nprobe = max(1, searcher.reader.manifest.nlist // SHARE)
    ivf, ids = faiss.extract_index_ivf(index), np.array([*map(int, names(searcher.reader)), -1])
    ivf.nprobe = nprobe
    refining(index).k_factor = refine / K
    seconds: list[list[float]] = [[], []]
    for _ in range(PASSES):
        begin = time.perf_counter()
        hits = searcher.search(queries, K, nprobe=nprobe, refine=refine)
        middle = time.perf_counter()
        _, found = index.search(queries, K)
        for each, taken in zip(seconds, (middle - begin, time.perf_counter() - middle), strict=True):
            each.append(taken)
    same = ids[in_the_same_lists(searcher, index, ivf, queries, nprobe, refine)]
    return {
        "queries": len(queries),
        "nprobe": nprobe,
        "refine": refine,
        "equal_same_lists": float((same == hits.ids).mean()),
        "equal_as_many_lists": float((ids[found] == hits.ids).mean()),
        "queries_per_s": [len(queries) / statistics.median(each) for each in seconds],
    }


def in_the_same_lists(
    searcher: Searcher, index: faiss.Index, ivf: faiss.IndexIVF, queries: Any, nprobe: int, refine: int
) -> Any:
    """Places (q, K) that faiss finds in the lists that ours visits, by its own codes and vectors."""
    reader = searcher.reader
    lists = np.argsort(list_ranks(reader, queries, None), axis=1)[:, :nprobe]
    base = np.take_along_axis(queries @ reader.model.coarse.T, lists, axis=1)
    turned = queries if reader.model.additive else np.ascontiguousarray(queries @ reader.model.rotation.T)
    _, candidates = ivf.search_preassigned(turned, refine, lists, np.ascontiguousarray(base))
    vectors = faiss.downcast_index(refining(index).refine_index)
    best = np.full((len(queries), K), -1)
    for at, query in enumerate(queries):
        mine = candidates[at][candidates[at] >= 0]
        order = np.argsort(-(vectors.reconstruct_batch(mine) @ query), kind="stable")[:K]
        best[at, : len(order)] = mine[order]
    return best


def row(result: dict[str, Any]) -> list[str]:
    """Return one line of the table."""
    ours, theirs = result["queries_per_s"]
    shares = (f"{result[name]:.4f}" for name in ("equal_same_lists", "equal_as_many_lists"))
    names = (result["dataset"], str(result["ram_bytes_per_vector"]), result["codes"], str(result["refine"]))
    return [*names, *shares, f"{ours:,.0f}", f"{theirs:,.0f}"]


def main() -> None:
    """Measure what has no stored result yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", type=Path)
    parser.add_argument("--ram", nargs="+", type=int, default=[16], help="bytes a vector")
    parser.add_argument("--codes", nargs="+", choices=("additive", "pq"), default=("additive", "pq"))
    parser.add_argument("--refine", type=int, default=400, help="candidates that are verified")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the compile")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = []
    for dataset in options.datasets:
        for ram in options.ram:
            for codes in options.codes:
                path = options.results / "exports" / f"{dataset.stem}-{ram}-{codes}-{options.refine}.json"
                rows.append(row(stored(path, partial(measure, dataset, ram, codes, options.refine, options.threads))))
    print(markdown(HEADER, rows))


if __name__ == "__main__":
    main()
