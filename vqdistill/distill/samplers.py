"""Batches of queries with the documents that teacher and student rank for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vqdistill.data.relevance import Relevance
from vqdistill.kernels import jit
from vqdistill.types import F32Rows, Metric

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

Search = Callable[[F32Rows], I32]
"""Queries (b, d) -> (b, r) documents that a student ranks first for them, -1 padding."""


@dataclass(frozen=True)
class Corpus:
    """Training rows in memory; documents are counted within them from here on."""

    x: F32Rows
    """(n, d) float32, prepared."""
    metric: Metric

    def scores(self, queries: F32Rows, docs: I32) -> F32Rows:
        """Dense similarity (q, s) float32 of each query to the documents (s,)."""
        x = self.x[docs]
        dot = queries @ x.T
        if self.metric is not Metric.L2:
            return dot
        norms = np.einsum("ij,ij->i", x, x)[None] + np.einsum("ij,ij->i", queries, queries)[:, None]
        return np.asarray(2 * dot - norms, dtype=np.float32)

    def own_scores(self, queries: F32Rows, docs: I32) -> F32Rows:
        """Dense similarity (q, l) float32 of each query to documents (q, l) of its own; -inf for negative ones."""
        rows = zip(queries, np.maximum(docs, 0), strict=True)
        scores = np.stack([self.scores(query[None], own)[0] for query, own in rows])
        return np.where(docs >= 0, scores, np.float32(-np.inf))


@dataclass(frozen=True)
class Batch:
    """Queries, their documents and what the teacher says of these."""

    queries: F32Rows
    """(b, d) float32"""
    docs: I32
    """(b, l) documents; where `teacher` is -inf in a padded place the number means nothing."""
    teacher: F32Rows
    """(b, l) float32 teacher scores; -inf: no target mass."""
    real: npt.NDArray[np.bool_]
    """(b, l) False where a place is padding, repeats a document of the same query or is taken for a false negative."""
    picked: I64
    """(b,) number of each query in the lists it was drawn from"""
    weight: F32Rows | None = None
    """(b, l) documents of the corpus that a place stands for, at least 1; None: 1 each"""


class Sampler(Protocol):
    """Draws batches; a source of negatives and positives that the trainer knows nothing about."""

    def draw(self, rng: np.random.Generator, size: int) -> Batch:
        """Return a batch of at most `size` queries, none of them twice."""
        ...


@dataclass(frozen=True)
class TeacherLists:
    """Queries with padded teacher lists, over a corpus."""

    queries: F32Rows
    """(q, d) float32"""
    docs: I32
    """(q, depth) document numbers, best first, -1 padding"""
    scores: F32Rows
    """(q, depth) float32, -inf padding"""

    @classmethod
    def from_relevance(cls, queries: F32Rows, relevance: Relevance, depth: int) -> TeacherLists:
        """Pad the first `depth` documents of each query; each query has at least one."""
        docs, scores = relevance.padded(int(min(depth, relevance.counts.max(initial=0))))
        return cls(np.ascontiguousarray(queries), docs.astype(np.int32), scores)


@dataclass(frozen=True)
class BatchMaker:
    """Makes the batch of given queries: their whole teacher lists, and random and in-batch documents that all share.

    The mix "IB + Top-200 (all)" is the best row of Distill-VQ, table 3, which its released code cannot run.
    """

    corpus: Corpus
    lists: TeacherLists
    random_docs: int
    """Random documents of a batch; the first document of each query comes on top."""
    dense: bool
    """Whether the teacher's scores are those of the dense vectors, so that shared documents can be scored as well.
    Otherwise (pair scores, labels) they only stand against the listed ones."""
    debias: bool = False
    """Whether a shared document counts by the inverse of its chance to be in the batch (Horvitz-Thompson), so that the
    batch stands for the corpus, and documents that many lists begin with are no more often pushed down than others."""
    false_negatives: float | None = None
    """Documents outside a query's list are left out if their dense similarity is above this share of the way from that
    of the mean shared document to that of the best listed one. None: none is."""

    def make(self, picked: I64, rng: np.random.Generator, hard: I32 | None = None) -> Batch:
        """Return the batch of the queries (b,) picked.

        Parameters
        ----------
        hard : (b, h) further documents of each query, distinct; negative ones and those in its list are ignored
        """
        queries, own = self.lists.queries[picked], self.lists.docs[picked]
        teacher, listed = self.lists.scores[picked], own.shape[1]
        random = rng.integers(0, len(self.corpus.x), self.random_docs, dtype=np.int32)
        shared = np.unique(np.concatenate([own[:, 0], random]))
        if hard is not None:
            hard = np.where(_in_rows(hard, own), np.int32(-1), hard)
            own = np.concatenate([own, hard], axis=1)
            known = self.corpus.own_scores(queries, hard) if self.dense else np.full(hard.shape, -np.inf, np.float32)
            teacher = np.concatenate([teacher, known], axis=1)
        repeats = jit.members(own, shared, len(self.corpus.x))
        unlisted = self.corpus.scores(queries, shared) if self.dense else np.full(repeats.shape, -np.inf, np.float32)
        real = np.concatenate([own >= 0, ~repeats], axis=1)
        if self.false_negatives is not None:
            real &= ~self._suspects(queries, own, listed, shared, self.false_negatives)
        return Batch(
            queries,
            np.concatenate([np.maximum(own, 0), np.broadcast_to(shared, repeats.shape)], axis=1),
            np.concatenate([teacher, np.where(repeats, np.float32(-np.inf), unlisted)], axis=1),
            real,
            picked,
            self._weights(own, shared) if self.debias else None,
        )

    def _suspects(self, queries: F32Rows, own: I32, listed: int, shared: I32, share: float) -> npt.NDArray[np.bool_]:
        """Places (b, l) of unlisted documents that are as near as relevant ones.

        References
        ----------
        Moreira et al.: NV-Retriever, 2024: negatives must score below a share of the positive.
        """
        scores, others = self.corpus.own_scores(queries, own), self.corpus.scores(queries, shared)
        far, near = others.mean(axis=1, keepdims=True), scores[:, :listed].max(axis=1, keepdims=True)
        scores[:, :listed] = -np.inf
        return np.asarray(np.concatenate([scores, others], axis=1) > far + share * np.maximum(near - far, 0))

    def _weights(self, own: I32, shared: I32) -> F32Rows:
        """One over the chance that a batch of as many queries shares each document; 1 for a query's own documents.

        References
        ----------
        Horvitz, Thompson: A generalization of sampling without replacement from a finite universe, JASA 1952.
        Yi et al.: Sampling-bias-corrected neural modeling, RecSys 2019: its use against popularity in batches.
        """
        first = np.bincount(self.lists.docs[:, 0], minlength=len(self.corpus.x))[shared]
        by_query = 1 - np.minimum(1, first / len(self.lists.queries))
        missed = by_query ** len(own) * (1 - 1 / len(self.corpus.x)) ** self.random_docs
        weights = np.broadcast_to(1 / (1 - missed), (len(own), len(shared)))
        return np.concatenate([np.ones(own.shape), weights], axis=1).astype(np.float32)


@dataclass(frozen=True)
class TopKSampler:
    """Queries at random, each batch anew."""

    maker: BatchMaker

    def draw(self, rng: np.random.Generator, size: int) -> Batch:
        """See Sampler."""
        return self.maker.make(rng.permutation(len(self.maker.lists.queries))[:size], rng)


@dataclass(frozen=True)
class Miner:
    """What mining needs of a student."""

    snapshot: Callable[[], Search]
    """Returns a search of the student as it is now."""
    every: int
    """Batches that a snapshot serves."""


@dataclass
class MinedSampler:
    """Queries at random, with the documents that the present student ranks first for them and the teacher does not.

    References
    ----------
    Zhan et al.: Jointly optimizing query encoder and product quantization (JPQ), CIKM 2021: negatives from the
    compressed index as it is at the time.
    """

    maker: BatchMaker
    miner: Miner
    _drawn: int = field(default=0, init=False)
    _search: Search = field(init=False)

    def draw(self, rng: np.random.Generator, size: int) -> Batch:
        """See Sampler."""
        if self._drawn % self.miner.every == 0:
            self._search = self.miner.snapshot()
        self._drawn += 1
        picked = rng.permutation(len(self.maker.lists.queries))[:size]
        return self.maker.make(picked, rng, self._search(self.maker.lists.queries[picked]))


class LocalSampler:
    """Queries that share documents, so that the documents of a batch are hard negatives of each other.

    Queries are joined by the documents that both their lists hold. A batch starts from a random query and grows along
    these joins to queries that have not come yet; where it cannot, from another random one. Each query, however
    isolated, comes once before any comes again.

    Parameters
    ----------
    maker : of the batches
    snowball : grow breadth-first, best documents first (snowball: tight), instead of by a random walk that steps back
        where it is stuck (more diverse)

    References
    ----------
    Xiao et al.: Progressively optimized bi-granular document representation (BiDR), WWW 2022: locality-centric
    sampling.
    """

    def __init__(self, maker: BatchMaker, snowball: bool) -> None:
        self.maker, self._snowball = maker, snowball
        docs = maker.lists.docs
        queries, columns = np.nonzero(docs >= 0)
        listed = docs[queries, columns]
        # (nnz,) queries that list document 0, then those that list document 1, ...
        self._listing = queries[np.argsort(listed, kind="stable")]
        self._offsets = np.concatenate([[0], np.cumsum(np.bincount(listed, minlength=len(maker.corpus.x)))])
        self._waiting = np.ones(len(docs), bool)

    def draw(self, rng: np.random.Generator, size: int) -> Batch:
        """See Sampler."""
        picked: list[int] = []
        before: list[int] = []  # of the previous round: they may come again, but not in this batch
        size = min(size, len(self._waiting))
        while len(picked) < size:
            if not self._waiting.any():
                before = picked.copy()
                self._waiting[:] = True
                self._waiting[before] = False
            seed = rng.choice(np.flatnonzero(self._waiting))
            for query in self._around(int(seed), rng):
                self._waiting[query] = False
                picked.append(query)
                if len(picked) == size:
                    break
        self._waiting[before] = True
        return self.maker.make(np.array(picked, np.int64), rng)

    def _around(self, seed: int, rng: np.random.Generator) -> Iterator[int]:
        """Yield a waiting query and those around it; the caller marks each as come before it asks for the next."""
        yield seed
        yield from self._breadth_first(seed) if self._snowball else self._walk(seed, rng)

    def _breadth_first(self, seed: int) -> Iterator[int]:
        open_ends = deque([seed])
        while open_ends:
            for around in self._waiting_at(self.maker.lists.docs[open_ends.popleft()]):
                open_ends.extend(around.tolist())
                yield from around.tolist()

    def _walk(self, seed: int, rng: np.random.Generator) -> Iterator[int]:
        path = [seed]
        while path:
            around = next(self._waiting_at(rng.permutation(self.maker.lists.docs[path[-1]])), None)
            if around is None:
                path.pop()
                continue
            path.append(int(rng.choice(around)))
            yield path[-1]

    def _waiting_at(self, docs: I32) -> Iterator[I64]:
        """Yield, for each document that has any, the waiting queries that list it."""
        for doc in docs[docs >= 0]:
            listing = self._listing[self._offsets[doc] : self._offsets[doc + 1]]
            around = listing[self._waiting[listing]]
            if around.size:
                yield around


SAMPLERS: dict[str, Callable[[BatchMaker, Miner], Sampler]] = {
    "topk": lambda maker, _: TopKSampler(maker),
    "mined": MinedSampler,
    "walk": lambda maker, _: LocalSampler(maker, snowball=False),
    "snowball": lambda maker, _: LocalSampler(maker, snowball=True),
}
"""Makers of samplers by the name that DistillConfig.sampler takes."""


def _in_rows(docs: I32, own: I32) -> npt.NDArray[np.bool_]:
    """(b, h) whether each document stands in the same row of `own` (b, l)."""
    rows, width = np.arange(len(docs), dtype=np.int64)[:, None], int(max(docs.max(initial=0), own.max(initial=0))) + 2
    return np.isin(docs + rows * width, own + rows * width)
