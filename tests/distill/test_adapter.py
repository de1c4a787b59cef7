"""Adapters of queries: what they must recover, when they must be refused, and that they do not depend on chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vqdistill.config import DistillConfig, IvfPqConfig
from vqdistill.data.relevance import Relevance
from vqdistill.data.sources import EmbeddingSource, open_source
from vqdistill.data.teacher import ExactTeacher, query_rows
from vqdistill.distill.adaptation import Adaptation, adapt_queries
from vqdistill.distill.adapter import (
    HARD_DEPTH,
    Network,
    candidate_quality,
    exact_quality,
    hard_negatives,
    hard_temperature,
    learn_adapter,
)
from vqdistill.distill.judged import HardSampler, JudgedQueries, Judgments
from vqdistill.distill.samplers import Batch, Corpus
from vqdistill.distill.trainer import Distiller
from vqdistill.types import F32Rows, Metric

N, D, Q = 500, 12, 400
QUICK = DistillConfig(
    adapter_rank=D, adapter_hidden=4, adapter_steps=120, adapter_eval_every=30, adapter_refresh=60, held_out=80,
    adapter_batch=128, adapter_rate=0.1,
)  # fmt: skip


def turned(metric: Metric, scale: float = 1.0) -> tuple[EmbeddingSource, F32Rows, np.ndarray, F32Rows]:
    """A corpus, noisy queries that are its rows seen through a rotation, the row of each query, and the rotation."""
    rng = np.random.default_rng(0)
    x = scale * rng.standard_normal((N, D))
    rotation = np.linalg.qr(rng.standard_normal((D, D)))[0]
    rows = rng.integers(0, N, Q)
    queries = x[rows] @ rotation + 0.1 * scale * rng.standard_normal((Q, D))
    src = open_source(x.astype(np.float32), metric=metric)
    return src, query_rows(queries.astype(np.float32), src), rows, rotation.astype(np.float32)


def learn(
    metric: Metric = Metric.COSINE, config: DistillConfig = QUICK, labels: Relevance | None = None, scale: float = 1.0,
    scored: bool = False, threads: int = 1,
) -> Adaptation:  # fmt: skip
    src, queries, rows, _ = turned(metric, scale)
    given = Relevance.from_padded(rows[:, None]) if labels is None else labels
    return adapt_queries(src, queries, given, config, scored=scored, threads=threads)


@pytest.mark.parametrize(("metric", "scale"), [(Metric.COSINE, 1.0), (Metric.L2, 7.0), (Metric.L2, 0.01)])
def test_a_turned_query_map_is_recovered(metric: Metric, scale: float) -> None:
    """On queries that neither taught nor chose, too; whatever the units of the vectors."""
    found = learn(metric, scale=scale)
    assert found.report["stage"] == "query adapter" and found.report["kept"] and found.report["measure"] == "MRR@10"
    assert found.report["before"] < 0.2 and found.report["after"] > 0.9
    _, queries, _, rotation = turned(metric, scale)
    fresh = np.random.default_rng(5).standard_normal((50, D)).astype(np.float32)
    fresh *= np.linalg.norm(queries, axis=1).mean() / np.linalg.norm(fresh, axis=1, keepdims=True)
    wanted = fresh @ rotation.T
    cosines = (
        (found(fresh) * wanted).sum(axis=1) / np.linalg.norm(found(fresh), axis=1) / np.linalg.norm(wanted, axis=1)
    )
    assert np.median(cosines) > 0.9


def test_who_decides_does_not_teach() -> None:
    found = learn()
    assert len(found.held) == 80 and len(found.train) == 320
    assert not np.intersect1d(found.held, found.train).size


def test_noise_teaches_nothing() -> None:
    """Labels that have nothing to do with the queries of a map that is right already."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((N, D)).astype(np.float32)
    src = open_source(x, metric="cosine")
    rows = rng.integers(0, N, Q)
    queries = query_rows(x[rows] + 0.3 * rng.standard_normal((Q, D)).astype(np.float32), src)
    held = adapt_queries(src, queries, Relevance.from_padded(rows[:, None]), QUICK, scored=False).held
    labels = rng.integers(0, N, Q)
    labels[held] = rows[held]  # the truth decides
    found = adapt_queries(src, queries, Relevance.from_padded(labels[:, None]), QUICK, scored=False)
    assert found.adapter is None and np.array_equal(found(queries), queries)
    assert found.report["after"] == found.report["before"] > 0.5 and not found.report["kept"]


