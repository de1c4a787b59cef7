"""The application: routes, middleware and the life of the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.types import ASGIApp

from vqdistill.server import models
from vqdistill.server.config import ServerConfig
from vqdistill.server.console import console
from vqdistill.server.middleware import Observe, RefuseWhenFull, RequireKey
from vqdistill.server.problems import answer_problems, fail
from vqdistill.server.routes import DirectSearch, api, around
from vqdistill.server.service import Opener, Service


@dataclass(frozen=True)
class AppFactory:
    """Makes the application of a process; workers get the factory, and open the indexes themselves."""

    config: ServerConfig
    opener: Opener | None = None

    def __call__(self) -> ASGIApp:
        """Open the indexes and return the application that serves them."""
        return create_app(Service(self.config, self.opener))


def create_app(service: Service) -> ASGIApp:
    """Return the ASGI application of a service, which it closes at its end."""
    app = _framework(service)
    # Around the framework, not in it: searches then pass none of its frames.
    return Observe(RequireKey(RefuseWhenFull(DirectSearch(app), service), service), service)


def _framework(service: Service) -> FastAPI:

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        with service.loop_core.kept():
            watching = asyncio.create_task(service.watch())
            try:
                yield {"service": service}
            finally:
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching
                await asyncio.to_thread(service.close)

    # The pages that show the description load scripts from elsewhere, so there are none.
    app = FastAPI(
        title="vqdistill",
        version=version("vqdistill"),
        summary="Search of compact vector indexes.",
        docs_url=None,
        redoc_url=None,
        lifespan=life,
        exception_handlers={Exception: fail},
        redirect_slashes=False,
    )
    for router in (api, around, console):
        app.include_router(router)
    answer_problems(app)
    app.openapi = lambda: _describe(app, service.config.api_key is not None)  # type: ignore[method-assign]
    return app


def _describe(app: FastAPI, key: bool) -> dict[str, Any]:
    """Return the OpenAPI description, with the bodies that routes read themselves."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        bodies = (models.SearchRequest, models.ExplainRequest, models.SearchResponse)
        template = "#/components/schemas/{model}"
        _, found = models_json_schema([(model, "validation") for model in bodies], ref_template=template)
        schema["components"]["schemas"] |= found["$defs"]
        if key:
            schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, methods in schema["paths"].items():
                for operation in methods.values() if path.startswith("/v1") or path == "/metrics" else ():
                    operation["security"] = [{"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema
