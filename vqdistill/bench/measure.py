"""Measurement of one open index on the test queries: results first, then interleaved timed passes, in rounds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.bench.datasets import DEPTH, Dataset
from vqdistill.bench.referee import check
from vqdistill.bench.store import Operation
from vqdistill.bench.systems.base import Index, Setting
from vqdistill.bench.tuning import BATCH, K, Point, batches
from vqdistill.bench.verify import best_of
from vqdistill.types import F32Rows

PASS_SECONDS = 1.0
"""About what a timed pass takes at most; slow systems answer fewer queries of it."""
MOST_TIMED = 2048
MOST_SINGLE = 300


@dataclass
class _Timed:
    """A setting under measurement."""

    setting: Setting
    calls: list[F32Rows]
    singles: list[F32Rows]
    seconds: list[npt.NDArray[np.float64]] = field(default_factory=list)
    cpu_seconds: list[npt.NDArray[np.float64]] = field(default_factory=list)
    latencies: list[npt.NDArray[np.float64]] = field(default_factory=list)

    def answer(self, index: Index) -> None:
        """Time one pass in batches and one query by query."""
        wall, cpu = np.empty(len(self.calls)), np.empty(len(self.calls))
        for number, call in enumerate(self.calls):
            begin, cpu_begin = time.perf_counter(), time.process_time()
            index.search(call, K, self.setting)
            wall[number], cpu[number] = time.perf_counter() - begin, time.process_time() - cpu_begin
        self.seconds.append(wall)
        self.cpu_seconds.append(cpu)
        single = np.empty(len(self.singles))
        for number, query in enumerate(self.singles):
            begin = time.perf_counter()
            index.search(query, K, self.setting)
            single[number] = time.perf_counter() - begin
        self.latencies.append(single)


def measure(
    name: str, index: Index, dataset: Dataset, points: list[Point], repetitions: int, deep: bool
) -> tuple[list[Operation], list[float]]:
    """Measure operating points of an index; also return the times of a yardstick, one a repetition.

    The yardstick is the same work in every run: what it takes tells a busy machine from a slow system.

    Parameters
    ----------
    name : of the system, for the referee's messages
    deep : whether to also store the first 100 results, for metrics by labels
    """
    queries, docs, l2 = dataset.rows("test"), dataset.rows("docs"), dataset.metric == "l2"
    operations, timed = [], []
    for point in points:
        found = [index.search(few, K, point.setting) for few in batches(queries)]
        scores, ids = (np.concatenate([getattr(one, part) for one in found]) for part in ("scores", "ids"))
        checked = check(name, scores, ids, queries, docs, K, l2)
        reads = [one.reads for one in found]
        counts = [len(few) for few in batches(queries)]
        timed.append(_planned(index, queries, point.setting))
        facts = {
            "target": point.target,
            "setting": point.setting,
            "tune_recall": point.recall,
            "reads": None if None in reads else float(np.average(np.array(reads, np.float64), weights=counts)),
            "findings": [vars(finding) for finding in checked.findings],
            "timed": sum(map(len, timed[-1].calls)),
        }
        calls, singles = np.empty((0, len(timed[-1].calls))), np.empty((0, len(timed[-1].singles)))
        operation = Operation(facts, checked.ids, checked.scores, calls, calls, singles)
        if deep:
            _add_deep(operation, name, index, dataset, point, (queries, docs))
        operations.append(operation)
    return operations, _passes(index, dataset, operations, timed, repetitions)


def measure_again(index: Index, dataset: Dataset, operations: list[Operation], repetitions: int) -> list[float]:
    """Add timed passes to operations that were measured before, over the same queries; return the yardstick's times."""
    queries = dataset.rows("test")
    timed = []
    for operation in operations:
        calls = batches(queries[: operation.facts["timed"]])
        singles = batches(queries[: operation.latencies.shape[1]], 1)
        timed.append(_Timed(operation.facts["setting"], calls, singles))
        for few in (calls[0], singles[0]):
            index.search(few, K, operation.facts["setting"])  # to be warm
    return _passes(index, dataset, operations, timed, repetitions)


def _passes(
    index: Index, dataset: Dataset, operations: list[Operation], timed: list[_Timed], repetitions: int
) -> list[float]:
    """Add timed passes over all operations in turn, each after the yardstick, whose seconds are returned."""
    yardstick = _yardstick(dataset, dataset.rows("test"))
    marks = []
    for _ in range(repetitions):
        marks.append(_clocked(yardstick))
        for one in timed:
            one.answer(index)
    for operation, one in zip(operations, timed, strict=True):
        operation.add_passes(one.seconds, one.cpu_seconds, one.latencies)
    return marks


def _add_deep(
    operation: Operation, name: str, index: Index, dataset: Dataset, point: Point, known: tuple[F32Rows, F32Rows]
) -> None:
    queries, docs = known
    depth = min(DEPTH, dataset.n)
    found = [index.search(few, depth, point.setting) for few in batches(queries)]
    scores, ids = (np.concatenate([getattr(one, part) for one in found]) for part in ("scores", "ids"))
    checked = check(name, scores, ids, queries, docs, depth, dataset.metric == "l2")
    operation.deep_ids, operation.deep_scores = checked.ids, checked.scores
    known_kinds = {finding["kind"] for finding in operation.facts["findings"]}
    operation.facts["findings"] += [vars(f) for f in checked.findings if f.refused and f.kind not in known_kinds]


def _planned(index: Index, queries: F32Rows, setting: Setting) -> _Timed:
    """Choose how many queries a pass has, from how long some take, and warm up with them."""
    calls = batches(queries[:MOST_TIMED])
    took = _clocked(lambda: index.search(calls[0], K, setting))
    calls = calls[: max(1, min(len(calls), int(PASS_SECONDS / max(took, 1e-9))))]
    singles = batches(queries[:MOST_SINGLE], 1)
    took = _clocked(lambda: index.search(singles[0], K, setting))
    singles = singles[: max(20, min(len(singles), int(PASS_SECONDS / max(took, 1e-9))))]
    return _Timed(setting, calls, singles)


def _yardstick(dataset: Dataset, queries: F32Rows) -> Callable[[], object]:
    rows = dataset.f16()
    few = np.ascontiguousarray(queries[:BATCH])
    candidates = np.random.default_rng(0).integers(0, len(rows), (len(few), 100))
    best_of(rows, few, candidates, K)  # compiles, and brings the rows into the page cache
    return lambda: best_of(rows, few, candidates, K)


def _clocked(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
