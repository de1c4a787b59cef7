"""Three memories of an index: what it says it keeps, what opening it adds, the smallest limit that it works under."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.bench.caps import CGROUP, Cap
from vqdistill.bench.datasets import Dataset
from vqdistill.bench.pages import evict
from vqdistill.bench.processes import Place, RunFailed, run_stage

QUERIES = 300
STEPS = 5
SLOWER, SLACK_S = 1.5, 0.001
"""A limit holds if p99 is at most so many times, and so much more than, that without a limit."""
_HEADROOM = 32 << 20
_PATIENCE, _PATIENCE_S = 5, 10.0
"""A process under a limit may take so many times, and so much more than, what one without did: some would never end."""


@dataclass(frozen=True)
class Answers:
    """What a probe process measured."""

    memory: dict[str, dict[str, int]]
    ids: npt.NDArray[np.int64]
    seconds: npt.NDArray[np.float64]
    took: float
    """Seconds from the start of the process to its end."""

    @property
    def p99(self) -> float:
        """Seconds."""
        return float(np.percentile(self.seconds, 99))

    def growth(self, kind: str, until: str = "opened") -> int:
        """Bytes of one kind of memory that came with the index."""
        return self.memory[until][kind] - self.memory["before"][kind]


class Prober:
    """Opens one index in fresh processes."""

    def __init__(self, dataset: Dataset, system: str, setting: dict[str, Any], folder: Path, place: Place) -> None:
        self._folder, self._place = folder, place
        self._files = [path for path in (folder / "index").rglob("*") if path.is_file()] + [dataset.f16_path]
        queries, self._answers = folder / "queries.npy", folder / "answers.npz"
        np.save(queries, dataset.rows("test")[:QUERIES])
        facts = {"name": dataset.name, "metric": dataset.metric, "n": dataset.n, "dim": dataset.dim, "origin": {}}
        self._job = {
            "dataset": str(dataset.folder),
            "facts": facts,
            "system": system,
            "setting": setting,
            "queries": str(queries),
            "answers": str(self._answers),
        }

    def ask(self, cold: bool = False) -> tuple[Answers, int]:
        """Answer the queries once; also return the bytes that could not be evicted before."""
        left = evict(self._files) if cold else 0
        return self._answers_at(self._place, 1), left

    def ask_under(self, cap: Cap, free: Answers) -> Answers:
        """Answer them under a limit that counts the page cache: once to fill it, then timed.

        Raises
        ------
        RunFailed
            If it fails, or takes much longer than it did without.
        """
        evict(self._files)
        patience = min(self._place.time_limit_s, _PATIENCE * free.took + _PATIENCE_S)
        return self._answers_at(replace(self._place, time_limit_s=patience, join=cap.join), 2)

    def _answers_at(self, place: Place, passes: int) -> Answers:
        begin = time.monotonic()
        memory = run_stage("probe", self._job | {"passes": passes}, self._folder, place)
        took = time.monotonic() - begin
        with np.load(self._answers) as answers:
            return Answers(memory, answers["ids"], answers["seconds"], took)


def memories(prober: Prober) -> dict[str, Any]:
    """Measure what opening adds, the smallest limit, and single queries with a cold page cache."""
    free, _ = prober.ask()
    cold, left = prober.ask(cold=True)
    found: dict[str, Any] = {
        "anonymous_bytes": free.growth("anonymous"),
        "anonymous_bytes_after_queries": free.growth("anonymous", "answered"),
        "file_bytes_after_queries": free.growth("file", "answered"),
        "queries": len(free.ids),
        "cold": {"seconds": cold.seconds.tolist(), "not_evicted_bytes": left},
        "warm": {"seconds": free.seconds.tolist()},
    }
    return found | {"cap": smallest_cap(prober, free)}


def smallest_cap(prober: Prober, free: Answers) -> dict[str, Any]:
    """Bisect for the smallest limit under which answers and p99 stay; None if none of those tried does.

    Bytes are given above what the process has before it opens the index: interpreter and libraries differ, and are not
    what is compared.
    """
    with Cap(1 << 40) as cap:
        kind = cap.kind
    memory = "anonymous" if kind == CGROUP else "data"
    base = free.memory["before"][memory]
    low, high = base, free.memory["answered"][memory] + _HEADROOM
    if kind == CGROUP:
        high += free.growth("file", "answered")
    found: dict[str, Any] = {"kind": kind, "bytes_above_base": None, "base_bytes": base, "tried": []}
    wanted = SLOWER * free.p99 + SLACK_S
    limit = high
    for _ in range(STEPS + 1):
        held, p99 = _holds(prober, limit, free, wanted)
        found["tried"].append({"limit_bytes": limit, "holds": held, "p99_ms": None if p99 is None else 1e3 * p99})
        if held:
            found["bytes_above_base"] = limit - base
            high = limit
        elif limit == high:
            break  # not even what it used without a limit
        else:
            low = limit
        limit = (low + high) // 2
    return found


def _holds(prober: Prober, limit: int, free: Answers, wanted: float) -> tuple[bool, float | None]:
    """Tell whether the answers stay within a limit, and p99, the better of two attempts: other processes disturb it."""
    p99 = None
    for _ in range(2):
        try:
            with Cap(limit) as cap:
                answers = prober.ask_under(cap, free)
        except RunFailed:
            return False, p99
        p99 = min(answers.p99, p99 or np.inf)
        if (answers.ids != free.ids).any() or p99 <= wanted:
            break
    return bool((answers.ids == free.ids).all() and p99 is not None and p99 <= wanted), p99
