"""The distiller: never worse than its start on held-out queries, same for the same seed, sound on little data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits
from torch import Tensor

from tests.distill.support import DEPTH, Task
from vqdistill import config
from vqdistill.config import DistillConfig, IvfPqConfig
from vqdistill.data.relevance import Relevance
from vqdistill.data.sources import open_source
from vqdistill.data.teacher import ExactTeacher, query_rows
from vqdistill.distill import descent, losses
from vqdistill.distill.calibration import ROUTE_LOSS
from vqdistill.distill.held_out import HeldOut, split
from vqdistill.distill.lesson import training_rows
from vqdistill.distill.losses import COMPARING, LOSSES, Lists
from vqdistill.distill.routing import calibrate_lift
from vqdistill.distill.samplers import Corpus, TeacherLists
from vqdistill.distill.trainer import Distiller
from vqdistill.errors import InvalidInput
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.progress import Progress, Stage
from vqdistill.types import Codes, Metric

SAMPLE = Path(__file__).parent.parent.parent / "data" / "debian-sample.h5"
ARRAYS = ("mean", "coarse", "router", "rotation", "codewords", "doc_codewords")
QUICK = DistillConfig(
    depth=DEPTH,
    list_length=20,
    steps=20,
    eval_every=10,
    patience=2,
    batch=64,
    random_docs=100,
    held_out=30,
    skip=("space",),
)
"""Codes are learned in the rows' own coordinates, so that models can be compared with their start bit by bit."""
IN_A_SPACE = replace(QUICK, skip=())
KINDS = [
    (Metric.IP, "pq", False),
    (Metric.IP, "pq", True),
    (Metric.COSINE, "pq", None),
    (Metric.L2, "pq", None),
    (Metric.IP, "additive", False),
    (Metric.COSINE, "additive", None),
]


def shape(codes: str = "pq", residual: bool | None = False, m: int = 4) -> IvfPqConfig:
    return IvfPqConfig(nlist=8, m=m, codes=codes, residual=residual)


def fit(distiller: Distiller, task: Task, **options: Any) -> IvfPqModel:
    return distiller.fit(task.src, task.queries, task.relevance, **options)


def judge_of(distiller: Distiller, task: Task) -> HeldOut:
    """The held-out queries, split off as `fit` does it for a corpus that fits."""
    _, held = split(task.relevance, distiller.config.held_out, np.random.default_rng([distiller.config.seed, 0]))
    lists = TeacherLists.from_relevance(task.queries[held], task.relevance.select(held), distiller.config.depth)
    return HeldOut(Corpus(task.src.take(np.arange(task.src.n)), task.src.metric), lists)


def encode(judge: HeldOut, model: IvfPqModel) -> Codes:
    """Codes of the corpus from scratch."""
    rows = np.arange(len(judge.corpus.x))
    terms, list_terms = (None if known is None else known.take(rows) for known in (model.terms, model.list_terms))
    return model.encode(judge.corpus.x, terms, list_terms)


def emitted(stage: dict[str, Any]) -> float:
    """Held-out recall of what a stage passes on."""
    return float(stage["after"] if stage["kept"] else stage["before"])


def recall(judge: HeldOut, model: IvfPqModel, distiller: Distiller) -> float:
    """Held-out recall of the codes that a build takes."""
    assert distiller.codes is not None
    return float(judge.code_recalls(model, distiller.codes).mean())


def route_recall(judge: HeldOut, model: IvfPqModel) -> float:
    return float(judge.route_recalls(model.router, encode(judge, model).lists).mean())


def same(a: IvfPqModel, b: IvfPqModel) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS)


def undistilled(model: IvfPqConfig, config: DistillConfig, task: Task) -> tuple[IvfPqModel, Distiller]:
    distiller = Distiller(model, replace(config, enabled=False))
    return fit(distiller, task), distiller


