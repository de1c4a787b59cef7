"""usearch: a reference without a bound on memory, HNSW over float16 rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from usearch.index import Index as Graph

from vqdistill.bench.systems.base import Found, Index, Setting, Task, files_bytes
from vqdistill.bench.systems.ladders import EF_LADDER
from vqdistill.bench.verify import F16Rows
from vqdistill.types import F32Rows

_FILE = "index.usearch"
_METRICS = {"ip": "ip", "l2": "l2sq"}
_CONNECTIVITY, _EXPANSION = 16, 200


class Usearch:
    """Builds and saves."""

    def build(self, task: Task, folder: Path) -> dict[str, Any]:
        """See System. With several threads the graph depends on their timing."""
        n, d = task.docs.shape
        index = Graph(
            ndim=d,
            metric=_METRICS[task.metric],
            dtype="f16",
            connectivity=_CONNECTIVITY,
            expansion_add=_EXPANSION,
        )
        index.add(np.arange(n), task.docs, threads=task.threads)
        index.save(str(folder / _FILE))
        return {"connectivity": _CONNECTIVITY, "expansion_add": _EXPANSION, "dtype": "f16"}

    def open(self, folder: Path, rows: F16Rows, metric: str) -> Index:
        """See System; rows in memory verify."""
        return UsearchIndex(folder, metric)


class UsearchIndex:
    """A loaded index."""

    def __init__(self, folder: Path, metric: str) -> None:
        self._index = Graph.restore(str(folder / _FILE))
        self._l2 = metric == "l2"
        self.bytes = {"index file, all of which is loaded": files_bytes(folder)}

    def ladders(self) -> list[list[Setting]]:
        """See Index."""
        return [[{"expansion": value} for value in EF_LADDER]]

    def search(self, queries: F32Rows, k: int, setting: Setting) -> Found:
        """See Index; usearch's distance of inner products is 1 - <q, x>."""
        self._index.expansion_search = max(setting["expansion"], k)
        found = self._index.search(queries, k, threads=1)
        ids = np.asarray(found.keys).reshape(len(queries), -1).astype(np.int64)
        distances = np.asarray(found.distances).reshape(len(queries), -1)
        return Found((-distances if self._l2 else 1 - distances).astype(np.float32), ids, 0.0)


def make(name: str) -> Usearch:
    """Return the system."""
    return Usearch()
