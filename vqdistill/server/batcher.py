"""Threads that answer searches: those that wait while all threads are busy share one call of the searcher."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
MOST, MOST_BYTES = 16, 64 << 10
"""Requests that a thread takes at a time, and bytes of their bodies: each waits for all that it shares a call with.

Large ones are not worth that, and more than these save little more.
"""


@dataclass
class Job(Generic[T, R]):
    """A request on its way."""

    request: T
    size: int
    """bytes of its body"""
    end: float
    """value of time.monotonic() at which its time is over"""
    waiting: asyncio.Future[R]
    outcome: R | None = None
    error: Exception | None = None

    def settle(self) -> None:
        """Tell the one who waits, in the thread of its loop."""
        if self.waiting.done():  # it gave up, or was told
            return
        if self.error is not None:
            self.waiting.set_exception(self.error)
        else:
            self.waiting.set_result(self.outcome)  # type: ignore[arg-type]


@dataclass
class Batcher(Generic[T, R]):
    """Hands requests to threads: at once while one is free, and together what came while none was, in equal shares.

    So nobody waits to be batched, and the busier the threads are, the less each request costs: a call of a thread, the
    lock of the interpreter and a call of the searcher are paid for several.
    """

    answer: Callable[[Sequence[Job[T, R]]], Iterator[Sequence[Job[T, R]]]]
    """called in a thread; gives each job its outcome or error, and yields those that have it"""
    threads: ThreadPoolExecutor
    most: int
    """threads at a time"""
    _jobs: deque[Job[T, R]] = field(default_factory=deque)
    _busy: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    async def ask(self, request: T, size: int, timeout_s: float) -> R:
        """Return the outcome of a request, or raise its error."""
        waiting: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        job: Job[T, R] = Job(request, size, time.monotonic() + timeout_s, waiting)
        with self._lock:
            self._jobs.append(job)
            free = self._busy < self.most
            self._busy += free
        if free:
            self.threads.submit(self._work)
        return await job.waiting

    def _work(self) -> None:
        """Answer what waits until nothing does."""
        while jobs := self._take():
            try:
                for done in self.answer(jobs):
                    _tell(done)
            except Exception as error:  # a defect, which must not leave anyone waiting
                for job in jobs:
                    if job.outcome is None and job.error is None:
                        job.error = error
                _tell(jobs)

    def _take(self) -> list[Job[T, R]]:
        """Return this thread's share of the jobs that wait; none: it counts as free from now on."""
        with self._lock:
            most, size = min(MOST, -(-len(self._jobs) // self.most)), 0
            taken: list[Job[T, R]] = []
            while len(taken) < most and (not taken or size + self._jobs[0].size <= MOST_BYTES):
                taken.append(self._jobs.popleft())
                size += taken[-1].size
            if not taken:
                self._busy -= 1
            return taken


def _tell(jobs: Sequence[Job[T, R]]) -> None:
    """Have the loops of those who wait tell them."""
    for loop in {job.waiting.get_loop() for job in jobs}:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            loop.call_soon_threadsafe(_settle, [job for job in jobs if job.waiting.get_loop() is loop])


def _settle(jobs: Sequence[Job[T, R]]) -> None:
    for job in jobs:
        job.settle()
