"""What trials on a sample say of the whole corpus: misses of codes, and rows scanned for a coverage."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vqdistill.compiler.scaling import Law, fit_law, from_odds, odds
from vqdistill.compiler.trials import Trials
from vqdistill.distill.routing import COVERAGES

Shape = tuple[str, bool]
"""Kind of codes, and whether they are of residuals."""
_LEAST_LOSS = 1e-4


@dataclass
class CodeForecast:
    """Misses at full size, for any number of codes of any shape, from few trials.

    Parameters
    ----------
    trials : of one sample
    shape : that most trials are of
    reference : codes a row that the law is fitted at; other numbers of codes have its growth of the odds
    """

    trials: Trials
    shape: Shape
    reference: int
    tried: dict[Shape, list[int]] = field(default_factory=dict)
    """Numbers of codes tried, rising, by shape"""

    def __post_init__(self) -> None:
        self.attempt(self.shape, self.reference)
        self.laws = self.fit(self.shape, self.reference)
        """By candidates read, of the reference"""

    def attempt(self, shape: Shape, m: int) -> None:
        """Try codes on the sample."""
        self.trials.codes(m, *shape, self.trials.sample.size)
        self.tried[shape] = sorted({*self.tried.get(shape, []), m})

    def fit(self, shape: Shape, m: int) -> dict[int, Law]:
        """Fit the law of each number of candidates read, on nested samples."""
        sizes = self.trials.nested
        runs = [self.trials.codes(m, *shape, size) for size in sizes]
        return {
            reads: fit_law(sizes, *zip(*(run.misses[reads] for run in runs), strict=True))
            for reads in self.trials.reads
        }

    def miss(self, shape: Shape, m: int, reads: int) -> float:
        """Share of the true neighbours that are not among the best `reads` by code, at full size."""
        law = self.laws[reads]
        growth = odds(law.at(self.trials.sample.n)) / odds(law.level)
        return from_odds(float(np.exp(self._log_odds(shape, m, reads))) * growth)

    def _log_odds(self, shape: Shape, m: int, reads: int) -> float:
        """Of a miss on the sample: measured, or along a line over m, or as far from the first shape as where tried."""
        known = self.tried.get(shape, [])
        if m in known:
            return self._measured(shape, m, reads)
        if shape != self.shape:
            near = min(known, key=lambda other: abs(other - m))
            offset = self._measured(shape, near, reads) - self._log_odds(self.shape, near, reads)
            return self._log_odds(self.shape, m, reads) + offset
        if len(known) == 1:
            return self._measured(shape, known[0], reads)
        at = min(max(int(np.searchsorted(known, m)), 1), len(known) - 1)
        low, high = known[at - 1], known[at]
        begin, end = (self._measured(shape, other, reads) for other in (low, high))
        return begin + (end - begin) * (m - low) / (high - low)

    def _measured(self, shape: Shape, m: int, reads: int) -> float:
        return float(np.log(odds(self.trials.codes(m, *shape, self.trials.sample.size).misses[reads][0])))


def scanned_at(trials: Trials, nlist: int, coverage: float) -> tuple[float, float]:
    """Share of the rows scanned and lists visited for a coverage: geometric over the loss between measured ones."""
    trial = trials.routes(nlist)
    losses = np.log(np.maximum(1 - np.array([*COVERAGES, 1.0]), _LEAST_LOSS))[::-1]
    wanted = np.log(max(1 - coverage, _LEAST_LOSS))
    scanned, lists = (
        float(np.exp(np.interp(wanted, losses, np.log(np.maximum([*values, most], 1e-9))[::-1])))
        for values, most in ((trial.scanned, 1.0), (trial.lists, float(nlist)))
    )
    return scanned, lists
