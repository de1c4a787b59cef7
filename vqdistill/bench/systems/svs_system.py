"""Intel SVS: Vamana over LVQ codes of 4 and 8 bits, all in memory; a reference, where the processor allows it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import svs

from vqdistill.bench.systems.base import Found, Index, Setting, Task, files_bytes
from vqdistill.bench.systems.ladders import EF_LADDER
from vqdistill.bench.verify import F16Rows, best_of
from vqdistill.errors import VqdistillError
from vqdistill.types import F32Rows

_DISTANCES = {"ip": svs.DistanceType.MIP, "l2": svs.DistanceType.L2}
_DEGREE, _WINDOW = 32, 128


class Svs:
    """Builds and saves."""

    def build(self, task: Task, folder: Path) -> dict[str, Any]:
        """See System."""
        if "GenuineIntel" not in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"):
            raise VqdistillError("LVQ codes of SVS need a processor of Intel: elsewhere it ends the process")
        alpha = 0.95 if task.metric == "ip" else 1.2
        parameters = svs.VamanaBuildParameters(
            graph_max_degree=_DEGREE, window_size=_WINDOW, alpha=alpha, use_full_search_history=True
        )
        with tempfile.TemporaryDirectory(dir=folder) as vectors:
            svs.write_vecs(task.docs, f"{vectors}/rows.fvecs")
            svs.convert_vecs_to_svs(f"{vectors}/rows.fvecs", f"{vectors}/rows.svs", svs.DataType.float32)
            rows = svs.VectorDataLoader(f"{vectors}/rows.svs", svs.DataType.float32, dims=task.docs.shape[1])
            lvq = svs.LVQLoader(rows, primary=4, residual=8)
            index = svs.Vamana.build(parameters, lvq, _DISTANCES[task.metric], num_threads=task.threads)
        index.save(*(str(folder / part) for part in ("config", "graph", "data")))
        return {"graph_max_degree": _DEGREE, "window_size": _WINDOW, "alpha": alpha, "lvq": "4x8"}

    def open(self, folder: Path, rows: F16Rows, metric: str) -> Index:
        """See System."""
        return SvsIndex(folder, rows, metric)


class SvsIndex:
    """A loaded index."""

    def __init__(self, folder: Path, rows: F16Rows, metric: str) -> None:
        config, graph, data = (str(folder / part) for part in ("config", "graph", "data"))
        self._index = svs.Vamana(config, graph, svs.LVQLoader(data), _DISTANCES[metric], num_threads=1)
        self._rows, self._l2 = rows, metric == "l2"
        self.bytes = {"index files, all of which are loaded": files_bytes(folder)}

    def ladders(self) -> list[list[Setting]]:
        """See Index."""
        return [[{"window": value} for value in EF_LADDER]]

    def search(self, queries: F32Rows, k: int, setting: Setting) -> Found:
        """See Index; its k results are scored again by the float16 rows."""
        self._index.search_window_size = max(setting["window"], k)
        ids = np.asarray(self._index.search(queries, k)[0]).astype(np.int64)
        return Found(*best_of(self._rows, queries, np.ascontiguousarray(ids), k, self._l2), 0.0)


def make(name: str) -> Svs:
    """Return the system."""
    return Svs()