@pytest.mark.parametrize(("metric", "codes", "residual"), KINDS)
def test_every_kind_is_no_worse_than_its_start(
    tasks: dict[Metric, Task], metric: Metric, codes: str, residual: bool | None
) -> None:
    task, distiller = tasks[metric], Distiller(shape(codes, residual), QUICK)
    model = fit(distiller, task)
    start, plain = undistilled(shape(codes, residual), QUICK, task)
    judge = judge_of(distiller, task)
    before, after = recall(judge, start, plain), recall(judge, model, distiller)
    assert after >= before
    assert (model.metric, model.additive, model.nlist, model.m) == (metric, codes == "additive", 8, 4)
    assert codes == "additive" or model.terms is None
    if residual is not None:
        assert model.residual == residual
    assert np.array_equal(model.mean, start.mean)
    assert (model.anchors is None) == np.array_equal(model.coarse, start.coarse) == (model.list_terms is None)
    for name in ARRAYS:
        array = getattr(model, name)
        assert array.dtype == np.float32 and array.flags.c_contiguous and np.isfinite(array).all(), name
    assert route_recall(judge, model) >= route_recall(judge, start)
    left, anew = distiller.codes, encode(judge, model)
    assert left is not None
    assert np.array_equal(left.lists, anew.lists)
    # Additive codes are found codebook by codebook, and these were put into another order since.
    assert model.additive or np.array_equal(left.codes, anew.codes)
    assert judge.candidate_recall(model, left) == distiller.report["candidate_recall"]


@pytest.mark.parametrize(("metric", "codes", "residual"), KINDS)
def test_report_tells_what_can_be_measured_again(
    tasks: dict[Metric, Task], metric: Metric, codes: str, residual: bool | None
) -> None:
    task, distiller = tasks[metric], Distiller(shape(codes, residual), QUICK)
    model, judge = fit(distiller, task), judge_of(distiller, task)
    report = json.loads(json.dumps(distiller.report))
    assert (report["rows"], report["train_queries"], report["held_out_queries"]) == (600, 120, 30)
    names = [stage["stage"] for stage in report["stages"]]
    own = ["codes for queries", "tables"] if codes == "additive" else ["codes"]
    assert names == ["lists", *own, "router"]
    for stage in report["stages"]:
        assert stage["after"] > stage["before"] or not stage["kept"]
    assert report["start"]["residual"] == model.residual
    starts = report["start"]["recall"]
    assert report["stages"][1]["before"] == pytest.approx(max(starts.values()))
    assert emitted(report["stages"][-2]) == pytest.approx(recall(judge, model, distiller))
    coded = distiller.codes
    assert coded is not None
    assert emitted(report["stages"][-1]) == pytest.approx(judge.route_recalls(model.router, coded.lists).mean())
    assert report["routing"]["ladder"] == calibrate_lift(
        model.router, report["routing"]["temperature"], coded.lists, judge
    )
    assert report["candidate_recall"] == pytest.approx(judge.candidate_recall(model, coded))
    visited = judge.recall(judge.candidates(model, coded, distiller.calibrated["nprobe"]))
    assert visited >= report["candidate_recall"] - ROUTE_LOSS


def test_product_codes_try_both_bases_and_keep_the_better(tasks: dict[Metric, Task]) -> None:
    distiller = Distiller(shape("pq", None), replace(QUICK, enabled=False))
    model = fit(distiller, tasks[Metric.IP])
    tried = distiller.report["start"]["recall"]
    assert tried.keys() == {"pq, plain", "pq, residual"}
    assert model.residual == (tried["pq, residual"] > tried["pq, plain"])
    for residual in (False, True):
        fixed = Distiller(shape("pq", residual), replace(QUICK, enabled=False))
        other = fit(fixed, tasks[Metric.IP])
        assert list(fixed.report["start"]["recall"].values()) == [tried[f"pq, {'residual' if residual else 'plain'}"]]
        assert same(model, other) == (residual == model.residual)


@pytest.fixture(scope="module")
def real() -> tuple[Task, HeldOut]:
    """2,000 rows of the sample with 800 learn queries, and all test queries as a judge of their own."""
    with h5py.File(SAMPLE) as file:
        src = open_source(file["train"][:2000].astype(np.float32), metric="cosine")
        learn, test = (query_rows(file[name][:800].astype(np.float32), src) for name in ("learn_queries", "test"))
    teacher = ExactTeacher(src)
    lists = TeacherLists.from_relevance(test, teacher.relevance(test, 10), 10)
    task = Task(src, learn, teacher.relevance(learn, 100))
    return task, HeldOut(Corpus(src.take(np.arange(2000)), src.metric), lists)


