"""What benches of the server share: a server process, and load over plain sockets that costs little itself."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

_PATIENCE_S = 60


class Server:
    """`vqdistill serve` in a process of its own, on a free port, its log in a file."""

    def __init__(self, index: Path, *options: str) -> None:
        self._log = tempfile.NamedTemporaryFile(mode="w+", suffix=".log")  # noqa: SIM115
        command = [sys.executable, "-m", "vqdistill", "serve", str(index), "--port", "0", *options]
        self._process = subprocess.Popen(command, stderr=self._log)
        end = time.monotonic() + _PATIENCE_S
        while (found := re.search(r"at (http://[\d.:]+)", Path(self._log.name).read_text())) is None:
            if self._process.poll() is not None or time.monotonic() > end:
                raise SystemExit(Path(self._log.name).read_text())
            time.sleep(0.02)
        self.url = found[1]
        self.address = (str(urlsplit(self.url).hostname), int(urlsplit(self.url).port or 0))

    @property
    def resident_bytes(self) -> int:
        """Resident memory of the process."""
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def terminate(self) -> None:
        """Tell it to stop."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Return its exit code."""
        return self._process.wait(_PATIENCE_S)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.terminate()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self._process.kill()
                self.wait()
        self._log.close()


def post(path: str, body: bytes, kind: str, accept: str) -> bytes:
    """Return a request as it goes over the wire."""
    lines = (f"POST {path} HTTP/1.1", "Host: bench", f"Content-Type: {kind}", f"Accept: {accept}")
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


@dataclass
class Seen:
    """What came of requests."""

    statuses: Counter[Any] = field(default_factory=Counter)
    """By status; "lost": the connection ended under the request, "refused": nobody listened."""
    latencies: list[float] = field(default_factory=list)
    """Seconds of those that were answered with 200."""
    seconds: float = 0.0

    @property
    def per_second(self) -> float:
        """Answers with 200 a second."""
        return self.statuses[200] / self.seconds

    def percentile(self, share: float) -> float:
        """Latency in ms."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")

    def summary(self) -> dict[str, Any]:
        """Return the figures for a result."""
        return {
            "statuses": {str(status): count for status, count in sorted(self.statuses.items(), key=str)},
            "seconds": self.seconds,
            "answered_per_s": self.per_second,
            "p50_ms": self.percentile(0.5),
            "p99_ms": self.percentile(0.99),
            "p999_ms": self.percentile(0.999),
        }


class _Connection(asyncio.Protocol):
    """One request at a time over a connection that is kept."""

    def __init__(self) -> None:
        self._waiting: asyncio.Future[Any] | None = None
        self._received, self._wanted, self._status = bytearray(), -1, 0
        self.open = True

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def ask(self, request: bytes) -> asyncio.Future[Any]:
        """Send a request; the result is its status, or "lost"."""
        self._received.clear()
        self._wanted = -1
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._waiting

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._wanted < 0 and (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[:end]).lower()
            self._status = int(head[9:12])
            length = re.search(rb"content-length: (\d+)", head)
            self._wanted = end + 4 + int(length[1] if length else 0)
            self.open = b"connection: close" not in head
        if 0 <= self._wanted <= len(self._received):
            self._finish(self._status)

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        self._finish("lost")

    def _finish(self, outcome: Any) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(outcome)

    def close(self) -> None:
        self._transport.close()


async def _connect(address: tuple[str, int]) -> _Connection:
    _, connection = await asyncio.get_running_loop().create_connection(_Connection, *address)
    return connection


async def closed_loop(address: tuple[str, int], requests: Sequence[bytes], connections: int, seconds: float) -> Seen:
    """Ask over so many connections, each as soon as it has its answer; a connection that is closed is made anew."""
    seen, begin = Seen(), time.perf_counter()
    end = begin + seconds

    async def ask(first: int) -> None:
        connection = await _connect(address)
        at = first
        while time.perf_counter() < end:
            try:
                connection = connection if connection.open else await _connect(address)
            except OSError:
                seen.statuses["refused"] += 1
                return
            start = time.perf_counter()
            status = await connection.ask(requests[at % len(requests)])
            seen.statuses[status] += 1
            if status == 200:
                seen.latencies.append(time.perf_counter() - start)
            at += connections
        connection.close()

    await asyncio.gather(*(ask(first) for first in range(connections)))
    seen.seconds = time.perf_counter() - begin
    return seen


async def open_loop(
    address: tuple[str, int], requests: Sequence[bytes], rate: float, seconds: float, most: int = 256
) -> Seen:
    """Ask so many times a second at even distances, whatever the answers; latencies count from when it was due.

    Parameters
    ----------
    most : connections; what is due while all are busy waits, and its wait counts
    """
    seen, idle, tasks = Seen(), deque([await _connect(address) for _ in range(16)]), set()
    made, due = len(idle), deque[float]()
    begin = time.perf_counter()

    async def ask(at: int, start: float, connection: _Connection) -> None:
        status = await connection.ask(requests[at % len(requests)])
        seen.statuses[status] += 1
        if status == 200:
            seen.latencies.append(time.perf_counter() - start)
        idle.append(connection if connection.open else await _connect(address))

    sent, total = 0, int(rate * seconds)
    planned = 0
    while sent < total:
        now = time.perf_counter() - begin
        while planned < total and planned / rate <= now:
            due.append(begin + planned / rate)
            planned += 1
        while due and (idle or made < most):
            if not idle:
                idle.append(await _connect(address))
                made += 1
            task = asyncio.ensure_future(ask(sent, due.popleft(), idle.popleft()))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
        await asyncio.sleep(max(0.0, begin + planned / rate - time.perf_counter()) if planned < total else 0.001)
    await asyncio.gather(*tasks)
    seen.seconds = time.perf_counter() - begin
    for connection in idle:
        connection.close()
    return seen
