"""What a faiss user can have: 4-bit fast-scan indexes within a number of bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from vqdistill.types import F32Rows

METRICS = {"ip": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}
SCANS = {"flat": ({"qbs": 0}, {"qbs": 0x2222}), "ivf": ({"implem": 0}, {"implem": 11})}
"""Settings of the scan that are tried: faiss's own choice, and what was found to beat it here by up to a fourth.

`qbs` groups the queries of a batch two by two, `implem` 11 takes one query at a time with a reservoir.
"""
_BLOCK = 32
"""Rows of a fast-scan block; flat codes and each inverted list are padded to whole blocks."""
_ADD_ROWS = 320 * _BLOCK
"""Rows added at a time."""


@dataclass(frozen=True)
class Recipe:
    """How an index is built."""

    codes: str
    """"pq"; or additive codes, "lsq" of the local search quantizer, "rq" of the residual one"""
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
        codebooks = 4 * 16 * (wide if self.codes == "pq" else self.m * d)
        return codes + lists + codebooks + 4 * wide * (d if self.rotated else 1)


def padded(d: int, m: int) -> int:
    """Return the least multiple of m from d on: m equal subspaces need zeros appended to some vectors."""
    return m * math.ceil(d / m)


def resident_bytes(index: Any) -> dict[str, int]:
    """Count what faiss keeps in memory, from the arrays of the index: bytes by kind."""
    counts = dict.fromkeys(("codes", "ids", "centroids", "codebooks", "rotation"), 0)
    if isinstance(index, faiss.IndexPreTransform):
        chain = [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
        for transform in chain:
            array = transform.A if isinstance(transform, faiss.LinearTransform) else transform.map
            counts["rotation"] += 4 * array.size()
    index = inner(index)
    if isinstance(index, faiss.IndexIVF):
        lists = faiss.downcast_InvertedLists(index.invlists)
        sizes = np.array([lists.list_size(i) for i in range(lists.nlist)])
        counts["codes"] = int((-(-sizes // lists.n_per_block)).sum() * lists.block_size)
        counts["ids"] = 8 * int(sizes.sum())
        counts["centroids"] = 4 * index.nlist * index.d
    else:
        counts["codes"] = index.codes.size()
    if hasattr(index, "pq"):
        counts["codebooks"] = 4 * index.pq.centroids.size()
    elif hasattr(index, "aq"):
        counts["codebooks"] = 4 * index.aq.codebooks.size()
    return counts


def inner(index: Any) -> Any:
    """Return the index behind the transform of the vectors, if there is one."""
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def build(
    recipe: Recipe,
    docs: F32Rows,
    *,
    train_rows: int,
    seed: int = 0,
    rotation: F32Rows | None = None,
    added: Callable[[int], None] = lambda rows: None,
) -> Any:
    """Train and fill an index.

    Parameters
    ----------
    docs : (n, d), prepared
    train_rows : rows that codebooks are trained on at most, drawn evenly
    seed : of the clusterings
    rotation : (padded(d, m), d), as `opq_rotation` returns it; None = train it if the recipe has one
    added : called with the number of rows that the index has, now and then; may raise
    """
    d = docs.shape[1]
    wide = padded(d, recipe.m) if recipe.codes == "pq" else d
    index = _untrained(recipe, wide, seed)
    sample = np.ascontiguousarray(docs[:: max(1, math.ceil(len(docs) / train_rows))])
    if recipe.rotated:
        matrix = opq_rotation(recipe.m, sample) if rotation is None else rotation
        transform = faiss.LinearTransform(d, wide, False)
        faiss.copy_array_to_vector(np.ascontiguousarray(matrix).ravel(), transform.A)
        transform.is_trained = True
        index = faiss.IndexPreTransform(transform, index)
    elif wide > d:
        index = faiss.IndexPreTransform(faiss.RemapDimensionsTransform(d, wide, True), index)
    index.train(sample)
    for first in range(0, len(docs), _ADD_ROWS):
        index.add(np.ascontiguousarray(docs[first : first + _ADD_ROWS]))
        added(index.ntotal)
    return index


def opq_rotation(m: int, sample: F32Rows) -> F32Rows:
    """Train the OPQ rotation for m subspaces of 4 bits on at most 40,000 rows of `sample`; (padded(d, m), d)."""
    d = sample.shape[1]
    wide = padded(d, m)
    matrix = faiss.OPQMatrix(wide, m)
    matrix.niter, matrix.pq = 20, faiss.ProductQuantizer(wide, m, 4)
    rows = sample[:: max(1, math.ceil(len(sample) / 40_000))]
    matrix.train(np.pad(rows, ((0, 0), (0, wide - d))))
    turned: F32Rows = faiss.vector_to_array(matrix.A).reshape(wide, wide)[:, :d]
    return turned


def _untrained(recipe: Recipe, d: int, seed: int) -> Any:
    """Return the empty index; PQ trains on more rows than faiss would take, LSQ in fewer rounds."""
    metric, m, nlist = METRICS[recipe.metric], recipe.m, recipe.nlist
    nonorm = faiss.AdditiveQuantizer.ST_LUT_nonorm
    index: Any
    if nlist:
        centroids = faiss.IndexFlat(d, metric)
        if recipe.codes == "pq":
            index = faiss.IndexIVFPQFastScan(centroids, d, nlist, m, 4, metric)
        elif recipe.codes == "lsq":
            index = faiss.IndexIVFLocalSearchQuantizerFastScan(centroids, d, nlist, m, 4, metric, nonorm)
        else:
            index = faiss.IndexIVFResidualQuantizerFastScan(centroids, d, nlist, m, 4, metric, nonorm)
        index.by_residual = recipe.residual
        index.cp.spherical = recipe.metric == "ip"
        index.cp.seed += seed
    elif recipe.codes == "pq":
        index = faiss.IndexPQFastScan(d, m, 4, metric)
    elif recipe.codes == "lsq":
        index = faiss.IndexLocalSearchQuantizerFastScan(d, m, 4, metric, nonorm)
    else:
        index = faiss.IndexResidualQuantizerFastScan(d, m, 4, metric, nonorm)
    if recipe.codes == "pq":
        index.pq.cp.max_points_per_centroid = 1024
        index.pq.cp.seed += seed
    elif recipe.codes == "lsq":
        index.lsq.train_iters, index.lsq.train_ils_iters, index.lsq.encode_ils_iters = 12, 4, 4
    return index
