"""Confidence intervals of a recall that was measured on a sample of queries."""

from __future__ import annotations

import math

import numpy as np

from vqdistill.types import F64

LEVEL = 0.95
"""Confidence of an interval, two-sided."""
_RESAMPLES = 10_000

Interval = tuple[float, float]


def bootstrap_interval(values: F64, seed: int = 0, level: float = LEVEL) -> Interval:
    """Interval of the mean over all queries, of which these are a random sample.

    Parameters
    ----------
    values : (q,) recall of each query, in [0, 1]
    seed : of the resamples
    level : share of such intervals that hold the mean

    Returns
    -------
    low, high
        Quantiles of the means of queries drawn anew (percentile bootstrap over queries). Where no query lost anything a
        bootstrap knows no doubt, so `low` is then that of Clopper and Pearson for q successes in q draws, and `high` at
        the other end likewise.

    References
    ----------
    Efron and Tibshirani: An introduction to the bootstrap, 1993, chapter 13.
    """
    q, tail = len(values), (1 - level) / 2
    distinct, counts = np.unique(values, return_counts=True)
    # Queries of equal recall are interchangeable: how often each recall is drawn is all that a resample says.
    draws = np.random.default_rng([seed, 12]).multinomial(q, counts / q, _RESAMPLES)
    low, high = (float(x) for x in np.quantile(draws @ distinct / q, [tail, 1 - tail]))
    if distinct[0] == 1:
        low = tail ** (1 / q)
    if distinct[-1] == 0:
        high = 1 - tail ** (1 / q)
    return low, high


def of_as_many(mean: float, interval: Interval) -> Interval:
    """Interval of the mean over as many other queries, a sample too; `interval` is that of the mean over all."""
    low, high = _stretched(mean, interval, math.sqrt(2))
    return max(low, 0.0), min(high, 1.0)


def of_all(mean: float, interval: Interval) -> Interval:
    """The interval that `of_as_many` was given, from what it returned."""
    return _stretched(mean, interval, math.sqrt(0.5))


def _stretched(mean: float, interval: Interval, factor: float) -> Interval:
    return mean - factor * (mean - interval[0]), mean + factor * (interval[1] - mean)


def agree(mean: float, interval: Interval, other_mean: float, other: Interval) -> bool:
    """Whether two samples of queries may have the same recall, with the doubt of both.

    The interval of the difference is built from both intervals, which need not be symmetric.

    References
    ----------
    Zou and Donner: Construction of confidence limits about effect measures, Statistics in Medicine 27, 2008 (MOVER).
    """
    below = math.hypot(mean - interval[0], other[1] - other_mean)
    above = math.hypot(interval[1] - mean, other_mean - other[0])
    return mean - below <= other_mean <= mean + above
