"""The planner: what each pass decides, the budgets it must keep, and the sentences of its failures."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqdistill.compiler import cost, passes
from vqdistill.compiler.passes import PASSES, fit_budget, lay_out, place, plan, resolve
from vqdistill.compiler.plan import CompilePlan
from vqdistill.config import Budget, IvfPqConfig
from vqdistill.errors import BudgetInfeasible, InvalidInput, VqdistillError
from vqdistill.index.manifest_parts import LearnedShape
from vqdistill.index.spec import RESIDENT
from vqdistill.types import Facts, Metric

FACTS = Facts(n=31_929, dim=384, dtype="float16", metric=Metric.COSINE)

facts = st.builds(
    Facts,
    n=st.integers(1, 10**9),
    dim=st.integers(1, 4096),
    dtype=st.sampled_from(["float32", "int8", "bfloat16"]),
    metric=st.sampled_from(Metric),
)
budgets = st.one_of(
    st.builds(Budget, bytes_per_vector=st.floats(0.1, 300)),
    st.builds(Budget, ram_bytes=st.integers(1, 2**42)),
)


def draft(n: int = 31_929, dim: int = 384, budget: str = "32B/vec", metric: Metric = Metric.COSINE) -> CompilePlan:
    return CompilePlan(facts=Facts(n=n, dim=dim, dtype="float32", metric=metric), budget=Budget.parse(budget))


@pytest.mark.parametrize(
    ("n", "nlist"),
    [(1, 1), (38, 1), (77, 1), (78, 2), (1000, 16), (4400, 64), (31_929, 256), (200_000, 512), (1_000_000, 1024)],
)
def test_resolve_takes_a_power_of_two_near_the_root(n: int, nlist: int) -> None:
    assert resolve(draft(n=n)).model.nlist == nlist


@given(n=st.integers(1, 2**40))
def test_resolve_leaves_enough_rows_for_each_list(n: int) -> None:
    nlist = resolve(draft(n=n)).model.nlist
    assert nlist & (nlist - 1) == 0
    assert nlist == 1 or nlist * passes.MIN_ROWS_PER_LIST <= n
    if n > 10**6:
        assert abs(math.log2(nlist / (1.2 * math.sqrt(n)))) <= 0.5


def test_resolve_leaves_the_residual_to_training_except_under_l2() -> None:
    assert resolve(draft(metric=Metric.IP)).model.residual is None
    assert resolve(draft(metric=Metric.L2)).model.residual is False


@pytest.mark.parametrize("metric", list(Metric))
def test_default_codes(metric: Metric) -> None:
    assert passes.default_codes(metric, distill=False) == "pq"
    assert passes.default_codes(metric) == ("pq" if metric is Metric.L2 else "additive")


def test_additive_codes_have_no_l2_score() -> None:
    facts = Facts(n=1000, dim=16, dtype="float32", metric=Metric.L2)
    with pytest.raises(InvalidInput, match="l2 needs pq codes"):
        passes.plan(facts, codes="additive")


@pytest.mark.parametrize(
    ("dim", "budget", "m"),
    [
        (384, "32B/vec", 64),
        (384, "16B/vec", 32),
        (384, "16.9B/vec", 32),
        (384, "1B/vec", 2),
        (384, "1000B/vec", 256),
        (100, "64B/vec", 100),
        (7, "32B/vec", 6),
        (1, "32B/vec", 2),
    ],
)
def test_bytes_per_vector_become_twice_as_many_codes(dim: int, budget: str, m: int) -> None:
    assert plan(replace(FACTS, dim=dim), budget).model.m == m


def test_total_budget_is_used_up_to_the_next_code() -> None:
    result = plan(FACTS, "3MiB")
    more = replace(result.model, m=result.model.m + 2)
    assert result.ram_bytes <= 3 << 20 < cost.resident_bytes(FACTS.n, FACTS.dim, more)


def test_total_budget_trades_lists_for_codes() -> None:
    roomy, tight = plan(FACTS, "64MiB"), plan(FACTS, "1300KiB")
    assert roomy.model.nlist == 256
    assert tight.model.nlist < 256
    assert f"nlist {tight.model.nlist} instead of 256" in tight.explain("fit_budget")


@pytest.mark.parametrize("budget", ["0.5B/vec", "1KiB", "40000B"])
def test_infeasible_budget_names_one_that_is_just_enough(budget: str) -> None:
    with pytest.raises(BudgetInfeasible, match=r"too small.*plan pass fit_budget") as caught:
        plan(FACTS, budget)
    smallest = re.search(r"smallest feasible one is (\S+)", str(caught.value))
    assert smallest is not None
    assert ("/vec" in budget) == ("/vec" in smallest[1])
    assert plan(FACTS, smallest[1]).model.m == 2
    if "/vec" not in budget:
        with pytest.raises(BudgetInfeasible):
            plan(FACTS, f"{int(smallest[1][:-1]) - 1}B")


@given(facts=facts, budget=budgets, dense=st.sampled_from(["f16", "f32", "i8", "none"]))
def test_every_plan_keeps_its_budget_after_every_pass(facts: Facts, budget: Budget, dense: str) -> None:
    try:
        result = plan(facts, budget, dense=dense)
    except BudgetInfeasible:
        return
    assert result.passes == tuple(run.__name__ for run in PASSES)
    assert budget.ram_bytes is None or result.ram_bytes <= budget.ram_bytes
    assert budget.bytes_per_vector is None or result.ram_bytes_per_vector <= budget.bytes_per_vector
    assert result.model.m % 2 == 0
    assert result.model.m * result.dsub >= facts.dim


@given(facts=facts, small=st.integers(1, 2**34), extra=st.integers(0, 2**34))
def test_more_memory_never_makes_a_feasible_plan_infeasible(facts: Facts, small: int, extra: int) -> None:
    try:
        plan(facts, Budget(ram_bytes=small))
    except BudgetInfeasible:
        return
    plan(facts, Budget(ram_bytes=small + extra))


@given(facts=facts, small=st.integers(1, 2**34), extra=st.integers(0, 2**34), units=st.integers(1, 2000))
def test_adapters_never_make_a_feasible_plan_infeasible(facts: Facts, small: int, extra: int, units: int) -> None:
    try:
        plan(facts, Budget(ram_bytes=small))
    except BudgetInfeasible:
        return
    result = plan(facts, Budget(ram_bytes=small + extra), adapter_units=units)
    assert result.ram_bytes <= small + extra
    assert result.model.query_units in (0, units) and result.model.verify_units in (0, result.model.query_units)


def test_room_for_adapters_is_kept_and_given_back() -> None:
    bare, planned = plan(FACTS), plan(FACTS, adapter_units=80)
    assert (planned.model.query_units, planned.model.verify_units) == (80, 80)
    assert planned.ram_bytes_per_vector == bare.ram_bytes_per_vector
    each = 80 * (2 * 384 * 2 + 4)
    assert planned.ram_bytes == bare.ram_bytes + 2 * each
    assert {"query_down", "verify_up"} < set(planned.memory)
    settled = passes.settle(planned, 80, 0)
    settled.check()
    assert settled.ram_bytes == bare.ram_bytes + each and settled.model == replace(planned.model, verify_units=0)
    assert f"{each:,} B of memory less" in settled.explain()
    assert CompilePlan.from_json(settled.to_json()) == settled
    assert passes.settle(planned, 80, 80) is planned


def test_what_added_rows_will_need_is_counted_when_it_is_known() -> None:
    planned = plan(FACTS)
    settled = passes.settle(planned, 0, 0, LearnedShape(queries=1000, depth=100, codes=True, anchors=True))
    settled.check()
    assert settled.ram_bytes == planned.ram_bytes and settled.memory == planned.memory
    added = {segment.kind: segment.bytes for segment in settled.segments} | dict.fromkeys(
        (segment.kind for segment in planned.segments), 0
    )
    anchors = 4 * planned.model.nlist * FACTS.dim
    assert {kind: size for kind, size in added.items() if size} == {
        "learn_queries": 2 * 1000 * FACTS.dim,
        "learn_scores": 4 * 1000 * 100,
        "anchors": anchors,
    }
    assert CompilePlan.from_json(settled.to_json()) == settled
    assert "1,000 learn queries are kept on disk" in settled.explain()
    with pytest.raises(InvalidInput, match="the layout must be that of the model"):
        replace(settled, steps=planned.steps).check()


def test_a_tight_total_budget_has_no_room_for_adapters() -> None:
    each = 80 * (2 * 384 * 2 + 4)
    units = [plan(FACTS, f"{budget}B", adapter_units=80).model for budget in (16 * each, 15 * each, 8 * each, 7 * each)]
    assert [(model.query_units, model.verify_units) for model in units] == [(80, 80), (80, 0), (80, 0), (0, 0)]


def test_passes_are_pure() -> None:
    before = draft()
    once = resolve(before)
    assert before.steps == ()
    assert resolve(before) == once


def test_place_keeps_vectors_and_ids_out_of_memory() -> None:
    placed = place(lay_out(fit_budget(resolve(draft()))))
    adapters = {kind for kind in RESIDENT if kind.startswith(("query", "verify"))}
    assert set(placed.memory) == RESIDENT - {"rotation", "deleted"} - adapters
    assert {"dense", "rows", "doc_codewords"} <= {segment.kind for segment in placed.segments} - set(placed.memory)


def test_a_failed_check_names_the_pass_that_broke_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(before: CompilePlan) -> CompilePlan:
        return replace(before, model=replace(before.model, m=256))

    monkeypatch.setattr(passes, "PASSES", (resolve, fit_budget, spoil))
    with pytest.raises(InvalidInput, match=r"128 B a vector exceed .*plan pass spoil"):
        plan(FACTS, "32B/vec")


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"dense": "f64"}, "dense must be one of f32, f16, bf16, i8, none, got 'f64'"),
        ({}, {"ids_kind": "uuid"}, "ids must be one of rows, int64, str, got 'uuid'"),
        ({"n": 0}, {}, "at least one row and one dimension, got 0 x 384"),
        ({}, {"seed": -1}, "seed must be a non-negative integer, got -1"),
        ({}, {"budget": "lots"}, "ram must be a size"),
    ],
)
def test_bad_options_are_named(changes: dict[str, int], options: dict[str, object], message: str) -> None:
    with pytest.raises(VqdistillError, match=message):
        plan(replace(FACTS, **changes), **options)  # type: ignore[arg-type]


def test_default_budget_is_32_bytes_a_vector() -> None:
    assert plan(FACTS).ram_bytes_per_vector == 32


def test_the_seed_reaches_the_model() -> None:
    assert plan(FACTS, seed=7).model == IvfPqConfig(nlist=256, m=64, tables="i8", seed=7)
