"""From the bytes of a request to a search: JSON, msgpack or npy, none of them trusted."""

from __future__ import annotations

import asyncio
import io
import math
import sys
import tokenize
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import anyio
import numpy as np
import numpy.typing as npt
from pydantic_core import from_json
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from vqdistill.errors import InvalidInput
from vqdistill.server.config import Limits
from vqdistill.server.models import SearchOptions, SearchRequest
from vqdistill.server.problems import Problem
from vqdistill.wire import JSON, MSGPACK, NPY, unpack, unpack_array

_NPY_VERSIONS = {(1, 0): (2, np.lib.format.read_array_header_1_0), (2, 0): (4, np.lib.format.read_array_header_2_0)}
"""Bytes of the header's length, and what reads both."""
_MAGIC = np.lib.format.MAGIC_LEN
_BROKEN = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, EOFError, tokenize.TokenError, Warning)
_MAX_LISTS = 1 << 16
"""Arrays and objects of a JSON body: each takes fifty times as much memory as it takes bytes to ask for one."""
_MAX_ID_BYTES = 64 << 20
_MAX_SIDE = 1 << 31
_MAX_DIGITS = 18


if sys.version_info >= (3, 11):
    _within = asyncio.timeout  # a quarter of what that of anyio takes
else:

    @asynccontextmanager
    async def _within(seconds: float) -> AsyncIterator[None]:
        with anyio.fail_after(seconds):
            yield


@dataclass(frozen=True)
class Asked:
    """What a search request asks."""

    options: dict[str, Any]
    """Of `Searcher.search`."""
    queries: Any = None
    """Array-like; None = the rows of `ids` are the queries."""
    ids: Any = None
    allow: Any = None

    @property
    def plain(self) -> bool:
        """Whether the index need not be looked at to know what is asked."""
        return self.ids is None and self.allow is None


