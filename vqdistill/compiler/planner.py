"""Chooses the configuration that reaches a recall within a budget at the least work, by short measured trials."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from vqdistill.compiler import cost
from vqdistill.compiler.candidates import Candidate, Choices, candidate, code_numbers, fits, list_numbers, shapes
from vqdistill.compiler.forecast import CodeForecast, Shape, scanned_at
from vqdistill.compiler.trials import Trials
from vqdistill.config import Budget, RecallTarget
from vqdistill.errors import BudgetInfeasible
from vqdistill.types import Facts

MARGIN = 0.005
"""Recall planned beyond what is wanted: the default search is chosen by the lower bound of an interval."""
ALIKE = 0.02
"""Share of the work that is below what predictions can tell apart; the fewest bytes win among such."""
SENSIBLE_READS = 10
"""Candidates read at most, in units of k, where the fewest bytes are asked for: fewer bytes would take more reads."""
_SURE_COVERAGE = 0.995
_FIRST_TRIED = (16, 32, 48)
"""Codes a row tried first; the law is fitted at the second. Trials of more take far longer."""
_STRIDE = 1.5
"""Ratio of the codes of neighbouring trials, when more codes are looked for than the budget allows."""
_RESETTLED = 4
"""Times at most that something untried is tried, which may make another one the favourite."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen, and from what."""

    best: Candidate
    candidates: tuple[Candidate, ...]
    """All, the best first, then by predicted work; those that do not reach the recall or fit the budget at the end"""
    forecast: CodeForecast

    def to_json(self) -> dict[str, Any]:
        """Return every candidate as JSON values."""
        return {"chosen": self.best.to_json(), "candidates": [each.to_json() for each in self.candidates]}

    def lines(self, most: int = 12) -> list[str]:
        """Return the best candidates for people, and of the others how many there are."""
        shown = self.candidates[:most]
        lines = [f"candidates  {'':<42} {'us/query':>8} {'scanned':>8} {'reads':>5} {'memory':>14}"]
        for each in shown:
            work = "-" if each.query_ns is None else f"{each.query_ns / 1000:.1f}"
            scanned = "-" if each.scanned is None else f"{100 * each.scanned:.1f} %"
            reads = "-" if each.reads is None else str(each.reads)
            tried = "tried" if each.measured else ""
            lines.append(
                f"  {tried:<6}{each.name:<46} {work:>8} {scanned:>8} {reads:>5} {each.ram_bytes:>12,} B  {each.why}"
            )
        if len(self.candidates) > most:
            lines.append(f"  and {len(self.candidates) - most:,} more, which --json prints")
        return lines


