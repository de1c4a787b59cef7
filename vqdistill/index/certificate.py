"""Certificate: what searches of an index were measured to find, on queries that nothing was chosen by."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from vqdistill.errors import InvalidInput
from vqdistill.index.fields import Fields
from vqdistill.index.policy import SearchPolicy

TRUTHS = ("exact", "index")
"""Where the true neighbours are from: a scan of all rows, or a search of an index. Persisted: never rename."""
MAX_K = 1000
"""Neighbours that a certificate may count."""
_MAX_RUNGS = 100
_COUNT = 2**40


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One way to search, and what it found."""

    target: float
    """Recall that it was chosen for, on other queries than those it was measured on."""
    nprobe: int | None
    """Option of the search; None where `coverage` says it."""
    coverage: float | None
    """Option of the search; None where `nprobe` says it."""
    refine: int
    """Option of the search; with `confidence`, at most."""
    confidence: float | None
    """Option of the search; None = reads all of `refine`."""
    recall: float
    """Mean share of the true neighbours found."""
    low: float
    """Lower end of the interval that the recall of as many other queries falls into."""
    high: float
    """Upper end."""
    lists: float
    """Lists visited a query."""
    codes: float
    """Codes scanned a query."""
    rows: float
    """Rows read a query."""
    pages: float
    """Pages of 4 KiB read for a query that is asked alone."""
    cost: float
    """Work of a query in the units of `evaluate.work.search_ns`; rungs are chosen by it."""

    @property
    def options(self) -> dict[str, Any]:
        """How it searches, as options of `Searcher.search`."""
        return {name: getattr(self, name) for name in ("nprobe", "coverage", "refine", "confidence")}

    @classmethod
    def parse(cls, entry: Fields, k: int, nlist: int, policy: SearchPolicy) -> Rung:
        """Read one entry of `rungs`, trusting nothing in it.

        Raises
        ------
        CorruptIndex
            If anything is missing, superfluous, out of range, or no option of this index.
        """
        entry.require_keys(frozenset(cls.__dataclass_fields__))
        coverage = entry.number_or_null("coverage", 0.0, policy.rungs[-1][0] if policy.rungs else 0.0)
        nprobe = None if entry.values["nprobe"] is None else entry.integer("nprobe", 1, nlist)
        if (nprobe is None) == (coverage is None):
            entry.fail("nprobe", nprobe, "null if and only if coverage is a number")
        refine = entry.integer("refine", 0, _COUNT if policy.refine else 0)
        confidence = entry.number_or_null("confidence", 0.0, 1.0)
        if 0 < refine < k or (confidence is not None and (policy.error is None or not refine)):
            entry.fail("refine", refine, f"0 or at least k = {k}, with a confidence only where reading can stop early")
        numbers = {name: entry.number(name, 0.0, 1.0) for name in ("target", "recall", "low", "high")}
        if not numbers["low"] <= numbers["recall"] <= numbers["high"]:
            entry.fail("recall", numbers["recall"], "between low and high")
        work = {name: entry.number(name, 0.0, float(_COUNT)) for name in ("lists", "codes", "rows", "pages", "cost")}
        return cls(nprobe=nprobe, coverage=coverage, refine=refine, confidence=confidence, **numbers, **work)


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A ladder of rungs, each measured once on the same reserved queries."""

    k: int
    """True neighbours of a query that count, and results that are searched for."""
    queries: int
    """Reserved queries that recall was measured on."""
    tuned_on: int
    """Other queries, by which the settings of the rungs were chosen."""
    level: float
    """Share of the cases in which it does."""
    real_queries: bool
    """False where the queries were made from the corpus: for real ones nothing is proven."""
    truth: str
    """One of TRUTHS."""
    truth_recall: float | None
    """Share of the exact neighbours among those of an index, on a sample; None where the truth is exact."""
    rungs: tuple[Rung, ...]
    """By rising target, at least one."""
    stale: bool = False
    """Whether rows were added or deleted since it was measured."""

    def choose(self, recall: float, k: int) -> Rung:
        """Return the cheapest rung whose lower bound reaches `recall`, for `k` results.

        A search for fewer than the certified k is that of k, cut: the first of the results hold every one of the first
        true neighbours that was read.

        Raises
        ------
        InvalidInput
            If there is none, or `k` is above the certified one.
        """
        if k > self.k:
            raise InvalidInput(f"k must be at most {self.k} with recall, which was certified for so many, got {k}")
        fitting = [rung for rung in self.rungs if rung.low >= recall]
        if not fitting:
            best = max(self.rungs, key=lambda rung: rung.low)
            raise InvalidInput(
                f"recall must be at most {best.low:.4f}, the lower bound of the best certified search (recall@{self.k}"
                f" {best.recall:.4f}), got {recall}"
            )
        return min(fitting, key=lambda rung: rung.cost)

    def to_json(self) -> dict[str, Any]:
        """Return the `certificate` object of a manifest."""
        return asdict(self) | {"rungs": [asdict(rung) for rung in self.rungs]}

    @classmethod
    def parse(cls, entry: Fields, *, n: int, nlist: int, policy: SearchPolicy) -> Certificate:
        """Read the `certificate` object of a manifest, trusting nothing in it.

        Raises
        ------
        CorruptIndex
            If anything is missing, superfluous, out of range or contradictory.
        """
        entry.require_keys(frozenset(cls.__dataclass_fields__))
        k, truth = entry.integer("k", 1, min(n, MAX_K)), entry.choice("truth", TRUTHS)
        truth_recall = None if entry.values["truth_recall"] is None else entry.number("truth_recall", 0.0, 1.0)
        if (truth_recall is None) != (truth == "exact"):
            entry.fail("truth_recall", truth_recall, "null if and only if the truth is exact")
        rungs = tuple(Rung.parse(rung, k, nlist, policy) for rung in entry.objects("rungs", 1, _MAX_RUNGS))
        if not all(a.target < b.target for a, b in pairwise(rungs)):
            entry.fail("rungs", [rung.target for rung in rungs], "of rising targets")
        return cls(
            k=k,
            queries=entry.integer("queries", 1, _COUNT),
            tuned_on=entry.integer("tuned_on", 1, _COUNT),
            level=entry.number("level", 0.0, 1.0),
            real_queries=entry.boolean("real_queries"),
            truth=truth,
            truth_recall=truth_recall,
            rungs=rungs,
            stale=entry.boolean("stale"),
        )


def policy_of(rung: Rung, policy: SearchPolicy) -> SearchPolicy:
    """Return `policy` with the rung's search as the default."""
    return replace(policy, **rung.options | {"nprobe": rung.nprobe or policy.nprobe})
