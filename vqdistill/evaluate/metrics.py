"""Recall, MRR and nDCG of ranked ids, one value per query; the caller averages.

Everywhere `ids` (q, depth) is what a search returned, best first; a negative id is a missing result and never counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.errors import InvalidInput

F64 = npt.NDArray[np.float64]
"""(q,) one value per query, each in [0, 1]."""


def recall_at_k(ids: npt.ArrayLike, truth: npt.ArrayLike, k: int) -> F64:
    """Return the share of the true top k that is among the first k returned: |returned[:k] & truth[:k]| / k.

    Parameters
    ----------
    ids : (q, >= k) integers, best first
    truth : (q, >= k) integers, the exact neighbours, best first; where fewer than k exist, padded with -1
    k : results that count

    Raises
    ------
    InvalidInput
        If a shape does not fit, or an id is returned twice for one query.
    """
    found, wanted = _ranked(ids, k, "ids")[:, :k], _ranked(truth, k, "truth")[:, :k]
    return _share(_membership(found, wanted).sum(axis=1), (wanted >= 0).sum(axis=1))


def candidate_recall(ids: npt.ArrayLike, truth: npt.ArrayLike, k: int) -> F64:
    """Return the share of the true top k that is anywhere among the returned: |returned & truth[:k]| / k.

    Parameters
    ----------
    ids : (q, R) integers in any order
    truth : (q, >= k) integers, the exact neighbours, best first
    k : neighbours that count

    Raises
    ------
    InvalidInput
        If a shape does not fit, or an id is returned twice for one query.
    """
    found, wanted = _ranked(ids, 1, "ids"), _ranked(truth, k, "truth")[:, :k]
    return _share(_membership(found, wanted).sum(axis=1), (wanted >= 0).sum(axis=1))


def recall_at_k_by_score(scores: npt.ArrayLike, true_scores: npt.ArrayLike, k: int, eps: float = 1e-3) -> F64:
    """Return the share of the first k results that score at least the true k-th score less `eps`; ties all count.

    Parameters
    ----------
    scores : (q, >= k) exact similarities of what was returned, larger is better, -inf where missing
    true_scores : (q, >= k) similarities of the exact neighbours, best first
    k : results that count
    eps : tolerance, in units of the similarity

    Raises
    ------
    InvalidInput
        If a shape does not fit.

    Notes
    -----
    The threshold is that of ann-benchmarks, which counts distances up to the true k-th distance + 1e-3.
    """
    found, wanted = _matrix(scores, k, "scores"), _matrix(true_scores, k, "true_scores")
    threshold = wanted[:, k - 1 : k] - eps
    return np.asarray((found[:, :k] >= threshold).mean(axis=1), dtype=np.float64)


def mrr_at_k(ids: npt.ArrayLike, labels: npt.ArrayLike, k: int) -> F64:
    """Return the reciprocal rank of the first right document within the first k: 1 / rank, or 0 if there is none.

    Parameters
    ----------
    ids : (q, depth) integers, best first
    labels : (q,) or (q, labels per query) right documents, padded with -1
    k : ranks that count

    Raises
    ------
    InvalidInput
        If a shape does not fit, or an id is returned twice for one query.
    """
    hits = _hits(ids, labels, k)
    first = hits.argmax(axis=1)
    return np.where(hits.any(axis=1), 1.0 / (first + 1), 0.0)


def label_recall_at_k(ids: npt.ArrayLike, labels: npt.ArrayLike, k: int) -> F64:
    """Return the share of a query's right documents that is within the first k; 0 for a query without any.

    Parameters, Raises: see `mrr_at_k`.
    """
    return _share(_hits(ids, labels, k).sum(axis=1), (_labels(labels) >= 0).sum(axis=1))


def ndcg_at_k(ids: npt.ArrayLike, labels: npt.ArrayLike, k: int) -> F64:
    """Return sum over right documents of 1 / log2(rank + 1), divided by its best possible value.

    Parameters, Raises: see `mrr_at_k`. Gains are binary; a query without labels has 0.
    """
    hits = _hits(ids, labels, k)
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discount)])
    relevant = np.minimum((_labels(labels) >= 0).sum(axis=1), k)
    return _share(hits @ discount[: hits.shape[1]], ideal[relevant])


def _hits(ids: npt.ArrayLike, labels: npt.ArrayLike, k: int) -> npt.NDArray[np.bool_]:
    return _membership(_ranked(ids, 1, "ids")[:, :k], _labels(labels))


def _labels(labels: npt.ArrayLike) -> npt.NDArray[Any]:
    array = np.asarray(labels)
    return _matrix(array[:, None] if array.ndim == 1 else array, 1, "labels")


def _membership(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if len(found) != len(wanted):
        raise InvalidInput(f"ids and truth must be of as many queries, got {len(found)} and {len(wanted)}")
    hits = np.zeros(found.shape, dtype=np.bool_)
    for column in wanted.T:  # one comparison per wanted id keeps the temporary at the size of `found`
        hits |= found == column[:, None]
    hits &= found >= 0
    return hits


def _ranked(ids: npt.ArrayLike, k: int, name: str) -> npt.NDArray[Any]:
    array = _matrix(ids, k, name)
    ordered = np.sort(array, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise InvalidInput(f"{name} must not repeat an id within a query")
    return array


def _matrix(values: npt.ArrayLike, k: int, name: str) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 2 or not 1 <= k <= array.shape[1]:
        raise InvalidInput(f"{name} must be of shape (queries, at least {k}), got {array.shape}")
    return array


def _share(part: npt.ArrayLike, whole: npt.ArrayLike) -> F64:
    counted, possible = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.asarray(np.where(possible > 0, counted / np.maximum(possible, np.finfo(np.float64).tiny), 0.0))
