"""The paths of the server."""

from __future__ import annotations

from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from vqdistill.errors import InvalidInput
from vqdistill.server import models
from vqdistill.server.answers import accepted
from vqdistill.server.bodies import as_array, as_ids, bounded, headers_of, media_type, parse_message, read_body
from vqdistill.server.config import NAME
from vqdistill.server.info import describe, summarize
from vqdistill.server.metrics import CONTENT_TYPE
from vqdistill.server.problems import Problem, problem_of
from vqdistill.server.searches import Question
from vqdistill.server.service import Service
from vqdistill.wire import JSON, MSGPACK, NPY

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_STATUS = {
    400: "The body is broken.",
    401: "The API key is missing or another.",
    404: "There is no such index.",
    405: "The path does not take this method.",
    406: "None of the representations is accepted.",
    408: "The body did not arrive in time.",
    413: "The body is too long.",
    415: "The content type is none of those above.",
    422: "A value is not usable; the sentence says which, what was got and what wanted.",
    429: "The server is full; Retry-After says when to come again.",
    500: "The server failed.",
    503: "The server is starting or stopping, or shards of the index are lost for the moment.",
    504: "The search took too long.",
}
_BODY = (400, 406, 408, 413, 415, 422, 429, 503, 504)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the refusals of a path for OpenAPI; every path may refuse the key."""
    wanted = sorted({401, 500, *statuses})
    return {status: {"model": models.Error, "description": _STATUS[status]} for status in wanted}


def _body_of(model: type[models.SearchOptions], npy: bool) -> dict[str, Any]:
    schema = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
    content = {JSON: schema, MSGPACK: _BINARY} | ({NPY: _BINARY} if npy else {})
    return {"requestBody": {"required": True, "content": content}}


def _service(request: Request) -> Service:
    service: Service = request.scope["state"]["service"]
    return service


Name = Annotated[str, Path(pattern=NAME, description="Name of a served index.")]
api = APIRouter(prefix="/v1", tags=["indexes"])
around = APIRouter(tags=["server"])


@api.get("/indexes", response_model=models.IndexList, responses=errors(), summary="List the served indexes")
async def list_indexes(request: Request) -> Any:
    """All indexes, by name."""
    service = _service(request)
    return {"indexes": [summarize(name, searcher.reader) for name, searcher in sorted(service.indexes.items())]}


@api.get(
    "/indexes/{name}", response_model=models.IndexInfo, responses=errors(404, 422), summary="Tell what an index is"
)
async def show_index(name: Name, request: Request) -> Any:
    """Shape, bytes, generation, default search and the certificate's ladder."""
    return describe(name, _service(request).index(name).reader)


@api.post(
    "/indexes/{name}/search",
    response_class=Response,
    summary="Search with one query or many",
    responses=errors(404, *_BODY)
    | {
        200: {
            "description": "Results, best first, in the representation that Accept asks for.",
            "content": {
                JSON: {"schema": {"$ref": "#/components/schemas/SearchResponse"}},
                MSGPACK: _BINARY,
                NPY: _BINARY,
            },
        }
    },
    openapi_extra=_body_of(models.SearchRequest, npy=True),
)
async def search(name: Name, request: Request) -> Response:
    """Queries are vectors, or rows of the index by id.

    An .npy body holds the vectors alone, and the options stand in the URL: `?k=10&recall=0.95`. In a msgpack body an
    array may be a map of dtype ("<f4"), shape and data.
    """
    service = _service(request)
    service.index(name)
    headers = headers_of(request.scope)
    kind, content_type = accepted(headers.get("accept")), headers.get("content-type")
    with service.places:
        body = await read_body(request.receive, headers, service.limits)
        return await service.searches.ask(Question(name, content_type, request.scope["query_string"], body, kind))


class DirectSearch:
    """Answers `search` in front of the framework, of whose parameters and response models it uses none.

    They take as long as half of what else a request with one query costs. The route above describes the path.
    """

    path = f"{api.prefix}/indexes/{{name}}/search"
    """as what observes requests knows it"""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._matches = compile_path(self.path)[0].match

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a search, and pass on what is none."""
        asks = scope["type"] == "http" and scope["method"] == "POST"
        found = self._matches(scope["path"]) if asks else None
        if found is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = self
        try:
            response = await search(found["name"], Request(scope, receive))
        except Exception as error:  # also what nobody expected: no framework is around this
            response = problem_of(error).response()
        await response(scope, receive, send)


@api.post(
    "/indexes/{name}/explain",
    response_model=models.ExplainResponse,
    responses=errors(404, *_BODY),
    openapi_extra=_body_of(models.ExplainRequest, npy=False),
    summary="Tell where expected results are lost",
)
async def explain(name: Name, request: Request) -> Any:
    """For each expected id whether a search finds it, and if not, at which stage it is lost."""
    service = _service(request)
    searcher, headers = service.index(name), headers_of(request.scope)
    content_type = headers.get("content-type")
    with service.places:
        body = await read_body(request.receive, headers, service.limits)

        def answer(timeout_s: float) -> Any:
            message = parse_message(media_type(content_type), body, request.scope["query_string"])
            asked = models.ExplainRequest.model_validate(message)
            ids, options = as_ids(asked.expected_ids, "expected_ids"), bounded(asked, service.limits)
            if len(ids) > service.limits.max_k:
                most = service.limits.max_k
                raise InvalidInput(f"expected_ids must be at most {most}, the limit of this server, got {len(ids)}")
            query = as_array(asked.query, "query")
            fates = searcher.explain(query, ids, timeout_s=timeout_s, **options)
            return {"fates": [asdict(fate) | {"id": fate.id.item()} for fate in fates]}

        return await service.run(answer)


@api.post(
    "/indexes/{name}/refresh",
    response_model=models.Refreshed,
    responses=errors(404, 422),
    summary="Look for a new generation now",
)
async def refresh(name: Name, request: Request) -> Any:
    """Serve what was published last from now on. Of several workers one is asked; the others look soon."""
    service = _service(request)
    changed = await service.refresh(name)
    return {"changed": changed, "generation": service.index(name).reader.manifest.generation}


@around.get("/health", response_model=models.State, responses=errors(), summary="Whether the process is alive")
async def health() -> Any:
    """Always "alive"."""
    return {"status": "alive"}


@around.get("/ready", response_model=models.State, responses=errors(503), summary="Whether requests may come")
async def ready(request: Request) -> Any:
    """Whether the indexes can be searched and the server does not stop."""
    if _service(request).stopping:
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "the server is stopping", {"Retry-After": "1"})
    if lost := _service(request).lost:
        sentence = f"parts of {', '.join(lost)} are lost for the moment"
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, sentence, {"Retry-After": "1"})
    return {"status": "ready"}


@around.get(
    "/metrics",
    response_class=Response,
    summary="Metrics for Prometheus",
    responses=errors() | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Metrics of all workers in Prometheus' text format."""
    service = _service(request)
    service.books.settle()
    service.metrics.measure_process()
    return Response(service.metrics.render(), headers={"Content-Type": CONTENT_TYPE})
