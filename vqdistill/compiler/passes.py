"""The planner: named passes, each a pure function from plan to plan, checked one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from vqdistill.compiler import cost
from vqdistill.compiler.plan import CompilePlan
from vqdistill.config import Budget, IvfPqConfig
from vqdistill.errors import BudgetInfeasible, VqdistillError
from vqdistill.index.manifest_parts import LearnedShape
from vqdistill.index.spec import RESIDENT
from vqdistill.types import Facts, Metric

DEFAULT_BUDGET = Budget(bytes_per_vector=32)
"""64 codes of 4 bits a row: at d = 384 a 24th of float16, and within reach of full recall after 100 reads a query."""

MIN_ROWS_PER_LIST = 39
"""Below this a centroid rests on too few rows; the usual floor of k-means training sets (39 points a centroid)."""

MAX_ROUTER_SHARE = 0.25
"""Share of a total budget that lists may take before there are fewer of them; codes earn more recall than lists."""


MAX_ADAPTER_SHARE = 0.125
"""Share of a total budget that adapters of queries may take before they are left out."""


def resolve(plan: CompilePlan) -> CompilePlan:
    """Choose the lists: about 1.2 sqrt(n), so that routing and scanning cost the same order of work."""
    n = plan.facts.n
    nlist: int = 2 ** max(0, round(math.log2(1.2 * math.sqrt(n)))) if n > 0 else 1
    while nlist > 1 and nlist * MIN_ROWS_PER_LIST > n:
        nlist //= 2
    # Under l2 any other base or code would need a term for each pair of list and code.
    residual = False if plan.metric is Metric.L2 else plan.model.residual
    model = replace(plan.model, nlist=nlist, residual=residual)
    why = f"nlist {nlist}: about 1.2 sqrt(n) as a power of two, {n / nlist:,.0f} rows a list"
    return plan.after("resolve", why, model=model)


def fit_budget(plan: CompilePlan) -> CompilePlan:
    """Choose the most codes, hence the most bytes a row, that the budget allows.

    Raises
    ------
    BudgetInfeasible
        If not even the smallest model fits; the message names the budget that it needs.
    """
    if plan.budget.bytes_per_vector is not None:
        return _fit_per_vector(plan, plan.budget.bytes_per_vector)
    return _fit_total(plan, plan.budget.ram_bytes or 0)


def _fit_per_vector(plan: CompilePlan, limit: float) -> CompilePlan:
    most = cost.largest_m(plan.facts.dim)
    m = min(most, int(min(limit, most)) * 2)
    if m < 2:
        raise BudgetInfeasible(f"a budget of {limit:g}B/vec is too small, the smallest feasible one is 1B/vec")
    why = f"m {m}: {m // 2} B a vector, {_reason(m == most, f'{limit:g}B/vec')}"
    return plan.after("fit_budget", why, model=replace(plan.model, m=m))


def _fit_total(plan: CompilePlan, limit: int) -> CompilePlan:
    wanted = plan.model
    for model in _with_fewer_adapters(plan, limit):
        fitted = _fewer_lists(plan, model, limit)
        if fitted is not None:
            break
    else:
        smallest = cost.resident_bytes(plan.facts.n, plan.facts.dim, replace(_bare(wanted), nlist=1, m=2))
        raise BudgetInfeasible(f"a budget of {limit} B is too small, the smallest feasible one is {smallest}B")
    m, nlist = fitted.m, fitted.nlist
    fewer = f"; nlist {nlist} instead of {wanted.nlist} to leave room for codes" if nlist < wanted.nlist else ""
    why = f"m {m}: {m // 2} B a vector, {_reason(m == cost.largest_m(plan.facts.dim), f'{limit:,} B in memory')}{fewer}"
    return plan.after("fit_budget", why, model=fitted)


def _with_fewer_adapters(plan: CompilePlan, limit: int) -> Iterator[IvfPqConfig]:
    """Yield the model with all adapters that keep within their share of a total budget, then with fewer of them."""
    bare = _bare(plan.model)
    for model in (plan.model, replace(plan.model, verify_units=0)):
        adapters = cost.fixed_bytes(plan.facts.dim, model) - cost.fixed_bytes(plan.facts.dim, bare)
        if adapters <= MAX_ADAPTER_SHARE * limit:
            yield model
    yield bare


def _bare(model: IvfPqConfig) -> IvfPqConfig:
    return replace(model, query_units=0, verify_units=0)


def _fewer_lists(plan: CompilePlan, model: IvfPqConfig, limit: int) -> IvfPqConfig | None:
    """Halve the lists until they keep their share and a code fits; the model with the most codes, None if none fits."""
    while model.nlist > 1 and 4 * model.nlist * plan.facts.dim > MAX_ROUTER_SHARE * limit:
        model = replace(model, nlist=model.nlist // 2)
    m = _largest_fitting_m(plan, model, limit)
    while m is None and model.nlist > 1:
        model = replace(model, nlist=model.nlist // 2)
        m = _largest_fitting_m(plan, model, limit)
    return None if m is None else replace(model, m=m)


def _largest_fitting_m(plan: CompilePlan, model: IvfPqConfig, limit: int) -> int | None:
    # Every m is tried: where m does not divide d a rotation has more rows, so bytes do not always fall with m.
    for m in range(cost.largest_m(plan.facts.dim), 1, -2):
        if cost.resident_bytes(plan.facts.n, plan.facts.dim, replace(model, m=m)) <= limit:
            return m
    return None


def _reason(capped: bool, budget: str) -> str:
    return (
        f"the most that the dimensions allow (budget {budget})" if capped else f"the most within the budget of {budget}"
    )


def lay_out(plan: CompilePlan) -> CompilePlan:
    """Derive every segment of the index, with its shape and bytes."""
    why = f"{plan.model.codes} codes, dsub {plan.dsub}, vectors on disk {plan.dense}, ids {plan.ids}"
    layout = cost.layout(plan.facts.n, plan.facts.dim, plan.model, plan.dense, plan.ids)
    return plan.after("lay_out", why, layout=layout)


def place(plan: CompilePlan) -> CompilePlan:
    """Put what every query touches in memory, and what only candidates or results need on disk."""
    memory = tuple(segment.kind for segment in plan.segments if segment.kind in RESIDENT)
    disk = "as long as the string ids make it" if plan.disk_bytes is None else f"{plan.disk_bytes:,} B"
    fixed = f"{plan.ram_bytes_per_vector} B/vector + {plan.ram_bytes_fixed:,} B fixed"
    return plan.after("place", f"memory {fixed} = {plan.ram_bytes:,} B; disk {disk}", memory=memory)


PASSES: tuple[Callable[[CompilePlan], CompilePlan], ...] = (resolve, fit_budget, lay_out, place)
"""In the order in which they run; the function's name is the pass's name."""


def settle(plan: CompilePlan, query_units: int, verify_units: int, learned: LearnedShape | None = None) -> CompilePlan:
    """Give back the room of adapters that held-out queries refused, and count what added rows will need.

    Parameters
    ----------
    query_units, verify_units : of the trained model, 0 or as planned
    learned : what it keeps on disk for rows that are added
    """
    model = replace(plan.model, query_units=query_units, verify_units=verify_units)
    layout = cost.layout(plan.facts.n, plan.facts.dim, model, plan.dense, plan.ids)
    reasons = []
    if model != plan.model:
        saved = plan.ram_bytes - cost.resident_bytes(plan.facts.n, plan.facts.dim, model)
        reasons.append(f"{saved:,} B of memory less: adapters that brought nothing for held-out queries are left out")
    if learned is not None:
        layout = replace(layout, **learned.layout)
        reasons.append(f"{learned.queries:,} learn queries are kept on disk, for rows that are added")
    return plan.after("settle", "; ".join(reasons), model=model, layout=layout) if reasons else plan


def default_codes(metric: Metric, distill: bool = True) -> str:
    """Codes of a plan that names none: "additive" where metric and distillation allow it.

    An undistilled index is the IVF-OPQ that other engines have, so that it shows what distillation brings.
    """
    return "additive" if distill and metric is not Metric.L2 else "pq"


def default_tables(codes: str) -> str:
    """Element type of router, coarse and codewords: bytes with a scale for each row, where the codes allow it."""
    return "i8" if codes == "additive" else "f32"


def plan(
    facts: Facts,
    budget: Budget | str | None = None,
    *,
    codes: str | None = None,
    dense: str = "f16",
    seed: int = 0,
    ids_kind: str = "rows",
    adapter_units: int = 0,
    chosen: tuple[IvfPqConfig, str] | None = None,
) -> CompilePlan:
    """Decide everything about an index that can be decided without reading a row.

    Parameters
    ----------
    facts : of the source, `open_source(...).facts`
    budget : Budget, or text such as "32B/vec" or "64MiB"; 32 B/vec if none is given
    codes : "additive" or "pq"; None = `default_codes`
    dense : vectors on disk, "f16", "f32", "bf16", "i8" or "none" (then results cannot be verified)
    seed : of every random choice in training
    ids_kind : external ids, "rows" (the row numbers), "int64" or "str"
    adapter_units : of an adapter of queries, and of another one for verification, which labels or pair scores may
        bring; room is kept for both
    chosen : a model that trials have chosen, and why; it takes the place of what arithmetic alone would choose

    Returns
    -------
    CompilePlan
        Complete: `explain()` shows it, `model` and `build` go on from it.

    Raises
    ------
    BudgetInfeasible
        If no model fits; the message names the smallest budget that works.
    InvalidInput
        If an option is not one of its values, or the source is empty.
    """
    codes = codes or default_codes(facts.metric)
    tables = default_tables(codes)
    model = IvfPqConfig(nlist=1, m=2, codes=codes, tables=tables, seed=seed)
    model = replace(model, query_units=adapter_units, verify_units=adapter_units)
    wanted = DEFAULT_BUDGET if budget is None else Budget.parse(budget)
    draft = CompilePlan(facts=facts, budget=wanted, dense=dense, ids=ids_kind, model=model)
    draft.check()
    if chosen is not None:
        draft = draft.after("choose", chosen[1], model=chosen[0])
        draft.check()
    for run in PASSES if chosen is None else (lay_out, place):
        try:
            draft = run(draft)
            draft.check()
        except VqdistillError as error:
            raise type(error)(f"{error} (plan pass {run.__name__})") from error
    return draft