@dataclass
class Planner:
    """Compares configurations for a recall and perhaps a budget.

    Parameters
    ----------
    facts : of the corpus
    choices : what may be chosen
    usual_nlist : lists around which others are tried
    target : wanted recall
    budget : upper bound of the bytes; None = the fewest bytes that reach the target with sensible reads
    trials : of a sample of the corpus
    """

    facts: Facts
    choices: Choices
    usual_nlist: int
    target: RecallTarget
    budget: Budget | None
    trials: Trials

    def choose(self) -> Choice:
        """Try what the choice hangs on, and return it.

        Raises
        ------
        BudgetInfeasible
            If nothing reaches the target within the budget: says what recall the budget reaches, and what budget the
            recall takes.
        """
        inside = [each for each in self._all() if fits(each, self.budget)]
        if not inside:
            smallest = min(self._all(), key=lambda each: (each.ram_bytes_per_vector, each.ram_bytes))
            raise BudgetInfeasible(f"the budget is too small, the smallest feasible one is {self._size(smallest)}")
        known = sorted({each.model.m for each in inside})
        shape, *others = shapes(self.facts.metric, self.choices.codes)
        first, reference, last = (_nearest(known, m) for m in _FIRST_TRIED)
        forecast = CodeForecast(self.trials, shape, reference)
        for m in (first, last):
            forecast.attempt(shape, m)
        for other in others:
            forecast.attempt(other, first)
        return self._settle(forecast, known)

    def _settle(self, forecast: CodeForecast, known: list[int]) -> Choice:
        """Try the favourite until it is a tried one, and more codes as long as nothing reaches the target."""
        for _ in range(_RESETTLED):
            rated = self._rated(forecast)
            best = self._favourite(rated)
            most = forecast.tried[forecast.shape][-1]
            if best is None and most == known[-1]:
                raise BudgetInfeasible(self._infeasible(rated, forecast))
            wanted = _nearest(known, 2 * most) if best is None else best.model.m
            shape = forecast.shape if best is None else _shape(best)
            if wanted in forecast.tried[shape]:
                break
            forecast.attempt(shape, wanted)
        if best is None:
            raise BudgetInfeasible(self._infeasible(rated, forecast))
        rest = [self._explained(each, best) for each in rated if each is not best]
        rest.sort(key=lambda each: (not fits(each, self.budget), _work(each), each.name))
        chosen = replace(best, why="the least work" if self.budget is not None else "the fewest bytes, and least work")
        return Choice(best=chosen, candidates=(chosen, *rest), forecast=forecast)

    def _rated(self, forecast: CodeForecast) -> list[Candidate]:
        return [self._rate(each, forecast) for each in self._all()]

    def _all(self) -> list[Candidate]:
        """Return every configuration with its bytes."""
        limit = self.budget.bytes_per_vector if self.budget is not None else None
        numbers = code_numbers(self.facts.dim)
        if limit is not None and limit >= 1:
            numbers = sorted({*numbers, min(cost.largest_m(self.facts.dim), 2 * int(min(limit, 128)))})
        return [
            candidate(self.facts, self.choices, shape, m, nlist, dense)
            for shape in shapes(self.facts.metric, self.choices.codes)
            for m in numbers
            for nlist in list_numbers(self.facts.n, self.usual_nlist)
            for dense in self.choices.dense
        ]

    def _rate(self, each: Candidate, forecast: CodeForecast) -> Candidate:
        """Find the settings with the least work that reach the target."""
        if not fits(each, self.budget):
            return each
        shape, loss = _shape(each), self.trials.dense_loss(each.dense)
        levels = [reads for reads in self.trials.reads if reads <= self._most_reads(each)]
        found = [max(1e-9, 1 - forecast.miss(shape, each.model.m, reads) - loss) for reads in levels]
        able = [
            self._at(each, self._goal / share, reads)
            for reads, share in zip(levels, found, strict=True)
            if self._goal / share <= max(_SURE_COVERAGE, self._goal)
        ]
        if able:
            return self._with_trials(min(able, key=_work), forecast)
        reached = max(0.0, found[-1] * _SURE_COVERAGE - MARGIN)
        return self._with_trials(replace(each, recall=reached), forecast)

    def _most_reads(self, each: Candidate) -> int:
        """Candidates that may be read; without dense rows, codes alone rank the best k."""
        if each.dense == "none":
            return self.trials.reads[0]
        return SENSIBLE_READS * self.target.k if self.budget is None else self.trials.reads[-1]

    @property
    def _goal(self) -> float:
        return min(self.target.recall + MARGIN, (1 + self.target.recall) / 2)

    def _at(self, each: Candidate, coverage: float, reads: int) -> Candidate:
        scanned, lists = scanned_at(self.trials, each.model.nlist, coverage)
        work = cost.query_ns(
            self.facts.n, self.facts.dim, each.model, each.dense, scanned=scanned, lists=lists, reads=reads
        )
        settings: dict[str, Any] = {"coverage": coverage, "reads": reads, "scanned": scanned, "lists": lists}
        return replace(each, **settings, recall=self.target.recall, query_ns=work)

    def _with_trials(self, each: Candidate, forecast: CodeForecast) -> Candidate:
        shape, m = _shape(each), each.model.m
        if m not in forecast.tried.get(shape, []):
            return each
        codes, routes = self.trials.codes(m, *shape, self.trials.sample.size), self.trials.routes(each.model.nlist)
        misses = {str(reads): miss for reads, (miss, _) in codes.misses.items()}
        measured = {"rows": codes.size, "misses": misses, "scanned": list(routes.scanned)}
        return replace(each, measured=measured | {"dense_loss": self.trials.dense_loss(each.dense)})

    def _favourite(self, rated: list[Candidate]) -> Candidate | None:
        """Least work, of about the same the fewest bytes; without a budget the fewest bytes a vector come first."""
        able = [each for each in rated if each.query_ns is not None and fits(each, self.budget)]
        if self.budget is None:
            least_bytes = min((each.ram_bytes_per_vector for each in able), default=0)
            able = [each for each in able if each.ram_bytes_per_vector == least_bytes]
        least = min(map(_work, able), default=0.0)
        alike = [each for each in able if _work(each) <= (1 + ALIKE) * least]
        return min(alike, key=lambda each: (each.ram_bytes, _work(each), each.name), default=None)

    def _explained(self, each: Candidate, best: Candidate) -> Candidate:
        if not fits(each, self.budget):
            return replace(each, why=f"takes {self._size(each)}, over the budget")
        if each.query_ns is None:
            return replace(each, why=f"reaches {each.recall:.3f}@{self.target.k} only")
        if self.budget is None and each.ram_bytes_per_vector > best.ram_bytes_per_vector:
            more = each.ram_bytes_per_vector - best.ram_bytes_per_vector
            return replace(each, why=f"{more} B/vec more than it takes")
        more_work = _work(each) / _work(best) - 1
        if more_work > ALIKE:
            return replace(each, why=f"{100 * more_work:.0f} % more work")
        return replace(each, why=f"about the same work, {each.ram_bytes - best.ram_bytes:,} B more memory")

    def _infeasible(self, rated: list[Candidate], forecast: CodeForecast) -> str:
        """Say what recall the budget reaches, and what budget the recall takes."""
        inside = [each for each in rated if fits(each, self.budget)]
        reached = int(1000 * max(each.recall or 0.0 for each in inside)) / 1000
        got = f"{self._budget_text()} reaches recall {reached:g}@{self.target.k} at most"
        unbounded, largest = replace(self, budget=Budget(ram_bytes=2**62)), max(each.model.m for each in inside)
        for m in code_numbers(self.facts.dim):
            if m <= largest:
                continue
            if m >= _STRIDE * forecast.tried[forecast.shape][-1]:
                forecast.attempt(forecast.shape, m)
            some = [each for each in unbounded._all() if each.model.m == m and _shape(each) == forecast.shape]
            able = [each for each in (unbounded._rate(each, forecast) for each in some) if each.query_ns is not None]
            if able:
                needed = self._size(min(able, key=lambda each: each.ram_bytes))
                return f"recall {self.target} takes about {needed}, {got}"
        return f"recall {self.target} is out of reach of any budget, {got}"

    def _budget_text(self) -> str:
        if self.budget is None:
            return f"the largest, with {self._most_reads(self._all()[0])} candidates read,"
        each = self.budget.bytes_per_vector
        return f"a budget of {each:g}B/vec" if each is not None else f"a budget of {self.budget.ram_bytes}B"

    def _size(self, each: Candidate) -> str:
        total = self.budget is not None and self.budget.ram_bytes is not None
        return f"{each.ram_bytes}B" if total else f"{each.ram_bytes_per_vector}B/vec"


def _shape(each: Candidate) -> Shape:
    return each.model.codes, bool(each.model.residual)


def _nearest(numbers: list[int], wanted: int) -> int:
    return min(numbers, key=lambda number: abs(number - wanted))


def _work(each: Candidate) -> float:
    """Predicted work, infinite where the recall is out of reach."""
    return math.inf if each.query_ns is None else each.query_ns
