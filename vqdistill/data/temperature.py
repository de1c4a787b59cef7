"""Temperatures of teacher lists: what scores are divided by for a softmax over them to have a wanted effective length.

Unit-norm embeddings score in [-1, 1], where a softmax at temperature 1 is almost uniform over hundreds of documents and
teaches nothing; un-normalised ones, and cross-encoders, may be peaked. Calibration makes losses independent of scale.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vqdistill.types import F64

F32 = npt.NDArray[np.float32]

_STEPS = 40


def effective_lengths(scores: F32, temperature: npt.ArrayLike) -> F64:
    """exp(entropy) of softmax(scores / temperature) for each list.

    Parameters
    ----------
    scores : (q, l) float32, -inf for padding; each list has a finite one
    temperature : a number, or (q, 1)

    Returns
    -------
    (q,) float64, in 1..l
    """
    z = (scores - scores.max(axis=1, keepdims=True)).astype(np.float64) / temperature
    p = np.exp(z)
    p /= p.sum(axis=1, keepdims=True)
    log_p = np.log(p, out=np.zeros_like(p), where=p > 0)
    return np.asarray(np.exp(-(p * log_p).sum(axis=1)))


def calibrate_temperature(scores: F32, length: float) -> float:
    """One temperature for all lists, at which their mean effective length is the wanted one.

    Parameters
    ----------
    scores : (q, l) float32 teacher scores, -inf for padding
    length : wanted mean effective length, in 1..l

    Returns
    -------
    float
        Temperature in units of the scores; the nearest achievable when lists are all ties or too short.
    """
    spread = float(_spreads(scores).mean())
    if not spread > 0:
        return 1.0
    low, high = np.log(spread) - 12.0, np.log(spread) + 6.0
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        short = float(effective_lengths(scores, float(np.exp(middle))).mean()) < length
        low, high = (middle, high) if short else (low, middle)
    return float(np.exp(0.5 * (low + high)))


def calibrate_temperatures(scores: F32, length: float) -> F32:
    """A temperature for each list, at which its effective length is the wanted one.

    Parameters
    ----------
    scores : (q, l) float32 teacher scores, -inf for padding
    length : wanted effective length, at least 1; of a list that has no more than twice as many documents, half of them

    Returns
    -------
    (q,) float32
        In units of the scores, above 0. 1 for lists of ties, whose softmax is uniform at any temperature.
    """
    spread = _spreads(scores)
    wanted = np.minimum(length, (1 + np.isfinite(scores).sum(axis=1)) / 2)
    scale = np.log(np.where(spread > 0, spread, 1))
    low, high = scale - 12.0, scale + 6.0
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        short = effective_lengths(scores, np.exp(middle)[:, None]) < wanted
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return np.where(spread > 0, np.exp(0.5 * (low + high)), 1).astype(np.float32)


def _spreads(scores: F32) -> F64:
    """(q,) best less worst score of each list."""
    finite = np.where(np.isfinite(scores), scores, np.nan).astype(np.float64)
    return np.asarray(np.nanmax(finite, axis=1) - np.nanmin(finite, axis=1))
