"""From what a user asks for to a plan: by arithmetic, or with a wanted recall by trials. For `compile` and `plan`."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vqdistill.compiler.candidates import Choices
from vqdistill.compiler.passes import DEFAULT_BUDGET, default_codes
from vqdistill.compiler.passes import plan as make_plan
from vqdistill.compiler.plan import CompilePlan
from vqdistill.compiler.supervision import teacher_kind
from vqdistill.config import Budget, DistillConfig, IvfPqConfig, RecallTarget
from vqdistill.data.sources import EmbeddingSource
from vqdistill.data.teacher import Judge
from vqdistill.errors import InvalidInput
from vqdistill.progress import Progress

if TYPE_CHECKING:
    from vqdistill.compiler.planner import Choice
    from vqdistill.compiler.prediction import Prediction


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What `compile` is asked for, as far as a plan depends on it; fields as its parameters."""

    ram: str | Budget | None = None
    recall: str | float | RecallTarget | None = None
    codes: str | None = None
    dense: str | None = None
    distill: bool = True
    teacher: str | Judge = "exact"
    mix: float = 0.0
    queries: Any = None
    seed: int = 0
    threads: int | None = None
    shape: IvfPqConfig | None = None
    """Of a model that is given; `ram`, `recall` and `codes` are None then, or those that it has."""

    @property
    def target(self) -> RecallTarget | None:
        """Wanted recall."""
        return None if self.recall is None else RecallTarget.parse(self.recall)

    @property
    def cores(self) -> int:
        """Threads to use."""
        return self.threads or len(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A plan, and where trials led to it what they found."""

    plan: CompilePlan
    choice: Choice | None = None
    prediction: Prediction | None = None

    def explain(self) -> str:
        """Return the plan, what it was chosen from and what is expected of it, for people."""
        lines = [self.plan.explain()]
        if self.choice is not None and self.prediction is not None:
            lines += [*self.choice.lines(), *self.prediction.lines()]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return what explains the plan as JSON values."""
        if self.choice is None or self.prediction is None:
            return {}
        return self.choice.to_json() | {"prediction": self.prediction.to_json()}


def decide(src: EmbeddingSource, wishes: Wishes, progress: Progress | None = None) -> Decision:
    """Plan an index; with a wanted recall, by trials on a sample of the rows and learn queries.

    Raises
    ------
    InvalidInput
        If a wish is none that there is, or a recall is wanted and there are too few learn queries.
    BudgetInfeasible
        If nothing fits the budget, or reaches the recall within it.
    """
    kind, target = teacher_kind(wishes.teacher, wishes.mix), wishes.target
    config = DistillConfig(seed=wishes.seed)
    adapter_units = config.adapter_units(src.dim) if wishes.distill and kind != "exact" else 0
    codes = wishes.codes or default_codes(src.metric, wishes.distill)
    budget = None if wishes.ram is None else Budget.parse(wishes.ram)
    if wishes.shape is not None:
        codes, budget = wishes.shape.codes, Budget(bytes_per_vector=wishes.shape.m / 2)
    plan = make_plan(
        src.facts,
        budget or DEFAULT_BUDGET,
        codes=codes,
        dense=wishes.dense or "f16",
        seed=wishes.seed,
        ids_kind="rows" if src.ids is None else src.ids.kind,
        adapter_units=adapter_units,
        chosen=None if wishes.shape is None else _as_given(wishes.shape, wishes, adapter_units),
    )
    if target is not None and target.k > src.n:
        raise InvalidInput(f"recall must count at most the {src.n} rows, got {target}")
    if target is None or not wishes.distill:
        return Decision(plan=plan)
    choices = Choices(
        codes=(wishes.codes,) if wishes.codes else ("additive", "pq"),
        dense=(wishes.dense,) if wishes.dense else ("f16", "i8"),
        ids=plan.ids,
        seed=wishes.seed,
        adapter_units=adapter_units,
    )
    from vqdistill.compiler.chosen import choose_by_trials

    found = choose_by_trials(src, wishes.queries, choices, plan, target, budget, wishes.cores, progress or Progress())
    return Decision(plan=found.plan, choice=found.choice, prediction=found.prediction)


def _as_given(shape: IvfPqConfig, wishes: Wishes, adapter_units: int) -> tuple[IvfPqConfig, str]:
    """The shape of the model that is given, with room for adapters."""
    for name, value in (("ram", wishes.ram), ("recall", wishes.recall)):
        if value is not None:
            raise InvalidInput(
                f"{name} must be None with a start, whose codes take {shape.m // 2} B/vec, got {value!r}"
            )
    if wishes.codes not in (None, shape.codes):
        raise InvalidInput(f"codes must be {shape.codes}, as those of the start, got {wishes.codes!r}")
    model = replace(shape, query_units=adapter_units, verify_units=adapter_units, seed=wishes.seed)
    return model, f"nlist {shape.nlist}, m {shape.m}: {shape.m // 2} B a vector, as the start has them"
