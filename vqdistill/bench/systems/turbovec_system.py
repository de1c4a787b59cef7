"""turbovec: TurboQuant codes of 2 or 4 bits a dimension, all scanned; its candidates are verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from turbovec import TurboQuantIndex

from vqdistill.bench.systems.base import I64, Index, Setting, Task, Verified, files_bytes
from vqdistill.bench.verify import F16Rows
from vqdistill.errors import BudgetInfeasible, InvalidInput
from vqdistill.types import F32Rows

_FILE = "index.tv"
_BITS = (4, 2)
_ROW_BYTES = 4
"""Norm of a row."""


class Turbovec:
    """Adds and writes; nothing is trained."""

    def build(self, task: Task, folder: Path) -> dict[str, Any]:
        """See System."""
        n, d = task.docs.shape
        if task.metric != "ip":
            raise InvalidInput("turbovec ranks by inner product only")
        limit = task.allowance_bytes or 1 << 62
        wide = 8 * -(-d // 8)
        fitting = [bits for bits in _BITS if n * (wide * bits // 8 + _ROW_BYTES) <= limit]
        if not fitting:
            raise BudgetInfeasible(
                f"TurboQuant of 2 bits a dimension takes {n * (wide // 4 + _ROW_BYTES):,} B, the allowance is"
                f" {limit:,} B"
            )
        index = TurboQuantIndex(dim=wide, bit_width=fitting[0])
        index.add(np.pad(task.docs, ((0, 0), (0, wide - d))))
        index.write(str(folder / _FILE))
        return {"bit_width": fitting[0]}

    def open(self, folder: Path, rows: F16Rows, metric: str) -> Index:
        """See System."""
        return Verified(TurbovecCodes(folder), rows, metric)


class TurbovecCodes:
    """A loaded index."""

    def __init__(self, folder: Path) -> None:
        self._index = TurboQuantIndex.load(str(folder / _FILE))
        self.bytes = {"index file, all of which is loaded": files_bytes(folder)}

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
