"""What a faiss user can have: 4-bit fast-scan indexes within a number of bytes, their best R verified exactly."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import faiss
import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
METRICS = {"ip": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}
LADDERS = {"pq": (36, 40, 48, 56, 64, 72, 80), "lsq": (40, 48, 64)}
"""Numbers of codebooks tried beside the most that fit a budget: longer codes need fewer rows, shorter scan faster."""
K = 10
"""Results of a query."""
SCANS = {"flat": ({"qbs": 0}, {"qbs": 0x2222}), "ivf": ({"implem": 0}, {"implem": 11})}
"""Settings of the scan that are tried: faiss's own choice, and what was found to beat it here by up to a fourth.

`qbs` groups the queries of a batch two by two, `implem` 11 takes one query at a time with a reservoir.
"""
_BLOCK = 32
"""Rows of a fast-scan block; flat codes and each inverted list are padded to whole blocks."""
_ADD_ROWS = 320 * _BLOCK
"""Rows added at a time, so that a time limit can stop a build."""
_PREFETCH_ROWS = 4
"""Rows between the one that is scored and the one that is prefetched."""


class OverTime(Exception):
    """A build takes longer than it may."""


@dataclass(frozen=True)
class Recipe:
    """How an index is built."""

    codes: str
    """"pq", or "lsq": additive codes of the local search quantizer"""
    m: int
    """codebooks of 16 entries, even; a row's code takes m / 2 bytes"""
    nlist: int = 0
    """inverted lists; 0 = none, all codes are scanned"""
    metric: str = "ip"
    """of tables and lists, "ip" or "l2": the same order of unit vectors, but not of their codes"""
    rotated: bool = False
    """whether OPQ rotates the vectors"""
    residual: bool = False
    """whether codes are of the difference to the list's centroid"""

    @property
    def name(self) -> str:
        """Unique, and fit for a file."""
        lists = f"ivf{self.nlist}" if self.nlist else "flat"
        opq, residual = "opq" * self.rotated, "residual" * self.residual
        return "-".join(part for part in (lists, opq, f"{self.codes}{self.m}x4fs", residual, self.metric) if part)

    def bytes_at_most(self, n: int, d: int) -> int:
        """Bound what `resident_bytes` will say of the built index."""
        codes = (n + _BLOCK * max(1, self.nlist)) * self.m // 2
        lists = 8 * n + 4 * d * self.nlist if self.nlist else 0
        wide = padded(d, self.m)
        codebooks = 4 * 16 * (self.m * d if self.codes == "lsq" else wide)
        return codes + lists + codebooks + 4 * wide * (d if self.rotated else 1)


def padded(d: int, m: int) -> int:
    """Return the least multiple of m from d on: m equal subspaces need zeros appended to some vectors."""
    return m * math.ceil(d / m)


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