def test_three_grades() -> None:
    src, queries, rows, _ = turned(Metric.COSINE)
    x = src.take(np.arange(N))
    near = np.argsort(-(x[rows] @ x.T), axis=1)[:, :6]
    grades = np.tile([3.0, 2.0, 2.0, 1.0, 1.0, 1.0], (Q, 1))
    graded = Relevance.from_padded(near, grades.astype(np.float32))
    found = learn(labels=graded)
    assert found.report["measure"] == "nDCG@10" and found.report["kept"]
    assert found.report["after"] > found.report["before"] + 0.4
    held = JudgedQueries.from_relevance(queries[found.held], graded.select(found.held), scored=False)
    assert exact_quality(held, Corpus(x, Metric.COSINE), found.adapter, 1).mean() == found.report["after"]


def test_pair_scores_on_a_scale_of_their_own() -> None:
    src, _, rows, _ = turned(Metric.COSINE)
    x = src.take(np.arange(N))
    near = np.argsort(-(x[rows] @ x.T), axis=1)[:, :20]
    scores = 50 * np.take_along_axis(x[rows] @ x.T, near, axis=1) - 700
    found = learn(labels=Relevance.from_padded(near, scores.astype(np.float32)), scored=True)
    assert found.report["measure"] == "nDCG@10"
    assert found.report["after"] > found.report["before"] + 0.3


def test_the_same_seed_gives_the_same_adapter_with_any_threads() -> None:
    first, again, other = (learn(threads=1), learn(threads=3), learn(config=replace(QUICK, seed=1)))
    assert first.adapter is not None and again.adapter is not None and other.adapter is not None
    for name in ("down", "bias", "up"):
        assert np.array_equal(getattr(first.adapter, name), getattr(again.adapter, name)), name
    assert not np.array_equal(first.adapter.down, other.adapter.down)


@pytest.mark.parametrize("count", [0, 3, 19])
def test_too_few_judged_queries(count: int) -> None:
    labels = np.where(np.arange(Q) < count, 0, -1)[:, None]
    found = learn(labels=Relevance.from_padded(labels))
    assert (found.adapter, len(found.held), found.report) == (None, 0, {})


def test_nothing_is_trained_where_distillation_is_off() -> None:
    found = learn(config=replace(QUICK, enabled=False))
    assert (found.adapter, found.report) == (None, {}) and len(found.held) == 80


