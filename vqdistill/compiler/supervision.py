"""Where training gets its queries and relevance from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vqdistill.data.judgments import read_labels, read_scores
from vqdistill.data.relevance import Relevance
from vqdistill.data.sources import EmbeddingSource, open_queries
from vqdistill.data.teacher import CachedTeacher, ExactTeacher, pseudo_queries
from vqdistill.errors import InvalidInput
from vqdistill.progress import Progress
from vqdistill.types import F32Rows

DEPTH = 200
"""Teacher documents per query (Distill-VQ uses the top 200)."""
MAX_QUERIES = 16_384
"""Learn queries used at most, a random choice of more; exact teaching costs queries x rows x dimensions."""
MAX_JUDGED = 32_768
"""Learn queries used at most with labels or pair scores, those that have any first: adapting queries costs less."""
PSEUDO_QUERIES = 8_192
"""Pseudo-queries made when there are none."""


@dataclass(frozen=True)
class Supervision:
    """Learn queries and what their teacher ranks."""

    queries: F32Rows
    """(q, d) float32, prepared"""
    relevance: Relevance
    origin: str
    """Where the queries are from, for the report."""
    pseudo: bool
    """Whether the queries were made from the corpus."""
    kind: str
    """Whose word relevance is: "exact" (similarity of the dense vectors), "scores" (of pairs) or "labels"."""


def supervise(
    src: EmbeddingSource, queries: Any, teacher: str, *, cache: Path, seed: int, threads: int, progress: Progress
) -> Supervision:
    """Find learn queries and relevance for the rows of `src`; parameters as for `compile`.

    Raises
    ------
    InvalidInput
        If `teacher` is none of its forms, or needs real queries and there are none.
    """
    kind, _, path = teacher.partition(":")
    if kind not in ("exact", "scores", "labels") or (kind == "exact") != (path == ""):
        raise InvalidInput(f'teacher must be "exact", "scores:FILE" or "labels:FILE", got {teacher!r}')
    rng = np.random.default_rng([seed, 2])
    opened = _learn_queries(src, queries)
    if opened is None:
        if kind != "exact":
            raise InvalidInput(f"teacher {teacher!r} needs learn queries, got none")
        return _pseudo(src, seed, cache, threads, progress)
    order = rng.permutation(opened.n)
    origin = opened.name.rpartition("/")[2]
    if kind == "exact":
        rows = opened.take(np.sort(order[:MAX_QUERIES]))
        return Supervision(rows, exact_relevance(src, rows, None, cache, threads, progress), origin, False, kind)
    read = read_scores if kind == "scores" else read_labels
    judged = read(path, n_queries=opened.n, n_docs=src.n, query_ids=opened.ids, doc_ids=src.ids)
    order = order[np.argsort(judged.counts[order] == 0, kind="stable")]
    picked = np.sort(order[:MAX_JUDGED])
    return Supervision(opened.take(picked), judged.select(picked), origin, False, kind)


def _learn_queries(src: EmbeddingSource, queries: Any) -> EmbeddingSource | None:
    if queries is None:
        return src.companion("learn_queries")
    if isinstance(queries, str) and queries == "none":
        return None
    return open_queries(queries, src)


def _pseudo(src: EmbeddingSource, seed: int, cache: Path, threads: int, progress: Progress) -> Supervision:
    with progress.stage("pseudo-queries"):
        made, origins = pseudo_queries(src, min(PSEUDO_QUERIES, src.n), seed, threads)
    return Supervision(
        made, exact_relevance(src, made, origins, cache, threads, progress), "pseudo-queries", True, "exact"
    )


def exact_relevance(
    src: EmbeddingSource, queries: F32Rows, exclude: Any, cache: Path, threads: int, progress: Progress
) -> Relevance:
    """Exact neighbours of queries (q, d), DEPTH of each, out of the cache if it has them.

    Parameters
    ----------
    exclude : (q,) row that each query must not get; None = they may get all
    """
    with progress.stage("exact teacher", src.n) as stage:
        teacher = CachedTeacher(ExactTeacher(src, threads, stage.advance), cache)
        return teacher.relevance(queries, DEPTH, exclude)
