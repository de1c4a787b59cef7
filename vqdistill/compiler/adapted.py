"""What training learns from once queries are adapted to labels or pair scores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vqdistill.compiler.supervision import DenseTeacher, Supervision, follow
from vqdistill.config import DistillConfig, IvfPqConfig
from vqdistill.distill.adaptation import adapt_queries
from vqdistill.distill.judged import Judgments
from vqdistill.model.adapter import QueryAdapter
from vqdistill.types import F32Rows


@dataclass(frozen=True)
class AdaptedLesson:
    """Learn queries behind their adapter, with their neighbours as relevance."""

    supervision: Supervision
    asked: F32Rows
    """(q, d) the same queries as they come, before the adapter"""
    judgments: Judgments | None
    """What verification may learn from; None without held-out queries."""
    adapter: QueryAdapter | None
    stages: list[dict[str, Any]]
    """What the adapter brought, an entry of the report; none if none was trained."""


def adapt(
    judged: Supervision, dense: DenseTeacher, config: DistillConfig, planned: IvfPqConfig, mix: float
) -> AdaptedLesson:
    """Adapt the queries of judgments, and let dense search for them teach what comes after.

    Judgments alone teach codes, lists and routing little, and cannot change what verification ranks first: on debian at
    32 bytes MRR@10 is .619 with them alone, which is the encoder's own, and .665 with adapted queries.

    Parameters
    ----------
    judged : with relevance from labels, pair scores or a function
    dense : searches for the adapted queries
    planned : shape of the model; without `query_units` there is no room for an adapter
    mix : share of the judgments in what teaches the codes, see `follow`
    """
    queries, scored = judged.queries, judged.kind != "labels"
    adapting = replace(config, enabled=config.enabled and planned.query_units > 0)
    found = adapt_queries(
        dense.src, queries, judged.relevance, adapting, scored=scored, threads=dense.threads, progress=dense.progress
    )
    held = np.zeros(len(queries), np.bool_)
    held[found.held] = True
    others = np.random.default_rng([config.seed, 10]).permutation(np.flatnonzero(~held))
    picked = np.sort(np.concatenate([found.held, others[: dense.max_queries - len(found.held)]]))
    relevance = judged.relevance.select(picked)
    lesson = replace(judged, queries=found(queries[picked]), relevance=relevance)
    return AdaptedLesson(
        follow(lesson, dense, mix, config.list_length),
        queries[picked],
        Judgments(relevance, held[picked], scored, config.list_length) if len(found.held) else None,
        found.adapter,
        [found.report] if found.report else [],
    )
