"""Exact search shard by shard: what each finds, merged, is what one pass over all rows finds, score for score."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vqdistill.data.exact import exact_top
from vqdistill.data.relevance import Relevance
from vqdistill.data.sources import EmbeddingSource, open_source
from vqdistill.data.teacher import query_rows, shift_of
from vqdistill.shards.job import Job
from vqdistill.types import Block, F32Rows, Metric


@dataclass(frozen=True)
class Question:
    """What every shard is asked; parameters as for `exact_top`."""

    queries: F32Rows
    depth: int
    shift: npt.NDArray[np.float32] | None
    exclude: npt.NDArray[np.int64] | None
    block_rows: int | None


Ask = Callable[[Question], Iterable[tuple[int, Relevance]]]
"""Has every shard answer, and yields numbers and answers in any order."""


class ShardedTeacher:
    """Takes the place of `ExactTeacher` for the rows of a job.

    Parameters
    ----------
    ask : has shards answer, here or elsewhere
    job : whose rows `src` has
    progress, block_rows : as for `ExactTeacher`
    """

    kind: Literal["exact"] = "exact"

    def __init__(
        self,
        ask: Ask,
        job: Job,
        src: EmbeddingSource,
        progress: Callable[[int], None] | None = None,
        block_rows: int | None = None,
    ) -> None:
        self.src = src
        self._ask, self._job, self._progress, self._block_rows = ask, job, progress, block_rows

    def relevance(self, queries: Any, depth: int, exclude_self: npt.NDArray[Any] | None = None) -> Relevance:
        """See `ExactTeacher.relevance`: the same answers."""
        question = Question(
            query_rows(queries, self.src),
            depth,
            shift_of(self.src) if self.src.metric is Metric.L2 else None,
            None if exclude_self is None else np.asarray(exclude_self, np.int64),
            self._block_rows,
        )
        found: Relevance | None = None
        for number, part in self._ask(question):
            found = part if found is None else found.merged(part, depth)
            if self._progress is not None:
                self._progress(self._job.shards[number].rows)
        assert found is not None, "a job has shards"
        return found


def search_shard(job: Job, number: int, question: Question, threads: int = 1) -> Relevance:
    """Return the best documents of one shard, by their numbers in the whole input."""
    shard, metric = job.shard(number), job.recipe.plan.metric
    src = open_source(shard.name, metric=metric)
    return exact_top(
        question.queries,
        (Block(shard.start + block.start, block.rows) for block in src.blocks(question.block_rows)),
        src.n,
        question.depth,
        l2=metric is Metric.L2,
        shift=question.shift,
        exclude=question.exclude,
        threads=threads,
    )
