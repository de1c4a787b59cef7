"""What a system must be able to do to take part, and how candidates of quantized ones are verified."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from vqdistill.bench.verify import F16Rows, best_of
from vqdistill.types import F32Rows

I64 = npt.NDArray[np.int64]
Setting = dict[str, Any]
"""Keywords of a search, JSON-ready."""

REFINE = tuple(sorted({round(10 * 1.13**i) for i in range(40)}))
"""Numbers of candidates verified that systems are tuned over, 10..1,176."""
SHARES = (1, 1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8, 3 / 32, 1 / 16, 3 / 64, 1 / 32, 1 / 64)
"""Shares of the lists that are tried as nprobe; most first."""


@dataclass(frozen=True)
class Task:
    """What is to be built."""

    docs: F32Rows
    """(n, d), prepared: unit rows under cosine"""
    metric: str
    """"ip" or "l2" """
    learn: Path | None
    """.npy of learn queries (q, d), or None"""
    docs_path: Path
    """.npy of `docs`"""
    budget: str
    """label, see `budgets`"""
    allowance_bytes: int
    """most bytes that the index may keep in memory; 0 = no bound"""
    threads: int
    seed: int


class Found(NamedTuple):
    """Results of some queries."""

    scores: npt.NDArray[np.float32]
    """(q, k) similarities, larger is better, best first; -inf where missing"""
    ids: I64
    """(q, k) row numbers, -1 where missing"""
    reads: float | None
    """rows read from disk a query, if known"""


class Index(Protocol):
    """A built index, open in this process."""

    bytes: dict[str, int]
    """what it keeps in memory by kind, counted from its arrays or files"""

    def ladders(self) -> list[list[Setting]]:
        """List settings to tune over, in ladders of growing recall and work."""

    def search(self, queries: F32Rows, k: int, setting: Setting) -> Found:
        """Return the k best rows of each query, on the calling thread alone."""


class System(Protocol):
    """A way to build and open indexes."""

    def build(self, task: Task, folder: Path) -> dict[str, Any]:
        """Write an index within the allowance into the empty `folder`; return its options, JSON-ready.

        Raises
        ------
        BudgetInfeasible
            If none fits.
        """

    def open(self, folder: Path, rows: F16Rows, metric: str) -> Index:
        """Open what `build` wrote; candidates are verified by `rows`."""


class Codes(Protocol):
    """The quantized half of an index: it names candidates, and others verify them."""

    bytes: dict[str, int]

    def probes(self) -> list[Setting]:
        """List the settings of a scan; those that look at most first."""

    def candidates(self, queries: F32Rows, refine: int, probe: Setting) -> I64:
        """Return the best (q, refine) by code, best first, -1 where missing."""


class Verified:
    """Codes with exact verification: every such system reads the same float16 rows in the same compiled loop."""

    def __init__(self, codes: Codes, rows: F16Rows, metric: str) -> None:
        self.codes = codes
        self.bytes = codes.bytes
        self._rows, self._l2 = rows, metric == "l2"

    def ladders(self) -> list[list[Setting]]:
        """See Index."""
        return [[probe | {"refine": r} for r in REFINE if r <= len(self._rows)] for probe in self.codes.probes()]

    def search(self, queries: F32Rows, k: int, setting: Setting) -> Found:
        """See Index."""
        probe = {name: value for name, value in setting.items() if name != "refine"}
        refine = min(max(setting["refine"], k), len(self._rows))
        found = self.codes.candidates(queries, refine, probe)
        return Found(*self.verify(queries, found, k), float(refine))

    def verify(self, queries: F32Rows, candidates: I64, k: int) -> tuple[npt.NDArray[np.float32], I64]:
        """Return scores and ids (q, k) of the best candidates by exact score."""
        return best_of(self._rows, queries, candidates, k, self._l2)


def nprobes(nlist: int) -> list[Setting]:
    """Return the numbers of lists that are tried, most first."""
    counts = [max(1, int(share * nlist)) for share in SHARES]
    return [{"nprobe": a} for a, b in pairwise([*counts, 0]) if a != b]


def lists_for(n: int) -> int:
    """Return a usual number of lists for n rows: about 4 sqrt(n) as a power of two, 39 rows a list at least."""
    nlist = 1 << max(0, round(np.log2(4 * np.sqrt(max(n, 1)))))
    while nlist > 1 and 39 * nlist > n:
        nlist //= 2
    return int(nlist)


def files_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
