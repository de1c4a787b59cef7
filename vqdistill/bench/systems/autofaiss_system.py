"""autofaiss: it chooses the index of faiss for a bound on memory; its candidates are verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from autofaiss import build_index

from vqdistill.bench.systems.base import Index, Task, Verified
from vqdistill.bench.systems.faiss_systems import FaissCodes
from vqdistill.bench.verify import F16Rows
from vqdistill.errors import BudgetInfeasible

_FILE = "index.faiss"


class Autofaiss:
    """Calls build_index."""

    def build(self, task: Task, folder: Path) -> dict[str, Any]:
        """See System."""
        limit = f"{task.allowance_bytes}B"
        try:
            index, facts = build_index(
                np.ascontiguousarray(task.docs),
                save_on_disk=False,
                metric_type=task.metric,
                max_index_memory_usage=limit,
                nb_cores=task.threads,
            )
        except IndexError:  # how it says that it found no index
            raise BudgetInfeasible(f"autofaiss finds no index within {limit}") from None
        faiss.write_index(index, str(folder / _FILE))
        return {"index_key": facts.get("index_key"), "max_index_memory_usage": limit}

    def open(self, folder: Path, rows: F16Rows, metric: str) -> Index:
        """See System."""
        return Verified(FaissCodes(faiss.read_index(str(folder / _FILE))), rows, metric)


def make(name: str) -> Autofaiss:
    """Return the system."""
    return Autofaiss()
