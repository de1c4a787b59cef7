"""Searches in threads that never take Python's lock, for coroutines that await them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy.typing as npt

from vqdistill._native import SearchPool as NativePool
from vqdistill.index.view import Call


class SearchPool:
    """Threads of the native module: a loop hands calls over, goes on, and is told by a descriptor that some ended.

    Calls that wait while all threads are busy, and differ in nothing but their queries, are one call of the engine.

    Parameters
    ----------
    threads : calls at a time
    avoided_core : where calls of less than 16 queries do not run; None = they run anywhere
    """

    def __init__(self, threads: int, avoided_core: int | None = None) -> None:
        self._reading, self._writing = _telling_ends()
        self._native = NativePool(threads, self._writing, -1 if avoided_core is None else avoided_core)
        self._loops = set[asyncio.AbstractEventLoop]()
        """that look at the descriptor; each tells those of the others as well"""
        self._lock = threading.Lock()
        """of the loops"""
        self._closed = False

    async def run(self, call: Call) -> tuple[npt.NDArray[Any], ...]:
        """Return what `call.hits` takes.

        Raises
        ------
        SearchTimeout, VqdistillError
            As `Searcher.search`; waiting for a thread counts.
        CancelledError
            Also if the pool is closed before a thread has taken the call.
        """
        prepared = call.engine("prepare_search")
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        self._native.submit(prepared, ended)
        if loop not in self._loops:
            loop.add_reader(self._reading, self._tell, loop)
            with self._lock:
                self._loops = {each for each in self._loops if not each.is_closed()} | {loop}
        await ended
        with call.telling():
            found: tuple[npt.NDArray[Any], ...] = prepared.result()
            return found

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake those whose calls have ended; in the thread of the loop."""
        with suppress(BlockingIOError):  # another loop was faster
            os.read(self._reading, 1024)
        for ended in self._native.collect():
            if ended.get_loop() is loop:
                _wake(ended)
            else:
                _call(ended.get_loop(), _wake, ended)

    def close(self) -> None:
        """Wait for the calls that threads have taken; whoever awaits another one is cancelled. Twice is fine."""
        if self._closed:
            return
        self._closed = True
        for ended in self._native.close():
            _call(ended.get_loop(), ended.cancel)
        self._keep(lambda loop: _call(loop, self._leave, loop))

    def _leave(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self._reading)
        self._tell(loop)
        self._keep(lambda each: each is not loop)

    def _keep(self, wanted: Callable[[asyncio.AbstractEventLoop], bool]) -> None:
        """Forget the other loops; who forgets the last one closes the descriptors."""
        with self._lock:
            self._loops = {loop for loop in self._loops if wanted(loop)}
            nobody_looks = not self._loops
        if nobody_looks:
            for end in {self._reading, self._writing}:
                os.close(end)


def _telling_ends() -> tuple[int, int]:
    """Return descriptors, one to read and one to write, that do not block."""
    if hasattr(os, "eventfd"):
        end = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return end, end
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    return ends


def _wake(ended: asyncio.Future[None]) -> None:
    if not ended.done():  # it gave up
        ended.set_result(None)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., Any], *arguments: Any) -> bool:
    """Have a loop call a function soon; False if it is closed, and nobody waits there."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        return False
    return True
