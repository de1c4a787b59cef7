"""Plans by trials: what is chosen, why others lose, what is refused, and what is predicted."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import vqdistill
from vqdistill.compiler import cost
from vqdistill.compiler.candidates import Choices, candidate, code_numbers, fits, list_numbers, shapes
from vqdistill.compiler.decide import Decision, Wishes, decide
from vqdistill.compiler.forecast import scanned_at
from vqdistill.compiler.passes import default_codes
from vqdistill.compiler.plan import CompilePlan
from vqdistill.compiler.sample import Sample, first_best
from vqdistill.compiler.trials import Trials
from vqdistill.config import Budget, IvfPqConfig
from vqdistill.data.sources import EmbeddingSource, open_source
from vqdistill.distill.routing import COVERAGES
from vqdistill.errors import BudgetInfeasible, InvalidInput
from vqdistill.index.opening import open_index
from vqdistill.types import Facts, Metric

N, D = 1200, 16


@pytest.fixture(scope="module")
def rows() -> Any:
    rng = np.random.default_rng(0)
    spread = np.linspace(1.5, 0.3, D)
    return ((rng.standard_normal((30, D))[rng.integers(0, 30, N)] + rng.standard_normal((N, D))) * spread).astype("f4")


@pytest.fixture(scope="module")
def queries(rows: Any) -> Any:
    return (rows[::3] + 0.3 * np.random.default_rng(1).standard_normal((len(rows[::3]), D))).astype(np.float32)


@pytest.fixture(scope="module")
def src(rows: Any) -> EmbeddingSource:
    return open_source(rows, metric="cosine")


@pytest.fixture(scope="module")
def decided(src: EmbeddingSource, queries: Any) -> Decision:
    return decide(src, Wishes(ram="6B/vec", recall="0.9@10", queries=queries, threads=1))


def test_the_choice_has_the_least_work_of_all_within_the_budget(decided: Decision) -> None:
    assert decided.choice is not None
    best, *others = decided.choice.candidates
    assert best.query_ns is not None and best.measured is not None
    assert best.ram_bytes_per_vector <= 6 and decided.plan.model == best.model and decided.plan.dense == best.dense
    able = [each for each in others if each.query_ns is not None]
    assert able and all(each.query_ns >= best.query_ns / 1.02 for each in able)
    assert all(each.why for each in others)
    names = [each.name for each in decided.choice.candidates]
    assert len(set(names)) == len(names)


def test_a_plan_by_trials_is_a_plan(decided: Decision) -> None:
    assert decided.plan.passes == ("choose", "lay_out", "place")
    assert CompilePlan.from_json(json.loads(json.dumps(decided.plan.to_json()))) == decided.plan
    text = decided.explain()
    assert "predicted" in text and "candidates" in text
    told = json.loads(json.dumps(decided.to_json()))
    assert told["candidates"][0] == told["chosen"]
    assert any(each["why"].endswith("over the budget") for each in told["candidates"])


def test_trials_do_not_depend_on_threads_or_chance(src: EmbeddingSource, queries: Any, decided: Decision) -> None:
    again = decide(src, Wishes(ram="6B/vec", recall="0.9@10", queries=queries, threads=2))
    assert again.plan == decided.plan
    assert again.prediction is not None and decided.prediction is not None
    assert again.prediction.lasting() == decided.prediction.lasting()


def test_without_a_budget_the_fewest_bytes_are_chosen(src: EmbeddingSource, queries: Any) -> None:
    fixed = {"codes": "pq", "dense": "none", "queries": queries, "threads": 1}
    easy, hard = (decide(src, Wishes(recall=recall, **fixed)).plan for recall in (0.3, 0.7))
    assert easy.ram_bytes_per_vector < hard.ram_bytes_per_vector


def test_what_is_out_of_reach_is_refused_with_figures(src: EmbeddingSource, queries: Any) -> None:
    wishes = Wishes(ram="1B/vec", recall="0.99@10", codes="pq", dense="none", queries=queries, threads=1)
    with pytest.raises(
        BudgetInfeasible, match=r"recall 0.99@10 .* a budget of 1B/vec reaches recall 0\.\d+@10 at most"
    ):
        decide(src, wishes)
    with pytest.raises(BudgetInfeasible, match=r"budget of 100 B is too small"):
        decide(src, Wishes(ram="100B", recall=0.9, queries=queries))
    with pytest.raises(InvalidInput, match="recall must count at most the 50 rows, got 0.9@60"):
        decide(open_source(src.take(np.arange(50)), metric="cosine"), Wishes(recall="0.9@60", queries=queries))


def test_without_a_recall_nothing_is_tried(src: EmbeddingSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sample, "draw", lambda *arguments: pytest.fail("a sample was drawn"))
    decision = decide(src, Wishes(ram="8B/vec"))
    assert decision.choice is None and decision.to_json() == {}
    assert decision.plan == vqdistill.plan(src.facts, "8B/vec", codes=default_codes(Metric.COSINE))


def test_what_was_predicted_comes_out(rows: Any, queries: Any, tmp_path: Any) -> None:
    wanted = {"ram": "6B/vec", "recall": "0.8@10", "codes": "pq", "queries": queries, "metric": "cosine", "threads": 1}
    report = vqdistill.compile(rows, tmp_path / "a.vqd", **wanted)
    predicted = report["prediction"]
    with open_index(tmp_path / "a.vqd") as reader:
        assert reader.resident_bytes == predicted["ram_bytes"] and reader.disk_bytes >= predicted["disk_bytes"]
        stored = reader.manifest.report["prediction"]
        assert reader.manifest.dense == report["plan"]["dense"]
    assert {name: predicted[name] for name in stored} == stored
    assert not any("_s" in name and name != "queries_per_s" for name in stored)  # no clock in an index


def test_a_sample_is_nested_and_its_judges_do_not_teach(src: EmbeddingSource, queries: Any) -> None:
    sample = Sample.draw(src, queries, 0, 1, rows=800)
    assert sample.size == 800 and sample.sizes == (100, 200, 400, 800)
    taught = {row.tobytes() for row in sample.teach}
    assert not any(row.tobytes() in taught for row in sample.judges)
    assert np.array_equal(sample.exact, sample.judges @ sample.corpus.x.T)
    assert sample.thinned(100, 400) == round(100 * 400 / N)
    assert sample.taught(400).docs.max() < 400


def test_pseudo_queries_do_not_find_what_they_were_made_from(src: EmbeddingSource) -> None:
    sample = Sample.draw(src, "none", 0, 1, rows=500)
    assert sample.origins is not None
    assert np.isneginf(sample.exact[np.arange(len(sample.judges)), sample.origins]).all()


def test_more_codes_and_more_reads_miss_less_and_rounding_loses_little(src: EmbeddingSource, queries: Any) -> None:
    trials = Trials(Sample.draw(src, queries, 0, 1, rows=600), 10)
    few, many = (trials.codes(m, "pq", True, 600).misses for m in (4, 12))
    assert all(many[reads][0] <= few[reads][0] for reads in trials.reads)
    assert all(a[0] >= b[0] for a, b in zip(list(few.values())[:-1], list(few.values())[1:], strict=True))
    assert trials.dense_loss("f32") == 0 <= trials.dense_loss("f16") <= trials.dense_loss("i8") < 0.1
    assert trials.codes(4, "pq", True, 600) is trials.codes(4, "pq", True, 600)


def test_rows_scanned_rise_with_coverage_through_what_was_measured(src: EmbeddingSource, queries: Any) -> None:
    trials = Trials(Sample.draw(src, queries, 0, 1, rows=600), 10)
    route = trials.routes(16)
    scanned = [scanned_at(trials, 16, coverage)[0] for coverage in (*COVERAGES, 0.999, 1.0)]
    assert scanned == sorted(scanned) and scanned[-1] == pytest.approx(1)
    assert scanned[: len(COVERAGES)] == pytest.approx(route.scanned)
    assert scanned_at(trials, 16, 1.0)[1] == pytest.approx(16)


@pytest.mark.parametrize("metric", list(Metric))
def test_candidates_know_their_bytes(metric: Metric) -> None:
    facts = Facts(n=10_000, dim=48, dtype="float32", metric=metric)
    choices = Choices(codes=("additive", "pq"), dense=("f16",), ids="rows", seed=0)
    for shape in shapes(metric, choices.codes):
        each = candidate(facts, choices, shape, 8, 32, "f16")
        assert each.ram_bytes == cost.resident_bytes(facts.n, facts.dim, each.model)
        assert fits(each, Budget(ram_bytes=each.ram_bytes)) and not fits(each, Budget(ram_bytes=each.ram_bytes - 1))
        assert fits(each, Budget(bytes_per_vector=4)) and not fits(each, Budget(bytes_per_vector=3.9))
    assert list_numbers(100, 8) == [1, 2] and list_numbers(10, 4) == [1]
    assert max(code_numbers(48)) == 48 and code_numbers(3) == [2]


def test_work_rises_with_each_part_of_it() -> None:
    model = IvfPqConfig(nlist=64, m=16)
    base = {"scanned": 0.1, "lists": 6.0, "reads": 50}
    work = cost.query_ns(100_000, 64, model, "f16", **base)
    assert all(cost.query_ns(100_000, 64, model, "f16", **base | {name: 2 * base[name]}) > work for name in base)
    assert cost.query_ns(100_000, 64, model, "i8", **base) < work
    assert first_best(np.array([[1.0, 3.0, 2.0]], np.float32), 2).tolist() == [[1, 2]]
