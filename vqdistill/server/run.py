"""Runs a server: one process, or several workers on one socket, until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging.config
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from vqdistill.errors import InvalidInput, VqdistillError
from vqdistill.searcher import open as open_searcher
from vqdistill.server.app import AppFactory
from vqdistill.server.config import ServerConfig
from vqdistill.server.logs import log_config
from vqdistill.server.metrics import DIRECTORY
from vqdistill.server.service import Opener

_log = logging.getLogger(__name__)
_BACKLOG = 2048
_KEEP_ALIVE_S = 75
"""Seconds that an idle connection is kept; proxies drop theirs sooner, so that none meets a closed one."""
_TICK_S = 0.02
_LOOK_S = 0.2
"""Seconds between two looks at the workers."""
_TOGETHER_S = 0.3
"""Seconds within which all workers hear that they are to stop: uvicorn looks ten times a second."""


class Server(uvicorn.Server):
    """Ends connections by the response that they get, not under the request that they may have sent."""

    def __init__(self, config: uvicorn.Config, drain_s: float) -> None:
        super().__init__(config)
        self._drain_s = drain_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start; what is loaded by then stays: no collection of garbage looks through it while requests wait."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()

    async def on_tick(self, counter: int) -> bool:
        """Tell whether to stop: when told to, or when the process that started this worker is gone."""
        parent = multiprocessing.parent_process()
        return await super().on_tick(counter) or (parent is not None and not parent.is_alive())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, answer what open connections still send, then close what is idle."""
        await asyncio.sleep(0)  # who has connected by now is let in
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        # Connections end when no worker listens any more, so that none lets clients in that it then drops.
        await asyncio.sleep(_TOGETHER_S)
        service = self.lifespan.state.get("service")
        if service is not None:
            service.stopping = True
        end = time.monotonic() + self._drain_s
        while self.server_state.connections and time.monotonic() < end and not self.force_exit:
            await asyncio.sleep(_TICK_S)
        await super().shutdown(sockets)


def serve(config: ServerConfig, host: str, port: int, workers: int = 1, opener: Opener | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was accepted and return.

    Parameters
    ----------
    host, port : address to listen at; port 0 = one that is free
    workers : processes, each with the indexes in its memory
    opener : opens indexes that other processes hold; None = they are opened here

    Raises
    ------
    InvalidInput
        If the address cannot be listened at, or an index cannot be opened.
    CorruptIndex, FormatTooNew, FormatTooOld, VqdistillError
        As `open`.
    """
    app, factory = None, AppFactory(config, opener)
    if workers == 1:
        app = factory()
    elif opener is None:  # so that what cannot be opened is told once, by a sentence
        for path in config.indexes.values():
            open_searcher(path, io=config.io).reader.close()
    with _listening(host, port) as listener, _told() as told:
        logging.config.dictConfig(log_config())
        at = listener.getsockname()
        shown = f"[{at[0]}]" if listener.family == socket.AF_INET6 else at[0]
        _log.info("serving %s at http://%s:%d with %d workers", ", ".join(config.indexes), shown, at[1], workers)
        if app is None:
            _supervise(factory, listener, workers, told)
        else:
            Server(_uvicorn(lambda: app, config), config.drain_s).run(sockets=[listener])
        _log.info("stopped")


def _uvicorn(app: Any, config: ServerConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        factory=True,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        # After this a request that is still under way would have been given up anyway.
        timeout_graceful_shutdown=int(config.limits.timeout_s) + 5,
        log_config=log_config(),
        access_log=False,
        ws="none",
        lifespan="on",
        server_header=False,
    )


def _supervise(factory: AppFactory, listener: socket.socket, workers: int, told: list[int]) -> None:
    """Keep so many workers, which count into one directory, until a signal is in `told`."""
    context = multiprocessing.get_context("spawn")

    def start() -> Any:
        process = context.Process(target=_work, args=(factory, listener))
        process.start()
        return process

    with tempfile.TemporaryDirectory(prefix="vqdistill-metrics-") as folder, _environment(DIRECTORY, folder):
        running = [start() for _ in range(workers)]
        try:
            while not told:
                multiprocessing.connection.wait([process.sentinel for process in running], timeout=_LOOK_S)
                for at, process in enumerate(running):
                    if process.exitcode is None or told:
                        continue
                    if process.exitcode >= 0:  # not killed: it would end like this again
                        raise VqdistillError(f"a worker ended with exit code {process.exitcode}; the log says why")
                    _log.error("worker %d ended with exit code %s, another one begins", process.pid, process.exitcode)
                    running[at] = start()
        finally:
            listener.close()
            for process in running:
                process.terminate()
            for process in running:
                process.join()


def _work(factory: AppFactory, listener: socket.socket) -> None:
    """Be a worker."""
    with _told():
        Server(_uvicorn(factory, factory.config), factory.config.drain_s).run(sockets=[listener])


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise InvalidInput(f"host must be an address of this machine, got {host!r}: {error.strerror}") from None
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(_BACKLOG)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InvalidInput(f"{host}:{port} must be an address to listen at, but cannot be: {reason}") from None
        yield listener


@contextmanager
def _told() -> Iterator[list[int]]:
    """Collect the signals that stop a server, which then ends like any other command.

    While uvicorn runs they are its own; it raises them again when it is done.
    """
    told: list[int] = []
    before = {
        number: signal.signal(number, lambda got, _: told.append(got)) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for the processes that are started meanwhile."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
