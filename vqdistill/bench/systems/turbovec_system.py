"""turbovec: TurboQuant codes of 2 or 4 bits a dimension, all scanned; its candidates are verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from turbovec import TurboQuantIndex

from vqdistill.bench.systems import projection
from vqdistill.bench.systems.base import I64, Index, Setting, Task, Verified
from vqdistill.bench.systems.projection import Projected
from vqdistill.bench.verify import F16Rows
from vqdistill.errors import BudgetInfeasible, InvalidInput
from vqdistill.types import F32Rows

_FILE = "index.tv"
_BITS = (4, 2)
_STEP = 8
"""Dimensions are multiples of it."""
_ROW_BYTES = 4
"""Norm of a row."""


class Turbovec:
    """Adds and writes; nothing is trained."""

    def build(self, task: Task, folder: Path) -> dict[str, Any]:
        """See System. Where not even 2 bits a dimension fit, rows are projected on fewer dimensions."""
        n, d = task.docs.shape
        if task.metric != "ip":
            raise InvalidInput("turbovec ranks by inner product only")
        width, bits = _shape(n, d, task.allowance_bytes or 1 << 62)
        axes = projection.train(task.docs, width)
        projection.save(axes, folder)
        wide = _STEP * -(-width // _STEP)
        index = TurboQuantIndex(dim=wide, bit_width=bits)
        index.add(np.pad(projection.apply(axes, task.docs), ((0, 0), (0, wide - width))))
        index.write(str(folder / _FILE))
        return {"bit_width": bits, "dimensions": width}

    def open(self, folder: Path, rows: F16Rows, metric: str) -> Index:
        """See System."""
        return Verified(Projected(TurbovecCodes(folder), folder), rows, metric)


def _shape(n: int, d: int, limit: int) -> tuple[int, int]:
    """Return dimensions and bits that fit."""
    for width in projection.widths(d):
        for bits in _BITS:
            axes = 4 * d * width if width < d else 0
            if n * (_STEP * -(-width // _STEP) * bits // 8 + _ROW_BYTES) + axes <= limit:
                return width, bits
    raise BudgetInfeasible(f"TurboQuant of 2 bits for {projection.STEP} dimensions does not fit {limit:,} B")


class TurbovecCodes:
    """A loaded index."""

    def __init__(self, folder: Path) -> None:
        self._index = TurboQuantIndex.load(str(folder / _FILE))
        self.bytes = {"index file, all of which is loaded": (folder / _FILE).stat().st_size}

    def probes(self) -> list[Setting]:
        """See Codes: all codes are scanned."""
        return [{}]

    def candidates(self, queries: F32Rows, refine: int, probe: Setting) -> I64:
        """See Codes."""
        wide = np.pad(queries, ((0, 0), (0, self._index.dim - queries.shape[1])))
        found: I64 = self._index.search(wide, k=refine)[1].astype(np.int64)
        return found


def make(name: str) -> Turbovec:
    """Return the system."""
    return Turbovec()
