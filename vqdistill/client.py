"""Client and AsyncClient: search an index that a server has open, as if it were open here."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import quote

try:
    import httpx

    from vqdistill.wire import JSON, MSGPACK, pack, pack_array, unpack_hits
except ModuleNotFoundError as error:
    from vqdistill.errors import MissingDependency

    raise MissingDependency(f"the client needs {error.name}: pip install 'vqdistill[client]'") from None
import numpy as np

from vqdistill.errors import InvalidInput, SearchTimeout, ServerUnavailable, VqdistillError
from vqdistill.types import Hits, as_f32_rows

_BUSY = (429, 503)
_FIRST_WAIT_S = 0.1


@dataclass(frozen=True)
class _Call:
    """A request, and how often it may be repeated."""

    method: str
    path: str
    content: bytes | None = None
    accept: str = JSON

    @property
    def headers(self) -> dict[str, str]:
        kind = MSGPACK if self.accept == MSGPACK else JSON
        return {"Accept": self.accept} | ({} if self.content is None else {"Content-Type": kind})


class _Client:
    """What both clients share: how requests are written, and responses read."""

    def __init__(
        self,
        url: str,
        index: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 4,
        max_wait_s: float = 10.0,
    ) -> None:
        self._url = url.rstrip("/")
        self._path = f"/v1/indexes/{quote(index, safe='')}"
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._timeout_s = timeout_s
        self._retries = retries
        self._max_wait_s = max_wait_s

    def _search_call(self, queries: Any, ids: Any, allow: Any, options: Mapping[str, Any]) -> _Call:
        message = _plain(options)
        if ids is None:
            message["queries"] = pack_array(_rows(queries))
        else:
            message["ids"] = _ids(ids, "ids")
        if allow is not None:
            message["allow"] = _ids(allow, "allow")
        return _Call("POST", f"{self._path}/search", pack(message), MSGPACK)

    def _explain_call(self, query: Any, expected_ids: Any, options: Mapping[str, Any]) -> _Call:
        rows = _rows(query)
        if len(rows) != 1:
            raise InvalidInput(f"query must be one, got {len(rows)}")
        wanted = np.asarray(expected_ids).tolist()
        message = _plain(options) | {"query": rows[0].tolist(), "expected_ids": wanted}
        return _Call("POST", f"{self._path}/explain", json.dumps(message).encode())

    def _wait_s(self, outcome: httpx.Response | httpx.TransportError, attempt: int, waited_s: float) -> float | None:
        """Seconds until the request is repeated; None = it is not. No request changes anything but what is served."""
        if attempt >= self._retries or isinstance(outcome, httpx.TimeoutException):
            return None
        asked = ""
        if isinstance(outcome, httpx.Response):
            if outcome.status_code not in _BUSY:
                return None
            asked = outcome.headers.get("retry-after", "")
        # Each client waits a little longer than asked, and another time, so that they do not come back together.
        spread = 1 + 0.25 * (time.monotonic_ns() % 1000) / 1000
        wait = (float(asked) if asked.isdecimal() else _FIRST_WAIT_S * 2**attempt) * spread
        return wait if waited_s + wait <= self._max_wait_s else None

    def _checked(self, outcome: httpx.Response | httpx.TransportError) -> httpx.Response:
        """Return a response that is one; raise what a refusal stands for."""
        if isinstance(outcome, httpx.TimeoutException):
            raise SearchTimeout(f"{self._url} did not answer within {self._timeout_s:g} s") from outcome
        if isinstance(outcome, httpx.TransportError):
            raise ServerUnavailable(f"{self._url} cannot be reached: {outcome}") from outcome
        if outcome.status_code == 200:
            return outcome
        try:
            sentence = str(outcome.json()["error"])
        except (ValueError, KeyError, TypeError):
            sentence = f"{self._url} must be a vqdistill server, but answered {outcome.status_code} without its error"
        raise _error_of(outcome.status_code)(sentence)


class Client(_Client):
    """Searches one index of a server; safe under concurrent use by threads.

    Parameters
    ----------
    url : of the server, such as "http://127.0.0.1:8080"
    index : name of the index there
    api_key : what the server asks for; None = nothing
    timeout_s : seconds to wait for a connection, and for each part of a response
    retries : repetitions of a request that the server is too busy for (429, 503), after as long as it says, or whose
        connection fails
    max_wait_s : seconds that these may wait together
    transport : of httpx, such as `httpx.HTTPTransport(uds=...)`; None = its default
    """

    def __init__(self, url: str, index: str, *, transport: httpx.BaseTransport | None = None, **options: Any) -> None:
        super().__init__(url, index, **options)
        self._http = httpx.Client(
            base_url=self._url, headers=self._headers, timeout=self._timeout_s, transport=transport
        )

    def search(self, queries: Any, k: int = 10, *, allow: Any = None, **options: Any) -> Hits:
        """Find the k rows most similar to each query; as `Searcher.search`.

        Parameters
        ----------
        queries : (q, d) or (d,), any real dtype
        allow : external ids that may be found; None = all
        options : nprobe, coverage, refine, confidence, recall

        Raises
        ------
        InvalidInput
            If the server refuses the request; the message is its sentence.
        SearchTimeout
            If the search takes longer than the server or `timeout_s` allow.
        ServerUnavailable
            If it cannot be reached, or stays too busy.
        """
        return unpack_hits(self._call(self._search_call(queries, None, allow, {"k": k, **options})).content)

    def search_ids(self, ids: Any, k: int = 10, *, allow: Any = None, **options: Any) -> Hits:
        """Find the k rows most similar to each stored row, by external ids (b,); otherwise as `search`."""
        return unpack_hits(self._call(self._search_call(None, ids, allow, {"k": k, **options})).content)

    def explain(self, query: Any, expected_ids: Any, k: int = 10, **options: Any) -> list[dict[str, Any]]:
        """Tell for each expected id whether a search finds it, and if not, where it is lost; raises as `search`.

        Returns
        -------
        list of dict
            In the order of the ids: id, fate, list, list_rank, lists_visited, rows_read; see `Searcher.explain`.
        """
        fates: list[dict[str, Any]] = self._call(self._explain_call(query, expected_ids, {"k": k, **options})).json()[
            "fates"
        ]
        return fates

    def info(self) -> dict[str, Any]:
        """Return what the index is: shape, bytes, generation, certificate; raises as `search`."""
        return dict(self._call(_Call("GET", self._path)).json())

    def refresh(self) -> bool:
        """Have the server look for a new generation now, and tell whether there was one; raises as `search`."""
        return bool(self._call(_Call("POST", f"{self._path}/refresh")).json()["changed"])

    def indexes(self) -> list[dict[str, Any]]:
        """Return the indexes of the server, by name; raises as `search`."""
        return list(self._call(_Call("GET", "/v1/indexes")).json()["indexes"])

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, call: _Call) -> httpx.Response:
        attempt, waited_s = 0, 0.0
        while True:
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = self._http.request(call.method, call.path, content=call.content, headers=call.headers)
            except httpx.TransportError as error:
                outcome = error
            wait_s = self._wait_s(outcome, attempt, waited_s)
            if wait_s is None:
                return self._checked(outcome)
            time.sleep(wait_s)
            attempt, waited_s = attempt + 1, waited_s + wait_s


class AsyncClient(_Client):
    """Searches one index of a server without blocking the event loop; parameters and errors as `Client`."""

    def __init__(
        self, url: str, index: str, *, transport: httpx.AsyncBaseTransport | None = None, **options: Any
    ) -> None:
        super().__init__(url, index, **options)
        self._http = httpx.AsyncClient(
            base_url=self._url, headers=self._headers, timeout=self._timeout_s, transport=transport
        )

    async def search(self, queries: Any, k: int = 10, *, allow: Any = None, **options: Any) -> Hits:
        """Find the k rows most similar to each query; as `Client.search`."""
        return unpack_hits((await self._call(self._search_call(queries, None, allow, {"k": k, **options}))).content)

    async def search_ids(self, ids: Any, k: int = 10, *, allow: Any = None, **options: Any) -> Hits:
        """Find the k rows most similar to each stored row; as `Client.search_ids`."""
        return unpack_hits((await self._call(self._search_call(None, ids, allow, {"k": k, **options}))).content)

    async def explain(self, query: Any, expected_ids: Any, k: int = 10, **options: Any) -> list[dict[str, Any]]:
        """Tell where expected ids are lost; as `Client.explain`."""
        response = await self._call(self._explain_call(query, expected_ids, {"k": k, **options}))
        return list(response.json()["fates"])

    async def info(self) -> dict[str, Any]:
        """Return what the index is; as `Client.info`."""
        return dict((await self._call(_Call("GET", self._path))).json())

    async def refresh(self) -> bool:
        """Have the server look for a new generation; as `Client.refresh`."""
        return bool((await self._call(_Call("POST", f"{self._path}/refresh"))).json()["changed"])

    async def indexes(self) -> list[dict[str, Any]]:
        """Return the indexes of the server; as `Client.indexes`."""
        return list((await self._call(_Call("GET", "/v1/indexes"))).json()["indexes"])

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, call: _Call) -> httpx.Response:
        attempt, waited_s = 0, 0.0
        while True:
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = await self._http.request(call.method, call.path, content=call.content, headers=call.headers)
            except httpx.TransportError as error:
                outcome = error
            wait_s = self._wait_s(outcome, attempt, waited_s)
            if wait_s is None:
                return self._checked(outcome)
            await asyncio.sleep(wait_s)
            attempt, waited_s = attempt + 1, waited_s + wait_s


def _error_of(status: int) -> type[VqdistillError]:
    if status in _BUSY:
        return ServerUnavailable
    if status in (408, 504):
        return SearchTimeout
    return InvalidInput if 400 <= status < 500 and status != 401 else VqdistillError


def _rows(queries: Any) -> Any:
    flat = np.ndim(queries) == 1
    return as_f32_rows(queries, "queries", len(queries) if flat else None, finite=False)


def _ids(ids: Any, name: str) -> Any:
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iuU"):
        raise InvalidInput(f"{name} must be a list of integers or of strings, got {array.shape} {array.dtype}")
    return pack_array(array) if array.size and array.dtype.itemsize else []


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as msgpack and JSON take them, without those that say nothing."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in options.items()
        if value is not None
    }
