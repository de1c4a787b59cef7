"""Drift: how well the model of an index fits rows that were added, against those that it was compiled from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.index.fields import Fields
from vqdistill.types import Codes, F32Rows

I64 = npt.NDArray[np.int64]

_SAMPLED = 16
"""The error is measured of one row in so many."""
_DIGITS = 4
"""Decimals that are kept: sums of floats may end differently with other blocks."""
MAX_ADDITIONS = 64
"""Additions that are kept apart; older ones are summed up."""
ERROR_LIMIT = 1.1
"""Error of added rows, as a multiple of that of the compiled ones, from which on they have parted."""
IMBALANCE_LIMIT = 1.5
"""The same for the imbalance of their lists."""
FEWEST_ROWS = 1000
"""Added rows from which on they are judged."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How rows fit the model."""

    generation: int
    """The last one that added such rows."""
    rows: int
    error: float
    """Mean of |x - decoded x|^2 / |x|^2 over a sample of the rows."""
    imbalance: float
    """nlist times the chance that two of the rows share a list: 1 if they spread evenly."""

    def joined(self, other: Fit) -> Fit:
        """Return the fit of both together; the imbalance is the mean, since the rows of lists are not kept."""
        rows = self.rows + other.rows
        share = other.rows / rows
        return Fit(
            generation=max(self.generation, other.generation),
            rows=rows,
            error=(1 - share) * self.error + share * other.error,
            imbalance=(1 - share) * self.imbalance + share * other.imbalance,
        )

    @classmethod
    def parse(cls, entry: Fields) -> Fit:
        """Read it from a manifest, trusting nothing in it.

        Raises
        ------
        CorruptIndex
            If anything is missing, superfluous or out of range.
        """
        entry.require_keys(frozenset(cls.__dataclass_fields__))
        return cls(
            generation=entry.integer("generation", 1, 10**9 - 1),
            rows=entry.integer("rows", 1, 2**62),
            error=entry.number("error", 0.0, 1e30),
            imbalance=entry.number("imbalance", 0.0, 2.0**24),
        )


@dataclass(frozen=True, kw_only=True)
class Drift:
    """The fit of the compiled rows, and of what was added since."""

    compiled: Fit
    added: tuple[Fit, ...] = ()
    """By rising generation; rows that were deleted later still count."""

    def with_added(self, fit: Fit) -> Drift:
        """Return the drift after a further addition."""
        added = (*self.added, fit)
        if len(added) > MAX_ADDITIONS:
            added = (added[0].joined(added[1]), *added[2:])
        return Drift(compiled=self.compiled, added=added)

    @property
    def total(self) -> Fit | None:
        """The fit of all added rows; None without any."""
        total = None
        for fit in self.added:
            total = fit if total is None else total.joined(fit)
        return total

    @property
    def warnings(self) -> list[str]:
        """One sentence for each way in which added rows have parted from the compiled ones."""
        total = self.total
        found: list[str] = []
        if total is None or total.rows < FEWEST_ROWS:
            return found
        remedy = "recall of them suffers; compile again with --warm-start"
        if total.error > ERROR_LIMIT * self.compiled.error:
            found.append(
                f"the codes of {total.rows} added rows have an error of {total.error:.3f}, those compiled"
                f" {self.compiled.error:.3f}: {remedy}"
            )
        if total.imbalance > IMBALANCE_LIMIT * self.compiled.imbalance:
            found.append(
                f"{total.rows} added rows crowd few lists, imbalance {total.imbalance:.2f} against"
                f" {self.compiled.imbalance:.2f} of those compiled: {remedy}"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the `drift` object of a manifest."""
        return {"compiled": asdict(self.compiled), "added": [asdict(fit) for fit in self.added]}

    @classmethod
    def parse(cls, entry: Fields) -> Drift:
        """Read the `drift` object of a manifest, trusting nothing in it.

        Raises
        ------
        CorruptIndex
            If anything is missing, superfluous or out of range.
        """
        entry.require_keys(frozenset(cls.__dataclass_fields__))
        return cls(
            compiled=Fit.parse(entry.object("compiled")),
            added=tuple(Fit.parse(fit) for fit in entry.objects("added", 0, MAX_ADDITIONS)),
        )


def fit_from(counts: I64, x: F32Rows, decoded: F32Rows, generation: int) -> Fit:
    """Return the fit of rows with `counts` (nlist,) of them in each list, by a sample (s, d) of them, s at least 1."""
    total, sampled = _errors(x, decoded)
    return _fit(counts, total / sampled, generation)


class FitMeter:
    """Measures the fit of rows that come in blocks."""

    def __init__(self, nlist: int) -> None:
        self._counts = np.zeros(nlist, np.int64)
        self._error, self._sampled = 0.0, 0

    def add(self, codes: Codes, x: F32Rows, start: int, decode: Callable[[Codes], F32Rows]) -> None:
        """Take rows (b, d) from row number `start` on, and how they were encoded."""
        self._counts += np.bincount(codes.lists, minlength=len(self._counts))
        sample = slice(-start % _SAMPLED, None, _SAMPLED)
        rows = x[sample]
        if not len(rows):
            return
        decoded = decode(Codes(codes.lists[sample], np.ascontiguousarray(codes.codes[sample])))
        # One after the other, so that the sum does not depend on the blocks.
        self._error, sampled = _errors(rows, decoded, self._error)
        self._sampled += sampled

    def fit(self, generation: int) -> Fit | None:
        """Return the fit of all rows so far; None where none was sampled."""
        return _fit(self._counts, self._error / self._sampled, generation) if self._sampled else None


def _errors(x: F32Rows, decoded: F32Rows, total: float = 0.0) -> tuple[float, int]:
    """Sum of the relative squared errors of rows, on top of `total`, and the number of rows."""
    norms, errors = (np.einsum("nd,nd->n", part, part, dtype=np.float64) for part in (x, x - decoded))
    return sum((errors / np.where(norms > 0, norms, 1.0)).tolist(), total), len(x)


def _fit(counts: I64, error: float, generation: int) -> Fit:
    rows = int(counts.sum())
    pairs = float((counts.astype(np.float64) * (counts - 1)).sum())
    return Fit(
        generation=generation,
        rows=rows,
        error=round(min(error, 1e30), _DIGITS),
        imbalance=round(len(counts) * pairs / (rows * (rows - 1)), _DIGITS) if rows > 1 else 0.0,
    )
