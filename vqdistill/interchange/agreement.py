"""Hold an exported index against the one that it was made of: the same queries, lists and candidates."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np

from vqdistill.index.reader import IndexReader
from vqdistill.interchange.faiss_files import names, read_faiss
from vqdistill.searcher import Searcher
from vqdistill.types import F32Rows

QUERIES = 200
K = 10


def agreement(
    reader: IndexReader, path: Path, *, numbered: bool, refine: bool, queries: F32Rows | None = None
) -> float:
    """Share of our results that faiss finds as well, at the number of lists and candidates that the index defaults to.

    Ours are searched without what faiss has no word for: coverage and early stopping.

    Parameters
    ----------
    path : file of the faiss index
    numbered : whether its ids are places of rows
    refine : whether it verifies candidates
    queries : (q, d) float32; None = learn queries of the index, or else some of its rows

    Returns
    -------
    float
        In 0..1.
    """
    queries = some_queries(reader) if queries is None else queries
    index = read_faiss(path)
    policy, k = reader.manifest.search, min(K, reader.manifest.n)
    candidates = max(k, policy.refine) if refine else 0
    if refine:
        refining(index).k_factor = candidates / k
    _, found = index.search(np.ascontiguousarray(queries), k)
    ids = Searcher(reader).search(queries, k, nprobe=policy.nprobe, refine=candidates).ids.astype(str)
    if numbered:
        order = np.array([*names(reader), ""])  # -1, which is a missing result, is the last
        theirs = order[found]
    else:
        theirs = found.astype(str)
    return float(np.mean([len(np.intersect1d(a, b)) / len(np.unique(a)) for a, b in zip(ids, theirs, strict=True)]))


def some_queries(reader: IndexReader) -> F32Rows:
    """Learn queries that an index keeps; or some of its rows; or, where it has neither, its lists."""
    learned = reader.model.learned
    if learned is not None and len(learned.queries):
        picked = np.linspace(0, len(learned.queries) - 1, min(QUERIES, len(learned.queries))).astype(np.int64)
        return np.ascontiguousarray(learned.queries[picked])
    if reader.manifest.dense == "none":
        return reader.router[:QUERIES]
    return reader.dense_rows(np.linspace(0, reader.manifest.n - 1, min(QUERIES, reader.manifest.n)).astype(np.int64))


def refining(index: faiss.Index) -> faiss.IndexRefine:
    """The part of a faiss index that verifies candidates."""
    index = faiss.downcast_index(index)
    while not isinstance(index, faiss.IndexRefine):
        index = faiss.downcast_index(index.index)
    return index
