"""RaBitQ-Library: IVF with RaBitQ codes of as many bits a dimension as fit; its candidates are verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from rabitqlib import IvfIndex, RaBitQKMeans

from vqdistill.bench.systems import projection
from vqdistill.bench.systems.base import I64, Index, Setting, Task, Verified, lists_for, nprobes
from vqdistill.bench.systems.projection import Projected
from vqdistill.bench.verify import F16Rows
from vqdistill.errors import BudgetInfeasible
from vqdistill.types import F32Rows

_FILE = "index.rabitq"
_BITS = (4, 3, 2, 1)
_FACTORS = 12
"""Bytes a row beside codes and ids, at most: the factors of its estimate."""


class Rabitq:
    """Clusters, encodes and saves."""

    def build(self, task: Task, folder: Path) -> dict[str, Any]:
        """See System. Where not even 1 bit a dimension fits, rows are projected on fewer dimensions."""
        n, d = task.docs.shape
        width, nlist, nbits = _shape(n, d, task.allowance_bytes)
        axes = projection.train(task.docs, width)
        projection.save(axes, folder)
        rows = _wide(projection.apply(axes, task.docs))
        width = rows.shape[1]
        clustering = RaBitQKMeans(width, nlist, num_threads=task.threads)
        clustering.train(rows)
        index = IvfIndex(dim=width, max_elements=n, num_clusters=nlist, nbits=nbits, metric=task.metric)
        index.build(rows, clustering.centroids, clustering.assignments)
        index.save(str(folder / _FILE))
        (folder / "lists.json").write_text(json.dumps({"nlist": nlist}))
        return {"nlist": nlist, "nbits": nbits, "dimensions": width}

    def open(self, folder: Path, rows: F16Rows, metric: str) -> Index:
        """See System."""
        return Verified(Projected(RabitqCodes(folder), folder), rows, metric)


def _shape(n: int, d: int, allowance: int) -> tuple[int, int, int]:
    """Return dimensions, lists and bits that fit."""
    limit = allowance or 1 << 62
    for width in projection.widths(d):
        wide = projection.STEP * -(-width // projection.STEP)
        axes = 4 * d * width if width < d else 0
        for nbits in _BITS:
            nlist = lists_for(n)
            while nlist >= min(16, lists_for(n)):
                if n * (wide * nbits // 8 + 4 + _FACTORS) + 4 * wide * nlist + axes <= limit:
                    return width, nlist, nbits
                nlist //= 2
    raise BudgetInfeasible(f"RaBitQ of 1 bit for {projection.STEP} dimensions does not fit {limit:,} B")


def _wide(rows: F32Rows) -> F32Rows:
    """Append zeros up to the least dimension that RaBitQ takes."""
    return np.pad(rows, ((0, 0), (0, max(0, projection.STEP - rows.shape[1]))))


class RabitqCodes:
    """A loaded index."""

    def __init__(self, folder: Path) -> None:
        self._index = IvfIndex.load(str(folder / _FILE))
        self._nlist = json.loads((folder / "lists.json").read_text())["nlist"]
        self.bytes = {"index file, all of which is loaded": (folder / _FILE).stat().st_size}

    def probes(self) -> list[Setting]:
        """See Codes."""
        return [probe | {"high_accuracy": high} for probe in nprobes(self._nlist) for high in (False, True)]

    def candidates(self, queries: F32Rows, refine: int, probe: Setting) -> I64:
        """See Codes."""
        found, distances = self._index.search(_wide(queries), k=refine, num_threads=1, **probe)
        ids = np.asarray(found)
        # Fewer rows than asked for in the lists: the rest is the largest number there is.
        missing = ~np.isfinite(np.asarray(distances)) | (ids == np.iinfo(ids.dtype).max)
        return np.where(missing, -1, ids.astype(np.int64))


def make(name: str) -> Rabitq:
    """Return the system."""
    return Rabitq()
