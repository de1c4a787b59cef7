"""An S3-compatible store on loopback (moto's server), in this process, that can be told to kill who writes to it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

BUCKET = "bucket"


class Store:
    """A store with one bucket.

    `kill_at` = k: the process `victim` dies when it sends its k-th request that changes something, which then counts
    (`kill_after` true) or does not.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self.url = ""
        self.victim: Callable[[], int] | None = None
        self.kill_at, self.kill_after = 0, True
        self.changes = 0
        self.read = 0
        """Bytes of objects that were sent."""

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("PUT", "POST", "DELETE"):
            self.changes += 1
            if self.victim is not None and self.changes >= self.kill_at:
                body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                os.kill(self.victim(), signal.SIGKILL)
                if self.changes > self.kill_at or not self.kill_after:
                    start("503 Slow Down", [])
                    return [b""]
                import io

                environ["wsgi.input"] = io.BytesIO(body)
        answer = list(self._app(environ, start))
        if environ["REQUEST_METHOD"] == "GET":
            self.read += sum(map(len, answer))
        return answer

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which a process finds the store, and looks nowhere else for credentials."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }


@contextmanager
def serving() -> Iterator[Store]:
    """Serve a store for the time of a `with` block."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    store = Store(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, store, threaded=True)
    store.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
