"""Servers for tests: an application in this process, and processes that are stopped whatever happens."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from vqdistill.server.app import create_app
from vqdistill.server.config import ServerConfig
from vqdistill.server.service import Opener, Service

_PATIENCE_S = 60


class Local:
    """An application that is asked without a network; opens its indexes at once."""

    def __init__(self, indexes: dict[str, Path], opener: Opener | None = None, **options: Any) -> None:
        self.service = Service(ServerConfig(indexes=indexes, **options), opener)
        self._app = create_app(self.service)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Be the application, with the state that a server brings along; its life ends with the test's fixture."""
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        await self._app({**scope, "state": {"service": self.service}}, receive, send)

    @property
    def transport(self) -> httpx.ASGITransport:
        return httpx.ASGITransport(app=self, raise_app_exceptions=False)

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            async with httpx.AsyncClient(transport=self.transport, base_url="http://local") as client:
                return await client.request(method, path, **options)

        return asyncio.run(call())

    def search(self, name: str, message: Any, **options: Any) -> httpx.Response:
        return self.ask("POST", f"/v1/indexes/{name}/search", json=message, **options)

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of a metric, 0 where it was never counted."""
        wanted = re.escape(name) + (re.escape("{" + ",".join(f'{k}="{v}"' for k, v in labels.items()) + "}"))
        found = re.search(rf"^{wanted} (\S+)$", self.ask("GET", "/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0


class Process:
    """`vqdistill serve` on a free port of the loopback interface."""

    def __init__(self, *arguments: Any, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "vqdistill", "serve", *map(str, arguments), "--port", "0"]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | (env or {}))
        self.lines: list[dict[str, Any]] = []
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.url = ""
        if not self._listening.wait(_PATIENCE_S) or not self.lines:
            raise AssertionError(f"the server did not start: {self.lines}")
        self.url = next(found[1] for line in self.lines if (found := re.search(r"at (http://\S+)", line["message"])))
        # The socket listens already: what is asked now is answered when the indexes are open.
        assert httpx.get(f"{self.url}/ready", timeout=_PATIENCE_S).status_code == 200

    def _read(self) -> None:
        assert self._process.stderr is not None
        for text in self._process.stderr:
            self.lines.append(json.loads(text) if text.startswith("{") else {"message": text.rstrip("\n")})
            if " at http://" in self.lines[-1].get("message", ""):
                self._listening.set()
        self._listening.set()

    @property
    def pid(self) -> int:
        return self._process.pid

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Return the exit code, once all that it logged is in `lines`."""
        code = self._process.wait(_PATIENCE_S)
        self._reader.join(_PATIENCE_S)
        return code

    def kill(self) -> None:
        if self._process.poll() is None:
            self.terminate()
            try:
                self._process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(_PATIENCE_S)
        assert self._process.stderr is not None
        self._process.stderr.close()


@contextmanager
def process(*arguments: Any, env: dict[str, str] | None = None) -> Iterator[Process]:
    """Run a server until the end of the block."""
    server = Process(*arguments, env=env)
    try:
        yield server
    finally:
        server.kill()