@pytest.mark.parametrize("codes", ["pq", "additive"])
def test_distillation_gains_on_real_queries(real: tuple[Task, HeldOut], codes: str) -> None:
    """On the held-out queries, which choose, and on test queries, which nobody has seen."""
    task, test = real
    config = DistillConfig(depth=100, steps=60, eval_every=10, batch=64, random_docs=256, held_out=160)
    form = IvfPqConfig(nlist=16, m=16, codes=codes, residual=codes == "additive")
    distiller = Distiller(form, config)
    model = fit(distiller, task)
    start, plain = undistilled(form, config, task)
    held_out = judge_of(distiller, task)
    assert recall(held_out, model, distiller) > recall(held_out, start, plain)
    assert recall(test, model, distiller) > recall(test, start, plain) + 0.003


def shuffled(task: Task, queries: Any, seed: int = 0) -> Task:
    """The same task in which the given queries have the lists of random other documents."""
    rng, relevance = np.random.default_rng(seed), task.relevance
    docs, scores = relevance.padded(DEPTH)
    for query in queries:
        docs[query] = rng.permutation(task.src.n)[:DEPTH]
    return replace(task, relevance=Relevance.from_padded(docs, scores))


@pytest.mark.parametrize("codes", ["pq", "additive"])
def test_a_teacher_of_nonsense_does_no_harm(tasks: dict[Metric, Task], codes: str) -> None:
    """Training queries are taught noise, held-out ones the truth: nothing that noise teaches may be kept."""
    task, distiller = tasks[Metric.IP], Distiller(shape(codes), replace(QUICK, steps=30))
    train, _ = split(task.relevance, distiller.config.held_out, np.random.default_rng([0, 0]))
    poisoned = shuffled(task, train)
    model = fit(distiller, poisoned)
    judge = judge_of(distiller, task)
    start, plain = undistilled(shape(codes), QUICK, poisoned)
    assert recall(judge, model, distiller) >= recall(judge, start, plain)
    assert route_recall(judge, model) >= route_recall(judge, start)


@pytest.mark.parametrize("codes", ["pq", "additive"])
@pytest.mark.parametrize("dense", [True, False])
def test_wholly_permuted_relevance_keeps_the_guard(tasks: dict[Metric, Task], codes: str, dense: bool) -> None:
    task = shuffled(tasks[Metric.IP], range(150))
    distiller = Distiller(shape(codes), QUICK)
    model = fit(distiller, task, dense_teacher=dense)
    start, plain = undistilled(shape(codes), QUICK, task)
    judge = judge_of(distiller, task)
    assert recall(judge, model, distiller) >= recall(judge, start, plain)


@pytest.mark.parametrize("codes", ["pq", "additive"])
def test_steps_that_are_too_large_leave_the_start(tasks: dict[Metric, Task], codes: str) -> None:
    wild = replace(QUICK, codewords_rate=1e4, rotation_rate=1e4, tables_rate=1e4, router_rate=1e4)
    distiller, task = Distiller(shape(codes), wild), tasks[Metric.IP]
    model = fit(distiller, task)
    kept = {stage["stage"]: stage["kept"] for stage in distiller.report["stages"]}
    assert not any(value for name, value in kept.items() if name != "codes for queries")
    start, _ = undistilled(shape(codes), wild, task)
    assert np.array_equal(model.router, start.router)
    assert np.array_equal(model.codewords, model.doc_codewords)
    if not kept.get("codes for queries"):
        assert same(model, start)


@pytest.mark.parametrize("codes", ["pq", "additive"])
@pytest.mark.parametrize("queries", [0, 1, 19])
def test_few_queries_give_the_start(tasks: dict[Metric, Task], codes: str, queries: int) -> None:
    full = tasks[Metric.COSINE]
    task = Task(full.src, full.queries[:queries], full.relevance.select(np.arange(queries)))
    distiller = Distiller(shape(codes), QUICK)
    model = fit(distiller, task)
    assert "at least 20 queries" in distiller.report["skipped"]
    assert distiller.report["held_out_queries"] == 0 and distiller.calibrated == {}
    assert model.terms is None
    assert same(model, undistilled(shape(codes), QUICK, task)[0])


