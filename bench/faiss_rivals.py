"""What a faiss user can have: 4-bit fast-scan indexes within a number of bytes, their best R verified exactly."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from vqdistill.bench.systems.faiss_recipes import METRICS, Recipe, build, inner, opq_rotation, resident_bytes
from vqdistill.bench.verify import best_of

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
LADDERS = {"pq": (36, 40, 48, 56, 64, 72, 80), "lsq": (40, 48, 64)}
"""Numbers of codebooks tried beside the most that fit a budget: longer codes need fewer rows, shorter scan faster."""
K = 10
"""Results of a query."""


class OverTime(Exception):
    """A build takes longer than it may."""


def recipes(n: int, d: int, budgets: list[int], nlists: list[int]) -> list[Recipe]:
    """List what is worth building for n rows: of each kind the longest codes within each budget, and shorter ones.

    Left out are residual codes under l2, which need tables for each list visited: a tenth of the speed, no more recall.
    """
    kinds = [Recipe("pq", 0, 0, metric, rotated) for metric, rotated in product(METRICS, (False, True))]
    kinds += [
        Recipe("pq", 0, nlist, metric, rotated, residual)
        for nlist, rotated, (metric, residual) in product(
            nlists, (False, True), (("ip", False), ("ip", True), ("l2", False))
        )
    ]
    kinds += [Recipe("lsq", 0), Recipe("lsq", 0, nlists[0], residual=True)]
    found = []
    for kind in kinds:
        choices = [replace(kind, m=m) for m in range(2, d + 1, 2)]
        longest = {max([r.m for r in choices if r.bytes_at_most(n, d) <= budget], default=0) for budget in budgets}
        shorter = {m for m in LADDERS[kind.codes] if m < max(longest)}
        found += [replace(kind, m=m) for m in sorted(longest | shorter) if m >= min(LADDERS[kind.codes])]
    return found


def load_or_build(recipe: Recipe, docs: F32, folder: Path, threads: int, time_limit: float) -> Any:
    """Return the index of a recipe, out of `folder` once it was built.

    Parameters
    ----------
    docs : (n, d) unit vectors
    threads : to build with; afterwards faiss has one
    time_limit : seconds a build may take

    Raises
    ------
    OverTime
        If it takes longer.
    """
    # Flat product codes do not depend on the metric, only the tables of a search do.
    shared = recipe.codes == "pq" and not recipe.nlist
    path = folder / f"{(replace(recipe, metric='l2') if shared else recipe).name}.faiss"
    if not path.exists():
        faiss.omp_set_num_threads(threads)
        try:
            index = _built(recipe, docs, folder, time.perf_counter() + time_limit)
        finally:
            faiss.omp_set_num_threads(1)
        unfinished = path.with_suffix(".part")
        faiss.write_index(index, str(unfinished))
        unfinished.rename(path)
    index = faiss.read_index(str(path))
    index.metric_type = inner(index).metric_type = METRICS[recipe.metric]
    return index


def _built(recipe: Recipe, docs: F32, folder: Path, deadline: float) -> Any:
    def check(rows: int) -> None:
        if time.perf_counter() > deadline:
            raise OverTime(f"{recipe.name} skipped: time was up with {rows} of {len(docs)} rows added")

    # PQ draws its own sample; the local search would take all.
    most = len(docs) if recipe.codes == "pq" else 40_000 if recipe.nlist else 20_000
    rotation = _opq(recipe.m, docs, folder) if recipe.rotated else None
    return build(recipe, docs, train_rows=most, rotation=rotation, added=check)


def _opq(m: int, docs: F32, folder: Path) -> F32:
    """Return the OPQ rotation for m subspaces, out of `folder` once it was trained."""
    path = folder / f"opq{m}.npy"
    if not path.exists():
        np.save(path, opq_rotation(m, docs))
    rotation: F32 = np.load(path)
    return rotation


class Rival:
    """A faiss index and the float16 rows that verify what it finds.

    Searches take options of the fast scan by name: `nprobe`, and those of `SCANS`.
    """

    def __init__(self, recipe: Recipe, index: Any, rows: npt.NDArray[np.float16]) -> None:
        self.recipe = recipe
        self.bytes = resident_bytes(index)
        self.index, self.rows = index, rows
        self._scan = inner(index)

    def candidates(self, queries: F32, refine: int, **options: int) -> I64:
        """Return the best (q, refine) by code, best first, -1 where missing."""
        for name, value in options.items():
            setattr(self._scan, name, value)
        found: I64 = self.index.search(queries, refine)[1]
        return found

    def search(self, queries: F32, k: int, refine: int, **options: int) -> I64:
        """Return the best (q, k) by exact score among the `refine` best by code, best first, -1 where missing."""
        return best_of(self.rows, queries, self.candidates(queries, refine, **options), k)[1]


def verification_ways(rival: Rival, docs: F32, queries: F32, refine: int) -> dict[str, float]:
    """Time ways to verify what one index finds: queries a second of search and verification, medians of five turns."""
    half = faiss.IndexScalarQuantizer(docs.shape[1], faiss.ScalarQuantizer.QT_fp16, rival.index.metric_type)
    half.train(docs[:1])
    half.add(docs)
    refined = faiss.IndexRefine(rival.index, half)
    refined.k_factor = refine / K
    rows = rival.rows

    def gathered() -> None:
        for query, few in zip(queries, rival.candidates(queries, refine), strict=True):
            np.argpartition(rows[few].astype(np.float32) @ query, -K)

    ways = {
        "compiled loop": lambda: rival.search(queries, K, refine),
        "numpy": gathered,
        "faiss IndexRefine(SQfp16)": lambda: refined.search(queries, K),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(6):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: len(queries) / float(np.median(turns[1:])) for name, turns in times.items()}
