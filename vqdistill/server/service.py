"""Service: open indexes, the threads that search them, and the places that requests take."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

from vqdistill.errors import VqdistillError
from vqdistill.index.files import CURRENT
from vqdistill.index.shardset import is_sharded
from vqdistill.index.spec import SHARDS
from vqdistill.searcher import Searcher
from vqdistill.searcher import open as open_searcher
from vqdistill.server.books import Books
from vqdistill.server.config import ServerConfig
from vqdistill.server.cores import LoopCore
from vqdistill.server.fleet import FleetSearcher
from vqdistill.server.metrics import Metrics
from vqdistill.server.problems import Problem
from vqdistill.server.searches import Searches, left_s

T = TypeVar("T")
Opener = Callable[[Path], FleetSearcher]
"""Opens an index whose shards other processes hold."""
_log = logging.getLogger(__name__)


class Places:
    """What requests hold while they wait or are at work, one each: `with` takes one and gives it back.

    Parameters
    ----------
    count : places
    refusal : makes what entering raises when all are taken
    taken : is told how many are
    """

    def __init__(self, count: int, refusal: Callable[[], Problem], taken: Callable[[float], None]) -> None:
        self._count, self._refusal, self._tell = count, refusal, taken
        self._taken = 0

    @property
    def full(self) -> bool:
        """Whether all are taken."""
        return self._taken >= self._count

    def __enter__(self) -> None:
        if self.full:
            raise self._refusal()
        self._taken += 1
        self._tell(self._taken)

    def __exit__(self, *error: object) -> None:
        self._taken -= 1
        self._tell(self._taken)


class Service:
    """Everything that requests share; one for each worker."""

    def __init__(self, config: ServerConfig, opener: Opener | None = None) -> None:
        self.config = config
        self.limits = config.limits
        self.metrics = Metrics()
        self.books = Books()
        self.loop_core = LoopCore(config.loop_core)
        self.stopping = False
        # Before they are opened: what is published meanwhile is seen at the first look.
        self._seen = {name: self._current(name) for name in config.indexes}
        self.indexes: dict[str, Searcher | FleetSearcher] = {
            name: open_searcher(path, io=config.io) if opener is None else opener(path)
            for name, path in config.indexes.items()
        }
        for name, searcher in self.indexes.items():
            self.metrics.describe(name, searcher.reader)
        self.metrics.measure_process()
        self.places = Places(config.limits.places, self.refusal, self.metrics.busy.set)
        self._threads = ThreadPoolExecutor(config.limits.concurrency, "search", self.loop_core.leave)
        self.searches = Searches(
            self.indexes, self.limits, self.metrics, self.books, self._threads, self.loop_core.core
        )
        self._refreshing = {name: asyncio.Lock() for name in self.indexes}

    @property
    def lost(self) -> list[str]:
        """Indexes that cannot be searched, as parts of them are lost."""
        return [name for name, index in self.indexes.items() if isinstance(index, FleetSearcher) and not index.ready]

    def index(self, name: str) -> Searcher | FleetSearcher:
        """Return the index of this name.

        Raises
        ------
        Problem
            If there is none (404).
        """
        if name not in self.indexes:
            known = ", ".join(sorted(self.indexes))
            raise Problem(HTTPStatus.NOT_FOUND, f"index must be one of {known}, got {name[:64]!r}")
        return self.indexes[name]

    def refusal(self) -> Problem:
        """Return the refusal of a request that finds no place, and count it: 429, or 503 while the server stops."""
        self.metrics.refused.labels("stopping" if self.stopping else "full").inc()
        if self.stopping:
            return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "the server is stopping", {"Retry-After": "1"})
        sentence = f"the server has {self.limits.places} requests in hand, as many as it takes; try again"
        return Problem(HTTPStatus.TOO_MANY_REQUESTS, sentence, {"Retry-After": "1"})

    async def run(self, work: Callable[[float], T]) -> T:
        """Call `work` in a thread with the seconds that are left to it; it waits while all threads are busy.

        Raises
        ------
        SearchTimeout
            If its time is over before it begins.
        """
        end = time.monotonic() + self.limits.timeout_s

        def call() -> T:
            return work(left_s(end, self.limits.timeout_s))

        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def refresh(self, name: str) -> bool:
        """Serve the newest generation of an index from now on; requests under way end with theirs.

        Raises
        ------
        InvalidInput, VqdistillError
            As `Searcher.refresh`; the old generation is served on.
        """
        searcher = self.index(name)
        async with self._refreshing[name]:
            seen = self._current(name)
            try:
                changed = await asyncio.to_thread(searcher.refresh)
            except VqdistillError:
                self.metrics.refreshed(name, "failed")
                raise
            self._seen[name] = seen
            if changed:
                self.metrics.refreshed(name, "swapped")
                self.metrics.describe(name, searcher.reader)
                _log.info("index %s: generation %d is served", name, searcher.reader.manifest.generation)
            return changed

    async def watch(self) -> None:
        """Look for new generations every now and then, for ever."""
        while True:
            await asyncio.sleep(self.config.poll_s)
            self.metrics.measure_process()
            for name in self.indexes:
                if self._current(name) == self._seen[name]:
                    continue
                try:
                    await self.refresh(name)
                except Exception as error:  # whatever it is, the next look may find better
                    _log.warning(
                        "index %s: the new generation cannot be opened, the old one is served: %s", name, error
                    )

    def _current(self, name: str) -> bytes:
        """Content of the file that names the current generation; nothing where it cannot be read."""
        path = self.config.indexes[name]
        try:
            return (path / (SHARDS if is_sharded(path) else CURRENT)).read_bytes()
        except OSError:
            return b""

    def close(self) -> None:
        """Wait for the searches under way, and close the indexes."""
        self._threads.shutdown()
        self.searches.close()
        self.books.settle()
        for searcher in self.indexes.values():
            searcher.reader.close()
