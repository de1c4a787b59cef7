"""Small indexes for the tests of searching: real codes, and a policy that is calibrated by hand."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vqdistill.config import IvfPqConfig
from vqdistill.index.policy import SearchPolicy
from vqdistill.index.writer import IndexWriter
from vqdistill.model.codebooks import train_additive_start, train_coarse, train_start
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.searcher import Searcher, open
from vqdistill.types import Codes, Metric

N, D, Q, NLIST = 900, 24, 37, 12
RUNGS = ((0.5, 2.0), (0.9, 0.7), (0.99, 0.02))
CALIBRATED = SearchPolicy(
    nprobe=4,
    refine=100,
    coverage=0.9,
    rungs=RUNGS,
    temperature=60.0,
    confidence=0.98,
    error=20.0,
)
PLAIN = SearchPolicy(nprobe=3, refine=50)


def embeddings(seed: int) -> tuple[Any, Any]:
    """Return clustered rows (N, D) and queries (Q, D) near them, float32."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((12, D))
    rows = centres[rng.integers(0, 12, N)] + 0.5 * rng.standard_normal((N, D))
    queries = rows[rng.integers(0, N, Q)] + 0.2 * rng.standard_normal((Q, D))
    return rows.astype(np.float32) * 3, queries.astype(np.float32) * 3


def prepared(metric: str, x: Any) -> Any:
    """Return rows as an index of the metric takes them."""
    return x / np.linalg.norm(x, axis=1, keepdims=True).astype(np.float32) if metric == "cosine" else x


def exact_scores(metric: str, queries: Any, rows: Any) -> Any:
    """Return the scores (q, n) float64 of all rows."""
    q, x = (prepared(metric, v).astype(np.float64) for v in (queries, rows))
    return -((q[:, None] - x[None]) ** 2).sum(-1) if metric == "l2" else q @ x.T


@cache
def trained(metric: str, additive: bool) -> tuple[IvfPqModel, Codes]:
    """Return undistilled codes of m = 16 for the rows of `embeddings(0)`."""
    x = prepared(metric, embeddings(0)[0])
    config = IvfPqConfig(nlist=NLIST, m=16, codes="additive" if additive else "pq")
    coarse = train_coarse(x, NLIST, seed=0)
    start = train_additive_start if additive else train_start
    model = start(x, coarse, config, Metric(metric), residual=additive)
    return model, model.encode(x)


def write_index(
    path: Path,
    metric: str = "ip",
    *,
    search: SearchPolicy = PLAIN,
    additive: bool = False,
    dense: str = "f32",
    tables: str = "f32",
    ids: Any = None,
    certify: Any = None,
) -> Searcher:
    """Write an index of the rows of `embeddings(0)`, and open it."""
    model, codes = trained(metric, additive)
    kind = "rows" if ids is None else "str" if isinstance(ids[0], str) else "int64"
    index_id = hashlib.blake2b(str(path).encode(), digest_size=16).digest()
    with IndexWriter(path, model, dense=dense, tables=tables, ids=kind, index_id=index_id) as writer:
        writer.add(ids, codes, prepared(metric, embeddings(0)[0]))
        writer.publish({}, search, {}, certify)
    return open(path)
