"""Routing: losses and lifts by hand, a router that learns where queries go, and a rule that covers what it promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from tests.distill.support import DEPTH, Task
from vqdistill.config import DistillConfig
from vqdistill.data.sources import open_source
from vqdistill.data.teacher import ExactTeacher, query_rows
from vqdistill.distill.held_out import TOP, HeldOut, route_scores, surely_better
from vqdistill.distill.routing import (
    COVERAGES,
    LearnedRouter,
    RouteTargets,
    calibrate_lift,
    choose_lists,
    learn_router,
    lifts,
    temperature_of,
    visited,
)
from vqdistill.distill.samplers import Corpus, TeacherLists
from vqdistill.distill.terms import QueryTerms
from vqdistill.model.codebooks import Coarse, train_coarse
from vqdistill.types import F32Rows, Metric

NLIST = 24
QUICK = DistillConfig(depth=DEPTH, list_length=20, router_steps=150, router_eval_every=30, router_batch=200)


@pytest.fixture(scope="module")
def shifted() -> dict[Metric, Task]:
    """2,000 rows in 16 dimensions, 1,200 queries off to one side that vary along few of them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 16))
    q = np.linspace(2, 0.1, 16) * rng.standard_normal((1200, 16)) + 0.5
    made = {}
    for metric in Metric:
        src = open_source(x.astype(np.float32), metric=metric)
        queries = query_rows(q.astype(np.float32), src)
        made[metric] = Task(src, queries, ExactTeacher(src).relevance(queries, DEPTH))
    return made


def split(task: Task, held: int = 40) -> tuple[TeacherLists, HeldOut]:
    """Teacher's lists of the first queries, and the last ones as a judge."""
    order = np.arange(len(task.queries))
    train, kept = (
        TeacherLists.from_relevance(task.queries[part], task.relevance.select(part), DEPTH)
        for part in (order[:-held], order[-held:])
    )
    return train, HeldOut(Corpus(task.src.take(np.arange(task.src.n)), task.src.metric), kept)


def learn(task: Task, config: DistillConfig = QUICK, seed: int = 0) -> tuple[Coarse, HeldOut, LearnedRouter]:
    train, judge = split(task, held=200)
    coarse = train_coarse(judge.corpus.x, NLIST, 0)
    rng = np.random.default_rng(seed)
    return coarse, judge, learn_router(coarse.centroids, train, coarse.lists, judge, config, rng)


@pytest.mark.parametrize("metric", list(Metric))
def test_router_learns_queries_that_are_not_distributed_like_rows(shifted: dict[Metric, Task], metric: Metric) -> None:
    coarse, judge, learned = learn(shifted[metric])
    assert np.array_equal(learned.before, judge.route_recalls(coarse.centroids, coarse.lists))
    assert np.array_equal(learned.after, judge.route_recalls(learned.router, coarse.lists))
    assert learned.after.mean() > learned.before.mean() + 0.005
    assert learned.router.shape == (NLIST, 16) and learned.router.dtype == np.float32


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("rate", [0.02, 1e6])
def test_router_is_never_worse_than_its_start(tasks: dict[Metric, Task], metric: Metric, rate: float) -> None:
    """Training queries are taught documents of other queries; a huge step makes any router useless."""
    task = tasks[metric]
    train, judge = split(task)
    coarse = train_coarse(judge.corpus.x, NLIST, 0)
    wrong = replace(train, docs=np.roll(train.docs, 7, axis=0))
    config = replace(QUICK, router_rate=rate)
    learned = learn_router(coarse.centroids, wrong, coarse.lists, judge, config, np.random.default_rng(0))
    assert learned.after.mean() >= learned.before.mean()
    if not surely_better(learned.before, learned.after):
        assert np.array_equal(learned.router, coarse.centroids)


def test_scale_of_the_vectors_does_not_matter(tasks: dict[Metric, Task]) -> None:
    """Temperature, steps and ridge are relative: vectors and queries of other lengths give the same router, scaled."""
    train, judge = split(tasks[Metric.IP])
    coarse = train_coarse(judge.corpus.x, NLIST, 0)
    scaled = replace(train, queries=train.queries * np.float32(4))
    larger = HeldOut(judge.corpus, replace(judge.lists, queries=judge.lists.queries * np.float32(4)))
    small = learn_router(coarse.centroids, train, coarse.lists, judge, QUICK, np.random.default_rng(0))
    large = learn_router(coarse.centroids * 8, scaled, coarse.lists, larger, QUICK, np.random.default_rng(0))
    assert large.temperature == pytest.approx(32 * small.temperature, rel=1e-4)
    np.testing.assert_allclose(large.router, 8 * small.router, rtol=0.01, atol=0.01)


