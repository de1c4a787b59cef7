"""Relevance made out of given judgements: gains of grades, and scores of pairs mixed with dense ones."""

from __future__ import annotations

import numpy as np

from vqdistill.data.relevance import F32, Relevance
from vqdistill.data.temperature import calibrate_temperatures
from vqdistill.types import F64


def log_gains(labels: Relevance) -> Relevance:
    """Scores whose softmax at temperature 1 gives each document mass in proportion to its gain, 2^grade - 1.

    Parameters
    ----------
    labels : scores are grades above 0

    Returns
    -------
    Relevance
        The same documents in the same order, scored 1 + ln(2^grade - 1); a grade of 1 stays 1.

    References
    ----------
    Burges et al.: Learning to rank using gradient descent, ICML 2005: the gain of a grade in its NDCG.
    """
    bits = labels.scores.astype(np.float64) * np.log(2)
    gains = 1 + bits + np.log(-np.expm1(-bits))  # ln(2^g - 1) without 2^g, which overflows
    queries = labels.query_of_entries()
    return Relevance.from_pairs(queries, labels.docs, gains.astype(np.float32), labels.n_queries)


def mixed(
    dense: Relevance, given: Relevance, similar: F32, share: float, length: float, temperature: float | None = None
) -> Relevance:
    """Mix two teachers: `share` of a query's mass goes to what was given for it, the rest to its dense list.

    Each teacher's mass is a softmax at a temperature of its own, for each query. The mixture is then written as dense
    scores: a document that was not given keeps its dense score, and one that was scores as much more as its mass asks
    for. So it can be trained on as a dense teacher is, with documents of no list scored by their vectors.

    Parameters
    ----------
    dense : lists by dense similarity, each with a document
    given : scores on a scale of their own; queries without any keep their dense list
    similar : (given.nnz,) dense similarity of the documents given
    share : above 0 and below 1
    length : effective list length that both temperatures are calibrated to
    temperature : of the scores given, if they are meant for one

    Returns
    -------
    Relevance
        As many documents a query as its longer list has.
    """
    scales = _temperatures(dense, length)
    totals = _log_totals(dense, scales)
    queries = given.query_of_entries()
    own = _temperatures(given, length) if temperature is None else np.full(given.n_queries, temperature)
    log_mass = given.scores / own[queries] - _log_totals(given, own)[queries]
    moved = np.log(share) - np.log1p(-share) + totals[queries] + log_mass
    boosted = scales[queries] * np.logaddexp(similar / scales[queries], moved)
    n = 1 + max(int(dense.docs.max(initial=0)), int(given.docs.max(initial=0)))
    others = ~np.isin(dense.query_of_entries() * n + dense.docs, queries * n + given.docs)
    together = Relevance.from_pairs(
        np.concatenate([dense.query_of_entries()[others], queries]),
        np.concatenate([dense.docs[others], given.docs]),
        np.concatenate([dense.scores[others], boosted]),
        dense.n_queries,
    )
    return together.top(max(int(dense.counts.max(initial=0)), int(given.counts.max(initial=0))))


def _temperatures(relevance: Relevance, length: float) -> F64:
    """(q,) one for each list, 1 for empty ones."""
    temperatures, some = np.ones(relevance.n_queries), np.flatnonzero(relevance.counts)
    if some.size:
        _, scores = relevance.select(some).padded(int(relevance.counts.max()))
        temperatures[some] = calibrate_temperatures(scores, length)
    return temperatures


def _log_totals(relevance: Relevance, temperatures: F64) -> F64:
    """(q,) log of the sum of exp(score / temperature) over each list; -inf for empty ones."""
    z = relevance.scores / temperatures[relevance.query_of_entries()]
    best = np.zeros(relevance.n_queries)
    some = relevance.counts > 0
    best[some] = z[relevance.offsets[:-1][some]]  # the first of a list is its best
    totals = np.bincount(
        relevance.query_of_entries(), np.exp(z - best[relevance.query_of_entries()]), relevance.n_queries
    )
    return np.asarray(best + np.log(totals, out=np.full(len(totals), -np.inf), where=totals > 0))
