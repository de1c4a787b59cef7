"""hnswlib: a reference without a bound on memory, HNSW over float32 rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hnswlib
import numpy as np

from vqdistill.bench.systems.base import Found, Index, Setting, Task, files_bytes
from vqdistill.bench.systems.ladders import EF_LADDER
from vqdistill.bench.verify import F16Rows
from vqdistill.types import F32Rows

_FILE = "index.hnsw"
_M, _EF_BUILD = 16, 200


class Hnswlib:
    """Builds and saves."""

    def build(self, task: Task, folder: Path) -> dict[str, Any]:
        """See System. With several threads the graph depends on their timing."""
        n, d = task.docs.shape
        index = hnswlib.Index(space=task.metric, dim=d)
        index.init_index(max_elements=n, M=_M, ef_construction=_EF_BUILD, random_seed=task.seed + 100)
        index.add_items(task.docs, np.arange(n), num_threads=task.threads)
        index.save_index(str(folder / _FILE))
        return {"M": _M, "ef_construction": _EF_BUILD}

    def open(self, folder: Path, rows: F16Rows, metric: str) -> Index:
        """See System; rows in memory verify."""
        return HnswlibIndex(folder, rows.shape[1], metric)


class HnswlibIndex:
    """A loaded index."""

    def __init__(self, folder: Path, dim: int, metric: str) -> None:
        self._index = hnswlib.Index(space=metric, dim=dim)
        self._index.load_index(str(folder / _FILE))
        self._index.set_num_threads(1)
        self._l2 = metric == "l2"
        self.bytes = {"index file, all of which is loaded": files_bytes(folder)}

    def ladders(self) -> list[list[Setting]]:
        """See Index."""
        return [[{"ef": ef} for ef in EF_LADDER]]

    def search(self, queries: F32Rows, k: int, setting: Setting) -> Found:
        """See Index; hnswlib's distance of inner products is 1 - <q, x>."""
        self._index.set_ef(max(setting["ef"], k))
        ids, distances = self._index.knn_query(queries, k, num_threads=1)
        scores = -distances if self._l2 else 1 - distances
        return Found(scores.astype(np.float32), ids.astype(np.int64), 0.0)


def make(name: str) -> Hnswlib:
    """Return the system."""
    return Hnswlib()
