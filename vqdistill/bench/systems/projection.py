"""Projection on principal axes, for codes of a bit or more a dimension that would not fit a budget otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from vqdistill.bench.systems.base import I64, Codes, Setting
from vqdistill.types import F32Rows

_FILE = "projection.npy"
STEP = 64
"""Dimensions are multiples of it, as the kernels of RaBitQ want them."""
_SAMPLE = 50_000


def widths(d: int) -> list[int]:
    """Return the dimensions to try, most first: d itself, then fewer."""
    return [d, *range(STEP * ((d - 1) // STEP), 0, -STEP)]


def train(docs: F32Rows, width: int) -> F32Rows | None:
    """Return the `width` axes (width, d) along which inner products are largest; None if that is all of them."""
    d = docs.shape[1]
    if width >= d:
        return None
    sample = np.asarray(docs[:: max(1, len(docs) // _SAMPLE)], np.float64)
    _, axes = np.linalg.eigh(sample.T @ sample)
    return np.ascontiguousarray(axes[:, ::-1][:, :width].T, dtype=np.float32)


def apply(axes: F32Rows | None, rows: F32Rows) -> F32Rows:
    """Return rows (b, width)."""
    return rows if axes is None else np.ascontiguousarray(rows @ axes.T)


def save(axes: F32Rows | None, folder: Path) -> None:
    """Keep the axes beside an index."""
    if axes is not None:
        np.save(folder / _FILE, axes)


class Projected:
    """Codes of projected rows."""

    def __init__(self, codes: Codes, folder: Path) -> None:
        path = folder / _FILE
        self._codes = codes
        self._axes: npt.NDArray[np.float32] | None = np.load(path) if path.exists() else None
        self.bytes = codes.bytes | ({} if self._axes is None else {"projection": self._axes.nbytes})

    def probes(self) -> list[Setting]:
        """See Codes."""
        return self._codes.probes()

    def candidates(self, queries: F32Rows, refine: int, probe: Setting) -> I64:
        """See Codes."""
        return self._codes.candidates(apply(self._axes, queries), refine, probe)
