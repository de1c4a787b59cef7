"""Batches: no document twice, padding that says so, and teacher scores that are the teacher's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqdistill import config
from vqdistill.data.relevance import Relevance
from vqdistill.distill.samplers import (
    SAMPLERS,
    Batch,
    BatchMaker,
    Corpus,
    LocalSampler,
    MinedSampler,
    Miner,
    Sampler,
    TeacherLists,
    TopKSampler,
)
from vqdistill.types import Metric

D = 6


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def exact_scores(metric: Metric, queries: Any, x: Any) -> Any:
    if metric is Metric.L2:
        return -((queries[:, None].astype(np.float64) - x) ** 2).sum(axis=2)
    return queries.astype(np.float64) @ x.T


def material(
    n: int = 40,
    *,
    random_docs: int = 15,
    dense: bool = True,
    metric: Metric = Metric.IP,
    seed: int = 0,
    **options: Any,
) -> BatchMaker:
    """Twelve queries with 1..8 documents each, scored by the metric, best first."""
    rng = np.random.default_rng(seed)
    corpus, queries = Corpus(normal(n, D, seed=seed), metric), normal(12, D, seed=seed + 1)
    scores = exact_scores(metric, queries, corpus.x)
    best = [np.argsort(-row)[: rng.integers(1, min(n, 8) + 1)] for row in scores]
    relevance = Relevance.from_lists(best, [row[docs] for row, docs in zip(scores, best, strict=True)])
    return BatchMaker(corpus, TeacherLists.from_relevance(queries, relevance, 6), random_docs, dense, **options)


def student_search(maker: BatchMaker) -> Any:
    """A student that ranks by a part of the dimensions."""

    def search(queries: Any) -> Any:
        x = maker.corpus.x
        found = np.full((len(queries), 10), -1, np.int32)
        best = np.argsort(-(queries[:, :3] @ x[:, :3].T), axis=1)[:, :10]
        found[:, : best.shape[1]] = best
        return found

    return search


def make(name: str = "topk", n: int = 40, **options: Any) -> Sampler:
    maker = material(n, **options)
    return SAMPLERS[name](maker, Miner(lambda: student_search(maker), 2))


def draw(sampler: Sampler, seed: int = 0, size: int = 5) -> Batch:
    return sampler.draw(np.random.default_rng(seed), size)


def maker_of(sampler: Sampler) -> BatchMaker:
    return sampler.maker  # type: ignore[attr-defined,no-any-return]


def test_the_names_are_those_of_the_options() -> None:
    assert tuple(SAMPLERS) == config.SAMPLERS


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


@pytest.mark.parametrize("metric", list(Metric))
def test_scores_of_own_documents(metric: Metric) -> None:
    corpus, queries = Corpus(normal(20, D), metric), normal(3, D, seed=1)
    docs = np.array([[3, -1], [19, 0], [-1, -1]], np.int32)
    got = corpus.own_scores(queries, docs)
    want = np.take_along_axis(exact_scores(metric, queries, corpus.x), np.maximum(docs, 0).astype(np.int64), 1)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.where(docs >= 0, want, -np.inf), atol=1e-4)


@pytest.mark.parametrize("name", config.SAMPLERS)
@given(st.integers(0, 2**32), st.integers(1, 20), st.integers(0, 60), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_no_document_counts_twice(name: str, seed: int, size: int, random_docs: int, n: int) -> None:
    batch = draw(make(name, n, random_docs=random_docs, seed=seed), seed, size)
    for docs, real in zip(batch.docs, batch.real, strict=True):
        assert len(set(docs[real].tolist())) == real.sum()
    assert ((batch.docs >= 0) & (batch.docs < n)).all()


@pytest.mark.parametrize("name", config.SAMPLERS)
@pytest.mark.parametrize("metric", list(Metric))
def test_teacher_scores_of_a_dense_teacher(name: str, metric: Metric) -> None:
    """All real documents have their exact score, listed, mined or shared; padding and repeats have none."""
    sampler = make(name, metric=metric)
    batch = draw(sampler)
    assert batch.teacher.dtype == np.float32 and batch.docs.dtype == np.int32 and batch.weight is None
    want = exact_scores(metric, batch.queries, maker_of(sampler).corpus.x)
    want = np.take_along_axis(want, batch.docs.astype(np.int64), 1)
    np.testing.assert_allclose(batch.teacher[batch.real], want[batch.real], atol=1e-4)
    assert np.isneginf(batch.teacher[~batch.real]).all()


@pytest.mark.parametrize("name", config.SAMPLERS)
def test_without_dense_scores_only_listed_documents_have_a_target(name: str) -> None:
    sampler = make(name, dense=False)
    batch, lists = draw(sampler), maker_of(sampler).lists
    depth = lists.docs.shape[1]
    assert np.isneginf(batch.teacher[:, depth:]).all()
    assert batch.real[:, depth:].any()
    np.testing.assert_array_equal(batch.teacher[:, :depth], lists.scores[batch.picked])
    assert np.array_equal(np.isfinite(batch.teacher[:, :depth]), batch.real[:, :depth])


@pytest.mark.parametrize("name", config.SAMPLERS)
def test_documents_of_a_batch(name: str) -> None:
    """The whole list of each query, and the first document of every query and the random ones at the end."""
    sampler = make(name, random_docs=0)
    batch, lists = draw(sampler, size=12), maker_of(sampler).lists
    assert sorted(batch.picked) == list(range(12))
    np.testing.assert_array_equal(batch.queries, lists.queries[batch.picked])
    own, depth = lists.docs[batch.picked], lists.docs.shape[1]
    assert np.array_equal(batch.real[:, :depth], own >= 0)
    assert np.array_equal(batch.docs[:, :depth][own >= 0], own[own >= 0])
    first = np.unique(lists.docs[:, 0])
    np.testing.assert_array_equal(batch.docs[:, -len(first) :], np.broadcast_to(first, (12, len(first))))
    assert len(set(draw(make(name, random_docs=30)).docs[0, depth:].tolist())) > 12


@pytest.mark.parametrize("name", config.SAMPLERS)
@pytest.mark.parametrize(("size", "rows"), [(1, 1), (12, 12), (100, 12)])
def test_queries_are_drawn_without_replacement(name: str, size: int, rows: int) -> None:
    batch = draw(make(name), size=size)
    assert len(batch.queries) == rows == len(np.unique(batch.picked))
    assert batch.docs.shape == batch.teacher.shape == batch.real.shape


@pytest.mark.parametrize("name", config.SAMPLERS)
def test_generator_decides(name: str) -> None:
    first, again, other = (draw(make(name), seed) for seed in (1, 1, 2))
    for field in ("queries", "docs", "teacher", "real", "picked"):
        assert np.array_equal(getattr(first, field), getattr(again, field)), field
    assert not np.array_equal(first.picked, other.picked)


@pytest.mark.parametrize("name", config.SAMPLERS)
def test_later_batches_differ(name: str) -> None:
    sampler, rng = make(name), np.random.default_rng(0)
    assert not np.array_equal(sampler.draw(rng, 5).queries, sampler.draw(rng, 5).queries)


def test_mined_documents_are_what_the_student_finds_and_the_teacher_does_not_list() -> None:
    maker = material()
    search, depth = student_search(maker), maker.lists.docs.shape[1]
    batch = draw(MinedSampler(maker, Miner(lambda: search, 1)))
    for i, found in enumerate(search(batch.queries)):
        mined = set(batch.docs[i, depth : depth + 10][batch.real[i, depth : depth + 10]].tolist())
        assert mined == set(found.tolist()) - set(maker.lists.docs[batch.picked[i]].tolist())
        assert mined


def test_the_student_is_looked_at_every_so_many_batches() -> None:
    maker, looks = material(), []

    def snapshot() -> Any:
        looks.append(len(drawn))
        return student_search(maker)

    drawn: list[Batch] = []
    sampler, rng = MinedSampler(maker, Miner(snapshot, 3)), np.random.default_rng(0)
    for _ in range(7):
        drawn.append(sampler.draw(rng, 4))
    assert looks == [0, 3, 6]


def chained(q: int = 30, isolated: int = 4) -> BatchMaker:
    """Queries i and i + 1 share document i; the last ones share none with anybody."""
    docs = np.stack([np.arange(q), np.arange(q) + 1], axis=1).astype(np.int32)
    docs[q - isolated :] = np.arange(q + 1, q + 1 + isolated)[:, None]
    docs[q - isolated :, 1] = -1
    scores = np.where(docs >= 0, np.float32([2, 1]), np.float32(-np.inf))
    corpus = Corpus(normal(q + isolated + 1, D), Metric.IP)
    return BatchMaker(corpus, TeacherLists(normal(q, D, seed=1), docs, scores), 3, dense=True)


@pytest.mark.parametrize("snowball", [False, True])
@pytest.mark.parametrize("size", [1, 7, 30])
def test_each_query_comes_once_before_any_comes_again(snowball: bool, size: int) -> None:
    sampler, rng = LocalSampler(chained(), snowball), np.random.default_rng(0)
    picked = np.concatenate([sampler.draw(rng, size).picked for _ in range(3 * (30 // size) + 3)])
    for at in range(0, len(picked) - 30, 30):
        assert sorted(picked[at : at + 30]) == list(range(30))


@pytest.mark.parametrize("snowball", [False, True])
def test_batches_grow_along_shared_documents(snowball: bool) -> None:
    """Of a chain, a first batch is a piece without gaps, but for isolated queries where it began."""
    for seed in range(20):
        picked = LocalSampler(chained(), snowball).draw(np.random.default_rng(seed), 8).picked
        chain = np.sort(picked[picked < 26])
        assert (picked >= 26).sum() <= 4
        if picked[0] < 26 and (picked < 26).all():
            assert np.array_equal(chain, np.arange(chain[0], chain[0] + len(chain)))


def test_a_snowball_is_tight_and_a_walk_goes_far() -> None:
    """Around a hub whose queries have a second document each: breadth first takes the hub's queries before theirs."""
    hub, tail = 20, 20
    docs = np.full((hub + tail, 2), -1, np.int32)
    docs[:hub, 0], docs[:hub, 1] = 0, 1 + np.arange(hub)
    docs[hub:, 0] = 1 + np.arange(tail)
    scores = np.where(docs >= 0, np.float32([2, 1]), np.float32(-np.inf))
    lists = TeacherLists(normal(hub + tail, D), docs, scores)
    maker = BatchMaker(Corpus(normal(1 + hub, D), Metric.IP), lists, 0, dense=True)
    in_hub = {}
    for snowball in (False, True):
        batches = [LocalSampler(maker, snowball).draw(np.random.default_rng(seed), 15).picked for seed in range(20)]
        in_hub[snowball] = np.mean([(picked < hub).sum() for picked in batches])
    assert in_hub[True] >= 13 > in_hub[False] + 2


