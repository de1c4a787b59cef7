"""What happens around every request: its key is checked, it is counted and logged."""

from __future__ import annotations

import hmac
import time
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vqdistill.server.logs import access_line
from vqdistill.server.problems import Problem
from vqdistill.server.service import Service

_KEYLESS = ("/", "/health", "/ready", "/openapi.json")
"""Paths that need no key: they tell nothing of an index."""

_PLACED = ("/search", "/explain")
"""Ends of the paths whose requests take a place."""
_NO_SNIFF, _CLOSE = (b"x-content-type-options", b"nosniff"), (b"connection", b"close")


class Observe:
    """Measures and logs requests; while the server stops, has connections end with their response."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status, sent = time.perf_counter(), 500, 0

        async def observed(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                more = (_NO_SNIFF, _CLOSE) if self._service.stopping else (_NO_SNIFF,)
                message["headers"] = [*message.get("headers", ()), *more]
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            self._service.books.note(self._book, scope, status, sent, time.time(), time.perf_counter() - begin)

    def _book(self, scope: Scope, status: int, sent: int, ended: float, seconds: float) -> str | None:
        # Paths that lead nowhere are the client's invention, and must not each become a time series.
        endpoint = getattr(scope.get("route"), "path", "other")
        self._service.metrics.answered(endpoint, status, seconds)
        if not self._service.config.access_log:
            return None
        client = scope.get("client")
        line = {
            "client": client[0] if client else None,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "ms": round(1000 * seconds, 3),
            "bytes": sent,
        }
        return access_line(ended, line)


class RequireKey:
    """Refuses requests without the API key; every way of comparing takes as long as another."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        key = self._service.config.api_key
        if scope["type"] != "http" or key is None or scope["path"] in _KEYLESS or _brings(Headers(scope=scope), key):
            await self._app(scope, receive, send)
            return
        self._service.metrics.refused.labels("key").inc()
        sentence = "the request must bring the API key, as Authorization: Bearer KEY, got none or another"
        headers = {"WWW-Authenticate": "Bearer"}
        await Problem(HTTPStatus.UNAUTHORIZED, sentence, headers).response()(scope, receive, send)


class RefuseWhenFull:
    """Refuses what finds no place before it costs anything; the place itself is taken by the route."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        wants_place = scope["type"] == "http" and scope["method"] == "POST" and scope["path"].endswith(_PLACED)
        if wants_place and self._service.places.full:
            await self._service.refusal().response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _brings(headers: Headers, key: str) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode())
