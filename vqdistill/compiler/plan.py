"""CompilePlan: everything that is decided before training, as plain data that can be printed and stored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from vqdistill.compiler import cost
from vqdistill.config import Budget, IvfPqConfig
from vqdistill.errors import InvalidInput
from vqdistill.index.spec import DENSE, IDS, Layout, Segment
from vqdistill.types import Facts, Metric

_SMALLEST = IvfPqConfig(nlist=1, m=2)


@dataclass(frozen=True)
class Step:
    """One pass that has run."""

    name: str
    """Name of the pass."""
    why: str
    """What it decided and why, one sentence."""


@dataclass(frozen=True, kw_only=True)
class CompilePlan:
    """What the index will be; each pass fills in more of it. Plans are values: passes return new ones."""

    facts: Facts
    """Of the source: rows, dimensions, dtype, metric."""
    budget: Budget
    """What may be held in memory."""
    dense: str = "f16"
    """Vectors on disk: "f16", "f32", "i8" or "none"."""
    ids: str = "rows"
    """External ids: "rows", "int64" or "str"."""
    model: IvfPqConfig = _SMALLEST
    """Shape of the model; before the passes, the smallest there is."""
    layout: Layout | None = None
    """Dtype and shape of every segment, from the pass lay_out on."""
    memory: tuple[str, ...] = ()
    """Kinds of the segments held in memory, from the pass place on; the others stay on disk."""
    steps: tuple[Step, ...] = ()
    """Passes already run, in order."""

    @property
    def metric(self) -> Metric:
        """Similarity that the index ranks by."""
        return self.facts.metric

    @property
    def passes(self) -> tuple[str, ...]:
        """Names of the passes already run."""
        return tuple(step.name for step in self.steps)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Files of the index, once they are laid out; the text of string ids counts as empty, it is not known yet."""
        return () if self.layout is None else tuple(self.layout.segments().values())

    @property
    def dsub(self) -> int:
        """Dimensions of a codeword."""
        return cost.codeword_dims(self.facts.dim, self.model)

    @property
    def ram_bytes_per_vector(self) -> int:
        """Bytes that one more row adds to memory."""
        return cost.bytes_per_vector(self.model.m)

    @property
    def ram_bytes_fixed(self) -> int:
        """Resident bytes that do not grow with the rows."""
        return cost.fixed_bytes(self.facts.dim, self.model)

    @property
    def ram_bytes(self) -> int:
        """Bytes of the whole resident set."""
        return cost.resident_bytes(self.facts.n, self.facts.dim, self.model)

    @property
    def disk_bytes(self) -> int | None:
        """Bytes of all segment files; None with string ids, whose length is not known before they are read."""
        return None if self.ids == "str" else sum(segment.file_bytes for segment in self.segments)

    def after(self, name: str, why: str, **changes: Any) -> CompilePlan:
        """Return the plan with `changes`, and with the pass `name` recorded as run."""
        return replace(self, **changes, steps=self.steps + (Step(name, why),))

    def check(self) -> None:
        """Hold the plan against what its passes promise.

        Raises
        ------
        InvalidInput
            If a value is out of range, the layout is not that of the model, or the budget is exceeded.
        """
        n, d, m, nlist = self.facts.n, self.facts.dim, self.model.m, self.model.nlist
        _require(n >= 1 and d >= 1, f"a source needs at least one row and one dimension, got {n} x {d}")
        _require(self.dense in DENSE, f"dense must be one of {_names(DENSE)}, got {self.dense!r}")
        _require(self.ids in IDS, f"ids must be one of {_names(IDS)}, got {self.ids!r}")
        _require(nlist <= n, f"nlist must be at most the {n} rows, got {nlist}")
        _require(m <= cost.largest_m(d), f"m must be at most {cost.largest_m(d)} at d = {d}, got {m}")
        plain = self.model.codes == "pq" and not self.model.residual
        _require(self.metric is not Metric.L2 or plain or not self.steps, "l2 needs pq codes of the vector itself")
        if {"fit_budget", "choose"} & set(self.passes):
            self._check_budget()
        if "lay_out" in self.passes:
            wanted = cost.layout(n, d, self.model, self.dense, self.ids)
            if "settle" in self.passes and self.layout is not None:
                learned = ("learn_queries", "learn_depth", "anchors")
                wanted = replace(wanted, **{name: getattr(self.layout, name) for name in learned})
            _require(self.layout == wanted, f"the layout must be that of the model, {wanted}, got {self.layout}")
        if "place" in self.passes:
            placed = sum(segment.bytes for segment in self.segments if segment.kind in self.memory)
            _require(placed == self.ram_bytes, f"the segments placed in memory take {placed} B, not {self.ram_bytes} B")

    def _check_budget(self) -> None:
        each, limit = self.ram_bytes_per_vector, self.budget.bytes_per_vector
        _require(limit is None or each <= limit, f"{each} B a vector exceed the budget of {limit} B a vector")
        total = self.budget.ram_bytes
        _require(total is None or self.ram_bytes <= total, f"{self.ram_bytes} B exceed the budget of {total} B")

    def explain(self, stage: str | None = None) -> str:
        """Return the plan as text for people: what was decided, why, and what it costs.

        Parameters
        ----------
        stage : name of a pass to stop after; None shows everything

        Raises
        ------
        InvalidInput
            If no pass of that name has run.
        """
        if stage is not None and stage not in self.passes:
            raise InvalidInput(f"stage must be one of the passes run ({_names(self.passes)}), got {stage!r}")
        facts = self.facts
        lines = [f"source      {facts.n:,} rows x {facts.dim} {facts.dtype}, metric {facts.metric.value}"]
        for step in self.steps:
            lines.append(f"{step.name:<11} {step.why}")
            if step.name == "lay_out":
                lines += [self._segment_line(segment) for segment in self.segments]
            if step.name == stage:
                break
        else:
            lines.append(self._work_line())
        return "\n".join(lines)

    def _work_line(self) -> str:
        nprobe = -(-self.model.nlist // 16)
        work = cost.query_work(self.facts.n, self.facts.dim, self.model, nprobe=nprobe)
        scan = f"scans about {work.codes:,} codes ({work.code_bytes:,} B)"
        return f"work        a query that visits {nprobe} of {self.model.nlist} lists {scan}"

    def _segment_line(self, segment: Segment) -> str:
        where = ("memory" if segment.kind in self.memory else "disk") if self.memory else ""
        if segment.kind == "ids_bytes":
            return f"  {segment.kind:<13} {'as read':>18}  {where}".rstrip()
        shape = " x ".join(str(size) for size in segment.shape)
        return f"  {segment.kind:<13} {f'{segment.bytes:,} B':>18}  {where:<6}  {segment.dtype} {shape}"

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values; `from_json` reads them back to an equal plan."""
        segments = {s.kind: {"dtype": s.dtype, "shape": list(s.shape), "bytes": s.bytes} for s in self.segments}
        return {
            "facts": asdict(self.facts) | {"metric": self.metric.value},
            "budget": asdict(self.budget),
            "dense": self.dense,
            "ids": self.ids,
            "model": asdict(self.model),
            "layout": None if self.layout is None else asdict(self.layout),
            "segments": segments,
            "memory": list(self.memory),
            "steps": [asdict(step) for step in self.steps],
        }

    @classmethod
    def from_json(cls, value: Any) -> CompilePlan:
        """Read a plan written by `to_json`, and check it.

        Raises
        ------
        InvalidInput
            If `value` is not such a plan, or a plan that does not hold together.
        """
        try:
            plan = cls(
                facts=Facts(**value["facts"] | {"metric": Metric.parse(value["facts"]["metric"])}),
                budget=Budget(**value["budget"]),
                dense=value["dense"],
                ids=value["ids"],
                model=IvfPqConfig(**value["model"]),
                layout=None if value["layout"] is None else Layout(**value["layout"]),
                memory=tuple(value["memory"]),
                steps=tuple(Step(**step) for step in value["steps"]),
            )
            plan.check()
            _require(plan.to_json() == value, "it holds more, or other segments, than its own model leads to")
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise InvalidInput(f"not a compile plan: {error}") from error
        return plan


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise InvalidInput(message)


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)