def test_places_count_by_the_inverse_of_their_chance() -> None:
    """Over many batches, the weights of a shared document add up to one a batch, popular or not."""
    maker = material(random_docs=8, debias=True)
    n, rng, total, batches = len(maker.corpus.x), np.random.default_rng(0), np.zeros(40), 4000
    width = maker.lists.docs.shape[1]
    for _ in range(batches):
        picked = rng.integers(0, 12, 5)  # with replacement, as the chance supposes
        batch = maker.make(picked, rng)
        assert batch.weight is not None and batch.weight.shape == batch.docs.shape
        assert (batch.weight[:, :width] == 1).all() and batch.weight.min() >= 1
        total[batch.docs[0, width:]] += batch.weight[0, width:]
    np.testing.assert_allclose(total / batches, 1, atol=0.12)
    assert n == 40


def test_documents_that_begin_many_lists_weigh_less() -> None:
    maker = material(debias=True)
    firsts = np.bincount(maker.lists.docs[:, 0], minlength=40)
    batch, width = draw(TopKSampler(maker)), maker.lists.docs.shape[1]
    assert batch.weight is not None
    by_count = {firsts[doc]: weight for doc, weight in zip(batch.docs[0, width:], batch.weight[0, width:], strict=True)}
    assert len(by_count) > 1
    assert [by_count[count] for count in sorted(by_count)] == sorted(by_count.values(), reverse=True)


@pytest.mark.parametrize("name", ["topk", "mined"])
@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_false_negatives_are_left_out(name: str, share: float) -> None:
    plain, masked = (draw(make(name, dense=False, false_negatives=value, random_docs=40)) for value in (None, share))
    maker = material(dense=False, random_docs=40)
    scores = np.take_along_axis(exact_scores(Metric.IP, plain.queries, maker.corpus.x), plain.docs.astype(np.int64), 1)
    width = maker.lists.docs.shape[1]
    shared = slice(width if name == "topk" else width + 10, None)
    near = np.where(plain.real, scores, -np.inf)[:, :width].max(axis=1, keepdims=True)
    far = scores[:, shared].mean(axis=1, keepdims=True)
    suspect = scores > far + share * (near - far)
    suspect[:, :width] = False
    np.testing.assert_array_equal(masked.real, plain.real & ~suspect)
    np.testing.assert_array_equal(masked.teacher, plain.teacher)
    assert (plain.real & suspect).any() == (share < 1)