@pytest.mark.parametrize("rank", [1, 5, D])
@pytest.mark.parametrize("hidden", [0, 3])
@pytest.mark.parametrize("unit", [False, True])
def test_the_value_of_a_network_is_what_was_trained(rank: int, hidden: int, unit: bool) -> None:
    queries = 3 * np.random.default_rng(2).standard_normal((20, D)).astype(np.float32)
    network = Network(queries, hidden, unit, seed=0)
    start = network.value(rank)(queries)
    assert start == pytest.approx(
        queries / np.linalg.norm(queries, axis=1, keepdims=True) if unit else queries, abs=1e-6
    )
    generator = torch.Generator().manual_seed(3)
    left = torch.randn(D, rank, generator=generator) @ torch.randn(rank, D, generator=generator)
    with torch.no_grad():
        for parameter, value in zip(
            network.parameters,
            (left / D, torch.randn(D, hidden, generator=generator), network.parameters[2], torch.ones(hidden)),
            strict=True,
        ):
            parameter.copy_(value)
        trained = network(torch.from_numpy(queries)).numpy()
    adapter = network.value(rank)
    assert (adapter.rank, adapter.units) == (rank, rank + hidden)
    assert adapter(queries) == pytest.approx(trained, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("metric", list(Metric))
def test_the_loss_is_the_cross_entropy_of_dense_scores(metric: Metric) -> None:
    rng = np.random.default_rng(4)
    corpus = Corpus(rng.standard_normal((30, D)).astype(np.float32), metric)
    queries = rng.standard_normal((2, D)).astype(np.float32)
    docs = np.array([[3, 7, 1, 3], [9, 0, 3, 2]], np.int32)
    teacher = np.log(np.array([[0.25, 0.75, 0, 0], [1, 0, 0, 0]]) + 1e-30).astype(np.float32)
    teacher[teacher < -60] = -np.inf
    real = np.array([[True, True, True, False], [True, False, True, True]])
    found = Network(queries, 2, False, 0).loss(
        Batch(queries, docs, teacher, real, np.arange(len(queries))), corpus, 0.5
    )
    scores = np.concatenate([corpus.scores(q[None], d) for q, d in zip(queries, docs, strict=True)]) / 0.5
    log_p = scores - np.log(np.exp(np.where(real, scores, -np.inf)).sum(axis=1, keepdims=True))
    wanted = -(0.25 * log_p[0, 0] + 0.75 * log_p[0, 1] + log_p[1, 0]) / 2
    assert float(found.detach()) == pytest.approx(float(wanted), rel=1e-4)


def test_hard_negatives_are_right_for_somebody() -> None:
    src, queries, rows, _ = turned(Metric.IP)
    corpus = Corpus(src.take(np.arange(N)), Metric.IP)
    train = JudgedQueries.from_relevance(queries[:40], Relevance.from_padded(rows[:40, None]), scored=False)
    hard = hard_negatives(train, corpus, None, 1, seed=0)
    pool = np.unique(rows[:40])
    assert hard.shape == (40, HARD_DEPTH) and hard.dtype == np.int32
    for query, docs in zip(train.queries, hard, strict=True):
        assert docs[len(pool) :].tolist() == [-1] * (HARD_DEPTH - len(pool))
        assert np.array_equal(docs[: len(pool)], pool[np.argsort(-(corpus.x[pool] @ query), kind="stable")])
    temperature = hard_temperature(train.queries, corpus, hard, 8.0)
    assert 0 < hard_temperature(train.queries, corpus, hard, 4.0) < temperature


def test_verification_is_judged_by_the_order_of_candidates() -> None:
    """An adapter can only move what the codes have found."""
    src, queries, rows, _ = turned(Metric.COSINE)
    corpus = Corpus(src.take(np.arange(N)), Metric.COSINE)
    held = JudgedQueries.from_relevance(queries[:30], Relevance.from_padded(rows[:30, None]), scored=False)
    others = (rows[:30, None] + np.arange(1, 40)) % N
    candidates = np.concatenate([others, rows[:30, None]], axis=1).astype(np.int32)
    candidates[:10, -1] = -1
    learned = learn().adapter
    assert learned is not None
    assert candidate_quality(held, corpus, candidates, None).mean() < 0.3
    assert candidate_quality(held, corpus, candidates, learned).mean() == pytest.approx(2 / 3, abs=0.05)


def test_any_sampler_will_do() -> None:
    """Batches of one query, padded, through the same loop."""
    src, queries, rows, _ = turned(Metric.COSINE)
    corpus = Corpus(src.take(np.arange(N)), Metric.COSINE)
    train = JudgedQueries.from_relevance(queries, Relevance.from_padded(rows[:, None]), scored=False)

    class Single:
        def draw(self, rng: np.random.Generator, size: int) -> Batch:
            return HardSampler(train, train.docs[::-1].copy(), 1, N).draw(rng, 1)

    config = replace(QUICK, adapter_steps=3, adapter_eval_every=1)
    seen: list[bool] = []

    def measure(adapter: object) -> np.ndarray:
        seen.append(adapter is not None)
        return np.full(5, float(len(seen)))

    learned = learn_adapter(train, corpus, lambda _: Single(), measure, 0.1, config)
    assert seen == [False, True, True, True] and learned.after == 4.0 and learned.before == 1.0


def test_verification_learns_from_what_the_codes_find() -> None:
    """Codes follow the dense neighbours; labels, a slight turn away, can only reorder candidates."""
    src, _, rows, rotation = turned(Metric.COSINE)
    x = src.take(np.arange(N))
    slight = 0.75 * np.eye(D, dtype=np.float32) + 0.5 * rotation
    queries = query_rows(x[rows] @ slight, src)
    relevance = ExactTeacher(src).relevance(queries, 50)
    held = np.arange(Q) < 80
    judgments = Judgments(Relevance.from_padded(rows[:, None]), held, scored=False, length=10.0)
    shape = IvfPqConfig(nlist=4, m=12, codes="additive", verify_units=QUICK.adapter_units(D))
    config = replace(QUICK, depth=50, list_length=20, steps=10, batch=64, random_docs=100)
    distiller = Distiller(shape, config)
    model = distiller.fit(src, queries, relevance, judgments=judgments)
    stage = distiller.report["stages"][-1]
    assert (stage["stage"], stage["kept"]) == ("verification adapter", True)
    assert stage["after"] > stage["before"] + 0.1
    assert distiller.report["held_out_queries"] == 80
    assert model.query_adapter is None and model.verify_adapter is not None
    assert model.verify_adapter.units == shape.verify_units
    without = Distiller(replace(shape, verify_units=0), config)
    assert without.fit(src, queries, relevance, judgments=judgments).verify_adapter is None
    # What decides when to stop reading is how far codes are from the scores that verification gives.
    assert distiller.calibrated["error"] > without.calibrated["error"]
