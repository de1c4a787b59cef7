"""Stored results are judged as other tools judge them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.bench.support import TEST, Exact, N
from vqdistill.bench import store
from vqdistill.bench.datasets import Dataset, Truth, read_qrels
from vqdistill.bench.imports import import_results
from vqdistill.bench.scoring import (
    DEEP_METRICS,
    TOP_METRICS,
    Judge,
    label_metrics,
    mean_interval,
    paired,
    rate,
    rate_ratio,
)
from vqdistill.bench.store import Operation, Run, read_run, write_run
from vqdistill.bench.tuning import Questions, tune
from vqdistill.errors import InvalidInput
from vqdistill.evaluate import metrics


def operation(ids: Any, scores: Any, seconds: Any = ((1.0,),), **facts: Any) -> Operation:
    known = {"target": 0.9, "setting": {"a": 1}, "tune_recall": 0.9, "reads": 3.0, "findings": [], "timed": 100}
    times = np.array(seconds, np.float64)
    return Operation(known | facts, np.asarray(ids), np.asarray(scores, np.float32), times, times, np.ones((1, 5)))


def test_recall_counts_ties_and_tells_three_ways_apart() -> None:
    true = np.linspace(1, 0.1, 10, dtype=np.float32)[None]
    judge = Judge(Truth(np.arange(10)[None], true), None)
    scores = true.copy()
    ids = np.arange(10)[None].copy()
    ids[0, 9] = 77  # another document with the score of the tenth
    found = judge.per_query(operation(ids, scores))
    assert [float(found[name][0]) for name in ("recall", "recall_by_id", "recall_ann_benchmarks")] == [1, 0.9, 1]
    scores[0, 9] -= 5e-4  # worse, but within the allowance of ann-benchmarks
    found = judge.per_query(operation(ids, scores))
    assert [float(found[name][0]) for name in ("recall", "recall_by_id", "recall_ann_benchmarks")] == [0.9, 0.9, 1]
    scores[0, 8] = -np.inf
    assert judge.per_query(operation(ids, scores))["recall"][0] == pytest.approx(0.8)


def test_label_metrics_agree_with_our_own(dataset: Dataset) -> None:
    qrels = read_qrels(dataset.truth_path)
    assert qrels is not None
    rng = np.random.default_rng(0)
    ids = np.array([rng.permutation(N)[:100] for _ in range(TEST)])
    ids[:20, 3] = qrels.docs[:20]
    ids[:20][ids[:20] == qrels.docs[:20, None]] = -1
    ids[:20, 3] = qrels.docs[:20]
    found = label_metrics(ids, qrels, TOP_METRICS | DEEP_METRICS)
    judged = slice(0, TEST // 2)
    labels = qrels.docs[:, None]
    assert np.allclose(found["MRR@10"], metrics.mrr_at_k(ids[judged], labels, 10))
    assert np.allclose(found["nDCG@10"], metrics.ndcg_at_k(ids[judged], labels, 10))
    assert np.allclose(found["Recall@100"], metrics.label_recall_at_k(ids[judged], labels, 100))
    assert found["MRR@10"].mean() > 0.1


def test_intervals_and_comparisons() -> None:
    values = np.random.default_rng(0).random(400)
    interval = mean_interval(values)
    assert interval.low < values.mean() == interval.value < interval.high
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.2)
    assert paired(values, values) == {"difference": 0.0, "p_value": 1.0}
    assert paired(values + 0.05, values)["p_value"] < 0.01
    noise = np.random.default_rng(1).normal(0, 1, 400)
    assert paired(noise - noise.mean() + 1e-3, np.zeros(400))["p_value"] > 0.5


def test_rates_are_of_each_call_at_its_best() -> None:
    none = np.zeros((1, 10))
    fast = operation(none, none, [[0.4, 0.6], [0.1, 0.7], [0.9, 0.4]])
    slow = operation(none, none, [[1.0, 1.0]] * 3)
    assert rate(fast) == 200
    ratio = rate_ratio(fast, slow)
    assert ratio.value == 4 and 1.5 < ratio.low < 4 and ratio.high == 4


def test_a_run_survives_and_half_a_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"system": "a", "budget": "16B/vec", "dataset": {}, "bytes": {"codes": 3}}
    run = Run(facts, [operation(np.zeros((2, 10), np.int64), np.zeros((2, 10)))])
    path = tmp_path / "a.run.h5"
    write_run(run, path)
    again = read_run(path)
    assert again.facts == facts and np.array_equal(again.operations[0].ids, run.operations[0].ids)
    assert again.operations[0].facts == run.operations[0].facts
    run.operations[0].facts["broken"] = object()
    with pytest.raises(TypeError):
        write_run(run, tmp_path / "b.run.h5")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.run.h5"]
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InvalidInput, match=r"a\.run\.h5 is no run"):
        store.runs_below(tmp_path)


def test_tuning_finds_the_cheapest_rung(dataset: Dataset) -> None:
    questions = Questions.of(dataset.rows("tune"), dataset.truth("tune"))
    points = tune(Exact(np.asarray(dataset.rows("docs"))), questions, [0.3, 0.9], np.inf)
    assert [(point.target, point.setting["effort"]) for point in points] == [(0.3, 1), (0.9, 2)]
    assert points[1].recall == 1.0


def test_a_trec_run_and_hdf5_are_judged(dataset: Dataset, tmp_path: Path) -> None:
    truth = dataset.truth("test")
    path = tmp_path / "other.trec"
    lines = [
        f"{query} Q0 {doc} {rank + 1} {100 - rank} other\n"
        for query, docs in enumerate(truth.ids[:, :20])
        for rank, doc in enumerate(docs)
    ]
    path.write_text("".join(lines))
    judge = Judge.of(dataset.truth_path)
    run = import_results(f"other={path}", dataset)
    assert run.refused == [] and judge.per_query(run.operations[0])["recall"].mean() == 1
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["neighbors"] = np.where(np.arange(20) < 5, truth.ids[:, :20], -1)
    run = import_results(f"other={tmp_path / 'other.h5'}", dataset)
    assert judge.per_query(run.operations[0])["recall"].mean() == 0.5
    assert [one["kind"] for one in run.operations[0].facts["findings"]] == ["padding"]
    for bad in ("other", f"other={tmp_path / 'none.h5'}", "=x"):
        with pytest.raises(InvalidInput):
            import_results(bad, dataset)
