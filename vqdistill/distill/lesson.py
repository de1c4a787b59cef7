"""What all stages of training share: the rows that they see, the queries that teach and those that judge."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vqdistill.data.relevance import Relevance
from vqdistill.distill.held_out import HeldOut
from vqdistill.distill.samplers import Corpus, TeacherLists
from vqdistill.model.additive import RowTerms
from vqdistill.model.codebooks import Coarse
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.model.space import Space
from vqdistill.types import F64, Codes


@dataclass(frozen=True)
class Lesson:
    """What all stages share."""

    corpus: Corpus
    coarse: Coarse
    train: TeacherLists
    judge: HeldOut
    dense: bool
    teacher_temperature: float | None

    def encode(self, model: IvfPqModel, terms: RowTerms | None = None) -> Codes:
        """Codes of the training rows, whose lists never change."""
        return Codes(self.coarse.lists, model.quantize(self.corpus.x, self.coarse.lists, terms))

    def in_rows_space(self, space: Space | None) -> Lesson:
        """The lesson in the rows' own coordinates, if this one is in those of `space`; moves the rows of both."""
        if space is None:
            return self
        space.queries(self.corpus.x, out=self.corpus.x)
        train, held = (replace(x, queries=space.docs(x.queries)) for x in (self.train, self.judge.lists))
        return replace(self, train=train, judge=replace(self.judge, lists=held))

    def own_recalls(self, model: IvfPqModel) -> F64:
        """Held-out recalls of the codes that the model itself gives the rows."""
        return self.judge.code_recalls(model, self.encode(model))


def training_rows(n: int, relevance: Relevance, limit: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Choose the rows that training keeps in memory.

    All, if they fit. Otherwise half of the room goes to what the teacher ranks, best ranks of all queries first, so
    that the lists that remain are exact from the top; the rest is random.

    Returns
    -------
    (at most `limit`,) int64, sorted, distinct
    """
    if n <= limit:
        return np.arange(n, dtype=np.int64)
    rank = np.arange(len(relevance.docs)) - np.repeat(relevance.offsets[:-1], np.diff(relevance.offsets))
    by_rank = relevance.docs[np.argsort(rank, kind="stable")]
    _, first = np.unique(by_rank, return_index=True)
    ranked = by_rank[np.sort(first)[: limit // 2]]
    others = rng.choice(n, limit, replace=False)  # of many rows, without a number for each
    others = others[~np.isin(others, ranked)][: limit - len(ranked)]
    return np.sort(np.concatenate([ranked, others])).astype(np.int64)
