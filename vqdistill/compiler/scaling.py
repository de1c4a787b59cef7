"""How a recall changes with the rows: a line over their logarithm, fitted to nested samples, with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Z95 = 1.96
"""Standard errors to each side of an interval of 95 %."""


@dataclass(frozen=True)
class Law:
    """miss(n) = level + slope log2(n / last), kept within 0..1, where `last` are the rows of the largest sample."""

    level: float
    slope: float
    """What a doubling of the rows adds to the share of true neighbours that is missed"""
    last: int
    variance: tuple[float, float, float]
    """Of the level, of the slope, and their covariance"""
    points: tuple[tuple[int, float], ...]
    """(rows, miss) that the line was fitted to"""

    def at(self, n: int) -> float:
        """Miss at `n` rows."""
        return float(np.clip(self.level + self.slope * np.log2(n / self.last), 0, 1))

    def interval(self, n: int) -> tuple[float, float]:
        """About 95 % of what the miss at `n` rows may be, if it goes on along the line."""
        x, (level, slope, both) = np.log2(n / self.last), self.variance
        error = Z95 * np.sqrt(max(0.0, level + slope * x**2 + 2 * both * x))
        low, high = np.clip([self.at(n) - error, self.at(n) + error], 0, 1)
        return float(low), float(high)

    def to_json(self) -> dict[str, Any]:
        """Return the fit as JSON values."""
        return asdict(self) | {"points": [list(point) for point in self.points], "variance": list(self.variance)}


def fit_law(sizes: Sequence[int], misses: Sequence[float], errors: Sequence[float]) -> Law:
    """Fit a line to what nested samples miss, by weighted least squares; falling lines are made level.

    Parameters
    ----------
    sizes : rows of each sample, rising, at least one
    misses : share of true neighbours missed there
    errors : standard error of each

    Notes
    -----
    On the development data misses grow by about the same with each doubling, from 2,500 rows to 200,000; a power law
    promises twice the miss there. Where points lie farther from the line than their errors explain, the interval is
    widened by as much. The same queries judge all samples, so the error of the slope is smaller than is reported.
    """
    x, y = np.log2(np.asarray(sizes, np.float64) / sizes[-1]), np.asarray(misses, np.float64)
    sigma = np.maximum(np.asarray(errors, np.float64), 1e-4)
    points = tuple((int(size), float(miss)) for size, miss in zip(sizes, misses, strict=True))
    if len(sizes) < 2:
        return Law(float(y[0]), 0.0, int(sizes[-1]), (float(sigma[0] ** 2), 0.0, 0.0), points)
    design = np.stack([np.ones_like(x), x], axis=1) / sigma[:, None]
    normal = np.linalg.inv(design.T @ design)
    level, slope = normal @ design.T @ (y / sigma)
    left = (((y - level - slope * x) / sigma) ** 2).sum() / max(1, len(sizes) - 2)
    normal = normal * max(1.0, left)
    if slope < 0:
        level, slope = float((y / sigma**2).sum() / (1 / sigma**2).sum()), 0.0
    variance = (float(normal[0, 0]), float(normal[1, 1]), float(normal[0, 1]))
    return Law(float(level), float(slope), int(sizes[-1]), variance, points)


def odds(share: float) -> float:
    """Odds of a share, kept away from 0 and 1."""
    kept = min(max(share, 1e-5), 1 - 1e-5)
    return kept / (1 - kept)


def from_odds(value: float) -> float:
    """Share of given odds."""
    return value / (1 + value)
