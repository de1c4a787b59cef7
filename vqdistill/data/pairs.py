"""Dense similarity of given pairs of a query and a document, one pass over the documents that are needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from vqdistill.data.sources import EmbeddingSource
from vqdistill.types import F32Rows, Metric

_ROW_BYTES = 32 << 20
_PAIR_BYTES = 4 << 20


def pair_scores(
    src: EmbeddingSource,
    queries: F32Rows,
    docs: npt.NDArray[np.integer],
    progress: Callable[[int], None] | None = None,
) -> F32Rows:
    """Score each query against documents of its own: <q, x>, or -|q - x|^2 for l2.

    Parameters
    ----------
    queries : (q, d) float32, prepared
    docs : (q, k) row numbers of `src`; -1 for padding
    progress : called with the number of documents of each finished block

    Returns
    -------
    (q, k) float32
        -inf for padding.
    """
    flat, width = docs.ravel(), docs.shape[1]
    entries = np.argsort(flat, kind="stable")
    entries = entries[np.searchsorted(flat, 0, sorter=entries) :]
    rows, starts = np.unique(flat[entries], return_index=True)
    bounds = np.append(starts, len(entries))
    scores = np.full(flat.shape, -np.inf, np.float32)
    step, pairs = max(1, _ROW_BYTES // (4 * src.dim)), max(1, _PAIR_BYTES // (4 * src.dim))
    for at in range(0, len(rows), step):
        some = rows[at : at + step]
        x = src.take(some)
        of_block = entries[bounds[at] : bounds[at + len(some)]]
        for part in (of_block[i : i + pairs] for i in range(0, len(of_block), pairs)):
            scores[part] = _scores(queries[part // width], x[np.searchsorted(some, flat[part])], src.metric)
        if progress is not None:
            progress(len(some))
    return scores.reshape(docs.shape)


def _scores(queries: F32Rows, x: F32Rows, metric: Metric) -> npt.NDArray[np.float32]:
    if metric is not Metric.L2:
        return np.asarray(np.einsum("ij,ij->i", queries, x))
    apart = queries - x
    return np.asarray(-np.einsum("ij,ij->i", apart, apart))
