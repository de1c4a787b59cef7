"""How an index is searched unless a call says otherwise: defaults and calibrations that its manifest stores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from vqdistill.config import SearchParams
from vqdistill.index.fields import Fields

UNCALIBRATED_SHARE = 0.25
"""Share of the lists visited by default where no held-out query has said how many it takes."""
DEFAULT_REFINE = 100
"""Candidates verified at most unless told otherwise; see SearchParams.refine."""
_FLOAT32 = (1e-30, 1e30)
"""Range of positive numbers that float32 holds, and their inverses."""


@dataclass(frozen=True, kw_only=True)
class SearchPolicy:
    """Defaults of a search, and what held-out queries calibrated; None where nothing was."""

    nprobe: int
    """Lists visited where there is no coverage; with it, lists that a fixed nprobe would need."""
    refine: int
    """Candidates verified at most; 0 without dense rows."""
    coverage: float | None = None
    """Rung taken by default; None = `nprobe` lists."""
    rungs: tuple[tuple[float, float], ...] = ()
    """(coverage, lift), coverages rising and lifts falling: the lists in which a wanted row is at least `lift` times as
    likely as among as many random rows hold this share of the true neighbours."""
    temperature: float | None = None
    """Softmax of the routing scores divided by it is the probability of a list."""
    confidence: float | None = None
    """Expected share of the k results among the candidates read when reading stops; None = reads all of `refine`."""
    error: float | None = None
    """Standard deviation of exact score - code score among a query's candidates, around its mean."""

    def fill(self, params: SearchParams, k: int) -> SearchParams:
        """Put the defaults in where a search for `k` results leaves the choice to the index."""
        if params.nprobe is None and params.coverage is None:
            lists = {"nprobe": self.nprobe} if self.coverage is None else {"coverage": self.coverage}
            params = replace(params, **lists)
        if params.refine is None:
            confidence = self.confidence if params.confidence is None else params.confidence
            params = replace(params, refine=max(self.refine, k) if self.refine else 0, confidence=confidence)
        return params if params.refine else replace(params, confidence=None)

    def lift(self, coverage: float) -> float:
        """Return the lift for a coverage up to the last rung: geometric between rungs, that of the first one below."""
        low = self.rungs[0]
        for high in self.rungs:
            if coverage <= high[0]:
                share = (coverage - low[0]) / (high[0] - low[0]) if high[0] > low[0] else 1.0
                return float(low[1] * (high[1] / low[1]) ** max(0.0, share))
            low = high
        return low[1]

    def to_json(self) -> dict[str, Any]:
        """Return the `search` object of a manifest."""
        return {
            "nprobe": self.nprobe,
            "refine": self.refine,
            "coverage": self.coverage,
            "rungs": [list(rung) for rung in self.rungs],
            "temperature": self.temperature,
            "confidence": self.confidence,
            "error": self.error,
            "deviations": None,  # of scans that read parts of codes, which readers of this format may do
        }

    @classmethod
    def parse(cls, search: Fields, *, version: int, nlist: int, has_dense: bool) -> SearchPolicy:
        """Read the `search` object of a manifest of a format version, trusting nothing in it.

        Raises
        ------
        CorruptIndex
            If anything is missing, superfluous, out of range or contradictory.
        """
        first = frozenset({"nprobe", "refine"})
        search.require_keys(first if version == 1 else frozenset({*cls.__dataclass_fields__, "deviations"}))
        refine = search.integer("refine", 0, 2**40)
        if refine and not has_dense:
            search.fail("refine", refine, "0 where no dense rows are stored")
        nprobe = search.integer("nprobe", 1, nlist)
        if version == 1:
            return cls(nprobe=nprobe, refine=refine)
        rungs = _parse_rungs(search)
        coverage = search.number_or_null("coverage", 0.0, 1.0)
        beyond = coverage is not None and (not rungs or coverage > rungs[-1][0])
        if beyond or (coverage is None and rungs and version < 4):
            search.fail("coverage", coverage, "at most the last rung's, and null without rungs")
        temperature = search.number_or_null("temperature", *_FLOAT32)
        if (temperature is None) == bool(rungs):
            search.fail("temperature", temperature, "null if and only if there are no rungs")
        confidence, error = search.number_or_null("confidence", 0.0, 1.0), search.number_or_null("error", *_FLOAT32)
        if (error is None and confidence is not None) or (confidence is None and error is not None and version < 4):
            search.fail("confidence", confidence, "null if error is, and before version 4 only then")
        search.number_or_null("deviations", 0.0, 1e6)
        return cls(
            nprobe=nprobe,
            refine=refine,
            coverage=coverage,
            rungs=rungs,
            temperature=temperature,
            confidence=confidence,
            error=error,
        )


def _parse_rungs(search: Fields) -> tuple[tuple[float, float], ...]:
    got = search.values["rungs"]
    ok = isinstance(got, list) and all(
        isinstance(rung, list) and len(rung) == 2 and all(type(x) in (int, float) for x in rung) for rung in got
    )
    rungs = tuple((float(coverage), float(lift)) for coverage, lift in got) if ok else ()
    in_order = all(a[0] < b[0] and a[1] >= b[1] for a, b in pairwise(rungs))
    if not ok or not in_order or any(not (0 < coverage <= 1 and lift > 0) for coverage, lift in rungs):
        search.fail("rungs", got, "a list of pairs of a rising coverage in (0, 1] and a falling lift above 0")
    return rungs
