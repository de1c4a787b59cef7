"""How the memory of a compile is shared out: all sizes that the compiler may choose follow from one cap."""

from __future__ import annotations

import ctypes
import gc
import re
from dataclasses import dataclass
from typing import Any

from vqdistill.compiler import cost
from vqdistill.compiler.plan import CompilePlan
from vqdistill.config import KSUB, Budget
from vqdistill.errors import BudgetInfeasible, InvalidInput

_MIB = 1 << 20
LIBRARIES = 410 * _MIB
"""Resident set of the process before it has seen data: interpreter, NumPy, torch, Numba and its compiled loops."""
_PER_THREAD = 24 * _MIB
"""Tiles of exact search, and the scratch space of BLAS."""
_QUERY_BYTES = 16_384
"""Of a learn query: lists of 200 documents with scores, while they are sorted, checked and turned around."""
_CANDIDATE_BYTES = 40_960
"""Of a query, 1000 candidates of the index that teaches in the place of exact search, while their scores are sorted."""
AFFORDABLE = 4 * 10**13
"""Queries x rows x dimensions up to which the dense teacher searches exactly: ten minutes on two cores, which do 6.6e10
a second. 16,384 queries get there at 6.4 million rows of 384 dimensions. An index must be trained and coded first: up
to there it would save a third of the time at most, far beyond two thirds."""
_SERVING = 1.25
"""Resident bytes of an open index against its own, scratch space of its searches included."""
_STEPS = 64
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a compile holds in memory at a time."""

    train_bytes: int = 512 * _MIB
    """Float32 bytes of the rows that are trained on."""
    codebook_rows: int = 40_960
    """Of these, rows that codebooks are fitted to."""
    queries: int = 16_384
    """Learn queries; twice as many with labels or pair scores, and half as many pseudo-queries."""
    block_bytes: int = 32 * _MIB
    """Float32 bytes of the rows read, searched or encoded at a time."""
    run_bytes: int = 64 * _MIB
    """Encoded rows that are sorted by list at a time."""
    pool_bytes: int = 64 * _MIB
    """Float32 bytes of the rows that pseudo-queries find neighbours among."""
    index_bytes: int = 4096 * _MIB
    """Codes that the teacher of a large corpus searches at a time, their order included."""

    def explain(self, cap: int) -> str:
        """Return what a cap leads to, in one line."""
        train = f"train on {self.train_bytes / _MIB:,.0f} MiB of rows and {self.queries:,} queries"
        return f"{cap:,} B: {train}, blocks of {self.block_bytes / _MIB:,.1f} MiB, runs of {self.run_bytes / _MIB:,.0f}"

    def block_rows(self, d: int) -> int:
        """Rows of a block."""
        return max(1, self.block_bytes // (4 * d))


LARGEST = Sizes()
"""Without a cap, and with any that has room for it."""
_LEAST = {"codebook_rows": 4096, "queries": 1024, "block_bytes": _MIB, "run_bytes": _MIB, "pool_bytes": 4 * _MIB}
_LEAST["index_bytes"] = 16 * _MIB
_LEAST_ROWS_PER_LIST = 16
"""Training rows for each list; k-means wants 39."""


def sizes_within(cap: int, plan: CompilePlan, *, threads: int, source_bytes: int) -> Sizes:
    """Return the largest sizes whose peak keeps within `cap` bytes.

    Parameters
    ----------
    plan : facts and shape of the index
    threads : used at the same time
    source_bytes : that the opened source keeps in memory: its ids, or the whole array

    Raises
    ------
    BudgetInfeasible
        If not even the smallest sizes do; the message names the cap that they need.
    """
    for step in range(_STEPS, -1, -1):
        sizes = _between(step / _STEPS, plan)
        if peak_bytes(sizes, plan, threads=threads, source_bytes=source_bytes) <= cap:
            return sizes
    least = -(-peak_bytes(sizes, plan, threads=threads, source_bytes=source_bytes) // _MIB)
    raise BudgetInfeasible(f"a build-ram of {cap} B is too small, the smallest feasible one is {least}MiB")


def peak_bytes(sizes: Sizes, plan: CompilePlan, *, threads: int, source_bytes: int = 0) -> int:
    """Return a bound of the resident set of a compile with these sizes, in bytes; parameters as for `sizes_within`."""
    facts, model = plan.facts, plan.model
    d = facts.dim
    queries = sizes.queries * (2 if model.query_units else 1)
    held = queries * (_QUERY_BYTES + 8 * d)
    whole = 4 * d * facts.n
    x, block = min(sizes.train_bytes, whole), min(sizes.block_bytes, whole)
    fitted = 4 * d * min(sizes.codebook_rows, facts.n)
    words = KSUB * model.m
    codebooks = 20 * 4 * words * cost.codeword_dims(d, model) + (6 * 8 * words**2 if model.codes == "additive" else 0)
    lists = model.nlist * (12 * 4 * d + 2 * 4 * 2048)
    teaching = 4 * block + held + 6 * min(sizes.pool_bytes, whole)
    if sizes.queries * facts.n * d > AFFORDABLE:
        teaching = max(teaching, x + sizes.index_bytes + 4 * block + queries * (8 * d + _CANDIDATE_BYTES))
    training = x + held + max(int(1.1 * x), 5 * fitted + x // 3)
    encoding = 8 * block + 3 * sizes.run_bytes + held // 4
    fixed = LIBRARIES + threads * _PER_THREAD + source_bytes + codebooks + lists + 8 * 4 * d * d
    return fixed + max(teaching, training, encoding)


def require_room_to_prove(sizes: Sizes, cap: int, plan: CompilePlan, *, threads: int, source_bytes: int) -> None:
    """Refuse a cap that does not hold the finished index, whose searches are measured before it is published.

    Raises
    ------
    BudgetInfeasible
        If it does not.
    """
    needed = LIBRARIES + threads * _PER_THREAD + source_bytes + _SERVING * plan.ram_bytes + 2 * sizes.block_bytes
    if needed > cap:
        least = -(-needed // _MIB)
        raise BudgetInfeasible(
            f"a build-ram of {cap} B is too small, the smallest feasible one is {least}MiB: the index takes"
            f" {plan.ram_bytes} B itself while its recall is measured"
        )


def parse_cap(text: str | int) -> int:
    """Read a cap on memory such as "1GiB", or a number of bytes.

    Raises
    ------
    InvalidInput
        If it is no size.
    """
    if not isinstance(text, bool) and re.fullmatch(r"\s*\d+(\.\d+)?\s*[A-Za-z]*\s*", str(text)):
        found = Budget.parse(str(text)).ram_bytes
        if found is not None:
            return found
    raise InvalidInput(f'build-ram must be a size such as "1GiB", got {text!r}')


def give_back_freed_memory() -> None:
    """Let glibc return what is freed at once, for the rest of the process; elsewhere nothing happens.

    By default it keeps freed arrays of up to 32 MiB for later, which the resident set then holds besides those in use.
    """
    mallopt: Any = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 256 << 10)
        mallopt(_M_TRIM_THRESHOLD, 1 << 20)


def _between(share: float, plan: CompilePlan) -> Sizes:
    """Sizes that are as far from the least to the largest, on a logarithmic scale."""
    rows = min(plan.facts.n, max(_LEAST["codebook_rows"], _LEAST_ROWS_PER_LIST * plan.model.nlist))
    least = _LEAST | {"train_bytes": max(_MIB, 4 * plan.facts.dim * rows)}
    return Sizes(**{name: round(low * max(1, getattr(LARGEST, name) / low) ** share) for name, low in least.items()})


def collect_garbage() -> None:
    """Give the system what is no longer used: objects that refer to each other, and pages that the allocator keeps."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
