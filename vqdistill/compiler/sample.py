"""A sample of the rows with all learn queries, nested in halves: what trials run on, and all of them share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.compiler.memory import LARGEST
from vqdistill.compiler.supervision import learn_queries
from vqdistill.data.relevance import Relevance
from vqdistill.data.sources import EmbeddingSource, open_source
from vqdistill.data.teacher import ExactTeacher, pseudo_queries
from vqdistill.distill.held_out import HeldOut
from vqdistill.distill.samplers import Corpus, TeacherLists
from vqdistill.distill.spaces import choose_space
from vqdistill.distill.terms import QueryTerms
from vqdistill.errors import InvalidInput
from vqdistill.model.additive import RowTerms
from vqdistill.model.learned import DEPTH as TERMS_DEPTH
from vqdistill.model.space import Space
from vqdistill.types import F32Rows

Rows = npt.NDArray[np.int64]

SHARE = 0.05
"""Share of the rows in the sample."""
FEWEST_ROWS, MOST_ROWS = 8_192, 16_384
"""Bounds of the sample. Codebooks of 50 codes leave as much error on 4,000 rows as on 200,000; below, they know each
row by heart. More rows make trials longer, and move the fitted recall by less than its interval."""
HALVINGS = 3
"""Halvings of the sample that recall is measured at as well: with 5 % also 2.5, 1.25 and 0.6 %."""
JUDGES = 1_000
"""Learn queries at most, and a fifth at most, that trials are judged by; none of them teaches one."""
SPACE_MS = (8, 16, 32)
"""Codebooks that the coordinates of codes are chosen with, of which codes take the nearest: what serves a few codebooks
best can lose with many."""
_JUDGED = 100
"""Rows that a judging query ranks."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows in a random order, so that a head of them is a sample too, and queries that teach or judge.

    A sample holds a share of the rows that a query ranks first in the corpus, evenly from all ranks. So all queries
    teach, each with few rows, whose ranks are scaled: a row has as many queries as it would have in the corpus.
    """

    corpus: Corpus
    teach: F32Rows
    """(q, d) queries that teach"""
    judges: F32Rows
    """(j, d) queries that judge"""
    teach_origins: Rows | None
    """(q,) row that each teaching query was made from, which it must not find; None for real queries"""
    origins: Rows | None
    """(j,) likewise"""
    n: int
    """Rows of the corpus"""
    seed: int
    threads: int

    @classmethod
    def draw(cls, src: EmbeddingSource, queries: Any, seed: int, threads: int, rows: int | None = None) -> Sample:
        """Draw a sample of `src`.

        Parameters
        ----------
        queries : as for `compile`
        rows : in the sample; None = SHARE of them within FEWEST_ROWS and MOST_ROWS

        Raises
        ------
        InvalidInput
            If there are fewer than two queries.
        """
        wanted = min(max(round(SHARE * src.n), FEWEST_ROWS), MOST_ROWS) if rows is None else rows
        rng = np.random.default_rng([seed, 8])
        size = min(src.n, wanted)
        x = np.ascontiguousarray(src.take(np.sort(rng.choice(src.n, size, replace=False)))[rng.permutation(size)])
        opened = learn_queries(src, queries)
        if opened is None:
            rows_alone = open_source(x, metric=src.metric)
            found, origins = pseudo_queries(rows_alone, min(size, LARGEST.queries // 2), seed, threads)
        else:
            picked = np.random.default_rng([seed, 9]).permutation(opened.n)[: LARGEST.queries]
            found, origins = opened.take(np.sort(picked)), None
        if len(found) < 2:
            raise InvalidInput(f"trials need at least 2 learn queries, got {len(found)}")
        order = rng.permutation(len(found))
        judging, teaching = np.split(order, [max(1, min(JUDGES, len(found) // 5))])
        return cls(
            corpus=Corpus(x, src.metric),
            teach=found[teaching],
            judges=found[judging],
            teach_origins=None if origins is None else origins[teaching],
            origins=None if origins is None else origins[judging],
            n=src.n,
            seed=seed,
            threads=threads,
        )

    @property
    def size(self) -> int:
        """Rows in the sample."""
        return len(self.corpus.x)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of the nested samples, rising."""
        return tuple(self.size >> halvings for halvings in range(HALVINGS, -1, -1))

    @cached_property
    def exact(self) -> F32Rows:
        """(j, size) similarity of every row to every judging query."""
        return self.scores(self.corpus)

    def scores(self, rows: Corpus) -> F32Rows:
        """Similarity (j, r) of the first rows, or of what codes make of them, to every judging query."""
        scores = rows.scores(self.judges, np.arange(len(rows.x), dtype=np.int32))
        if self.origins is not None:
            inside = self.origins < len(rows.x)
            scores[np.flatnonzero(inside), self.origins[inside]] = -np.inf
        return scores

    def head(self, size: int) -> Corpus:
        """The first `size` rows."""
        return Corpus(self.corpus.x[:size], self.corpus.metric)

    def judge(self, size: int, depth: int = _JUDGED) -> HeldOut:
        """Judging queries with the `depth` of the first `size` rows that they rank first."""
        best = first_best(self.exact[:, :size], depth)
        scores = np.take_along_axis(self.exact, best, axis=1)
        return HeldOut(self.head(size), TeacherLists(self.judges, best.astype(np.int32), scores), self.threads)

    def thinned(self, depth: int, size: int) -> int:
        """Rows of the first `size` that are among the first `depth` of a query's list over the corpus, at least 1."""
        return max(1, round(depth * size / self.n))

    @cache  # noqa: B019 - a sample lives as long as its trials
    def taught(self, size: int) -> Relevance:
        """What teaching queries rank first among the first `size` rows, as much as of their list over the corpus."""
        source = open_source(self.corpus.x[:size], metric=self.corpus.metric)
        exclude = self.teach_origins
        if exclude is not None:
            exclude = np.where(exclude < size, exclude, -1)
        return ExactTeacher(source, self.threads).relevance(self.teach, self.thinned(TERMS_DEPTH, size), exclude)

    @cache  # noqa: B019 - a sample lives as long as its trials
    def space(self, m: int) -> Space | None:
        """Coordinates that m additive codebooks are learned in."""
        return choose_space(self.judge(self.size), self.teach, m, self.seed)[0]

    def terms(self, space: Space | None, size: int) -> RowTerms:
        """What teaching queries ask of the codes of the first `size` rows, in the coordinates of `space`."""
        moved = self.teach if space is None else space.queries(self.teach)
        found = QueryTerms.from_relevance(moved, self.taught(size), share=size / self.n)
        return found.take(np.arange(size))


def first_best(scores: F32Rows, k: int) -> Rows:
    """Columns (q, k) of the largest scores of each row, best first."""
    k = min(k, scores.shape[1])
    some = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    return np.take_along_axis(some, np.argsort(-np.take_along_axis(scores, some, 1), axis=1, kind="stable"), 1)
