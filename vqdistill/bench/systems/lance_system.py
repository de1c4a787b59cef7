"""LanceDB: IVF_PQ or IVF_RQ with refine, which reads float rows of the table on disk."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import IvfPq, IvfRq

from vqdistill.bench.systems.base import REFINE, Found, Index, Setting, Task, files_bytes, lists_for, nprobes
from vqdistill.bench.tuning import K
from vqdistill.bench.verify import F16Rows, best_of
from vqdistill.errors import BudgetInfeasible
from vqdistill.types import F32Rows

_DISTANCES = {"ip": "dot", "l2": "l2"}
_TABLE, _OPTIONS = "rows", "options.json"


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
        (folder / _OPTIONS).write_text(json.dumps(options))
        return options

    def _config(self, n: int, d: int, task: Task) -> tuple[Any, dict[str, Any]]:
        """Return the index with the longest codes that fit the allowance.

        Lists are halved, beyond what codes need to fit at all, where that makes room for codes half as long again: with
        few bytes their length decides.
        """
        limit, most = task.allowance_bytes or 1 << 62, lists_for(n)
        length, nlist = 0, 0
        for lists in (most >> shift for shift in range(most.bit_length())):
            fits = self._longest(limit, n, d, lists)
            if fits and fits >= 1.5 * length:
                length, nlist = fits, lists
        if not length:
            raise BudgetInfeasible(f"no {self._kind} codes of Lance and ids of 8 B fit {limit:,} B with {n} x {d} rows")
        shared: dict[str, Any] = {"distance_type": _DISTANCES[task.metric], "num_partitions": nlist}
        if self._kind == "ivfrq":
            return IvfRq(num_bits=1, **shared), {"nlist": nlist, "num_bits": 1}
        made = IvfPq(num_sub_vectors=length, num_bits=8, **shared)
        return made, {"nlist": nlist, "num_sub_vectors": length, "num_bits": 8}

    def _longest(self, limit: int, n: int, d: int, nlist: int) -> int:
        """Return the bytes of the longest codes that fit beside centroids, codewords and ids of 8 bytes; 0 = none."""
        if self._kind == "ivfrq":
            fixed = d // 8 + 8
            return fixed if fixed <= (limit - 4 * d * nlist) // n - 8 else 0
        room = (limit - 4 * d * (nlist + 256)) // n - 8
        return max((m for m in range(1, min(d, room) + 1) if d % m == 0), default=0)

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
        self._nlist = int(json.loads((folder / _OPTIONS).read_text())["nlist"])

    def ladders(self) -> list[list[Setting]]:
        """See Index."""
        rows = sorted({max(1, refine // K) * K for refine in REFINE})
        return [[probe | {"refine": refine} for refine in rows] for probe in nprobes(self._nlist)[::2]]

    def search(self, queries: F32Rows, k: int, setting: Setting) -> Found:
        """See Index; of what it has verified by float16 rows, its k results are scored again here.

        `refine` are rows, as everybody's, whatever k is: Lance multiplies a factor by k.
        """
        ids, factor = np.full((len(queries), k), -1, np.int64), max(1, setting["refine"] // k)
        for row, query in zip(ids, queries, strict=True):
            asked = self._table.search(query).distance_type(self._distance).nprobes(setting["nprobe"])
            found = asked.refine_factor(factor).limit(k).select(["id", "_distance"]).to_arrow()
            named = found["id"].to_numpy()
            row[: len(named)] = named
        return Found(*best_of(self._rows, queries, ids, k, self._l2), float(k * factor))


def make(name: str) -> Lance:
    """Return the system."""
    return Lance(name.removeprefix("lancedb-"))