def test_twenty_queries_are_enough(tasks: dict[Metric, Task]) -> None:
    full = tasks[Metric.COSINE]
    task = Task(full.src, full.queries[:20], full.relevance.select(np.arange(20)))
    distiller = Distiller(shape(), QUICK)
    fit(distiller, task)
    assert "skipped" not in distiller.report
    assert (distiller.report["train_queries"], distiller.report["held_out_queries"]) == (16, 4)


def test_queries_without_documents_do_not_count(tasks: dict[Metric, Task]) -> None:
    full = tasks[Metric.COSINE]
    docs, scores = full.relevance.padded(DEPTH)
    docs[10:] = -1
    distiller = Distiller(shape(), QUICK)
    fit(distiller, replace(full, relevance=Relevance.from_padded(docs, scores)))
    assert "skipped" in distiller.report and distiller.report["train_queries"] == 10


def test_a_plain_list_of_queries_will_do(tasks: dict[Metric, Task]) -> None:
    task, one, two = tasks[Metric.COSINE], Distiller(shape(), QUICK), Distiller(shape(), QUICK)
    assert same(fit(one, task), two.fit(task.src, task.queries.tolist(), task.relevance))
    empty = Distiller(shape(), QUICK).fit(task.src, [], Relevance.from_lists([], []))
    assert empty.nlist == 8


@pytest.mark.parametrize("codes", ["pq", "additive"])
def test_seeds_decide(tasks: dict[Metric, Task], codes: str) -> None:
    task, form = tasks[Metric.IP], shape(codes)
    first, again = (Distiller(form, QUICK, threads) for threads in (1, 2))
    model = fit(first, task)
    assert same(model, fit(again, task)), "neither threads nor a second run change anything"
    assert first.report == again.report
    other_start = fit(Distiller(replace(form, seed=1), QUICK), task)
    assert not np.array_equal(model.coarse, other_start.coarse)
    other = Distiller(form, replace(QUICK, seed=1))
    trained = fit(other, task)
    assert np.array_equal(model.mean, trained.mean)
    assert other.report != first.report and not same(model, trained)


@pytest.mark.parametrize("codes", ["pq", "additive"])
def test_threads_of_libraries_change_nothing(codes: str) -> None:
    """BLAS and torch round differently on several threads; the same seed must still give the same bytes."""
    with h5py.File(SAMPLE) as file:
        src = open_source(file["train"][:1500, :128].astype(np.float32), metric="cosine")
        queries = query_rows(file["learn_queries"][:200, :128].astype(np.float32), src)
    task = Task(src, queries, ExactTeacher(src).relevance(queries, 100))
    form = IvfPqConfig(nlist=16, m=16, codes=codes, residual=codes == "additive")
    config = DistillConfig(depth=100, steps=4, eval_every=2, batch=64, random_docs=256)
    made = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            distiller = Distiller(form, config)
            made.append((fit(distiller, task), distiller.report))
    assert same(made[0][0], made[1][0])
    assert made[0][1] == made[1][1]


def test_a_distiller_can_be_used_again(tasks: dict[Metric, Task]) -> None:
    """What the first corpus left behind must not leak into the second fit."""
    full, distiller = tasks[Metric.COSINE], Distiller(shape("additive", m=4), QUICK)
    model = fit(distiller, full)
    assert model.terms is not None
    model = distiller.fit(full.src, full.queries[:5], full.relevance.select(np.arange(5)))
    assert model.terms is None and "stages" not in distiller.report
    fresh = Distiller(shape("additive", m=4), QUICK)
    assert same(model, fresh.fit(full.src, full.queries[:5], full.relevance.select(np.arange(5))))


