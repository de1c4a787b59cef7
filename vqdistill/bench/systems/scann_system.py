"""ScaNN: a tree of lists with anisotropic 4-bit codes (AH), with or without SOAR; its candidates are verified."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scann import scann_ops_pybind as scann

from vqdistill.bench.systems.base import I64, Index, Setting, Task, Verified, lists_for, nprobes
from vqdistill.bench.verify import F16Rows
from vqdistill.errors import BudgetInfeasible
from vqdistill.types import F32Rows

_DISTANCES = {"ip": "dot_product", "l2": "squared_l2"}
_ASSETS = {
    "codes": ("hashed_dataset.npy", "hashed_dataset_soar.npy"),
    "ids": ("datapoint_to_token.npy",),
}
"""Files of arrays; those of centroids and codebooks hold float64 or text, of what is float32 in memory."""
_THRESHOLD = 0.2
"""Of anisotropic quantization, as in ScaNN's own examples for unit vectors."""


@dataclass(frozen=True)
class Scann:
    """Builds and serializes."""

    soar: bool

    def build(self, task: Task, folder: Path) -> dict[str, Any]:
        """See System. ScaNN draws its own sample; it takes no seed."""
        n, d = task.docs.shape
        nlist, dims = self._shape(n, d, task.allowance_bytes)
        builder = scann.builder(task.docs, 10, _DISTANCES[task.metric])
        spilled = {"soar_lambda": 1.5, "overretrieve_factor": 2.0} if self.soar else {}
        builder = builder.tree(nlist, max(1, nlist // 8), training_sample_size=min(n, 250_000), **spilled)
        threshold = _THRESHOLD if task.metric == "ip" else float("nan")
        searcher = builder.score_ah(dims, anisotropic_quantization_threshold=threshold).build()
        searcher.serialize(str(folder), relative_path=True)
        return {"num_leaves": nlist, "dimensions_per_block": dims, "soar": self.soar, "threshold": _THRESHOLD}

    def _shape(self, n: int, d: int, allowance: int) -> tuple[int, int]:
        """Return lists, and the fewest dimensions a block (the longest codes) that fit the allowance."""
        nlist = lists_for(n)
        limit = allowance or 1 << 62
        copies = 2 if self.soar else 1
        while True:
            for dims in range(1, d + 1):
                blocks = -(-d // dims)
                size = copies * n * (-(-blocks // 2) + 4) + 4 * 16 * d + 4 * d * nlist
                if size <= limit and 4 * 4 * d * nlist <= limit:
                    return nlist, dims
            if nlist == 1:
                raise BudgetInfeasible(f"no codes of ScaNN fit {limit:,} B with {n} x {d} rows")
            nlist //= 2

    def open(self, folder: Path, rows: F16Rows, metric: str) -> Index:
        """See System."""
        return Verified(ScannCodes(folder, rows.shape[1]), rows, metric)


class ScannCodes:
    """A loaded searcher."""

    def __init__(self, folder: Path, d: int) -> None:
        self._searcher = scann.load_searcher(str(folder))
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        self.bytes = {kind: sum(sizes.get(name, 0) for name in names) for kind, names in _ASSETS.items()}
        # hashed_dataset.npy has a byte for each code of 4 bits: in memory two share one.
        self.bytes["codes"] //= 2
        tokens = np.load(folder / "datapoint_to_token.npy", mmap_mode="r")
        self._nlist = int(tokens.max()) + 1
        self.bytes |= {"centroids": 4 * self._nlist * d, "codebooks": 4 * 16 * d}

    def probes(self) -> list[Setting]:
        """See Codes."""
        return nprobes(self._nlist)

    def candidates(self, queries: F32Rows, refine: int, probe: Setting) -> I64:
        """See Codes."""
        leaves = probe["nprobe"]
        if len(queries) == 1:
            found, scores = self._searcher.search(queries[0], final_num_neighbors=refine, leaves_to_search=leaves)
            found, scores = found[None], scores[None]
        else:
            found, scores = self._searcher.search_batched(queries, final_num_neighbors=refine, leaves_to_search=leaves)
        ids = np.where(np.isfinite(scores), found.astype(np.int64), -1)
        return np.ascontiguousarray(ids)


def make(name: str) -> Scann:
    """Return the system."""
    return Scann(soar=name == "scann-soar")
