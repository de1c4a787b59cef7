"""Metrics of stored runs, with intervals, and comparisons between systems; nothing is searched again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import numpy.typing as npt
from scipy import stats

from vqdistill.bench.datasets import Truth, read_qrels, read_truth
from vqdistill.bench.store import Operation, Run
from vqdistill.bench.tuning import K, threshold
from vqdistill.data.relevance import Relevance
from vqdistill.evaluate.interval import LEVEL, bootstrap_interval
from vqdistill.evaluate.metrics import recall_at_k

F64 = npt.NDArray[np.float64]
ANN_BENCHMARKS_EPS = 1e-3
TOP_METRICS = {"nDCG@10": ir_measures.nDCG @ 10, "MRR@10": ir_measures.RR @ 10}
DEEP_METRICS = {"Recall@100": ir_measures.R @ 100}
"""Of a search for 100 results, which verifies 100 candidates at least."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """A figure and the interval that holds it with 95 % confidence."""

    value: float
    low: float
    high: float

    def facts(self) -> dict[str, float]:
        """JSON-ready."""
        return vars(self).copy()


@dataclass(frozen=True)
class Judge:
    """What is right for the test queries of one dataset."""

    truth: Truth
    qrels: Relevance | None

    @classmethod
    def of(cls, truth_path: Path) -> Judge:
        """Read what `bench` left beside its runs."""
        return cls(read_truth(truth_path), read_qrels(truth_path))

    def per_query(self, operation: Operation) -> dict[str, F64]:
        """Return metrics (q,) of one operation.

        `recall` counts what scores at least as the true 10th neighbour, equal ones included; `recall_by_id` the ids of
        the true ten, as `vqdistill eval` does; `recall_ann_benchmarks` allows distances 0.001 beyond the 10th.
        """
        scores = operation.scores[:, :K]
        found = {"recall": (scores >= threshold(self.truth.scores, K)).mean(axis=1)}
        found["recall_by_id"] = recall_at_k(operation.ids, self.truth.ids, K)
        loose = self.truth.scores[:, K - 1 : K] - np.float32(ANN_BENCHMARKS_EPS)
        found["recall_ann_benchmarks"] = (scores >= loose).mean(axis=1)
        if self.qrels is not None:
            found |= label_metrics(operation.ids, self.qrels, TOP_METRICS)
            if operation.deep_ids.size:
                found |= label_metrics(operation.deep_ids, self.qrels, DEEP_METRICS)
        return {name: np.asarray(values, np.float64) for name, values in found.items()}


def label_metrics(ids: npt.NDArray[np.int64], qrels: Relevance, measures: dict[str, Any]) -> dict[str, F64]:
    """Return metrics (judged queries,) by ir-measures; queries that nobody judged are left out.

    Parameters
    ----------
    ids : (q, depth) best first, -1 where missing
    qrels : relevant documents of the q queries; the score is the grade
    measures : name -> measure of ir-measures
    """
    judged = np.flatnonzero(qrels.counts)
    known: dict[str, dict[str, int]] = {}
    ran: dict[str, dict[str, float]] = {}
    for query, row in zip(judged.tolist(), ids[judged].tolist(), strict=True):
        name = f"{query:09}"
        span = slice(qrels.offsets[query], qrels.offsets[query + 1])
        pairs = zip(qrels.docs[span], qrels.scores[span], strict=True)
        known[name] = {str(doc): max(0, math.ceil(grade)) for doc, grade in pairs}
        # trec_eval sorts by score and then by name; ranks keep the order of a system where scores are equal.
        ran[name] = {str(doc): float(-rank) for rank, doc in enumerate(row) if doc >= 0}
    values = {name: np.zeros(len(judged)) for name in measures}
    at = {name: place for place, name in enumerate(known)}
    names = {measure: name for name, measure in measures.items()}
    for one in ir_measures.iter_calc(list(measures.values()), known, ran):
        values[names[one.measure]][at[one.query_id]] = one.value
    return values


def mean_interval(values: F64) -> Interval:
    """Return the mean of a metric with an interval by bootstrap over queries."""
    return Interval(float(values.mean()), *bootstrap_interval(values))


def rate(operation: Operation, clock: str = "seconds") -> float:
    """Return queries a second, each call at its best over the passes; NaN if it was not timed.

    A call that was disturbed in one pass is not in all of them: the sum of the best is what the work itself takes.
    """
    seconds = getattr(operation, clock)
    return float(operation.facts["timed"] / _best_seconds(seconds)) if seconds.size else math.nan


def _best_seconds(seconds: F64) -> float:
    return float(seconds.min(axis=0).sum())


def rate_ratio(ours: Operation, theirs: Operation, clock: str = "seconds", seed: int = 0) -> Interval:
    """Return the ratio of our queries a second to theirs, with an interval by bootstrap over the passes."""
    ratio = rate(ours, clock) / rate(theirs, clock)
    rng = np.random.default_rng(seed)

    def resampled(operation: Operation) -> F64:
        seconds = getattr(operation, clock)
        drawn = rng.integers(0, len(seconds), (RESAMPLES, len(seconds)))
        return np.array([operation.facts["timed"] / _best_seconds(seconds[rows]) for rows in drawn])

    ratios = resampled(ours) / resampled(theirs)
    low, high = np.percentile(ratios, [50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL)])
    return Interval(ratio, float(min(low, ratio)), float(max(high, ratio)))


def paired(ours: F64, theirs: F64, seed: int = 0) -> dict[str, float]:
    """Compare two systems query by query: the mean difference and its p-value by random exchange of the two."""
    difference = ours - theirs
    mean = float(difference.mean())
    if not difference.any():
        return {"difference": 0.0, "p_value": 1.0}
    found = stats.permutation_test(
        (difference,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=50,
        rng=np.random.default_rng(seed),
    )
    return {"difference": mean, "p_value": float(found.pvalue)}


def latency_ms(seconds: npt.ArrayLike) -> dict[str, float] | None:
    """Return p50 and p99 of single queries, each at its best over the passes (r, s) or of one pass (s,)."""
    array = np.atleast_2d(np.asarray(seconds, np.float64))
    if not array.size:
        return None
    p50, p99 = np.percentile(array.min(axis=0), [50, 99]) * 1e3
    return {"p50_ms": float(p50), "p99_ms": float(p99)}


def score_run(run: Run, judge: Judge) -> list[dict[str, Any]]:
    """Return what is known of each operation of a run, JSON-ready."""
    scored = []
    for number, operation in enumerate(run.operations):
        metrics = {name: mean_interval(values).facts() for name, values in judge.per_query(operation).items()}
        facts = {name: operation.facts[name] for name in ("target", "setting", "tune_recall", "reads")}
        timed = {"queries_per_s": rate(operation), "queries_per_cpu_s": rate(operation, "cpu_seconds")}
        scored.append(
            facts
            | {"number": number, "metrics": metrics, "latency": latency_ms(operation.latencies)}
            | {name: None if math.isnan(value) else value for name, value in timed.items()}
        )
    return scored
