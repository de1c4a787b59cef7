"""The cheapest way to search an index for each of a ladder of recalls, found by trying settings on queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.evaluate.interval import Interval, bootstrap_interval
from vqdistill.evaluate.metrics import recall_at_k
from vqdistill.evaluate.work import search_ns
from vqdistill.index.manifest import Manifest
from vqdistill.index.policy import SearchPolicy
from vqdistill.searcher import Searcher
from vqdistill.types import F64, F32Rows

TARGETS = (0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995)
"""Recalls of the rungs. The last is there so that the lower bound of some rung reaches 0.99."""
_COVERAGES = (0.8, 0.85, 0.9, 0.925, 0.95, 0.965, 0.98, 0.99, 0.995)
_LIST_SHARES = (0.25, 0.5, 1.0)
"""Shares of the lists beyond the calibrated coverages."""
_LIST_STEP = 1.3
"""Ratio of neighbouring numbers of lists where no coverage is calibrated."""
_CONFIDENCES = (
    (1, (0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)),
    (2, (0.99, 0.995)),
    (4, (0.995, 0.998)),
    (8, (0.999,)),
)
"""Factors of the most rows read, and confidences tried with them."""
_REFINES = (1, 1.5, 2, 3, 5, 7, 10, 15, 20, 40, 80)
"""Rows read, in units of k, where reading cannot stop early."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Options of `Searcher.search` that trade work for recall."""

    nprobe: int | None = None
    coverage: float | None = None
    refine: int
    confidence: float | None = None

    @property
    def options(self) -> dict[str, Any]:
        """By the names of the options."""
        return asdict(self)


@dataclass(frozen=True)
class QuerySet:
    """Queries, and what is right for them."""

    queries: F32Rows
    """(q, d) float32, prepared"""
    neighbors: npt.NDArray[np.int64]
    """(q, >= k) true neighbours, best first, -1 padding"""


@dataclass(frozen=True)
class Trial:
    """What a setting did for some queries."""

    setting: Setting
    recalls: F64
    """(q,)"""
    interval: Interval
    """Of the mean of the recalls."""
    work: dict[str, float]
    """Mean over the queries: `lists`, `codes`, `rows`, and their `cost`."""

    @property
    def recall(self) -> float:
        """Mean over the queries."""
        return float(self.recalls.mean())


def attempt(searcher: Searcher, asked: QuerySet, setting: Setting, k: int, threads: int = 1, seed: int = 0) -> Trial:
    """Search with a setting and count what it finds and does."""
    hits = searcher.search(asked.queries, k, threads=threads, **setting.options)
    recalls = recall_at_k(hits.rows, asked.neighbors, k)
    means = [hits.stats[name] / len(recalls) for name in ("lists_probed", "codes_scanned", "dense_rows")]
    done = dict(zip(("lists", "codes", "rows"), means, strict=True))
    index = searcher.reader.manifest
    spent = {"lists": done["lists"], "codes": done["codes"], "reads": done["rows"]}
    done["cost"] = search_ns(index.d, index.m, index.dense, **spent)
    return Trial(setting, recalls, bootstrap_interval(recalls, seed), done)


def probings(manifest: Manifest) -> list[dict[str, Any]]:
    """Ways to choose lists, from few to all."""
    nlist, policy = manifest.nlist, manifest.search
    if policy.rungs:
        coverages = [coverage for coverage in _COVERAGES if coverage <= policy.rungs[-1][0]]
        numbers = sorted({max(1, round(share * nlist)) for share in _LIST_SHARES})
        return [{"coverage": x} for x in coverages] + [{"nprobe": x} for x in numbers]
    numbers = sorted({min(nlist, round(_LIST_STEP**i)) for i in range(64)} | {nlist})
    return [{"nprobe": x} for x in numbers]


def verifications(policy: SearchPolicy, k: int, n: int) -> list[dict[str, Any]]:
    """Ways to choose the rows that are read, from few to many."""
    if policy.refine == 0:
        return [{"refine": 0}]
    if policy.error is None:
        return [{"refine": x} for x in sorted({min(n, max(k, round(factor * k))) for factor in _REFINES})]
    base = max(policy.refine, 10 * k)
    levels = [(min(n, factor * base), confidence) for factor, some in _CONFIDENCES for confidence in some]
    return [{"refine": refine, "confidence": confidence} for refine, confidence in dict.fromkeys(levels)]


def tune(
    searcher: Searcher, asked: QuerySet, k: int, targets: Sequence[float] = TARGETS, threads: int = 1, seed: int = 0
) -> list[tuple[float, Trial]]:
    """Find for each target the cheapest setting whose recall surely reaches it on these queries.

    Returns
    -------
    list of (target, trial)
        By rising target. The first targets that nothing reaches are replaced by one: what the most thorough setting
        surely reaches.
    """
    manifest = searcher.reader.manifest

    @cache
    def tried(setting: Setting) -> Trial:
        return attempt(searcher, asked, setting, k, threads, seed)

    verifying = verifications(manifest.search, k, manifest.n)
    grid = [[Setting(**lists, **rows) for rows in verifying] for lists in probings(manifest)]
    grid.sort(key=lambda settings: tried(settings[0]).work["codes"])
    found: list[tuple[float, Trial]] = []
    for target in targets:
        best = min(_reaching(tried, target, grid), key=lambda trial: trial.work["cost"], default=None)
        if best is None:
            most = tried(grid[-1][-1])
            least = np.floor(1000 * most.interval[0]) / 1000
            return found + [(float(least), most)] if not found or least > found[-1][0] else found
        found.append((target, best))
    return found


def _reaching(tried: Callable[[Setting], Trial], target: float, grid: list[list[Setting]]) -> Iterator[Trial]:
    """Walk along the border between what reaches the target and what does not: recall grows with row and column."""
    i, j = len(grid) - 1, 0
    while i >= 0 and j < len(grid[0]):
        trial = tried(grid[i][j])
        if trial.interval[0] >= target:
            yield trial
            i -= 1
        else:
            j += 1
