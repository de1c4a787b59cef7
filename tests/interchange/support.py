"""Small indexes whose lists are visited in another order than rows were assigned by, as distillation leaves them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.searching import D, embeddings, exact_scores, prepared, trained
from vqdistill.index.policy import SearchPolicy
from vqdistill.index.writer import IndexWriter
from vqdistill.model.adapter import QueryAdapter
from vqdistill.searcher import Searcher, open

ROWS, QUERIES = embeddings(0)
NPROBE, REFINE = 3, 150
"""Candidates are so many that none of the best is at their border, where our rounded tables decide."""
TEXT_IDS = [f"document {row:04d}" for row in range(len(ROWS))]
INTEGER_IDS = np.arange(len(ROWS)) * 7 + 5


def adapter(units: int, rank: int, unit: bool) -> QueryAdapter:
    """An adapter that turns queries noticeably, and no row into nothing."""
    rng = np.random.default_rng(units)
    down, up = rng.standard_normal((units, D)) / np.sqrt(D), rng.standard_normal((D, units)) / np.sqrt(4 * units)
    arrays = (np.asarray(array, np.float32) for array in (down, rng.standard_normal(units) / 8, up))
    return QueryAdapter(**dict(zip(("down", "bias", "up"), arrays, strict=True)), rank=rank, unit=unit)


def recall(found: Any, metric: str, ids: Any) -> float:
    """Share of the ten best rows of each query among those found, by ids."""
    best = np.asarray(ids)[np.argsort(-exact_scores(metric, QUERIES, ROWS), axis=1)[:, :10]].tolist()
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, best, strict=True)]))


def make_index(
    path: Path,
    metric: str = "ip",
    *,
    additive: bool = False,
    dense: str = "f32",
    ids: Any = INTEGER_IDS,
    units: int = 0,
    linear: bool = True,
) -> Searcher:
    """Write an index of ROWS and open it; with units, queries are adapted before every stage and again to verify."""
    model, codes = trained(metric, additive)
    rng = np.random.default_rng(3)
    shift = rng.standard_normal(model.router.shape).astype(np.float32) * model.router.std() / 4
    model = replace(model, router=model.router + shift)
    if units:
        two = (adapter(count, count if linear else count // 2, metric == "cosine") for count in (units, units + 1))
        model = replace(model, **dict(zip(("query_adapter", "verify_adapter"), two, strict=True)))
    kind = "rows" if ids is None else "str" if isinstance(ids[0], str) else "int64"
    with IndexWriter(path, model, dense=dense, ids=kind, index_id=bytes(range(16))) as writer:
        writer.add(ids, codes, prepared(metric, ROWS))
        writer.publish({}, SearchPolicy(nprobe=NPROBE, refine=0 if dense == "none" else REFINE), {})
    return open(path)
