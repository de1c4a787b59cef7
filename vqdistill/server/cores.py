"""Which cores the threads of a server run on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from vqdistill.errors import InvalidInput


class LoopCore:
    """A core for the thread that reads and answers requests, which small searches leave to it.

    Where both share a core, the system lets the loop wait for searches although other cores are free, and all requests
    wait with it.

    Parameters
    ----------
    core : one of several that this process may run on; None = the system chooses, and nothing here does anything

    Raises
    ------
    InvalidInput
        If it is none of them, or the only one, or the system has no such choice.
    """

    def __init__(self, core: int | None) -> None:
        self.core = core
        self._given: set[int] = set()
        if core is None:
            return
        if not hasattr(os, "sched_setaffinity"):
            raise InvalidInput(f"loop_core must be None where the system does not let threads choose cores, got {core}")
        self._given = os.sched_getaffinity(0)
        if core not in self._given or len(self._given) < 2:
            cores = ", ".join(map(str, sorted(self._given)))
            raise InvalidInput(f"loop_core must be one of several cores that this process may use, {cores}, got {core}")

    def leave(self) -> None:
        """Have the calling thread run anywhere: it has the cores of the one that began it, which may be the loop's."""
        if self.core is not None:
            os.sched_setaffinity(0, self._given)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the calling thread, which runs a loop, on the core; what the loop hands to threads runs anywhere."""
        if self.core is None:
            yield
            return
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(thread_name_prefix="aside", initializer=self.leave))
        os.sched_setaffinity(0, {self.core})
        try:
            yield
        finally:
            self.leave()
