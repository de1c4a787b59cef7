"""From judgments to adapted queries, whose exact neighbours then teach codes, tables and routing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.config import DistillConfig
from vqdistill.data.relevance import Relevance
from vqdistill.data.sources import EmbeddingSource
from vqdistill.distill.adapter import exact_quality, hard_negatives, hard_temperature, learn_adapter
from vqdistill.distill.held_out import split
from vqdistill.distill.judged import HardSampler, judged_parts, renumber
from vqdistill.distill.lesson import training_rows
from vqdistill.distill.samplers import Corpus
from vqdistill.kernels.threads import one_library_thread
from vqdistill.model.adapter import QueryAdapter
from vqdistill.progress import Progress
from vqdistill.types import F32Rows


@dataclass(frozen=True)
class Adaptation:
    """An adapter of queries, and who has learned it."""

    adapter: QueryAdapter | None
    """None if held-out queries are no better off with it, or there were too few queries."""
    train: npt.NDArray[np.int64]
    """(t,) numbers of the training queries"""
    held: npt.NDArray[np.int64]
    """(h,) numbers of the queries that decided, which no later stage may train on either"""
    report: dict[str, Any] = field(default_factory=dict)
    """What the stage brought, JSON-ready; empty if nothing was trained."""

    def __call__(self, queries: F32Rows) -> F32Rows:
        """Adapt queries (q, d)."""
        return queries if self.adapter is None else self.adapter(queries)


@one_library_thread()
def adapt_queries(
    src: EmbeddingSource,
    queries: F32Rows,
    judgments: Relevance,
    config: DistillConfig,
    *,
    scored: bool,
    threads: int = 1,
    progress: Progress | None = None,
) -> Adaptation:
    """Train an adapter by which queries rank as judged, over the exact search of `src`.

    Codes cannot learn such a ranking from the judgments themselves: these say nothing of almost all documents that a
    code must tell apart. Once queries are adapted, their exact neighbours say it of all.

    Parameters
    ----------
    src : the corpus; of a large one, rows that are judged and random ones are used
    queries : (q, d) learn queries, prepared
    judgments : documents of these queries, row numbers of `src`
    scored : whether they are pair scores instead of grades, see `JudgedQueries.from_relevance`
    """
    progress = progress or Progress()
    rng = np.random.default_rng([config.seed, 9])
    rows = training_rows(src.n, judgments, max(1, config.train_bytes // (4 * src.dim)), rng)
    local = renumber(judgments, rows)
    parts = split(local, config.held_out, rng)
    if not (config.enabled and len(parts[1])):
        return Adaptation(None, *parts)
    with progress.stage("adapter of queries"):
        corpus = Corpus(src.take(rows), src.metric)
        train, held = judged_parts(queries, local, parts, scored=scored, length=config.list_length)
        hard = hard_negatives(train, corpus, None, threads, config.seed)
        learned = learn_adapter(
            train,
            corpus,
            lambda adapter: HardSampler(
                train,
                hard if adapter is None else hard_negatives(train, corpus, adapter, threads, config.seed),
                config.adapter_negatives,
                len(rows),
            ),
            lambda adapter: exact_quality(held, corpus, adapter, threads),
            hard_temperature(train.queries, corpus, hard, config.adapter_list_length),
            config,
        )
    return Adaptation(learned.adapter, *parts, learned.report("query adapter", held.measure))
