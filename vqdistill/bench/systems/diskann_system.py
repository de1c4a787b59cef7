"""DiskANN: a graph with its vectors on disk, product codes in memory; it verifies by its own disk file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diskannpy
import numpy as np

from vqdistill.bench.systems.base import Found, Index, Setting, Task
from vqdistill.bench.verify import F16Rows, best_of
from vqdistill.errors import BudgetInfeasible
from vqdistill.types import F32Rows

_DEGREE, _COMPLEXITY = 32, 64
_BEAM = 4
_RESIDENT = {"codes": "ann_pq_compressed.bin", "codebooks": "ann_pq_pivots.bin"}
_LADDER = (10, 12, 14, 17, 20, 24, 28, 34, 40, 48, 57, 68, 80, 96, 128, 160, 200, 280, 400)


class Diskann:
    """Builds a static disk index."""

    def build(self, task: Task, folder: Path) -> dict[str, Any]:
        """See System. Of unit rows the l2 graph is built: the order is the same, and it is what DiskANN is made for."""
        n, d = task.docs.shape
        unit = task.metric == "ip" and bool(np.allclose(np.linalg.norm(task.docs[:1000], axis=1), 1, atol=1e-3))
        metric = "l2" if unit or task.metric == "l2" else "innerproduct"
        fixed = 4 * 256 * d + 8 * d
        chunks = min(d, (task.allowance_bytes - fixed) // n) if task.allowance_bytes else d // 4
        if chunks < 1:
            raise BudgetInfeasible(f"DiskANN's pivots alone take {fixed:,} B of {task.allowance_bytes:,} B")
        diskannpy.build_disk_index(
            task.docs,
            metric,
            str(folder),
            complexity=_COMPLEXITY,
            graph_degree=_DEGREE,
            build_memory_maximum=4.0,
            num_threads=task.threads,
            num_of_pq_chunks=int(chunks),
            vector_dtype=np.float32,
        )
        (folder / "ann_vectors.bin").unlink(missing_ok=True)  # a copy of the input, which searching does not read
        return {"metric": metric, "graph_degree": _DEGREE, "complexity": _COMPLEXITY, "num_of_pq_chunks": int(chunks)}

    def open(self, folder: Path, rows: F16Rows, metric: str) -> Index:
        """See System."""
        return DiskannIndex(folder, rows, metric)


class DiskannIndex:
    """An open disk index; no node is cached in memory."""

    def __init__(self, folder: Path, rows: F16Rows, metric: str) -> None:
        self._index = diskannpy.StaticDiskIndex(str(folder), num_threads=1, beam_width=_BEAM, num_nodes_to_cache=0)
        self.bytes = {kind: (folder / name).stat().st_size for kind, name in _RESIDENT.items()}
        self._rows, self._l2 = rows, metric == "l2"

    def ladders(self) -> list[list[Setting]]:
        """See Index."""
        return [[{"complexity": value} for value in _LADDER]]

    def search(self, queries: F32Rows, k: int, setting: Setting) -> Found:
        """See Index; DiskANN has read the vectors of what it returns, only its k results are scored again here."""
        complexity = max(setting["complexity"], k)
        if len(queries) == 1:
            ids = self._index.search(queries[0], k, complexity).identifiers[None]
        else:
            ids = self._index.batch_search(queries, k, complexity, 1).identifiers
        scores, ids = best_of(self._rows, queries, np.ascontiguousarray(ids.astype(np.int64)), k, self._l2)
        return Found(scores, ids, None)


def make(name: str) -> Diskann:
    """Return the system."""
    return Diskann()
