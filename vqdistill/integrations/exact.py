"""Exact search of rows in memory: what adapters do while there are too few rows for an index."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vqdistill.types import F64, F32Rows, Metric

_PAIRS = 1 << 22
"""Pairs of query and row compared at a time: 32 MiB of scores."""
I64 = npt.NDArray[np.int64]


def nearest(metric: str, queries: F32Rows, rows: F32Rows, k: int) -> tuple[npt.NDArray[np.float32], I64]:
    """Find the k rows most similar to each query.

    Parameters
    ----------
    metric : "ip", "cosine" or "l2"
    queries, rows : (q, d) and (n, d) float32, prepared for the metric
    k : results per query

    Returns
    -------
    scores, numbers
        (q, min(k, n)) float32 and int64, best first; ties go to the lower row.
    """
    k = min(k, len(rows))
    scores, best = np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64)
    for begin in range(0, len(queries), step := _queries_at_a_time(rows)):
        part = queries[begin : begin + step]
        found = similarities(metric, part, rows)
        order = np.argsort(-found, axis=1, kind="stable")[:, :k]
        exact = np.take_along_axis(found, order, axis=1)
        if metric == Metric.L2.value:
            exact = _differences(part, rows, order)
        scores[begin : begin + step], best[begin : begin + step] = exact, order
    return scores, best


def within(metric: str, queries: F32Rows, rows: F32Rows, threshold: float) -> list[tuple[npt.NDArray[np.float32], I64]]:
    """Find for each query all rows whose score is at least `threshold`, best first: scores (h,) and numbers (h,)."""
    out = []
    for begin in range(0, len(queries), step := _queries_at_a_time(rows)):
        part = queries[begin : begin + step]
        for query, scores in zip(part, similarities(metric, part, rows), strict=True):
            # What the sum of large squares leaves open, the differences decide.
            near = np.flatnonzero(scores >= threshold - 1e-5 * (1 + abs(threshold)))
            exact = scores[near].astype(np.float32)
            if metric == Metric.L2.value:
                exact = _differences(query[None], rows, near[None])[0]
            order = np.argsort(-exact, kind="stable")
            order = order[exact[order] >= threshold]
            out.append((exact[order], near[order]))
    return out


def similarities(metric: str, queries: F32Rows, rows: F32Rows) -> F64 | F32Rows:
    """Scores (q, n); l2 is in float64, since there the difference of large squares is what counts."""
    if metric != Metric.L2.value:
        return queries @ rows.T
    q, x = queries.astype(np.float64), rows.astype(np.float64)
    squares = np.einsum("ij,ij->i", q, q)[:, None] + np.einsum("ij,ij->i", x, x)
    return np.asarray(np.minimum(2 * (q @ x.T) - squares, 0))


def _differences(queries: F32Rows, rows: F32Rows, numbers: I64) -> npt.NDArray[np.float32]:
    """-|q - x|^2 of the rows (q, k) of each query, without cancellation."""
    out = np.zeros(numbers.shape, np.float32)
    for at, query in enumerate(queries):
        out[at] = -np.square(rows[numbers[at]].astype(np.float64) - query).sum(axis=1)
    return out


def _queries_at_a_time(rows: F32Rows) -> int:
    return max(1, _PAIRS // max(1, len(rows)))
