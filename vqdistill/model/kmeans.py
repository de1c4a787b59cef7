"""Seeded Lloyd k-means, deterministic for any number of threads."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vqdistill.kernels import jit
from vqdistill.kernels.threads import for_tiles
from vqdistill.types import F32Rows


def kmeans(
    x: F32Rows,
    nlist: int,
    *,
    seed: int,
    iterations: int = 10,
    rows_per_list: int = 256,
    start: F32Rows | None = None,
) -> F32Rows:
    """Cluster rows by squared Euclidean distance (Lloyd's algorithm from a random choice of rows).

    Parameters
    ----------
    x : (n, d) float32, n >= 1
    nlist : clusters; when there are fewer rows, rows repeat
    iterations : full passes; inertia moves by less than 1 % after about ten
    rows_per_list : rows sampled for training, per cluster (faiss trains on at most 256 as well)
    start : (nlist, d) centroids to start from; None = a random choice of rows

    Returns
    -------
    (nlist, d) float32
    """
    rng = np.random.default_rng(seed)
    picked = np.sort(rng.permutation(len(x))[: nlist * rows_per_list])
    rows = x if len(picked) == len(x) else x[picked]  # a copy of all would double what training holds
    centroids = (rows[np.resize(rng.permutation(len(rows)), nlist)] if start is None else start).copy()
    for _ in range(iterations):
        lists = nearest(rows, centroids)
        sums, counts = jit.list_sums(rows, lists, nlist)
        filled = counts > 0
        centroids[filled] = (sums[filled] / counts[filled, None]).astype(np.float32)
        _refill(centroids, counts, rng)
    return centroids


def nearest(x: F32Rows, centroids: F32Rows) -> npt.NDArray[np.int32]:
    """Nearest centroid (squared Euclidean distance) of each row, ties to the lowest. Returns (n,) int32."""
    half_norms = (0.5 * (centroids.astype(np.float64) ** 2).sum(axis=1)).astype(np.float32)
    out = np.empty(len(x), np.int32)

    def tile(rows: slice) -> None:
        scores = x[rows] @ centroids.T
        scores -= half_norms
        out[rows] = scores.argmax(axis=1)

    for_tiles(len(x), tile)
    return out


def _refill(centroids: F32Rows, counts: npt.NDArray[np.int64], rng: np.random.Generator) -> None:
    # An empty list takes half of a full one, split by a small random step, as faiss does.
    for empty in np.flatnonzero(counts == 0):
        donor = int(counts.argmax())
        if counts[donor] < 2:
            return
        step = 1e-3 * rng.standard_normal(centroids.shape[1], dtype=np.float32) * np.abs(centroids[donor])
        centroids[empty] = centroids[donor] + step
        centroids[donor] -= step
        counts[empty], counts[donor] = counts[donor] // 2, counts[donor] - counts[donor] // 2
