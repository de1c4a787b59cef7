"""Refusals: every one is a status and {"error": "<sentence>"}."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from vqdistill.errors import InvalidInput, SearchTimeout, ShardsLost, VqdistillError

_log = logging.getLogger(__name__)
_SHOWN = 60
"""Characters of a value that a message shows."""


class Problem(Exception):
    """A request that is refused, and why."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """Return what the client gets."""
        return JSONResponse({"error": self.sentence}, self.status, self.headers)


_EXPECTED = (Problem, VqdistillError, ValidationError, RequestValidationError, HTTPException)
"""What has an answer of its own; anything else is a defect."""


def sentence_of(error: ValidationError | RequestValidationError) -> str:
    """Return the first finding of a validation as a sentence."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path")) or "the body"
    message = first["msg"].removeprefix("Value error, ")
    value = "" if first["type"] in ("missing", "json_invalid") else f", got {_show(first.get('input'))}"
    return f"{place}: {message[:1].lower()}{message[1:]}{value}"


def problem_of(error: Exception) -> Problem:
    """Return how an exception is answered."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, SearchTimeout):
        return Problem(HTTPStatus.GATEWAY_TIMEOUT, str(error))
    if isinstance(error, ShardsLost):
        return Problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), {"Retry-After": "1"})
    if isinstance(error, InvalidInput):
        return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
    if isinstance(error, (ValidationError, RequestValidationError)):
        return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, sentence_of(error))
    if isinstance(error, HTTPException):
        status = HTTPStatus(error.status_code)
        said = {404: "there is nothing at this path", 405: "the path does not take this method"}
        return Problem(status, said.get(status, status.phrase.lower()), error.headers)
    _log.error("request failed", exc_info=error)
    # What is wrong with files of this machine is for its log.
    shown = "the index cannot be read" if isinstance(error, VqdistillError) else "the server failed"
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, f"{shown}; its log says why")


def answer_problems(app: FastAPI) -> None:
    """Have every exception answered in the same shape."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return problem_of(error).response()

    for kind in _EXPECTED:
        app.add_exception_handler(kind, answer)


async def fail(request: Request, error: Exception) -> JSONResponse:
    """Answer what nobody expected; the framework raises it again, and the log has its traceback."""
    return JSONResponse({"error": "the server failed; its log says why"}, HTTPStatus.INTERNAL_SERVER_ERROR)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