def headers_of(scope: Scope) -> dict[str, str]:
    """Return the headers of a request by their names in lower case; of several with one name, the first."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}


async def read_body(receive: Receive, headers: Mapping[str, str], limits: Limits) -> bytes:
    """Read a body, never holding more of it than allowed.

    Parameters
    ----------
    headers : of the request, see `headers_of`

    Raises
    ------
    Problem
        If it is too long (413), encoded (415), not there in time (408) or broken off (400).
    """
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body must not be encoded, got {encoding[:60]!r}")
    declared = headers.get("content-length", "0")
    if not declared.isdecimal() or len(declared) > _MAX_DIGITS or int(declared) > limits.max_body_bytes:
        raise _too_long(limits)
    try:
        async with _within(limits.timeout_s):
            return await _collect(receive, limits)
    except TimeoutError:
        sentence = f"the body must arrive within {limits.timeout_s:g} s"
        raise Problem(HTTPStatus.REQUEST_TIMEOUT, sentence, {"Connection": "close"}) from None
    except ClientDisconnect:
        raise Problem(HTTPStatus.BAD_REQUEST, "the body must be whole, but the connection ended") from None


async def _collect(receive: Receive, limits: Limits) -> bytes:
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limits.max_body_bytes:
            raise _too_long(limits)
        more = message.get("more_body", False)
    return b"".join(chunks)


def _too_long(limits: Limits) -> Problem:
    sentence = f"the body must have at most {limits.max_body_bytes} bytes, the limit of this server, got more"
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, sentence, {"Connection": "close"})


def media_type(header: str | None) -> str:
    """Return the type that a Content-Type header names, in lower case."""
    return (header or "").partition(";")[0].strip().lower()


def parse_search(content_type: str | None, body: bytes, query_string: bytes, limits: Limits) -> Asked:
    """Read a search request; options of an npy body stand in the query string.

    Raises
    ------
    Problem
        If it is none (400, 415), or asks what it must not (422).
    """
    kind = media_type(content_type)
    if kind == NPY:
        asked = Asked(bounded(_options_of(query_string), limits), parse_npy(body))
    else:
        asked = _of_message(SearchRequest.model_validate(parse_message(kind, body, query_string)), limits)
    wanted = asked.ids if asked.queries is None else asked.queries
    if asked.queries is None or _is_matrix(wanted):
        _require_batch(len(wanted), limits)
    return asked


@lru_cache(maxsize=64)
def _options_of(query_string: bytes) -> SearchOptions:
    return SearchOptions.model_validate_strings(dict(QueryParams(query_string)))


def parse_message(kind: str, body: bytes, query_string: bytes) -> Any:
    """Read a body of JSON or msgpack.

    Raises
    ------
    Problem
        If it is neither (415), or broken (400).
    """
    if kind not in (JSON, MSGPACK):
        wanted = f"{JSON}, {MSGPACK} or, for a search, {NPY}"
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the content type must be {wanted}, got {kind[:60]!r}")
    if query_string:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"options of a body of {kind} stand in it, not in the URL")
    try:
        return unpack(body) if kind == MSGPACK else _from_json(body)
    except InvalidInput as error:
        raise Problem(HTTPStatus.BAD_REQUEST, str(error)) from None


def _from_json(body: bytes) -> Any:
    if body.count(b"[") + body.count(b"{") > _MAX_LISTS:
        raise InvalidInput(f"the body must have at most {_MAX_LISTS} arrays and objects, got more")
    try:
        return from_json(body, allow_inf_nan=True)
    except ValueError as error:
        raise InvalidInput(f"the body must be JSON, got {len(body)} bytes: {error}") from None


def _of_message(request: SearchRequest, limits: Limits) -> Asked:
    if (request.queries is None) == (request.ids is None):
        got = "neither" if request.queries is None else "both"
        raise InvalidInput(f"a search must have either queries or ids, got {got}")
    return Asked(
        bounded(request, limits),
        queries=as_array(request.queries, "queries"),
        ids=None if request.ids is None else as_ids(request.ids, "ids"),
        allow=None if request.allow is None else as_ids(request.allow, "allow"),
    )


def as_array(value: Any, name: str) -> Any:
    """Return the array that a map of msgpack stands for, or what else was given."""
    return unpack_array(value, name) if isinstance(value, dict) else value


def as_ids(value: Any, name: str) -> npt.NDArray[Any]:
    """Return external ids as an array (b,) of int64 or str; whether they fit the index is its own matter.

    Raises
    ------
    InvalidInput
        If they are no list of integers or of strings, or so long that an array of them takes too much memory.
    """
    if isinstance(value, dict):
        array = unpack_array(value, name, "iuU")
        if array.ndim != 1:
            raise InvalidInput(f"{name} must be one-dimensional, got {array.shape}")
        return array
    kinds = set(map(type, value)) if isinstance(value, list) else {type(value)}
    if not isinstance(value, list) or kinds not in ({int}, {str}, set()):
        got = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise InvalidInput(f"{name} must be a list of integers or of strings, got {got}")
    if kinds == {str} and (size := 4 * len(value) * max(map(len, value))) > _MAX_ID_BYTES:
        raise InvalidInput(f"{name} must take at most {_MAX_ID_BYTES} bytes as an array of UTF-32, got {size}")
    try:
        return np.array(value, np.str_ if kinds == {str} else np.int64)
    except OverflowError:
        raise InvalidInput(f"{name} must be integers of 64 bits, got a larger one") from None


def parse_npy(body: bytes) -> npt.NDArray[Any]:
    """Read vectors from the bytes of an .npy file, sharing their memory.

    Raises
    ------
    Problem
        If they are none: no pickle, no other order than C, no bytes but those of the shape.
    """
    try:
        wide, _ = _NPY_VERSIONS[body[_MAGIC - 2], body[_MAGIC - 1]]
        start = _MAGIC + wide + int.from_bytes(body[_MAGIC : _MAGIC + wide], "little")
        shape, fortran, dtype = _npy_header(body[:start])
    except (LookupError, *_BROKEN):
        sentence = f"the body must be an .npy file of version 1 or 2, got {len(body)} bytes without its header"
        raise Problem(HTTPStatus.BAD_REQUEST, sentence) from None
    if dtype.kind not in "fiu" or dtype.itemsize > 8 or not dtype.isnative:
        raise InvalidInput(f"queries must be little-endian real numbers of at most 8 bytes, got {str(dtype)[:60]}")
    if fortran and len(shape) > 1:
        raise InvalidInput("queries must be in C order, got Fortran order; save np.ascontiguousarray(queries)")
    sides = 1 <= len(shape) <= 2 and all(0 <= side < _MAX_SIDE for side in shape)
    if not sides or math.prod(shape) * dtype.itemsize != len(body) - start:
        got = f"{str(shape)[:60]} {dtype} with {len(body) - start} bytes behind the header"
        raise InvalidInput(f"queries must be one or two-dimensional and hold the bytes of their shape, got {got}")
    return np.frombuffer(body, dtype, offset=start).reshape(shape)


@lru_cache(maxsize=64)
def _npy_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the bytes before the data of an .npy file; requests of a client mostly have the same ones."""
    file = io.BytesIO(head)
    _, read = _NPY_VERSIONS[np.lib.format.read_magic(file)]
    return read(file)


def bounded(options: SearchOptions, limits: Limits) -> dict[str, Any]:
    """Return the options of a search, within the limits.

    Raises
    ------
    InvalidInput
        If k is above its limit.
    """
    if options.k > limits.max_k:
        raise InvalidInput(f"k must be at most {limits.max_k}, the limit of this server, got {options.k}")
    return options.given


def _require_batch(count: int, limits: Limits) -> None:
    if not 1 <= count <= limits.max_batch:
        raise InvalidInput(f"queries must be 1 to {limits.max_batch}, the limit of this server, got {count}")


def _is_matrix(queries: Any) -> bool:
    if isinstance(queries, np.ndarray):
        return queries.ndim == 2
    return isinstance(queries, list) and (not queries or isinstance(queries[0], list))
