"""Lists shaped by queries: rows that the same queries rank share a list, so that a query finds them in few."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vqdistill.kernels import jit
from vqdistill.model.additive import RowTerms, own_directions
from vqdistill.model.kmeans import kmeans, nearest
from vqdistill.types import F32Rows

ROWS_PER_LIST = 128
"""Rows sampled for training, per list; twice as many move the scanned share by noise."""
WARM_ITERATIONS = 3
"""Passes from a start that is nearly right."""
_ROWS_AT_ONCE = 8192
_SHRINK = 0.005
"""Weight, in units of d, by which the pull of a row's queries is shrunk: half that of a query that ranks the row first,
so that one chance query does not carry a row away."""


def signatures(own: F32Rows, terms: RowTerms | None) -> F32Rows:
    """Where rows are, for the queries: their direction plus the mean direction of the queries that rank them.

    Parameters
    ----------
    own : (b, d) float32, `own_directions` of the rows
    terms : their queries; None = none, the row's own direction alone

    Returns
    -------
    (b, d) float32, unit rows; a row that is the mean and has no queries is zero
    """
    if terms is None:
        return own
    return jit.pulled(own, terms.lists, terms.weights, terms.queries, _SHRINK * own.shape[1])


def train_anchors(
    x: F32Rows, mean: F32Rows, terms: RowTerms, nlist: int, seed: int, start: F32Rows | None = None
) -> F32Rows:
    """Cluster the signatures of rows (n, d) with this mean (d,) and these terms. Returns (nlist, d) float32.

    With centroids (nlist, d) of other lists to start from, their rows say where the anchors are at first.
    """
    rows = np.sort(np.random.default_rng([seed, 5]).permutation(len(x))[: nlist * ROWS_PER_LIST])
    sample = np.empty((len(rows), x.shape[1]), np.float32)
    for at in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[at : at + _ROWS_AT_ONCE]
        sample[at : at + _ROWS_AT_ONCE] = signatures(own_directions(x[part], mean), terms.take(part))
    if start is None:
        return kmeans(sample, nlist, seed=seed)
    near = list_means(sample, nearest(x[rows], start), nlist, sample.mean(axis=0))
    return kmeans(sample, nlist, seed=seed, iterations=WARM_ITERATIONS, start=near)


def assign(own: F32Rows, terms: RowTerms | None, anchors: F32Rows) -> npt.NDArray[np.int32]:
    """Nearest anchor (squared L2) of the signature of each row, ties to the lowest. Returns (b,) int32."""
    out = np.empty(len(own), np.int32)
    for at in range(0, len(own), _ROWS_AT_ONCE):
        part = slice(at, at + _ROWS_AT_ONCE)
        out[part] = nearest(signatures(own[part], None if terms is None else terms.take(part)), anchors)
    return out


def assign_rows(x: F32Rows, mean: F32Rows, terms: RowTerms, anchors: F32Rows) -> npt.NDArray[np.int32]:
    """The same of rows (n, d) with this mean (d,), without a copy of them all."""
    out = np.empty(len(x), np.int32)
    for at in range(0, len(x), _ROWS_AT_ONCE):
        part = slice(at, at + _ROWS_AT_ONCE)
        out[part] = assign(own_directions(x[part], mean), terms.take(part), anchors)
    return out


def list_means(x: F32Rows, lists: npt.NDArray[np.int32], nlist: int, mean: F32Rows) -> F32Rows:
    """Mean of the rows of each list, `mean` where it has none. Returns (nlist, d) float32."""
    sums, counts = jit.list_sums(x, lists, nlist)
    means = sums / np.maximum(counts, 1)[:, None]
    return np.where(counts[:, None] > 0, means, mean).astype(np.float32)
