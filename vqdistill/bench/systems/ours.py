"""vqdistill itself, distilled and not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vqdistill import searcher
from vqdistill.bench.systems.base import REFINE, Found, Setting, Task
from vqdistill.bench.verify import F16Rows
from vqdistill.types import F32Rows

COVERAGES = (0.995, 0.99, 0.985, 0.98, 0.975, 0.97, 0.96, 0.94, 0.9)
CONFIDENCES = (0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 0.999)
"""What calibrated searches are tuned over."""
_NAME = "index.vqd"


class Ours:
    """Index directories of the compiler."""

    def __init__(self, distill: bool) -> None:
        self._distill = distill

    def build(self, task: Task, folder: Path) -> dict[str, Any]:
        """See System. The dense rows on disk are float16 as everybody's."""
        from vqdistill.compiler.build import compile  # here, because searching needs no torch

        options: dict[str, Any] = {
            "ram": task.budget,
            "metric": task.metric,
            "seed": task.seed,
            "distill": self._distill,
        }
        queries = "none" if task.learn is None else str(task.learn)
        compile(task.docs_path, folder / _NAME, queries=queries, threads=task.threads, **options)
        return options | {"queries": "pseudo-queries of the documents" if task.learn is None else "learn queries"}

    def open(self, folder: Path, rows: F16Rows, metric: str) -> OurIndex:
        """See System; verification is the searcher's own."""
        return OurIndex(folder / _NAME)


class OurIndex:
    """An open index."""

    def __init__(self, path: Path) -> None:
        self._searcher = searcher.open(path)
        manifest = self._searcher.reader.manifest
        self.bytes = {kind: segment.bytes for kind, segment in manifest.segments.items() if segment.resident}
        self._policy, self._n, self._nlist = manifest.search, manifest.n, manifest.nlist

    def ladders(self) -> list[list[Setting]]:
        """See Index."""
        known = [share for share in COVERAGES if self._policy.rungs and share <= self._policy.rungs[-1][0]]
        probes: list[Setting] = [{"coverage": share} for share in known] or [{}]
        fixed = [{"refine": r} for r in REFINE if r <= self._n]
        ladders = [[probe | rung for rung in fixed] for probe in probes]
        if self._policy.error is not None:
            asked = [{"refine": min(200, self._n), "confidence": share} for share in CONFIDENCES]
            ladders += [[probe | rung for rung in asked] for probe in probes]
        return [*ladders, [{"nprobe": self._nlist} | rung for rung in fixed]]

    def search(self, queries: F32Rows, k: int, setting: Setting) -> Found:
        """See Index."""
        refine = setting.get("refine")
        asked = setting if refine is None or refine >= k else setting | {"refine": k}
        hits = self._searcher.search(queries, k, **asked)
        return Found(hits.scores, hits.rows, hits.stats["dense_rows"] / len(queries))


def make(name: str) -> Ours:
    """Return the system."""
    return Ours(distill=name == "vqdistill")
