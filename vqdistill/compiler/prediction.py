"""What a chosen index will be and cost, said before it is built: from trials on a sample, and arithmetic."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from vqdistill.compiler import cost
from vqdistill.compiler.forecast import Shape
from vqdistill.compiler.memory import LARGEST, peak_bytes
from vqdistill.compiler.plan import CompilePlan
from vqdistill.compiler.planner import Choice
from vqdistill.compiler.scaling import Law
from vqdistill.compiler.trials import Trials
from vqdistill.config import DistillConfig
from vqdistill.evaluate.work import NS_PER_CODE_BYTE

_ROUNDS = 10
"""Passes of k-means."""
_TEACHER_FACTOR = 1.2
"""Work of exact search in units of its products: the best 200 of each query are kept as well."""
_TRIALS_LEAVE = 17
"""Times the bytes of the sample, as measured on pypi200k."""
_START_S = 4.0
"""CPU seconds of loading libraries and compiled loops."""
_TABLES_S, _TABLES_CODE_S = 8.0, 0.1
"""CPU seconds of training the look-up tables, and more of them for each code of a row."""
_JUDGEMENTS = 40
"""Scans of all codes by the held-out queries, over all of training."""
_LADDER_SEARCHES = 300
"""Searches by the queries of the certificate, over all settings and rungs, in units of the planned one; most of them
scan and read more."""
_ROUTER_SHARE = 3.0
"""Steps of the router in a compile, in units of those in a trial."""
_SERIAL = ("start", "tables", "router")
"""Stages that use one thread whatever there are."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What is expected of an index, and of its compile on this machine."""

    rows: int
    n: int
    recall: float
    """Of the default search, at the recall that was asked for"""
    candidates: int
    laws: dict[int, Law]
    """By candidates read, for the codes that were chosen: what is missed, all lists visited"""
    queries_per_s: float
    ram_bytes: int
    disk_bytes: int | None
    stages: dict[str, float]
    """CPU seconds of each stage of the compile"""
    threads: int
    """That compile time is predicted for"""
    peak_rss_bytes: int
    """Of the compile"""
    trials_s: float
    """Seconds that the trials took"""
    trials_cpu_s: float

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the compile."""
        return sum(self.stages.values())

    @property
    def seconds(self) -> float:
        """Seconds of the compile, if every thread has a core."""
        return sum(s if name in _SERIAL else s / self.threads for name, s in self.stages.items())

    def lasting(self) -> dict[str, Any]:
        """Return what depends on input, options and seed alone, as JSON values: fit to be stored in an index."""
        by_code = {
            str(reads): {
                "recall": round(1 - law.at(self.n), 6),
                "interval": [round(1 - miss, 6) for miss in reversed(law.interval(self.n))],
            }
            for reads, law in self.laws.items()
        }
        law = self.laws[self.candidates]
        return {
            "rows": self.rows,
            "recall": self.recall,
            "candidates": self.candidates,
            "recall_by_candidates": by_code,
            "law": {"candidates": self.candidates} | law.to_json(),
            "queries_per_s": round(self.queries_per_s, 1),
            "ram_bytes": self.ram_bytes,
            "disk_bytes": self.disk_bytes,
        }

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return self.lasting() | {
            "compile_cpu_s": self.cpu_s,
            "compile_s": self.seconds,
            "threads": self.threads,
            "stages_cpu_s": self.stages,
            "peak_rss_bytes": self.peak_rss_bytes,
            "trials_s": self.trials_s,
            "trials_cpu_s": self.trials_cpu_s,
        }

    def lines(self) -> list[str]:
        """Return it for people."""
        law = self.laws[self.candidates]
        low, high = (1 - miss for miss in reversed(law.interval(self.n)))
        return [
            f"predicted   recall {self.recall:g} by default, {self.queries_per_s:,.0f} queries/s of a core in batches",
            f"  by code   {1 - law.at(self.n):.4f} ({low:.4f} to {high:.4f}) among {self.candidates} candidates; each"
            f" doubling of the rows misses {law.slope:.4f} more",
            f"  compile   {self.seconds:,.0f} s on {self.threads} cores ({self.cpu_s:,.0f} s of CPU), peak"
            f" {self.peak_rss_bytes / 2**20:,.0f} MiB",
        ]


def predict(
    plan: CompilePlan,
    choice: Choice,
    trials: Trials,
    recall: float,
    *,
    threads: int,
    source_bytes: int,
    begun: tuple[float, float],
) -> Prediction:
    """Predict an index and its compile.

    Parameters
    ----------
    plan : of the chosen index
    recall : that was asked for
    source_bytes : that the opened source keeps in memory
    begun : `time.perf_counter()` and `time.process_time()` before the trials
    """
    best = choice.best
    shape = (best.model.codes, bool(best.model.residual))
    laws = choice.forecast.fit(shape, best.model.m)
    asked = len(trials.sample.teach) + len(trials.sample.judges)
    assert best.query_ns is not None
    stages = _stages(plan, shape, trials, asked, best.query_ns)
    reads = best.reads or 0
    return Prediction(
        rows=trials.sample.size,
        n=plan.facts.n,
        recall=recall,
        candidates=min(laws, key=lambda known: abs(known - reads)),
        laws=laws,
        queries_per_s=1e9 / best.query_ns,
        ram_bytes=plan.ram_bytes,
        disk_bytes=plan.disk_bytes,
        stages=stages,
        threads=threads,
        peak_rss_bytes=peak_bytes(LARGEST, plan, threads=threads, source_bytes=source_bytes) + _left_by(trials),
        trials_s=time.perf_counter() - begun[0],
        trials_cpu_s=time.process_time() - begun[1],
    )


def _left_by(trials: Trials) -> int:
    """Bytes that stay resident when trials are over, in pages that also hold what is in use."""
    return _TRIALS_LEAVE * trials.sample.corpus.x.nbytes


def _stages(plan: CompilePlan, shape: Shape, trials: Trials, asked: int, query_ns: float) -> dict[str, float]:
    """CPU seconds of each stage: what the trials measured, times how much more there is of it."""
    n, d, m, nlist = plan.facts.n, plan.facts.dim, plan.model.m, plan.model.nlist
    known, size = _training_rows(plan), trials.sample.size
    routes, codes = trials.routes(nlist), trials.codes(m, *shape, size)
    product_s = trials.product_s
    teacher_s = _TEACHER_FACTOR * product_s * n * d
    of_rows = routes.cpu_s["lists"] / _assignments(size, nlist, 128)
    assigned = _assignments(known, nlist, 256) + _assignments(known, nlist, 128) + n
    held = min(DistillConfig().held_out, asked // 5)
    scan_s = 1e-9 * NS_PER_CODE_BYTE * n * cost.bytes_per_vector(m) * held
    return {
        "teacher": teacher_s * asked,
        "coordinates": trials.space_s(m) if shape[0] == "additive" else 0.0,
        "lists": of_rows * assigned,
        "codebooks": _along(trials, shape, m, "codebooks", min(known, LARGEST.codebook_rows)),
        "codes for queries": _along(trials, shape, m, "serve", min(known, LARGEST.codebook_rows)),
        "encode": codes.cpu_s["encode"] / size * (known + n),
        "start": _START_S,
        "tables": _TABLES_S + _TABLES_CODE_S * m,
        "router": _ROUTER_SHARE * routes.cpu_s["router"],
        "held-out queries": _JUDGEMENTS * scan_s,
        "certificate": held * (2 * teacher_s + 1e-9 * _LADDER_SEARCHES * query_ns),
    }


def _along(trials: Trials, shape: Shape, m: int, stage: str, rows: int) -> float:
    """CPU seconds at `rows` rows, along a line through those of the nested samples."""
    runs = [trials.codes(m, *shape, size) for size in trials.nested]
    sizes, spent = [float(run.size) for run in runs], [run.cpu_s[stage] for run in runs]
    if len(runs) < 2:
        return spent[0] * rows / sizes[0]
    slope = max(0.0, float(np.polyfit(sizes, spent, 1)[0]))
    return spent[-1] + slope * (rows - sizes[-1])


def _assignments(rows: int, nlist: int, sampled: int) -> int:
    """Rows compared with all centroids when rows are clustered, with so many sampled for a list, and assigned."""
    return _ROUNDS * min(rows, sampled * nlist) + rows


def _training_rows(plan: CompilePlan) -> int:
    return min(plan.facts.n, max(1, LARGEST.train_bytes // (4 * plan.facts.dim)))
