"""Maximal marginal relevance: results that are similar to the query, and not to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vqdistill.errors import InvalidInput
from vqdistill.types import F32Rows


def diverse(query: Any, vectors: Sequence[F32Rows], k: int, weight: float) -> list[tuple[int, float]]:
    """Choose up to k vectors, one after the other, each the best by what it adds.

    Parameters
    ----------
    query : (d,)
    vectors : candidates, each (d,)
    k : how many to choose
    weight : of the cosine to the query, 0..1; the rest is that of the largest cosine to one chosen before

    Returns
    -------
    list
        (place among the candidates, what it added), in the order of choice.

    Raises
    ------
    InvalidInput
        If `weight` is out of range.

    References
    ----------
    Carbonell and Goldstein, "The use of MMR, diversity-based reranking for reordering documents and producing
    summaries", SIGIR 1998.
    """
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
        raise InvalidInput(f"weight of similarity against variety must be a number in 0..1, got {weight!r}")
    if not vectors:
        return []
    rows = _units(np.asarray(vectors, np.float64))
    relevance = rows @ _units(np.asarray(query, np.float64)[None])[0]
    closest = np.zeros(len(rows))
    chosen: list[tuple[int, float]] = []
    open_ = np.ones(len(rows), bool)
    while open_.any() and len(chosen) < k:
        gain = weight * relevance - (1 - weight) * closest
        best = int(np.argmax(np.where(open_, gain, -np.inf)))
        open_[best] = False
        cosines = rows @ rows[best]
        closest = np.maximum(closest, cosines) if chosen else cosines
        chosen.append((best, float(gain[best])))
    return chosen


def _units(rows: Any) -> Any:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms == 0, 1, norms)
