"""What training learns from once queries are adapted to labels or pair scores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vqdistill.compiler.supervision import MAX_QUERIES, Supervision, exact_relevance
from vqdistill.config import DistillConfig, IvfPqConfig
from vqdistill.data.sources import EmbeddingSource
from vqdistill.distill.adaptation import adapt_queries
from vqdistill.distill.judged import Judgments
from vqdistill.model.adapter import QueryAdapter
from vqdistill.progress import Progress


@dataclass(frozen=True)
class AdaptedLesson:
    """Learn queries behind their adapter, with their exact neighbours as relevance."""

    supervision: Supervision
    judgments: Judgments | None
    """What verification may learn from; None without held-out queries."""
    adapter: QueryAdapter | None
    stages: list[dict[str, Any]]
    """What the adapter brought, an entry of the report; none if none was trained."""


def adapt(
    src: EmbeddingSource,
    judged: Supervision,
    config: DistillConfig,
    planned: IvfPqConfig,
    *,
    cache: Path,
    threads: int,
    progress: Progress,
) -> AdaptedLesson:
    """Adapt the queries of labels or pair scores, and let exact search teach what comes after.

    Judgments alone teach codes, lists and routing little, and cannot change what verification ranks first: on debian at
    32 bytes MRR@10 is .619 with them alone, which is the encoder's own, and .665 with adapted queries.

    Parameters
    ----------
    judged : with relevance from labels or pair scores
    planned : shape of the model; without `query_units` there is no room for an adapter
    cache : directory of the exact neighbours
    """
    queries, scored = judged.queries, judged.kind == "scores"
    adapting = replace(config, enabled=config.enabled and planned.query_units > 0)
    found = adapt_queries(src, queries, judged.relevance, adapting, scored=scored, threads=threads, progress=progress)
    held = np.zeros(len(queries), np.bool_)
    held[found.held] = True
    others = np.random.default_rng([config.seed, 10]).permutation(np.flatnonzero(~held))
    picked = np.sort(np.concatenate([found.held, others[: MAX_QUERIES - len(found.held)]]))
    adapted = found(queries[picked])
    relevance = exact_relevance(src, adapted, None, cache, threads, progress)
    judgments = Judgments(judged.relevance.select(picked), held[picked], scored, config.list_length)
    return AdaptedLesson(
        replace(judged, queries=adapted, relevance=relevance, kind="exact"),
        judgments if len(found.held) else None,
        found.adapter,
        [found.report] if found.report else [],
    )
