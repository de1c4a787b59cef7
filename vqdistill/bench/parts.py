"""The raw parts of a dataset, from files in any layout that is known here."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.data.judgments import read_labels
from vqdistill.data.relevance import Relevance
from vqdistill.data.sources import EmbeddingSource, open_queries, open_source
from vqdistill.errors import InvalidInput
from vqdistill.types import Block, F32Rows, Metric

TUNE_QUERIES = 1000
"""Queries that every system is tuned on; nobody trains on them."""
MAX_TEST_QUERIES = 10_000
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Parts:
    """Documents and queries, prepared for their metric."""

    name: str
    source: EmbeddingSource
    test: F32Rows
    """(q, d) queries to measure with"""
    tune: F32Rows
    """(t, d) queries to tune on"""
    learn: F32Rows | None
    """(l, d) queries that a build may train on; None = there are none"""
    neighbors: I64 | None = None
    """(q, >= 10) exact neighbours of the test queries; None = to be found"""
    qrels: Relevance | None = None
    """relevant documents of the test queries, with grades"""
    held_out: I64 = field(default_factory=lambda: np.empty(0, np.int64))
    """rows of the source that became queries and are no documents"""
    queries_from: str = "the file"
    """where queries come from"""

    @property
    def metric(self) -> Metric:
        """Of the source."""
        return self.source.metric

    @property
    def n_docs(self) -> int:
        """Documents: the rows that did not become queries."""
        return self.source.n - len(self.held_out)

    @property
    def dim(self) -> int:
        """Dimensions of a row."""
        return self.source.dim

    def blocks(self, rows: int) -> Iterator[Block]:
        """Yield the documents, at most `rows` at a time."""
        start = 0
        for block in self.source.blocks(rows):
            numbers = np.arange(block.start, block.start + len(block.rows))
            kept = block.rows[~np.isin(numbers, self.held_out)]
            yield Block(start, kept)
            start += len(kept)

    def fingerprint(self) -> str:
        """Hex digest of the content."""
        digest = hashlib.blake2b(self.source.fingerprint().encode(), digest_size=16)
        for part in (self.test, self.tune, self.learn, self.neighbors, self.held_out):
            digest.update(b"" if part is None else np.ascontiguousarray(part).data)
        for array in () if self.qrels is None else (self.qrels.offsets, self.qrels.docs, self.qrels.scores):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def origin(self) -> dict[str, Any]:
        """Return what the report says of it."""
        counts = {"documents": self.n_docs, "test_queries": len(self.test), "tune_queries": len(self.tune)}
        learn = 0 if self.learn is None else len(self.learn)
        about = {"metric": self.metric.value, "queries_from": self.queries_from, "labels": self.qrels is not None}
        return counts | about | {"learn_queries": learn, "fingerprint": self.fingerprint()}


def from_files(
    source: str, queries: str | None, learn: str | None, neighbors: str | None, metric: str | None, seed: int
) -> Parts:
    """Open an embedding file or HDF5 of ann-benchmarks or VIBE; queries that are missing are made.

    Without test queries, rows of the file become queries and are no documents any more. Without learn queries, a fifth
    of the test queries, at most 1,000, is tuned on and not measured with.
    """
    src = open_source(source, metric=metric)
    test = src.companion("test") if queries is None else open_queries(queries, src, ("test", "queries", "query"))
    taught = src.companion("learn_queries") if learn is None else open_queries(learn, src)
    name = Path(source.partition(":")[0]).stem
    if test is None:
        return _held_out(name, src, taught, seed)
    if test.n < 2 or src.n < 10:
        raise InvalidInput(f"{source} must have 10 documents and 2 test queries at least, got {src.n} and {test.n}")
    known = src.companion("neighbors") if neighbors is None and queries is None else None
    if neighbors is not None:
        known = read_neighbors(Path(neighbors))
    labels = None if queries is not None else src.companion("test_labels")
    qrels = None if labels is None else read_labels(labels, n_queries=test.n, n_docs=src.n)
    kept = np.arange(test.n)
    if taught is None:
        few, kept = _drawn(test.n, min(TUNE_QUERIES, test.n // 5 or 1), seed)
        tune, rest, made = test.take(few), None, "the file; a part of the test queries is tuned on"
    else:
        tune, rest = split_learn(taught, seed)
        made = "the file"
    kept = kept[:MAX_TEST_QUERIES]
    if known is not None:
        known = _checked_neighbors(known, test.n, src.n)[kept]
    labelled = None if qrels is None else qrels.select(kept)
    return Parts(name, src, test.take(kept), tune, rest, known, labelled, queries_from=made)


def split_learn(learn: EmbeddingSource, seed: int) -> tuple[F32Rows, F32Rows | None]:
    """Return the queries to tune on, and those to train on if any are left."""
    few, rest = _drawn(learn.n, min(TUNE_QUERIES, max(1, learn.n // 2)), seed)
    return learn.take(few), learn.take(rest) if len(rest) else None


def _held_out(name: str, src: EmbeddingSource, learn: EmbeddingSource | None, seed: int) -> Parts:
    count = min(2 * TUNE_QUERIES, src.n // 10)
    if count < 2:
        raise InvalidInput(f"{src.name} must have 20 rows at least to draw queries from, got {src.n}")
    held, _ = _drawn(src.n, count, seed)
    made = "rows of the file, which are no documents then"
    if learn is None:
        rows = src.take(held)
        return Parts(name, src, rows[::2].copy(), rows[1::2].copy(), None, held_out=held, queries_from=made)
    tune, rest = split_learn(learn, seed)
    return Parts(name, src, src.take(held), tune, rest, held_out=held, queries_from=made)


def _drawn(n: int, count: int, seed: int) -> tuple[I64, I64]:
    """Draw `count` of n numbers; return them and the others, sorted."""
    order = np.random.default_rng([seed, 6]).permutation(n)
    return np.sort(order[:count]), np.sort(order[count:])


def read_neighbors(path: Path) -> I64:
    """Read neighbours (q, k): any integer array that `open_source` reads, or a big-ann ground truth.

    Raises
    ------
    InvalidInput
        If the file is neither.
    """
    if path.suffix == ".ibin" and (known := _ground_truth(path)) is not None:
        return known
    src = open_source(path, metric="ip")
    return np.concatenate([block.rows for block in src.blocks()]).astype(np.int64)


def _ground_truth(path: Path) -> I64 | None:
    """Read uint32 q, k, then int32 ids and float32 distances; None if the size is another one."""
    try:
        with path.open("rb") as file:
            q, k = struct.unpack("<II", file.read(8))
            if path.stat().st_size != 8 + 8 * q * k:
                return None
            return np.fromfile(file, "<i4", q * k).reshape(q, k).astype(np.int64)
    except (OSError, struct.error) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from None


def _checked_neighbors(ids: npt.NDArray[Any], queries: int, n: int) -> I64:
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or len(ids) != queries or ids.shape[1] < 10:
        raise InvalidInput(f"neighbors must be ({queries}, at least 10) integers, got {ids.shape} {ids.dtype}")
    wide = ids.astype(np.int64)[:, :100]
    if wide.min() < 0 or wide.max() >= n:
        raise InvalidInput(f"neighbors must be rows 0..{n - 1}, got {wide.min()} and {wide.max()}")
    return wide