def test_seeds_decide_and_threads_do_not(shifted: dict[Metric, Task]) -> None:
    routers = []
    for threads, seed in ((1, 0), (2, 0), (1, 1)):
        torch.set_num_threads(threads)
        with threadpool_limits(1):
            routers.append(learn(shifted[Metric.IP], seed=seed)[2].router)
    torch.set_num_threads(1)
    assert np.array_equal(routers[0], routers[1])
    assert not np.array_equal(routers[0], routers[2])


@pytest.mark.parametrize("queries", [1, 3, 16])
def test_few_queries_stay_near_the_start(tasks: dict[Metric, Task], queries: int) -> None:
    """Where a router could learn its queries by heart, the ridge holds it."""
    train, judge = split(tasks[Metric.COSINE])
    few = TeacherLists(train.queries[:queries], train.docs[:queries], train.scores[:queries])
    coarse = train_coarse(judge.corpus.x, NLIST, 0)
    learned = learn_router(coarse.centroids, few, coarse.lists, judge, QUICK, np.random.default_rng(0))
    assert learned.after.mean() >= learned.before.mean()
    assert np.isfinite(learned.router).all()


def test_targets_by_hand() -> None:
    teacher = TeacherLists(
        np.eye(2, dtype=np.float32),
        np.array([[4, 1, -1], [0, 2, 3]], np.int32),
        np.array([[9.0, 1.0, -np.inf], [3.0, 2.0, 1.0]], np.float32),
    )
    targets = RouteTargets.from_teacher(teacher, np.array([2, 0, 1, 1, 0], np.int32))
    assert targets.lists[0, :2].tolist() == [0, 0] and targets.lists[1].tolist() == [2, 1, 1]
    first, second = np.array([1, 1 / 1.1, 0]), np.array([1, 1 / 1.1, 1 / 1.2])
    np.testing.assert_allclose(targets.weights, [first / first.sum(), second / second.sum()], rtol=1e-6)


@pytest.mark.parametrize("metric", [Metric.IP, Metric.L2])
def test_loss_is_the_cross_entropy_of_where_the_documents_are(metric: Metric) -> None:
    rng = np.random.default_rng(0)
    router, queries = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 4), (3, 4)))
    targets = RouteTargets(queries, np.array([[0, 0], [1, 4], [2, 3]]), np.full((3, 2), 0.5, np.float32))
    picked = np.array([2, 0])
    want = 0.0
    for query in picked:
        scores = router @ queries[query]
        if metric is Metric.L2:
            scores = -((queries[query] - router) ** 2).sum(axis=1)
        p = np.exp(scores / 0.7) / np.exp(scores / 0.7).sum()
        want -= np.log(p[targets.lists[query]]).mean() / len(picked)
    got = targets.loss(picked, torch.from_numpy(router), metric, 0.7)
    assert got.item() == pytest.approx(want, rel=1e-5)


def test_temperature_without_spread_is_one() -> None:
    assert temperature_of(np.ones((1, 3), np.float32), Metric.IP, np.ones((2, 3), np.float32)) == 1.0


def test_lifts_by_hand() -> None:
    """Two lists equally likely: the one with a tenth of the rows is lifted nine times as much; an empty one never."""
    got = lifts(np.array([[3.0, 3.0, 9.0]], np.float32), 1e9, np.array([0.1, 0.9, 0.0]))
    np.testing.assert_allclose(got, [[1 / 3 / 0.1, 1 / 3 / 0.9, 0]], rtol=1e-6)
    sharp = lifts(np.array([[1000.0, 0.0]], np.float32), 0.5, np.array([0.5, 0.5]))
    assert sharp.tolist() == [[2.0, 0.0]]


def test_the_best_list_is_always_visited() -> None:
    got = visited(np.array([[0.5, 2.0, 1.0], [0.4, 0.3, 0.1]], np.float32), 1.0)
    assert got.tolist() == [[False, True, True], [True, False, False]]


