"""Indexes of faiss: fast-scan of product or additive codes, RaBitQ, and refinement in a mapped file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from vqdistill.bench.systems import faiss_recipes, projection
from vqdistill.bench.systems.base import I64, REFINE, Found, Index, Setting, Task, Verified, lists_for, nprobes
from vqdistill.bench.systems.faiss_recipes import METRICS, Recipe, inner
from vqdistill.bench.systems.projection import Projected
from vqdistill.bench.verify import F16Rows
from vqdistill.errors import BudgetInfeasible
from vqdistill.types import F32Rows

_FILE = "index.faiss"
_TRAIN_ROWS = {"pq": 1 << 17, "lsq": 20_000, "rq": 20_000}
"""Rows that codebooks are trained on at most."""


@dataclass(frozen=True)
class Fastscan:
    """4-bit codes: the longest that fit, of one kind of recipe."""

    codes: str
    lists: bool = False
    rotated: bool = False
    residual: bool = False
    half: bool = False
    """whether codes are half as long as they could be: faster to scan, with more candidates to verify"""

    def build(self, task: Task, folder: Path) -> dict[str, Any]:
        """See System."""
        recipe = self.recipe(task)
        faiss.omp_set_num_threads(task.threads)
        index = faiss_recipes.build(recipe, task.docs, train_rows=_TRAIN_ROWS[recipe.codes], seed=task.seed)
        faiss.write_index(index, str(folder / _FILE))
        return vars(recipe) | {"name": recipe.name}

    def recipe(self, task: Task) -> Recipe:
        """Return the recipe with the most codebooks within the allowance; of lists, fewer where codes would starve."""
        n, d = task.docs.shape
        nlist = lists_for(n) if self.lists else 0
        limit = task.allowance_bytes or 1 << 62
        while True:
            most = d if self.codes == "pq" else min(d, 128)
            choices = [
                Recipe(self.codes, m, nlist, task.metric, self.rotated, self.residual) for m in range(2, most + 1, 2)
            ]
            fitting = [recipe for recipe in choices if recipe.bytes_at_most(n, d) <= limit]
            # Lists may take a quarter of the allowance, as ours may.
            if fitting and (nlist < 2 or 4 * (4 * d + 16 * fitting[-1].m) * nlist <= limit):
                return fitting[(len(fitting) - 1) // 2 if self.half else -1]
            if nlist < 2:
                raise BudgetInfeasible(f"no {self.codes} codes of faiss fit {limit:,} B with {n} x {d} rows")
            nlist //= 2

    def open(self, folder: Path, rows: F16Rows, metric: str) -> Index:
        """See System."""
        return Verified(FaissCodes(faiss.read_index(str(folder / _FILE))), rows, metric)


class FaissCodes:
    """An open index that names candidates."""

    def __init__(self, index: Any) -> None:
        faiss.omp_set_num_threads(1)
        self.index, self._scan = index, inner(index)
        self.bytes = faiss_recipes.resident_bytes(index)

    def probes(self) -> list[Setting]:
        """See Codes; `faiss_recipes.SCANS` has what is tried of the scan."""
        if not isinstance(self._scan, faiss.IndexIVF):
            return [dict(scan) for scan in faiss_recipes.SCANS["flat"]]
        scans = faiss_recipes.SCANS["ivf"] if hasattr(self._scan, "implem") else ({},)
        return [probe | scan for probe in nprobes(self._scan.nlist) for scan in scans]

    def candidates(self, queries: F32Rows, refine: int, probe: Setting) -> I64:
        """See Codes."""
        for name, value in probe.items():
            setattr(self._scan, name, value)
        found: I64 = self.index.search(queries, refine)[1]
        return found


class RaBitQ:
    """IVF with RaBitQ codes of 1 bit a dimension, fast-scanned; of fewer dimensions where they would not fit."""

    def build(self, task: Task, folder: Path) -> dict[str, Any]:
        """See System."""
        n, d = task.docs.shape
        metric = METRICS[task.metric]
        width, nlist = _rabitq_shape(n, d, metric, task.allowance_bytes or 1 << 62)
        axes = projection.train(task.docs, width)
        projection.save(axes, folder)
        rows = projection.apply(axes, task.docs)
        faiss.omp_set_num_threads(task.threads)
        index = _rabitq(width, nlist, metric)
        index.cp.seed += task.seed
        index.train(rows)
        index.add(rows)
        faiss.write_index(index, str(folder / _FILE))
        return {"nlist": nlist, "nbits": 1, "metric": task.metric, "dimensions": width}

    def open(self, folder: Path, rows: F16Rows, metric: str) -> Index:
        """See System."""
        return Verified(Projected(FaissCodes(faiss.read_index(str(folder / _FILE))), folder), rows, metric)


def _rabitq(d: int, nlist: int, metric: int) -> Any:
    return faiss.IndexIVFRaBitQFastScan(faiss.IndexFlat(d, metric), d, nlist, metric)


def _rabitq_shape(n: int, d: int, metric: int, limit: int) -> tuple[int, int]:
    """Return dimensions and lists that fit."""
    for width in projection.widths(d):
        nlist = lists_for(n)
        axes = 4 * d * width if width < d else 0
        while nlist >= min(16, lists_for(n)):
            if (n + 32 * nlist) * (_rabitq(width, nlist, metric).code_size + 8) + 4 * width * nlist + axes <= limit:
                return width, nlist
            nlist //= 2
    raise BudgetInfeasible(f"RaBitQ of 1 bit for {projection.STEP} dimensions and ids of 8 B do not fit {limit:,} B")


class RefineMmap:
    """IVF, PQ fast-scan and float16 rows behind `IndexRefine` in one mapped file, which is read by page faults."""

    def __init__(self) -> None:
        self._codes = Fastscan("pq", lists=True)

    def build(self, task: Task, folder: Path) -> dict[str, Any]:
        """See System."""
        d = task.docs.shape[1]
        recipe = self._codes.recipe(task)
        faiss.omp_set_num_threads(task.threads)
        index = faiss_recipes.build(recipe, task.docs, train_rows=_TRAIN_ROWS["pq"], seed=task.seed)
        half = faiss.IndexScalarQuantizer(d, faiss.ScalarQuantizer.QT_fp16, METRICS[task.metric])
        half.train(task.docs[:1])
        half.add(task.docs)
        faiss.write_index(faiss.IndexRefine(index, half), str(folder / _FILE))
        return vars(recipe) | {"name": f"{recipe.name}-refine-fp16"}

    def open(self, folder: Path, rows: F16Rows, metric: str) -> Index:
        """See System; verification is that of faiss, from its own file."""
        return RefinedIndex(faiss.read_index(str(folder / _FILE), faiss.IO_FLAG_MMAP_IFC), metric)


class RefinedIndex:
    """An open `IndexRefine`."""

    def __init__(self, index: Any, metric: str) -> None:
        faiss.omp_set_num_threads(1)
        self._index = index
        base = faiss.downcast_index(index.base_index)
        self._base, self._l2 = inner(base), metric == "l2"
        self.bytes = faiss_recipes.resident_bytes(base)

    def ladders(self) -> list[list[Setting]]:
        """See Index."""
        n = self._index.ntotal
        return [[probe | {"refine": r} for r in REFINE if r <= n] for probe in nprobes(self._base.nlist)]

    def search(self, queries: F32Rows, k: int, setting: Setting) -> Found:
        """See Index."""
        self._base.nprobe = setting["nprobe"]
        refine = max(setting["refine"], k)
        self._index.k_factor = refine / k
        scores, ids = self._index.search(queries, k)
        scores = np.where(ids < 0, -np.inf, -scores if self._l2 else scores).astype(np.float32)
        return Found(scores, ids, float(refine))


_MAKERS: dict[str, Callable[[], Any]] = {
    "faiss-pq": lambda: Fastscan("pq"),
    "faiss-ivfpq": lambda: Fastscan("pq", lists=True),
    "faiss-ivfpq-residual": lambda: Fastscan("pq", lists=True, residual=True),
    "faiss-ivfopq": lambda: Fastscan("pq", lists=True, rotated=True),
    "faiss-ivfrabitq": RaBitQ,
    "faiss-ivfpq-half": lambda: Fastscan("pq", lists=True, half=True),
    "faiss-ivfopq-half": lambda: Fastscan("pq", lists=True, rotated=True, half=True),
    "faiss-lsq": lambda: Fastscan("lsq"),
    "faiss-rq": lambda: Fastscan("rq"),
    "faiss-refine-mmap": RefineMmap,
}


def make(name: str) -> Any:
    """Return the system."""
    return _MAKERS[name]()
