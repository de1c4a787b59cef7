"""Batches: no document twice, padding that says so, and teacher scores that are the teacher's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqdistill.data.relevance import Relevance
from vqdistill.distill.samplers import Batch, Corpus, TeacherLists, TopKSampler
from vqdistill.types import Metric

D = 6


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def exact_scores(metric: Metric, queries: Any, x: Any) -> Any:
    if metric is Metric.L2:
        return -((queries[:, None].astype(np.float64) - x) ** 2).sum(axis=2)
    return queries.astype(np.float64) @ x.T


def make(
    n: int = 40, *, random_docs: int = 15, dense: bool = True, metric: Metric = Metric.IP, seed: int = 0
) -> TopKSampler:
    """Twelve queries with 1..8 documents each, scored by the metric, best first."""
    rng = np.random.default_rng(seed)
    corpus, queries = Corpus(normal(n, D, seed=seed), metric), normal(12, D, seed=seed + 1)
    scores = exact_scores(metric, queries, corpus.x)
    best = [np.argsort(-row)[: rng.integers(1, min(n, 8) + 1)] for row in scores]
    relevance = Relevance.from_lists(best, [row[docs] for row, docs in zip(scores, best, strict=True)])
    return TopKSampler(corpus, TeacherLists.from_relevance(queries, relevance, 6), random_docs, dense)


def draw(sampler: TopKSampler, seed: int = 0, size: int = 5) -> Batch:
    return sampler.draw(np.random.default_rng(seed), size)


@pytest.mark.parametrize("metric", list(Metric))
def test_corpus_scores(metric: Metric) -> None:
    corpus, queries, docs = Corpus(normal(20, D), metric), normal(4, D, seed=1), np.array([3, 3, 19, 0], np.int32)
    got = corpus.scores(queries, docs)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, exact_scores(metric, queries, corpus.x[docs]), atol=1e-4)


def test_teacher_lists_are_padded_to_the_longest() -> None:
    relevance = Relevance.from_lists([[4, 2, 9], [7]], [[1.0, 3.0, 2.0], [5.0]])
    lists = TeacherLists.from_relevance(normal(2, D), relevance, 10)
    assert lists.docs.dtype == np.int32 and lists.scores.dtype == np.float32
    assert lists.docs.tolist() == [[2, 9, 4], [7, -1, -1]]
    assert lists.scores.tolist() == [[3, 2, 1], [5, -np.inf, -np.inf]]


def test_teacher_lists_are_cut_at_depth() -> None:
    relevance = Relevance.from_lists([[4, 2, 9], [7]], [[1.0, 3.0, 2.0], [5.0]])
    assert TeacherLists.from_relevance(normal(2, D), relevance, 2).docs.tolist() == [[2, 9], [7, -1]]


def test_teacher_lists_of_no_queries() -> None:
    lists = TeacherLists.from_relevance(np.empty((0, D), np.float32), Relevance.from_lists([], []), 5)
    assert lists.docs.shape == lists.scores.shape == (0, 0)


@given(st.integers(0, 2**32), st.integers(1, 20), st.integers(0, 60), st.integers(1, 40))
@settings(max_examples=40)
def test_no_document_counts_twice(seed: int, size: int, random_docs: int, n: int) -> None:
    batch = draw(make(n, random_docs=random_docs, seed=seed), seed, size)
    for docs, real in zip(batch.docs, batch.real, strict=True):
        assert len(set(docs[real].tolist())) == real.sum()
    assert ((batch.docs >= 0) & (batch.docs < n)).all()


@pytest.mark.parametrize("metric", list(Metric))
def test_teacher_scores_of_a_dense_teacher(metric: Metric) -> None:
    """All real documents have their exact score, listed or shared; padding and repeats have none."""
    sampler = make(metric=metric)
    batch = draw(sampler)
    assert batch.teacher.dtype == np.float32 and batch.docs.dtype == np.int32
    want = np.take_along_axis(exact_scores(metric, batch.queries, sampler.corpus.x), batch.docs.astype(np.int64), 1)
    np.testing.assert_allclose(batch.teacher[batch.real], want[batch.real], atol=1e-4)
    assert np.isneginf(batch.teacher[~batch.real]).all()


def test_without_dense_scores_shared_documents_have_no_target() -> None:
    sampler = make(dense=False)
    batch, depth = draw(sampler), sampler.lists.docs.shape[1]
    assert np.isneginf(batch.teacher[:, depth:]).all()
    assert batch.real[:, depth:].any()
    assert np.array_equal(np.isfinite(batch.teacher[:, :depth]), batch.real[:, :depth])


def test_documents_of_a_batch() -> None:
    """The whole list of each query, then the first document of every query and the random ones."""
    sampler = make(random_docs=0)
    batch, depth = draw(sampler, size=12), sampler.lists.docs.shape[1]
    order = [int(np.flatnonzero((sampler.lists.queries == query).all(axis=1))[0]) for query in batch.queries]
    assert sorted(order) == list(range(12))
    own = sampler.lists.docs[order]
    assert np.array_equal(batch.real[:, :depth], own >= 0)
    assert np.array_equal(batch.docs[:, :depth][own >= 0], own[own >= 0])
    assert set(batch.docs[0, depth:].tolist()) == set(sampler.lists.docs[:, 0].tolist())
    assert len(set(draw(make(random_docs=30)).docs[0, depth:].tolist())) > 12


@pytest.mark.parametrize(("size", "rows"), [(1, 1), (12, 12), (100, 12)])
def test_queries_are_drawn_without_replacement(size: int, rows: int) -> None:
    batch = draw(make(), size=size)
    assert len(batch.queries) == rows == len(np.unique(batch.queries, axis=0))
    assert batch.docs.shape == batch.teacher.shape == batch.real.shape


def test_generator_decides() -> None:
    sampler = make()
    first, again, other = draw(sampler, 1), draw(sampler, 1), draw(sampler, 2)
    for name in ("queries", "docs", "teacher", "real"):
        assert np.array_equal(getattr(first, name), getattr(again, name)), name
    assert not np.array_equal(first.queries, other.queries)


def test_later_batches_differ() -> None:
    sampler, rng = make(), np.random.default_rng(0)
    assert not np.array_equal(sampler.draw(rng, 5).queries, sampler.draw(rng, 5).queries)