def resident_bytes(index: Any) -> dict[str, int]:
    """Count what faiss keeps in memory, from the arrays of the index: bytes by kind."""
    counts = dict.fromkeys(("codes", "ids", "centroids", "codebooks", "rotation"), 0)
    if isinstance(index, faiss.IndexPreTransform):
        chain = [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
        for transform in chain:
            array = transform.A if isinstance(transform, faiss.LinearTransform) else transform.map
            counts["rotation"] += 4 * array.size()
    index = _inner(index)
    if isinstance(index, faiss.IndexIVF):
        lists = faiss.downcast_InvertedLists(index.invlists)
        sizes = np.array([lists.list_size(i) for i in range(lists.nlist)])
        counts["codes"] = int((-(-sizes // lists.n_per_block)).sum() * lists.block_size)
        counts["ids"] = 8 * int(sizes.sum())
        counts["centroids"] = 4 * index.nlist * index.d
    else:
        counts["codes"] = index.codes.size()
    tables = index.pq.centroids if hasattr(index, "pq") else index.aq.codebooks
    return counts | {"codebooks": 4 * tables.size()}


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
            index = _build(recipe, docs, folder, time.perf_counter() + time_limit)
        finally:
            faiss.omp_set_num_threads(1)
        unfinished = path.with_suffix(".part")
        faiss.write_index(index, str(unfinished))
        unfinished.rename(path)
    index = faiss.read_index(str(path))
    index.metric_type = _inner(index).metric_type = METRICS[recipe.metric]
    return index


def _inner(index: Any) -> Any:
    """Return the index behind the transform of the vectors, if there is one."""
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def _build(recipe: Recipe, docs: F32, folder: Path, deadline: float) -> Any:
    d = docs.shape[1]
    wide = padded(d, recipe.m) if recipe.codes == "pq" else d
    index = _untrained(recipe, wide)
    if recipe.rotated:
        index = faiss.IndexPreTransform(_opq(recipe.m, docs, folder), index)
    elif wide > d:
        index = faiss.IndexPreTransform(faiss.RemapDimensionsTransform(d, wide, True), index)
    # PQ draws its own sample; the local search would take all.
    index.train(docs if recipe.codes == "pq" else docs[:: max(1, len(docs) // (40_000 if recipe.nlist else 20_000))])
    for first in range(0, len(docs), _ADD_ROWS):
        index.add(docs[first : first + _ADD_ROWS])
        if time.perf_counter() > deadline:
            raise OverTime(f"{recipe.name} skipped: time was up with {index.ntotal} of {len(docs)} rows added")
    return index


def _untrained(recipe: Recipe, d: int) -> Any:
    """Return the empty index; PQ trains on more rows than faiss would take, LSQ in fewer rounds."""
    metric, m, nlist = METRICS[recipe.metric], recipe.m, recipe.nlist
    nonorm = faiss.AdditiveQuantizer.ST_LUT_nonorm
    index: Any
    if nlist:
        centroids = faiss.IndexFlat(d, metric)
        if recipe.codes == "pq":
            index = faiss.IndexIVFPQFastScan(centroids, d, nlist, m, 4, metric)
        else:
            index = faiss.IndexIVFLocalSearchQuantizerFastScan(centroids, d, nlist, m, 4, metric, nonorm)
        index.by_residual = recipe.residual
        index.cp.spherical = recipe.metric == "ip"
    elif recipe.codes == "pq":
        index = faiss.IndexPQFastScan(d, m, 4, metric)
    else:
        index = faiss.IndexLocalSearchQuantizerFastScan(d, m, 4, metric, nonorm)
    if recipe.codes == "pq":
        index.pq.cp.max_points_per_centroid = 1024
    else:
        index.lsq.train_iters, index.lsq.train_ils_iters, index.lsq.encode_ils_iters = 12, 4, 4
    return index


def _opq(m: int, docs: F32, folder: Path) -> Any:
    """Return the OPQ rotation for m subspaces, out of `folder` once it was trained; (padded(d, m), d)."""
    path = folder / f"opq{m}.npy"
    n, d = docs.shape
    wide = padded(d, m)
    if not path.exists():
        matrix = faiss.OPQMatrix(wide, m)
        matrix.niter, matrix.pq = 20, faiss.ProductQuantizer(wide, m, 4)
        matrix.train(np.pad(docs[:: max(1, n // 40_000)], ((0, 0), (0, wide - d))))
        np.save(path, faiss.vector_to_array(matrix.A).reshape(wide, wide)[:, :d])
    rotation = faiss.LinearTransform(d, wide, False)
    faiss.copy_array_to_vector(np.load(path).ravel(), rotation.A)
    rotation.is_trained = True
    return rotation


class Rival:
    """A faiss index and the float16 rows that verify what it finds.

    Searches take options of the fast scan by name: `nprobe`, and those of `SCANS`.
    """

    def __init__(self, recipe: Recipe, index: Any, rows: npt.NDArray[np.float16]) -> None:
        self.recipe = recipe
        self.bytes = resident_bytes(index)
        self.index, self.rows = index, rows
        self._scan = _inner(index)
        self._bits = rows.view(np.uint16)

    def candidates(self, queries: F32, refine: int, **options: int) -> I64:
        """Return the best (q, refine) by code, best first, -1 where missing."""
        for name, value in options.items():
            setattr(self._scan, name, value)
        found: I64 = self.index.search(queries, refine)[1]
        return found

    def search(self, queries: F32, k: int, refine: int, **options: int) -> I64:
        """Return the best (q, k) by exact score among the `refine` best by code, best first, -1 where missing."""
        return _best(self._bits, queries, self.candidates(queries, refine, **options), k)


@intrinsic
def _as_float(typing: Any, bits: Any) -> Any:
    """Convert the bits of a float16 with the instruction of the machine, which LLVM applies to whole vectors."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), emit


@intrinsic
def _prefetch(typing: Any, array: Any, at: Any) -> Any:
    """Ask for the cache line of array.ravel()[at], for reading."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, i32, i32, i32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
        builder.call(function, [address, i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


@numba.njit(nogil=True, cache=True, fastmath=True)
def _best(rows: Any, queries: Any, candidates: Any, k: int) -> Any:
    """Return the k of each query's candidates with the largest inner product, best first.

    Parameters
    ----------
    rows : (n, d) uint16, the bits of float16, C-contiguous
    queries : (q, d) float32
    candidates : (q, R) int64, -1 where missing
    """
    line = 32  # float16 values of a cache line
    q, d, refine = len(queries), rows.shape[1], candidates.shape[1]
    ids = np.full((q, k), -1, np.int64)
    scores = np.full(k, -np.inf, np.float32)
    for i in range(q):
        scores[:] = -np.inf
        query = queries[i]
        for j in range(refine):
            ahead = candidates[i, min(j + _PREFETCH_ROWS, refine - 1)]
            if ahead >= 0:
                for column in range(0, d, line):
                    _prefetch(rows, ahead * d + column)
            row = candidates[i, j]
            if row < 0:
                continue
            values, score = rows[row], np.float32(0)
            for column in range(d):
                score += _as_float(values[column]) * query[column]
            if score <= scores[k - 1]:
                continue
            at = k - 1
            while at > 0 and scores[at - 1] < score:
                scores[at], ids[i, at] = scores[at - 1], ids[i, at - 1]
                at -= 1
            scores[at], ids[i, at] = score, row
    return ids


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
