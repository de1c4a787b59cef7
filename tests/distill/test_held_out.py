"""The judge: recall by hand, candidates by brute force, and a number of lists that is no larger than it must be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.distill.support import DEPTH, Task
from vqdistill.config import KSUB, IvfPqConfig
from vqdistill.distill.held_out import CANDIDATES, ROUTE_SHARE, TOP, HeldOut, route_scores, surely_better
from vqdistill.distill.samplers import Corpus, TeacherLists
from vqdistill.model.codebooks import train_coarse, train_start
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.types import Codes, Metric

NLIST = 12


@pytest.fixture(params=[Metric.IP, Metric.L2])
def task(request: Any, tasks: dict[Metric, Task]) -> Task:
    return tasks[request.param]


def judge_of(task: Task, threads: int = 1, docs: int | None = None) -> HeldOut:
    corpus = Corpus(task.src.take(np.arange(docs or task.src.n)), task.src.metric)
    relevance = task.relevance if docs is None else task.relevance.restrict(np.arange(docs))
    return HeldOut(corpus, TeacherLists.from_relevance(task.queries, relevance, DEPTH), threads)


def model_of(judge: HeldOut, m: int = 4) -> tuple[IvfPqModel, Codes]:
    coarse = train_coarse(judge.corpus.x, NLIST, 0)
    config = IvfPqConfig(nlist=NLIST, m=m, codes="pq")
    model = train_start(judge.corpus.x, coarse, config, judge.corpus.metric, residual=False)
    model = replace(model, router=model.router + 0.2)  # what routes need not be what assigned
    return model, model.encode(judge.corpus.x)


def code_scores(model: IvfPqModel, codes: Codes, queries: Any) -> Any:
    """Similarity of each query to each decoded row; the rotation here is square, so l2 is exact as well."""
    decoded = model.decode(codes).astype(np.float64)
    if model.metric is Metric.L2:
        return -((queries[:, None] - decoded) ** 2).sum(axis=2)
    return queries @ decoded.T


def recall_of(found: list[set[int]], judge: HeldOut) -> float:
    wanted = [set(row[:TOP].tolist()) - {-1} for row in judge.lists.docs]
    return sum(len(w & f) for w, f in zip(wanted, found, strict=True)) / sum(map(len, wanted))


def lists_in_order(model: IvfPqModel, query: Any) -> Any:
    if model.metric is Metric.L2:
        return np.argsort(((query - model.router.astype(np.float64)) ** 2).sum(axis=1), kind="stable")
    return np.argsort(-(model.router.astype(np.float64) @ query), kind="stable")


def test_usable() -> None:
    corpus = Corpus(np.zeros((1, 2), np.float32), Metric.IP)
    none = TeacherLists(np.empty((0, 2), np.float32), np.empty((0, 0), np.int32), np.empty((0, 0), np.float32))
    one = TeacherLists(np.ones((1, 2), np.float32), np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32))
    assert not HeldOut(corpus, none).usable and HeldOut(corpus, one).usable


def test_recall_by_hand() -> None:
    docs = np.array([[3, 1, 2, -1], [0, -1, -1, -1]], np.int32)
    lists = TeacherLists(np.zeros((2, 2), np.float32), docs, np.zeros(docs.shape, np.float32))
    judge = HeldOut(Corpus(np.zeros((4, 2), np.float32), Metric.IP), lists)
    assert judge.recall(np.array([[2, 3, -1], [3, 2, -1]], np.int32)) == 0.5
    assert judge.recall(np.array([[1, 2, 3], [0, -1, -1]], np.int32)) == 1.0
    assert judge.recall(np.full((2, 3), -1, np.int32)) == 0.0


def test_only_the_first_documents_of_the_teacher_count() -> None:
    docs = np.arange(TOP + 5, dtype=np.int32)[None]
    judge = HeldOut(
        Corpus(np.zeros((TOP + 5, 2), np.float32), Metric.IP),
        TeacherLists(np.zeros((1, 2), np.float32), docs, np.zeros(docs.shape, np.float32)),
    )
    assert judge.recall(docs[:, TOP:]) == 0.0
    assert judge.recall(docs[:, : TOP // 2]) == 0.5


def test_candidates_are_the_best_by_code(task: Task) -> None:
    judge = judge_of(task)
    model, codes = model_of(judge)
    got = judge.candidates(model, codes, NLIST)
    assert got.shape == (len(task.queries), CANDIDATES) and got.dtype == np.int32
    scores = code_scores(model, codes, judge.lists.queries)
    worst = np.sort(scores, axis=1)[:, -CANDIDATES]
    found = np.take_along_axis(scores, got.astype(np.int64), 1)
    # 8-bit tables choose, so a few at the lower edge may differ; nothing clearly worse may come in.
    assert (found.min(axis=1) >= worst - 0.05 * (scores.max(axis=1) - worst)).all()
    assert (found >= worst[:, None] - 1e-4).mean() > 0.97
    assert (np.diff(found, axis=1) <= 1e-3).all()
    assert all(len(set(row.tolist())) == CANDIDATES for row in got)


def test_candidates_of_few_documents(task: Task) -> None:
    """All of them are found, the rest is padding; few lists visited find those of these lists."""
    judge = judge_of(task, docs=40)
    model, codes = model_of(judge)
    for row in judge.candidates(model, codes, NLIST):
        assert sorted(row[row >= 0].tolist()) == list(range(40)) and (row[40:] == -1).all()
    for query, row in zip(task.queries, judge.candidates(model, codes, 3), strict=True):
        visited = np.isin(codes.lists, lists_in_order(model, query)[:3])
        assert set(row[row >= 0].tolist()) == set(np.flatnonzero(visited).tolist())


def test_code_recall_is_the_mean_of_two(task: Task) -> None:
    judge = judge_of(task)
    model, codes = model_of(judge)
    scores = code_scores(model, codes, judge.lists.queries)
    order = np.argsort(-scores, axis=1)
    wide, narrow = (recall_of([set(row[:r].tolist()) for row in order], judge) for r in (CANDIDATES, TOP))
    assert judge.candidate_recall(model, codes) == pytest.approx(wide, abs=0.005)
    assert judge.code_recalls(model, codes).mean() == pytest.approx((wide + narrow) / 2, abs=0.005)
    assert narrow < wide


def test_perfect_codes_have_perfect_recall() -> None:
    """Sixteen documents of which each is a codeword of its own."""
    x = np.eye(KSUB, dtype=np.float32)
    words = np.zeros((2, KSUB, KSUB), np.float32)
    words[0] = x
    model = IvfPqModel(
        metric=Metric.IP,
        residual=False,
        mean=np.zeros(KSUB, np.float32),
        coarse=np.zeros((1, KSUB), np.float32),
        router=np.zeros((1, KSUB), np.float32),
        rotation=np.empty((0, KSUB), np.float32),
        codewords=words,
        doc_codewords=words,
    )
    queries = np.random.default_rng(0).uniform(1, 2, (9, KSUB)).astype(np.float32)
    order = np.argsort(-queries, axis=1).astype(np.int32)
    lists = TeacherLists(queries, order, np.take_along_axis(queries, order.astype(np.int64), 1))
    judge = HeldOut(Corpus(x, Metric.IP), lists)
    codes = model.encode(x)
    assert codes.codes[:, 0].tolist() == list(range(KSUB))
    assert judge.code_recalls(model, codes).mean() == 1.0


def test_route_scores_rank_lists_as_the_definition(task: Task) -> None:
    judge = judge_of(task)
    model, _ = model_of(judge)
    for query, scores in zip(task.queries, route_scores(model.router, model.metric, task.queries), strict=True):
        assert np.array_equal(np.argsort(-scores, kind="stable"), lists_in_order(model, query))


def test_route_recall_against_a_loop(task: Task) -> None:
    judge = judge_of(task)
    model, codes = model_of(judge)
    found = []
    for query in task.queries:
        visited: set[int] = set()
        for number in lists_in_order(model, query):
            if len(visited) < ROUTE_SHARE * len(codes.lists):
                visited |= set(np.flatnonzero(codes.lists == number).tolist())
        found.append(visited)
    got = judge.route_recalls(model.router, codes.lists).mean()
    assert got == pytest.approx(recall_of(found, judge))
    assert 0.1 < got < 1


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.1, 1.0])
def test_calibrated_lists_are_the_fewest_that_serve(task: Task, loss: float) -> None:
    judge = judge_of(task)
    model, codes = model_of(judge)
    recalls = [judge.recall(judge.candidates(model, codes, nprobe)) for nprobe in range(1, NLIST + 1)]
    nprobe = judge.calibrate_nprobe(model, codes, loss)
    assert recalls[nprobe - 1] >= recalls[-1] - loss
    fewest = 1 + next(i for i, value in enumerate(recalls) if value >= recalls[-1] - loss)
    assert fewest <= nprobe <= max(fewest + 1, round(1.2 * fewest))  # steps of the ladder


def test_one_list_needs_no_choice(tasks: dict[Metric, Task]) -> None:
    judge = judge_of(tasks[Metric.IP])
    coarse = train_coarse(judge.corpus.x, 1, 0)
    model = train_start(
        judge.corpus.x, coarse, IvfPqConfig(nlist=1, m=4, codes="pq"), judge.corpus.metric, residual=False
    )
    assert judge.calibrate_nprobe(model, model.encode(judge.corpus.x), 0.01) == 1


def test_threads_change_nothing(task: Task) -> None:
    one, two = (judge_of(task, threads) for threads in (1, 2))
    model, codes = model_of(one)
    assert np.array_equal(one.candidates(model, codes, 5), two.candidates(model, codes, 5))


def test_gains_must_exceed_their_standard_error() -> None:
    before = np.full(100, 0.5)
    gains = np.where(np.arange(100) < 40, 0.1, 0.0)  # mean 0.04, standard error 0.0049
    assert surely_better(before, before + gains) and not surely_better(before + gains, before)
    noise = np.where(np.arange(100) % 2, 0.5, -0.49)  # mean 0.005, standard error 0.0497
    assert noise.mean() > 0 and not surely_better(before, before + noise)
    assert surely_better(before, before + gains, 8.0) and not surely_better(before, before + gains, 8.2)
    assert not surely_better(before, before) and not surely_better(before[:1], before[:1] + 1)
