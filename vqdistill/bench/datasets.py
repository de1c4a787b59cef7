"""Datasets of a benchmark: documents, queries to tune on and to measure with, and what is right for them."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from vqdistill.bench.beir import is_beir, open_beir
from vqdistill.bench.parts import Parts, from_files
from vqdistill.bench.verify import F16Rows, map_rows
from vqdistill.data.exact import exact_top
from vqdistill.data.relevance import Relevance
from vqdistill.errors import InvalidInput
from vqdistill.types import Block, F32Rows, Facts, Metric

DEPTH = 100
"""Exact neighbours that are kept of each query."""
_BLOCK = 16_384
_FORMAT = 1
_CHECKED = 32
"""Queries of a file's own neighbours that are compared with an exact search."""


@dataclass(frozen=True)
class Truth:
    """What is right for the queries of one split."""

    ids: npt.NDArray[np.int64]
    """(q, depth) exact nearest rows, best first"""
    scores: npt.NDArray[np.float32]
    """(q, depth) their similarities"""


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset in a folder."""

    folder: Path
    name: str
    metric: str
    """"ip" (of unit rows under cosine) or "l2" """
    n: int
    dim: int
    origin: dict[str, Any]
    """what the report says of it: fingerprint, metric as given, where queries are from"""

    @property
    def facts(self) -> Facts:
        """What planning needs."""
        return Facts(n=self.n, dim=self.dim, dtype="float32", metric=Metric(self.metric))

    @property
    def truth_path(self) -> Path:
        """Neighbours and labels; all that scoring needs beside the runs."""
        return self.folder / "truth.h5"

    def path(self, part: str) -> Path:
        """Return the .npy of docs, learn, tune or test."""
        return self.folder / "dataset" / f"{part}.npy"

    def rows(self, part: str) -> F32Rows:
        """Map docs, or read queries."""
        array: F32Rows = np.load(self.path(part), mmap_mode="r" if part == "docs" else None)
        return array

    @property
    def f16_path(self) -> Path:
        """The float16 rows that verify candidates of every system."""
        return self.path("rows-f16")

    def f16(self) -> F16Rows:
        """Map them."""
        return map_rows(self.f16_path)

    def truth(self, split: str) -> Truth:
        """Return the neighbours of "test" or "tune" queries."""
        return read_truth(self.truth_path, split)


def read_truth(path: Path, split: str = "test") -> Truth:
    """Read the neighbours of one split."""
    with h5py.File(path) as file:
        return Truth(file[f"{split}/ids"][:], file[f"{split}/scores"][:])


def read_qrels(path: Path) -> Relevance | None:
    """Read which documents are relevant to the test queries, and how much; None if that is not known."""
    with h5py.File(path) as file:
        if "qrels" not in file:
            return None
        group = file["qrels"]
        return Relevance(group["offsets"][:], group["docs"][:], group["grades"][:])


def prepare(
    source: str,
    out: Path,
    *,
    queries: str | None = None,
    learn: str | None = None,
    neighbors: str | None = None,
    metric: str | None = None,
    seed: int = 0,
    threads: int = 1,
) -> Dataset:
    """Prepare a dataset below `out`, or open what was prepared from the same content.

    Parameters
    ----------
    source : embedding file, ann-benchmarks or VIBE HDF5, BEIR-style folder, or the name of a public set
    queries, learn : files of test and learn queries, instead of what lies beside the documents
    neighbors : exact neighbours of the test queries, an integer array or a big-ann ground-truth file
    metric : None = what the file says, otherwise cosine

    Raises
    ------
    InvalidInput
        If a file is not usable, or its neighbours are not the nearest.
    """
    if is_beir(source):
        parts = open_beir(Path(source), metric=metric, seed=seed)
    else:
        parts = from_files(source, queries, learn, neighbors, metric, seed)
    folder = out / f"{parts.name}-{parts.fingerprint()[:12]}"
    done = folder / "dataset" / "dataset.json"
    if not done.exists():
        _write(parts, folder, threads, {"source": Path(source).name})
    facts = json.loads(done.read_text())
    return Dataset(folder, parts.name, facts["metric"], facts["n"], facts["dim"], facts["origin"])


def open_prepared(folder: Path) -> Dataset:
    """Open what `prepare` left in a folder."""
    facts = json.loads((folder / "dataset" / "dataset.json").read_text())
    return Dataset(folder, facts["name"], facts["metric"], facts["n"], facts["dim"], facts["origin"])


def _write(parts: Parts, folder: Path, threads: int, more: dict[str, Any]) -> None:
    unfinished = folder / f".dataset-{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        docs = _write_docs(parts, unfinished)
        for name in ("learn", "tune", "test"):
            rows = getattr(parts, name)
            if rows is not None:
                np.save(unfinished / f"{name}.npy", rows)
        _write_truth(parts, docs, folder / "truth.h5", threads)
        metric = "l2" if parts.metric is Metric.L2 else "ip"
        facts = {"format": _FORMAT, "name": parts.name, "metric": metric, "n": len(docs), "dim": docs.shape[1]}
        text = json.dumps(facts | {"origin": parts.origin() | more}, indent=1, sort_keys=True)
        (unfinished / "dataset.json").write_text(text)
        shutil.rmtree(folder / "dataset", ignore_errors=True)
        unfinished.rename(folder / "dataset")
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_docs(parts: Parts, folder: Path) -> F32Rows:
    """Write documents as float32 and float16."""
    n, d = parts.n_docs, parts.dim
    docs = np.lib.format.open_memmap(folder / "docs.npy", "w+", np.float32, (n, d))
    half = np.lib.format.open_memmap(folder / "rows-f16.npy", "w+", np.float16, (n, d))
    for block in parts.blocks(_BLOCK):
        docs[block.start : block.start + len(block.rows)] = block.rows
        with np.errstate(over="ignore"):
            half[block.start : block.start + len(block.rows)] = block.rows
        if not np.isfinite(half[block.start : block.start + len(block.rows)]).all():
            raise InvalidInput(f"{parts.name} has values beyond float16, which verifies every system: scale it down")
    docs.flush()
    half.flush()
    return docs


def _write_truth(parts: Parts, docs: F32Rows, path: Path, threads: int) -> None:
    l2 = parts.metric is Metric.L2
    unfinished = path.with_suffix(".part")
    with h5py.File(unfinished, "w") as file:
        file.attrs["name"], file.attrs["n"], file.attrs["metric"] = parts.name, len(docs), parts.metric.value
        for split in ("test", "tune"):
            queries = getattr(parts, split)
            known = parts.neighbors if split == "test" else None
            truth = _exact(queries, docs, l2, threads) if known is None else _given(queries, docs, known, l2, threads)
            file[f"{split}/ids"], file[f"{split}/scores"] = truth.ids, truth.scores
        if parts.qrels is not None:
            group = file.create_group("qrels")
            group["offsets"], group["docs"] = parts.qrels.offsets, parts.qrels.docs
            group["grades"] = parts.qrels.scores
    unfinished.replace(path)


def _exact(queries: F32Rows, docs: F32Rows, l2: bool, threads: int) -> Truth:
    depth = min(DEPTH, len(docs))
    blocks = (Block(i, np.ascontiguousarray(docs[i : i + _BLOCK])) for i in range(0, len(docs), _BLOCK))
    found = exact_top(queries, blocks, len(docs), depth, l2=l2, threads=threads)
    return Truth(found.docs.reshape(len(queries), depth), found.scores.reshape(len(queries), depth))


def _given(queries: F32Rows, docs: F32Rows, ids: npt.NDArray[np.int64], l2: bool, threads: int) -> Truth:
    """Take the file's own neighbours, scored again, after some of them were compared with an exact search."""
    scores = similarities(queries, docs, ids, l2)
    few = np.unique(np.linspace(0, len(queries) - 1, _CHECKED).astype(np.int64))
    exact = _exact(queries[few], docs, l2, threads).scores[:, : ids.shape[1]]
    if not np.allclose(np.sort(scores[few])[:, ::-1], exact, rtol=1e-3, atol=1e-3):
        raise InvalidInput("the given neighbours are not the nearest documents under this metric; leave them out")
    order = np.argsort(-scores, axis=1, kind="stable")
    return Truth(np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1))


def similarities(queries: F32Rows, docs: F32Rows, ids: npt.NDArray[np.int64], l2: bool) -> npt.NDArray[np.float32]:
    """Return the exact similarity (q, k) of each query to the rows named; -inf where the id is negative."""
    scores = np.full(ids.shape, -np.inf, np.float32)
    for query, named, out in zip(queries, ids, scores, strict=True):
        known = np.flatnonzero(named >= 0)
        rows = docs[named[known]]
        out[known] = -((rows - query) ** 2).sum(axis=1) if l2 else rows @ query
    return scores
