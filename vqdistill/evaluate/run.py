"""Measure an index on test queries, exact neighbours and labels of a data set."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.config import SearchParams
from vqdistill.data.sources import EmbeddingSource, open_source
from vqdistill.data.teacher import ExactTeacher
from vqdistill.errors import InvalidInput
from vqdistill.evaluate import metrics
from vqdistill.evaluate.ladder import QuerySet
from vqdistill.evaluate.memory import rss_delta_bytes
from vqdistill.index.opening import open_index
from vqdistill.index.reader import IndexReader
from vqdistill.searcher import Searcher
from vqdistill.types import F32Rows

_TIMED_QUERIES = 500
"""Queries answered one at a time for the latency percentiles."""
_LABEL_DEPTH = 100
"""Results per query for label recall."""


@dataclass(frozen=True)
class TestSet(QuerySet):
    """Queries that nothing was tuned on, with what is right for them."""

    labels: npt.NDArray[Any] | None
    """(q,) or (q, l) right rows, -1 padding; None where the data set has none"""


def load_test_set(dataset: str | Path, reader: IndexReader, k: int, threads: int) -> TestSet:
    """Read test queries of an HDF5 file in the ann-benchmarks layout; neighbours are computed if they are missing.

    Raises
    ------
    InvalidInput
        If the file has no test queries, or is not what the index was compiled from.
    """
    manifest = reader.manifest
    src = open_source(dataset, metric=manifest.metric)
    if (src.n, src.dim) != (manifest.n, manifest.d):
        raise InvalidInput(
            f"{src.name} is {src.n} x {src.dim}, but the index was compiled from {manifest.n} x {manifest.d}"
        )
    test = src.companion("test")
    if test is None:
        raise InvalidInput(f"{dataset} needs test queries under the key test to evaluate on")
    queries = test.take(np.arange(test.n))
    neighbors = _neighbors(src, queries, k, threads)
    return TestSet(queries, neighbors, src.companion("test_labels"))


def _neighbors(src: EmbeddingSource, queries: F32Rows, k: int, threads: int) -> npt.NDArray[np.int64]:
    known = src.companion("neighbors")
    if known is not None and known.shape[0] == len(queries) and known.shape[1] >= k:
        return known.astype(np.int64)
    depth = min(src.n, max(k, _LABEL_DEPTH))
    return ExactTeacher(src, threads=threads).relevance(queries, depth).docs.reshape(len(queries), -1)


def evaluate(
    index: str | Path,
    dataset: str | Path,
    *,
    k: int = 10,
    nprobe: int | None = None,
    coverage: float | None = None,
    refine: int | None = None,
    confidence: float | None = None,
    recall: float | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """Measure recall, ranking, speed and memory of an index.

    Parameters
    ----------
    index : directory of the index
    dataset : HDF5 file that it was compiled from, with `test` and, if it has them, `neighbors` and `test_labels`
    k, nprobe, coverage, refine, confidence, recall, threads : as for `Searcher.search`

    Returns
    -------
    dict
        `recall_at_k` after verification, `recall_at_k_codes_only`, `candidate_recall` (share of the exact top k inside
        the best `refine`, at least k, by code), `queries_per_s` of one batch, `p50_ms` and `p99_ms` of single queries,
        `lists_per_query`, `codes_scanned_per_query`, `dense_reads_per_query`, bytes (`ram_bytes_per_vector`,
        `ram_bytes_fixed`, `disk_bytes`,
        `rss_delta_bytes` of a fresh process) and, with labels, `mrr_at_10`, `recall_at_100` and `teacher_mrr_at_10`.

    Raises
    ------
    InvalidInput
        If the data set does not belong to the index, or an option is out of range.
    """
    options: dict[str, Any] = {"nprobe": nprobe, "coverage": coverage, "refine": refine, "confidence": confidence}
    SearchParams(**options, recall=recall, threads=threads)
    with open_index(index) as reader:
        searcher = Searcher(reader)
        ranking = options if recall is None else {"recall": recall}
        if recall is not None:
            options = searcher.rung(recall, k).options
        test = load_test_set(dataset, reader, k, threads)
        probing = {"nprobe": options["nprobe"], "coverage": options["coverage"], "threads": threads}
        verification = {"refine": options["refine"], "confidence": options["confidence"]}
        most = max(k, reader.manifest.search.refine) if options["refine"] is None else options["refine"]
        measured = _quality(searcher, test, k, most, ranking, probing, verification)
        measured |= _speed(searcher, test, k, ranking | {"threads": threads})
        sizes = _sizes(reader)
    sizes["rss_delta_bytes"] = rss_delta_bytes(index, test.queries, probing)
    asked = {"k": k, "queries": len(test.queries), "threads": threads, "recall": recall}
    return asked | options | {"refine": most} | measured | sizes


def _quality(
    searcher: Searcher,
    test: TestSet,
    k: int,
    most: int,
    ranking: dict[str, Any],
    probing: dict[str, Any],
    verification: dict[str, Any],
) -> dict[str, float]:
    by_code = searcher.search(test.queries, max(k, min(most, searcher.reader.manifest.n)), refine=0, **probing)
    ranked = searcher.search(test.queries, k, threads=probing["threads"], **ranking).rows
    found = {
        "recall_at_k": metrics.recall_at_k(ranked, test.neighbors, k),
        "recall_at_k_codes_only": metrics.recall_at_k(by_code.rows, test.neighbors, k),
        "candidate_recall": metrics.candidate_recall(by_code.rows, test.neighbors, k),
    }
    if test.labels is not None:
        depth = min(searcher.reader.manifest.n, max(k, _LABEL_DEPTH))
        deeper = verification | ({"refine": max(verification["refine"], depth)} if verification["refine"] else {})
        final = searcher.search(test.queries, depth, **probing, **deeper)
        top = min(10, depth)
        found["mrr_at_10"] = metrics.mrr_at_k(final.rows, test.labels, top)
        found["recall_at_100"] = metrics.label_recall_at_k(final.rows, test.labels, depth)
        found["teacher_mrr_at_10"] = metrics.mrr_at_k(test.neighbors, test.labels, min(top, test.neighbors.shape[1]))
    return {name: float(values.mean()) for name, values in found.items()}


def _speed(searcher: Searcher, test: TestSet, k: int, options: dict[str, Any]) -> dict[str, float]:
    searcher.search(test.queries[:64], k, **options)
    begin = time.perf_counter()
    hits = searcher.search(test.queries, k, **options)
    seconds = time.perf_counter() - begin
    single = []
    for query in test.queries[:_TIMED_QUERIES]:
        begin = time.perf_counter()
        searcher.search(query, k, **options)
        single.append(time.perf_counter() - begin)
    p50, p99 = np.percentile(single, [50, 99]) * 1e3
    q = len(test.queries)
    return {
        "queries_per_s": q / seconds,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "dense_reads_per_query": hits.stats["dense_rows"] / q,
        "codes_scanned_per_query": hits.stats["codes_scanned"] / q,
        "lists_per_query": hits.stats["lists_probed"] / q,
    }


def _sizes(reader: IndexReader) -> dict[str, float]:
    codes = sum(rows.segments["codes"].bytes for rows in reader.manifest.sets)
    return {
        "ram_bytes_per_vector": reader.manifest.m / 2,
        "ram_bytes_fixed": reader.resident_bytes - codes,
        "ram_bytes": reader.resident_bytes,
        "disk_bytes": reader.disk_bytes,
    }
