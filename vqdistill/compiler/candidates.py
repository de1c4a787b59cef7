"""The configurations that a planner compares: their bytes and their work, by arithmetic alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vqdistill.compiler import cost
from vqdistill.compiler.passes import MIN_ROWS_PER_LIST, default_tables
from vqdistill.config import Budget, IvfPqConfig
from vqdistill.types import Facts, Metric

LIST_STEPS = (-3, -2, -1, 0, 1)
"""Powers of two between the lists tried and about 1.2 sqrt(n)."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One configuration, with what is predicted of it and what became of it."""

    model: IvfPqConfig
    dense: str
    ram_bytes_per_vector: int
    ram_bytes: int
    disk_bytes: int | None
    coverage: float | None = None
    """Share of the true neighbours in the lists visited, where it reaches the recall with the least work"""
    reads: int | None = None
    """Candidates read, likewise"""
    scanned: float | None = None
    """Share of the rows scanned, likewise"""
    lists: float | None = None
    """Lists visited, likewise"""
    recall: float | None = None
    """Predicted at these settings; where the wanted recall is out of reach, the most there is"""
    query_ns: float | None = None
    """Predicted work of a query, see `cost.query_ns`"""
    measured: dict[str, Any] | None = None
    """What trials of its codes and lists measured on the sample; None where it was not tried"""
    why: str = ""
    """What became of it, one clause"""

    @property
    def name(self) -> str:
        """All that distinguishes it."""
        base = {None: "", True: " residual", False: " plain"}[self.model.residual]
        return f"{self.model.m // 2} B/vec {self.model.codes}{base}, {self.model.nlist} lists, {self.dense}"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"name": self.name} | asdict(self)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a planner may choose from."""

    codes: Sequence[str]
    dense: Sequence[str]
    ids: str
    seed: int
    adapter_units: int = 0


def shapes(metric: Metric, codes: Sequence[str]) -> list[tuple[str, bool]]:
    """Kinds of codes, and whether they are of residuals, the likeliest first."""
    if metric is Metric.L2:
        return [("pq", False)]
    return [(kind, residual) for kind in codes for residual in (True, False)]


def code_numbers(d: int) -> list[int]:
    """Codes a row (m) that are compared: steps of about a tenth."""
    steps = [*range(4, 64, 4), *range(64, 128, 8), *range(128, 257, 16)]
    return [m for m in steps if m <= cost.largest_m(d)] or [cost.largest_m(d)]


def list_numbers(n: int, usual: int) -> list[int]:
    """Lists that are compared, around the usual number, with enough rows in each."""
    wanted = {max(1, round(usual * 2.0**step)) for step in LIST_STEPS}
    return sorted(nlist for nlist in wanted if nlist == 1 or nlist * MIN_ROWS_PER_LIST <= n) or [1]


def candidate(facts: Facts, choices: Choices, shape: tuple[str, bool], m: int, nlist: int, dense: str) -> Candidate:
    """Return a configuration with its bytes."""
    codes, residual = shape
    model = IvfPqConfig(
        nlist=nlist,
        m=m,
        codes=codes,
        residual=residual,
        tables=default_tables(codes),
        query_units=choices.adapter_units,
        verify_units=choices.adapter_units,
        seed=choices.seed,
    )
    layout = cost.layout(facts.n, facts.dim, model, dense, choices.ids)
    disk = None if choices.ids == "str" else sum(segment.file_bytes for segment in layout.segments().values())
    return Candidate(
        model=model,
        dense=dense,
        ram_bytes_per_vector=cost.bytes_per_vector(m),
        ram_bytes=layout.resident_bytes,
        disk_bytes=disk,
    )


def fits(candidate: Candidate, budget: Budget | None) -> bool:
    """Whether a configuration keeps within a budget; None has no bounds."""
    if budget is None:
        return True
    if budget.bytes_per_vector is not None:
        return candidate.ram_bytes_per_vector <= budget.bytes_per_vector
    return candidate.ram_bytes <= (budget.ram_bytes or 0)