def scanned_and_found(judge: HeldOut, router: F32Rows, coarse: Coarse, temperature: float, lift: float) -> list[float]:
    """Query by query, list by list."""
    sizes = np.bincount(coarse.lists, minlength=NLIST)
    scanned, found, wanted = 0.0, 0, 0
    for query, docs in zip(judge.lists.queries, judge.lists.docs[:, :TOP], strict=True):
        scores = route_scores(router, judge.corpus.metric, query[None])[0].astype(np.float64) / temperature
        p = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        chosen = p * len(coarse.lists) >= lift * sizes * (1 - 1e-5)
        scanned += sizes[chosen].sum() / len(coarse.lists) / len(judge.lists.queries)
        found += int(chosen[coarse.lists[docs[docs >= 0]]].sum())
        wanted += int((docs >= 0).sum())
    return [scanned, found / wanted]


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.L2])
def test_ladder_covers_what_it_says(shifted: dict[Metric, Task], metric: Metric) -> None:
    coarse, judge, learned = learn(shifted[metric])
    ladder = calibrate_lift(learned.router, learned.temperature, coarse.lists, judge)
    assert [rung["coverage"] for rung in ladder] == list(COVERAGES)
    for name, sign in (("lift", -1), ("scanned", 1), ("lists", 1)):
        assert (np.diff([sign * rung[name] for rung in ladder]) >= 0).all(), name
    for rung in ladder:
        scanned, found = scanned_and_found(judge, learned.router, coarse, learned.temperature, rung["lift"])
        assert found >= rung["coverage"]
        assert scanned == pytest.approx(rung["scanned"], abs=1e-3)
        # A threshold that is a little higher does not cover it: no rung visits more than it must.
        assert (
            scanned_and_found(judge, learned.router, coarse, learned.temperature, rung["lift"] * 1.001)[1]
            < rung["coverage"] + 0.01
        )


def test_rule_scans_less_than_a_fixed_number_of_lists(shifted: dict[Metric, Task]) -> None:
    coarse, judge, learned = learn(shifted[Metric.COSINE])
    rung = calibrate_lift(learned.router, learned.temperature, coarse.lists, judge)[COVERAGES.index(0.9)]
    shares = np.bincount(coarse.lists, minlength=NLIST) / len(coarse.lists)
    order = np.argsort(-route_scores(learned.router, Metric.COSINE, judge.lists.queries), axis=1)
    rank = np.argsort(order, axis=1)
    needed = np.take_along_axis(rank, coarse.lists[judge.lists.docs[:, :TOP]].astype(np.int64), axis=1)
    nprobe = 1 + int(np.sort(needed, axis=None)[int(np.ceil(0.9 * needed.size)) - 1])
    assert rung["scanned"] < shares[order[:, :nprobe]].sum(axis=1).mean()


def test_ladder_of_few_and_short_lists(tasks: dict[Metric, Task]) -> None:
    """Queries with one document each, fewer than the finest coverage can tell apart."""
    _, judge = split(tasks[Metric.IP], held=4)
    short = replace(judge.lists, docs=judge.lists.docs[:, :1], scores=judge.lists.scores[:, :1])
    coarse = train_coarse(judge.corpus.x, NLIST, 0)
    ladder = calibrate_lift(coarse.centroids, 1.0, coarse.lists, HeldOut(judge.corpus, short))
    assert ladder[-1]["lift"] == ladder[-2]["lift"] > 0


def test_thresholds_stay_above_zero(tasks: dict[Metric, Task]) -> None:
    """Where a document lies in a list that the router thinks impossible."""
    _, judge = split(tasks[Metric.IP])
    coarse = train_coarse(judge.corpus.x, NLIST, 0)
    ladder = calibrate_lift(coarse.centroids, 1e-6, coarse.lists, judge)
    assert ladder[-1]["lift"] == pytest.approx(1e-30)


@pytest.mark.parametrize("metric", list(Metric))
def test_held_out_queries_choose_the_lists(tasks: dict[Metric, Task], metric: Metric) -> None:
    task = tasks[metric]
    train, judge = split(task)
    plain = train_coarse(judge.corpus.x, NLIST, 0)
    known = np.arange(len(train.queries))
    terms = QueryTerms.from_relevance(train.queries, task.relevance.select(known))
    chosen, before, after = choose_lists(plain, terms.take(np.arange(task.src.n)), judge, 0)
    assert np.array_equal(before, judge.route_recalls(plain.centroids, plain.lists))
    assert (chosen is plain) != surely_better(before, after)
    assert np.array_equal(judge.route_recalls(chosen.centroids, chosen.lists), before if chosen is plain else after)
