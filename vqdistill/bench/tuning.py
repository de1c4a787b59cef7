"""Choice of settings on tune queries: for each recall wanted, the fastest setting that reaches it."""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.bench.datasets import Truth
from vqdistill.bench.systems.base import Index, Setting, Verified
from vqdistill.types import F32Rows

K = 10
"""Results of a query."""
BATCH = 256
"""Queries of a call."""
MARGIN = 0.005
"""Recall asked beyond the target, so that it holds on the test queries too."""
TIE = 1e-6
"""Similarities that differ by less are equal: the rounding of float32 on unit vectors."""
_PASSES = 3
_QUICK = 256
"""Queries of a timed pass of tuning."""


@dataclass(frozen=True)
class Point:
    """A setting that was chosen."""

    target: float
    """recall that it was chosen for; 1 = the most that any setting reaches"""
    setting: Setting
    recall: float | None
    """on tune queries; None = the setting was given, not tuned"""


@dataclass(frozen=True)
class Questions:
    """Tune queries and the documents that are right for them."""

    queries: F32Rows
    right: npt.NDArray[np.int64]
    """(q, a) rows that score at least as the K-th neighbour, ties included; -1 padding"""

    @classmethod
    def of(cls, queries: F32Rows, truth: Truth) -> Questions:
        """Take the exact neighbours that are as near as the K-th."""
        near = truth.scores >= threshold(truth.scores, K)
        width = int(near.sum(axis=1).max())
        return cls(queries, np.where(near, truth.ids, -1)[:, :width])

    def hits(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Mark (q, r) what is right."""
        hit = np.zeros(ids.shape, np.bool_)
        for column in self.right.T:
            hit |= ids == column[:, None]
        return hit & (ids >= 0)

    def recall_by_depth(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return recall@K (r,) were the best K by exact score kept of the first 1..r of `ids` (q, r)."""
        found = np.minimum(np.cumsum(self.hits(ids), axis=1), K)
        return np.asarray(found.mean(axis=0) / K)


def threshold(true_scores: npt.NDArray[np.float32], k: int, eps: float = TIE) -> npt.NDArray[np.float32]:
    """Return the similarity (q, 1) from which on a document counts as one of the k nearest."""
    kth = true_scores[:, k - 1 : k]
    return np.asarray(kth - eps * np.maximum(1, np.abs(kth)), dtype=np.float32)


def tune(index: Index, questions: Questions, targets: list[float], deadline: float) -> list[Point]:
    """Return the fastest setting for each target that some setting reaches, and the best one that there is.

    Parameters
    ----------
    deadline : value of time.perf_counter() from which on no further ladder is looked at; one always is
    """
    found: list[tuple[float, Setting, float, float]] = []
    best: tuple[float, Setting] = (-1.0, {})
    for ladder in index.ladders():
        if found and time.perf_counter() > deadline:
            break
        rungs = _rungs(index, questions, ladder, targets)
        for target, setting, recall in rungs:
            found.append((target, setting, recall, _rate(index, questions.queries, setting)))
        top = max(rungs, key=lambda rung: rung[2], default=None)
        last = (top[2], top[1]) if top else _last(index, questions, ladder)
        best = max(best, last, key=lambda pair: pair[0])
    points = []
    for target in targets:
        reached = [one for one in found if one[0] == target]
        if reached:
            _, setting, recall, _ = max(reached, key=lambda one: one[3])
            points.append(Point(target, setting, recall))
    if all(point.setting != best[1] for point in points):
        points.append(Point(1.0, best[1], best[0]))
    return points


def _rungs(
    index: Index, questions: Questions, ladder: list[Setting], targets: list[float]
) -> list[tuple[float, Setting, float]]:
    """Return for each target that the ladder reaches its first rung that does, with the recall there."""
    if isinstance(index, Verified):
        recalls = _by_depth(index, questions, ladder)

        def recall_at(rung: int) -> float:
            return recalls[rung]
    else:
        known: dict[int, float] = {}

        def recall_at(rung: int) -> float:
            if rung not in known:
                known[rung] = _recall(index, questions, ladder[rung])
            return known[rung]

    rungs = []
    for target in targets:
        rung = bisect_left(range(len(ladder)), min(1.0, target + MARGIN), key=recall_at)
        if rung == len(ladder):
            break
        rungs.append((target, ladder[rung], recall_at(rung)))
    return rungs


def _by_depth(index: Verified, questions: Questions, ladder: list[Setting]) -> list[float]:
    """Recall of every rung from one look at the candidates of the last: rungs differ in `refine` only."""
    probe = {name: value for name, value in ladder[-1].items() if name != "refine"}
    deepest = ladder[-1]["refine"]
    found = [index.codes.candidates(few, deepest, probe) for few in batches(questions.queries)]
    recalls = questions.recall_by_depth(np.concatenate(found))
    return [float(recalls[min(rung["refine"], deepest) - 1]) for rung in ladder]


def _recall(index: Index, questions: Questions, setting: Setting) -> float:
    ids = np.concatenate([index.search(few, K, setting).ids for few in batches(questions.queries)])
    return float(questions.hits(ids).mean())


def _last(index: Index, questions: Questions, ladder: list[Setting]) -> tuple[float, Setting]:
    return _recall(index, questions, ladder[-1]), ladder[-1]


def _rate(index: Index, queries: F32Rows, setting: Setting) -> float:
    """Return queries a second, the best of a few short passes."""
    few = queries[:_QUICK]
    return len(few) / min(seconds(index, [few], setting) for _ in range(_PASSES))


def seconds(index: Index, calls: list[F32Rows], setting: dict[str, Any]) -> float:
    """Time one pass over the calls."""
    begin = time.perf_counter()
    for call in calls:
        index.search(call, K, setting)
    return time.perf_counter() - begin


def batches(queries: F32Rows, size: int = BATCH) -> list[F32Rows]:
    """Split queries into calls."""
    return [np.ascontiguousarray(queries[first : first + size]) for first in range(0, len(queries), size)]
