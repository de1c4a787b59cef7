"""Batches of queries with the documents that teacher and student rank for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vqdistill.data.relevance import Relevance
from vqdistill.kernels import jit
from vqdistill.types import F32Rows, Metric


@dataclass(frozen=True)
class Corpus:
    """Training rows in memory; documents are counted within them from here on."""

    x: F32Rows
    """(n, d) float32, prepared."""
    metric: Metric

    def scores(self, queries: F32Rows, docs: npt.NDArray[np.int32]) -> F32Rows:
        """Dense similarity (q, s) float32 of each query to the documents (s,)."""
        x = self.x[docs]
        dot = queries @ x.T
        if self.metric is not Metric.L2:
            return dot
        norms = np.einsum("ij,ij->i", x, x)[None] + np.einsum("ij,ij->i", queries, queries)[:, None]
        return np.asarray(2 * dot - norms, dtype=np.float32)


@dataclass(frozen=True)
class Batch:
    """Queries, their documents and what the teacher says of these."""

    queries: F32Rows
    """(b, d) float32"""
    docs: npt.NDArray[np.int32]
    """(b, l) documents; where `teacher` is -inf in a padded place the number means nothing."""
    teacher: F32Rows
    """(b, l) float32 teacher scores; -inf: no target mass."""
    real: npt.NDArray[np.bool_]
    """(b, l) False where a place is padding or repeats a document of the same query."""
    picked: npt.NDArray[np.int64]
    """(b,) number of each query in the lists it was drawn from"""
    weight: F32Rows | None = None
    """(b, l) documents of the corpus that a place stands for, at least 1; None: 1 each"""


class Sampler(Protocol):
    """Draws batches; a source of negatives and positives that the trainer knows nothing about."""

    def draw(self, rng: np.random.Generator, size: int) -> Batch:
        """Return a batch of `size` queries."""
        ...


@dataclass(frozen=True)
class TeacherLists:
    """Queries with padded teacher lists, over a corpus."""

    queries: F32Rows
    """(q, d) float32"""
    docs: npt.NDArray[np.int32]
    """(q, depth) document numbers, best first, -1 padding"""
    scores: F32Rows
    """(q, depth) float32, -inf padding"""

    @classmethod
    def from_relevance(cls, queries: F32Rows, relevance: Relevance, depth: int) -> TeacherLists:
        """Pad the first `depth` documents of each query; each query has at least one."""
        docs, scores = relevance.padded(int(min(depth, relevance.counts.max(initial=0))))
        return cls(np.ascontiguousarray(queries), docs.astype(np.int32), scores)


@dataclass(frozen=True)
class TopKSampler:
    """The whole teacher list of each query, plus random and in-batch documents shared by the batch.

    The mix "IB + Top-200 (all)" is the best row of Distill-VQ, table 3, which its released code cannot run.
    """

    corpus: Corpus
    lists: TeacherLists
    random_docs: int
    dense: bool
    """Whether the teacher's scores are those of the dense vectors, so that shared documents can be scored as well.
    Otherwise (pair scores, labels) they only stand against the listed ones."""

    def draw(self, rng: np.random.Generator, size: int) -> Batch:
        """Return a batch of at most `size` queries, drawn without replacement."""
        picked = rng.permutation(len(self.lists.queries))[:size]
        queries, own = self.lists.queries[picked], self.lists.docs[picked]
        random = rng.integers(0, len(self.corpus.x), self.random_docs, dtype=np.int32)
        shared = np.unique(np.concatenate([own[:, 0], random]))
        repeats = jit.members(own, shared, len(self.corpus.x))
        unlisted = self.corpus.scores(queries, shared) if self.dense else np.full(repeats.shape, -np.inf, np.float32)
        return Batch(
            queries,
            np.concatenate([np.maximum(own, 0), np.broadcast_to(shared, repeats.shape)], axis=1),
            np.concatenate([self.lists.scores[picked], np.where(repeats, np.float32(-np.inf), unlisted)], axis=1),
            np.concatenate([own >= 0, ~repeats], axis=1),
            picked,
        )
