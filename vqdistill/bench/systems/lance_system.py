"""LanceDB: IVF_PQ or IVF_RQ with refine, which reads float rows of the table on disk."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import IvfPq, IvfRq

from vqdistill.bench.systems.base import REFINE, Found, Index, Setting, Task, files_bytes, lists_for, nprobes
from vqdistill.bench.verify import F16Rows, best_of
from vqdistill.errors import BudgetInfeasible
from vqdistill.types import F32Rows

_DISTANCES = {"ip": "dot", "l2": "l2"}
_TABLE = "rows"


class Lance:
    """Makes a table of float16 rows and its vector index."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def build(self, task: Task, folder: Path) -> dict[str, Any]:
        """See System."""
        n, d = task.docs.shape
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(task.docs.astype(np.float16).ravel()), d)
        table = lancedb.connect(str(folder)).create_table(
            _TABLE, pa.table({"id": pa.array(np.arange(n)), "vector": vectors})
        )
        config, options = self._config(n, d, task)
        table.create_index("vector", config=config, wait_timeout=timedelta(hours=10))
        return options

    def _config(self, n: int, d: int, task: Task) -> tuple[Any, dict[str, Any]]:
        """Return the index with the longest codes that fit the allowance; row ids are 8 bytes."""
        limit = task.allowance_bytes or 1 << 62
        nlist = lists_for(n)
        distance = _DISTANCES[task.metric]
        while nlist >= 1:
            room = (limit - 4 * d * nlist) // n - 8
            if self._kind == "ivfrq" and room >= d // 8 + 8:
                return IvfRq(distance_type=distance, num_partitions=nlist, num_bits=1), {"nlist": nlist, "num_bits": 1}
            pq = [m for m in range(1, d + 1) if d % m == 0 and m <= (limit - 4 * d * (nlist + 256)) // n - 8]
            if self._kind == "ivfpq" and pq:
                made = IvfPq(distance_type=distance, num_partitions=nlist, num_sub_vectors=pq[-1], num_bits=8)
                return made, {"nlist": nlist, "num_sub_vectors": pq[-1], "num_bits": 8}
            nlist //= 2
        raise BudgetInfeasible(f"no {self._kind} codes of Lance and ids of 8 B fit {limit:,} B with {n} x {d} rows")

    def open(self, folder: Path, rows: F16Rows, metric: str) -> Index:
        """See System."""
        return LanceIndex(folder, rows, metric)


class LanceIndex:
    """An open table; it takes queries one by one."""

    def __init__(self, folder: Path, rows: F16Rows, metric: str) -> None:
        self._table = lancedb.connect(str(folder)).open_table(_TABLE)
        self._table.prewarm_index("vector_idx")  # into memory, as everybody's
        self._rows, self._l2, self._distance = rows, metric == "l2", _DISTANCES[metric]
        self.bytes = {"index files, all of which are cached": files_bytes(folder / f"{_TABLE}.lance" / "_indices")}
        self._nlist = lists_for(len(rows))

    def ladders(self) -> list[list[Setting]]:
        """See Index."""
        factors = sorted({max(1, refine // 10) for refine in REFINE})
        return [[probe | {"refine_factor": f} for f in factors if f <= 60] for probe in nprobes(self._nlist)[::2]]

    def search(self, queries: F32Rows, k: int, setting: Setting) -> Found:
        """See Index; of what it has verified by float16 rows, its k results are scored again here."""
        ids = np.full((len(queries), k), -1, np.int64)
        for row, query in zip(ids, queries, strict=True):
            asked = self._table.search(query).distance_type(self._distance).nprobes(setting["nprobe"])
            found = asked.refine_factor(setting["refine_factor"]).limit(k).select(["id", "_distance"]).to_arrow()
            named = found["id"].to_numpy()
            row[: len(named)] = named
        return Found(*best_of(self._rows, queries, ids, k, self._l2), float(k * setting["refine_factor"]))


def make(name: str) -> Lance:
    """Return the system."""
    return Lance(name.removeprefix("lancedb-"))
