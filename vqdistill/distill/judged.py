"""Judged queries: what labels, grades or pair scores say is right, and how well a ranking serves it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vqdistill.data.relevance import Relevance
from vqdistill.data.temperature import calibrate_temperature
from vqdistill.distill.samplers import Batch
from vqdistill.kernels import jit
from vqdistill.types import F64, F32Rows

DEPTH = 200
"""Judged documents of a query that count, the best ones."""
TOP = 10
"""Results of a query that rankings are judged by."""


@dataclass(frozen=True)
class JudgedQueries:
    """Queries with the documents that are right for them, over a corpus."""

    queries: F32Rows
    """(q, d)"""
    docs: npt.NDArray[np.int32]
    """(q, l) documents, best first, -1 padding"""
    gains: F32Rows
    """(q, l) what finding each is worth, at least 0, 0 for padding"""
    targets: F32Rows
    """(q, l) what a ranking should look like: a distribution over the documents, rows sum to 1"""

    @classmethod
    def from_relevance(
        cls, queries: F32Rows, relevance: Relevance, *, scored: bool, length: float = 1.0
    ) -> JudgedQueries:
        """Read gains and targets off judgments; each query has at least one.

        Parameters
        ----------
        scored : whether they are pair scores on any scale, of which only differences within a query mean anything:
            gains go from 0 for its lowest to 1, targets are their softmax. Otherwise they are grades above 0: gains,
            and targets in proportion to them.
        length : effective length that the softmax of pair scores is calibrated to
        """
        docs, scores = relevance.padded(int(min(DEPTH, relevance.counts.max(initial=1))))
        real = docs >= 0
        if scored:
            low = np.where(real, scores, np.inf).min(axis=1, keepdims=True)
            span = scores[:, :1] - low
            gains = np.where(span > 0, (scores - low) / np.where(span > 0, span, 1), 1)
            temperature = calibrate_temperature(scores, min(length, (1 + float(real.sum(axis=1).mean())) / 2))
            mass = np.exp((scores - scores[:, :1]) / np.float32(temperature))
        else:
            gains = mass = scores
        gains, mass = (np.where(real, values, 0).astype(np.float32) for values in (gains, mass))
        targets = mass / mass.sum(axis=1, keepdims=True)
        return cls(np.ascontiguousarray(queries), docs.astype(np.int32), gains, targets)

    @property
    def graded(self) -> bool:
        """Whether some right documents are worth more than others."""
        return len(np.unique(self.gains[self.docs >= 0])) > 1

    @property
    def measure(self) -> str:
        """What `quality` is called."""
        return f"nDCG@{TOP}" if self.graded else f"MRR@{TOP}"

    def quality(self, found: npt.NDArray[np.integer]) -> F64:
        """MRR@10 of each query, or nDCG@10 (gain / log2(rank + 1)) where gains differ.

        Parameters
        ----------
        found : (q, at least TOP) documents, best first; negative = missing

        Returns
        -------
        (q,) float64
        """
        gains = np.zeros((len(found), TOP))
        for column, gain in zip(self.docs.T, self.gains.T, strict=True):
            gains += gain[:, None] * ((found[:, :TOP] == column[:, None]) & (column[:, None] >= 0))
        if not self.graded:
            first = (gains > 0).argmax(axis=1)
            return np.where((gains > 0).any(axis=1), 1 / (1 + first), 0.0)
        discount = 1 / np.log2(np.arange(2, TOP + 2))
        best = -np.sort(-self.gains, axis=1)[:, :TOP]
        ideal = best @ discount[: best.shape[1]]
        return np.where(ideal > 0, gains @ discount / np.where(ideal > 0, ideal, 1), 0.0)


@dataclass(frozen=True)
class Judgments:
    """What labels or pair scores say of learn queries, and which of these are held out from all training."""

    relevance: Relevance
    """Documents of the queries, row numbers of the source."""
    held: npt.NDArray[np.bool_]
    """(q,) queries that only decide"""
    scored: bool
    """Whether they are pair scores, see `JudgedQueries.from_relevance`."""
    length: float
    """Effective length of the lists of pair scores, likewise."""

    def split(self, lists: Relevance) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Numbers of the training and of the held-out queries, among those that have documents in `lists`."""
        usable = lists.counts > 0
        return np.flatnonzero(usable & ~self.held), np.flatnonzero(usable & self.held)

    def local(self, queries: F32Rows, rows: npt.NDArray[np.int64]) -> tuple[JudgedQueries, JudgedQueries]:
        """Training and held-out queries (q, d) as prepared, with their documents among the sorted `rows`."""
        local = renumber(self.relevance, rows)
        return judged_parts(queries, local, self.split(local), scored=self.scored, length=self.length)


def judged_parts(
    queries: F32Rows,
    relevance: Relevance,
    parts: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    *,
    scored: bool,
    length: float,
) -> tuple[JudgedQueries, JudgedQueries]:
    """Training and held-out queries, by their numbers; the rest as for `JudgedQueries.from_relevance`."""
    train, held = (
        JudgedQueries.from_relevance(queries[part], relevance.select(part), scored=scored, length=length)
        for part in parts
    )
    return train, held


def renumber(relevance: Relevance, rows: npt.NDArray[np.int64]) -> Relevance:
    """Keep documents among the sorted `rows`, numbered by their place there."""
    kept = relevance.restrict(rows)
    return Relevance(kept.offsets, np.searchsorted(rows, kept.docs), kept.scores)


@dataclass(frozen=True)
class HardSampler:
    """Judged documents of each query, against hard negatives and judged documents that a batch shares.

    A document is negative for every query of the batch that it is not right for: with hard negatives of its own a query
    gets those of others for nothing, as in BiDR's local batches (section 3.2 there).
    """

    judged: JudgedQueries
    hard: npt.NDArray[np.int32]
    """(q, r) documents that a search finds for each query, -1 padding; those that are right are no negatives"""
    per_query: int
    """Hard negatives drawn for a query."""
    n: int
    """Documents of the corpus."""

    def draw(self, rng: np.random.Generator, size: int) -> Batch:
        """Return a batch of at most `size` queries, drawn without replacement; `teacher` is the log of the targets."""
        judged = self.judged
        picked = rng.permutation(len(judged.queries))[:size]
        own = judged.docs[picked]
        places = rng.integers(0, self.hard.shape[1], (len(picked), self.per_query))
        shared = np.unique(np.concatenate([own, np.take_along_axis(self.hard[picked], places, axis=1)], axis=1))
        shared = shared[shared >= 0].astype(np.int32)
        repeats = jit.members(own, shared, self.n)
        with np.errstate(divide="ignore"):
            teacher = np.log(judged.targets[picked])
        return Batch(
            judged.queries[picked],
            np.concatenate([np.maximum(own, 0), np.broadcast_to(shared, repeats.shape)], axis=1),
            np.concatenate([teacher, np.full(repeats.shape, -np.inf, np.float32)], axis=1),
            np.concatenate([own >= 0, ~repeats], axis=1),
            picked,
        )
