"""What happens around every request: its key is checked, it is counted and logged."""

from __future__ import annotations

import hmac
import time
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vqdistill.server.logs import log_request
from vqdistill.server.problems import Problem
from vqdistill.server.service import Service

_KEYLESS = ("/", "/health", "/ready", "/openapi.json")
"""Paths that need no key: they tell nothing of an index."""

_PLACED = ("/search", "/explain")
"""Ends of the paths whose requests take a place."""


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
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                if self._service.stopping:
                    headers["Connection"] = "close"
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            self._note(scope, status, sent, time.perf_counter() - begin)

    def _note(self, scope: Scope, status: int, sent: int, seconds: float) -> None:
        # Paths that lead nowhere are the client's invention, and must not each become a time series.
        endpoint = getattr(scope.get("route"), "path", "other")
        self._service.metrics.answered(endpoint, status, seconds)
        if self._service.config.access_log:
            client = scope.get("client")
            line = {
                "client": client[0] if client else None,
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(1000 * seconds, 3),
                "bytes": sent,
            }
            log_request(line)


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
        if wants_place and self._service.full:
            await self._service.refusal().response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _brings(headers: Headers, key: str) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode())