def test_labels_teach_without_dense_scores(tasks: dict[Metric, Task]) -> None:
    """One relevant document a query, all with score 1: no list to calibrate on, and no harm done."""
    full = tasks[Metric.COSINE]
    docs, _ = full.relevance.padded(1)
    task, distiller = replace(full, relevance=Relevance.from_padded(docs)), Distiller(shape(), QUICK)
    model = fit(distiller, task, dense_teacher=False)
    start, plain = undistilled(shape(), QUICK, task)
    judge = judge_of(distiller, task)
    assert recall(judge, model, distiller) >= recall(judge, start, plain)


def test_labels_teach_real_queries() -> None:
    """Labels have no spread of their own: what students divide by must fit the scores of students."""
    with h5py.File(SAMPLE) as file:
        src = open_source(file["train"][:2000].astype(np.float32), metric="cosine")
        kept = {name: np.flatnonzero(file[f"{name}_labels"][:] < src.n) for name in ("learn", "test")}
        learn, test = (
            query_rows(file[key][:][kept[name]].astype(np.float32), src)
            for name, key in (("learn", "learn_queries"), ("test", "test"))
        )
        labels = {name: file[f"{name}_labels"][:][rows].astype(np.int64)[:, None] for name, rows in kept.items()}
    task = Task(src, learn, Relevance.from_padded(labels["learn"]))
    unseen = TeacherLists.from_relevance(test, Relevance.from_padded(labels["test"]), 1)
    judge = HeldOut(Corpus(src.take(np.arange(src.n)), src.metric), unseen)
    config = DistillConfig(steps=20, eval_every=10, random_docs=256)
    form = IvfPqConfig(nlist=16, m=16, codes="pq", residual=False)
    distiller = Distiller(form, config)
    model = fit(distiller, task, dense_teacher=False)
    start, plain = undistilled(form, config, task)
    assert recall(judge, model, distiller) > recall(judge, start, plain) + 0.01


def test_pair_scores_teach_the_same_on_any_scale(tasks: dict[Metric, Task]) -> None:
    """Scores of a cross-encoder are on a scale of their own, which must not become that of the student."""
    task, taught = tasks[Metric.IP], []
    for scale in (1, 1024):
        scores = task.relevance.scores * np.float32(scale)
        scaled = replace(task, relevance=Relevance(task.relevance.offsets, task.relevance.docs, scores))
        taught.append(fit(Distiller(shape("additive"), QUICK), scaled, dense_teacher=False))
    np.testing.assert_allclose(taught[0].codewords, taught[1].codewords, atol=1e-3)
    np.testing.assert_allclose(taught[0].router, taught[1].router, atol=1e-3)


@pytest.mark.parametrize("codes", ["pq", "additive"])
def test_a_corpus_that_does_not_fit_is_sampled(codes: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1500, 256)).astype(np.float32)
    src, queries = open_source(x, metric="ip"), x[:60] + rng.standard_normal((60, 256)).astype(np.float32)
    relevance = ExactTeacher(src).relevance(queries, DEPTH)
    distiller = Distiller(shape(codes), replace(QUICK, train_bytes=1 << 20, held_out=12, steps=2, eval_every=1))
    model = distiller.fit(src, queries, relevance)
    assert distiller.report["rows"] == 1024 and distiller.codes is None
    assert 0 < distiller.calibrated["nprobe"] <= 8
    if model.terms is not None:  # numbered by the whole source, which a build encodes
        assert len(model.terms.offsets) == src.n + 1
    assert np.isfinite(model.codewords).all()


@pytest.mark.parametrize(
    ("queries", "relevance", "message"),
    [
        (np.zeros((3, 16)), ([[1]], [[1.0]]), "relevance must cover 3 queries, got 1"),
        (np.zeros((1, 15)), ([[1]], [[1.0]]), r"queries must be of shape \(rows, 16\), got \(1, 15\)"),
        (np.full((1, 16), np.nan), ([[1]], [[1.0]]), "queries row 0 holds NaN or infinity"),
        (np.zeros((1, 16)), ([[600]], [[1.0]]), "relevance names document 600, but there are only rows 0..599"),
    ],
)
def test_what_does_not_belong_together(tasks: dict[Metric, Task], queries: Any, relevance: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Distiller(shape(), QUICK).fit(tasks[Metric.IP].src, queries, Relevance.from_lists(*relevance))


def test_a_dense_teacher_has_no_false_negatives(tasks: dict[Metric, Task]) -> None:
    with pytest.raises(InvalidInput, match="false_negatives needs a teacher of scores or labels"):
        fit(Distiller(shape(), replace(QUICK, false_negatives=0.9)), tasks[Metric.IP])


@pytest.mark.parametrize("loss", sorted(COMPARING))
def test_losses_that_compare_need_something_to_compare(tasks: dict[Metric, Task], loss: str) -> None:
    docs, _ = tasks[Metric.IP].relevance.padded(1)
    task = replace(tasks[Metric.IP], relevance=Relevance.from_padded(docs))
    with pytest.raises(InvalidInput, match=f"loss {loss} needs a teacher that scores 2 documents of a query, got 1"):
        fit(Distiller(shape(), replace(QUICK, loss=loss)), task, dense_teacher=False)


@pytest.mark.parametrize("codes", ["pq", "additive"])
@pytest.mark.parametrize("loss", config.LOSSES)
def test_every_loss_trains(tasks: dict[Metric, Task], loss: str, codes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It falls, and what it brings is kept only if the held-out queries gain."""
    values: list[float] = []

    def recorded(lists: Lists) -> Tensor:
        value = LOSSES[loss](lists)
        values.append(value.item())
        return value

    monkeypatch.setattr(descent, "LOSSES", {loss: recorded})
    monkeypatch.setattr(losses, "RANK", 20)  # of 600 documents
    distiller = Distiller(shape(codes, m=8), replace(QUICK, loss=loss, patience=9, tables_rate=0.02))
    task = tasks[Metric.COSINE]
    model, judge = fit(distiller, task), judge_of(distiller, task)
    assert len(values) == 20
    assert np.mean(values[-5:]) < np.mean(values[:5])
    (stage,) = (stage for stage in distiller.report["stages"] if stage["stage"] in ("tables", "codes"))
    assert stage["after"] >= stage["before"]
    assert recall(judge, model, distiller) == pytest.approx(emitted(stage))


@pytest.mark.parametrize("codes", ["pq", "additive"])
@pytest.mark.parametrize(
    "options",
    [*({"sampler": name} for name in config.SAMPLERS), {"debias": True}, {"temperature": "query"}],
    ids=lambda options: next(iter(map(str, options.values()))),
)
def test_every_sampler_trains(tasks: dict[Metric, Task], options: dict[str, Any], codes: str) -> None:
    """Never to the worse on held-out queries, the same for the same seed, and not as the plain options do."""
    task, config_ = tasks[Metric.COSINE], replace(QUICK, mine_every=5, **options)
    distiller, again = Distiller(shape(codes), config_), Distiller(shape(codes), config_)
    model = fit(distiller, task)
    assert same(model, fit(again, task)) and distiller.report == again.report
    (stage,) = (stage for stage in distiller.report["stages"] if stage["stage"] in ("tables", "codes"))
    assert stage["after"] >= stage["before"]
    plain = Distiller(shape(codes), QUICK)
    assert (options == {"sampler": "topk"} or not stage["kept"]) == same(model, fit(plain, task))


@pytest.mark.parametrize("sampler", config.SAMPLERS)
@pytest.mark.parametrize("temperature", ["global", "query"])
def test_labels_with_every_sampler(tasks: dict[Metric, Task], sampler: str, temperature: str) -> None:
    docs, _ = tasks[Metric.COSINE].relevance.padded(2)
    task = replace(tasks[Metric.COSINE], relevance=Relevance.from_padded(docs))
    options = replace(QUICK, sampler=sampler, temperature=temperature, false_negatives=0.9, debias=True)
    distiller = Distiller(shape("additive"), options)
    fit(distiller, task, dense_teacher=False, teacher_temperature=1.0)
    assert all(stage["after"] >= stage["before"] for stage in distiller.report["stages"] if stage["kept"])


def test_l2_has_no_additive_codes(tasks: dict[Metric, Task]) -> None:
    with pytest.raises(InvalidInput, match="metric l2 needs plain product codes"):
        fit(Distiller(shape("additive", None), QUICK), tasks[Metric.L2])


def test_progress_is_told_of_every_stage(tasks: dict[Metric, Task]) -> None:
    class Recorder(Progress):
        def __init__(self) -> None:
            self.stages: list[tuple[str, int | None, Stage]] = []

        def stage(self, name: str, total: int | None = None, unit: str = "rows", unit_bytes: int = 0) -> Any:
            manager = super().stage(name, total, unit, unit_bytes)
            stages = self.stages

            class Noted:
                def __enter__(self) -> Stage:
                    stage = manager.__enter__()
                    stages.append((name, total, stage))
                    return stage

                def __exit__(self, *error: Any) -> None:
                    manager.__exit__(*error)

            return Noted()

    recorder = Recorder()
    fit(Distiller(shape("additive", None), QUICK, progress=recorder), tasks[Metric.IP])
    assert [name for name, _, _ in recorder.stages] == [
        "read training rows",
        "coarse k-means",
        "lists for the queries",
        "codebooks (additive, residual)",
        "additive codes for the queries",
        "distil tables",
        "distil router",
        "calibrate the search",
    ]
    assert all(total is None or 0 < stage.done <= total for _, total, stage in recorder.stages)


def random_relevance(seed: int, n: int, q: int) -> Relevance:
    rng = np.random.default_rng(seed)
    docs = [rng.permutation(n)[: rng.integers(0, min(n, 9) + 1)] for _ in range(q)]
    return Relevance.from_lists(docs, [rng.standard_normal(len(row)) for row in docs])


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(0, 12), st.integers(1, 70))
@settings(max_examples=60)
def test_training_rows(seed: int, n: int, q: int, limit: int) -> None:
    relevance = random_relevance(seed, n, q)
    rows = training_rows(n, relevance, limit, np.random.default_rng(seed))
    assert rows.dtype == np.int64
    assert np.array_equal(rows, np.unique(rows)) and len(rows) == min(n, limit)
    assert rows[0] >= 0 and rows[-1] < n
    best = set(relevance.docs[relevance.offsets[:-1][relevance.counts > 0]].tolist())
    if n <= limit or len(best) <= limit // 2:
        assert best <= set(rows.tolist())
    elif limit > 1:
        assert len(best & set(rows.tolist())) >= limit // 2


def test_training_rows_keep_lists_exact_from_the_top() -> None:
    """A document of rank r goes in before any that all queries rank lower."""
    relevance = Relevance.from_lists([[5, 6, 7], [8, 5, 9]], [[3.0, 2.0, 1.0]] * 2)
    for limit, first in ((4, {5, 8}), (6, {5, 8, 6}), (8, {5, 8, 6, 7})):
        rows = set(training_rows(1000, relevance, limit, np.random.default_rng(0)).tolist())
        assert first <= rows and len(rows) == limit


def test_training_rows_are_seeded() -> None:
    relevance = random_relevance(0, 100, 5)
    first, again, other = (training_rows(100, relevance, 30, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_codes_in_a_space_of_their_own(tasks: dict[Metric, Task]) -> None:
    """What the report says of the model, in coordinates of its own, holds for the model of the rows."""
    task = tasks[Metric.IP]
    distiller = Distiller(shape("additive"), IN_A_SPACE)
    model = fit(distiller, task)
    errors = distiller.report["space"]
    assert model.space is not None and min(errors.values()) < errors["own"]
    judge = judge_of(distiller, task)
    assert distiller.codes is not None
    assert judge.candidate_recall(model, distiller.codes) == pytest.approx(distiller.report["candidate_recall"])
    after = next(stage for stage in distiller.report["stages"] if stage["stage"] == "tables")["after"]
    assert recall(judge, model, distiller) == pytest.approx(after, abs=0.01)
    plain = Distiller(shape("additive"), QUICK)
    assert fit(plain, task).space is None and "space" not in plain.report
    assert recall(judge, model, distiller) > recall(judge, fit(plain, task), plain) - 0.01
