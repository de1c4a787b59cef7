"""The clients return what the open index returns, wait as long as a busy server says, and raise our exceptions."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from tests.searching import Q
from tests.server.support import Local
from tests.server.test_search import same
from vqdistill import client as client_module
from vqdistill.client import AsyncClient, Client
from vqdistill.errors import InvalidInput, SearchTimeout, ServerUnavailable, VqdistillError
from vqdistill.types import Hits
from vqdistill.wire import pack_hits, unpack_hits

URL = "http://127.0.0.1:1"
HITS = Hits(
    np.array([[0.5, -np.inf]], np.float32), np.array([["a", ""]]), np.array([[3, -1]]), np.zeros((1, 7), np.int64)
)


def through(local: Local, name: str, use: Callable[[AsyncClient], Any]) -> Any:
    async def call() -> Any:
        async with AsyncClient("http://local", name, transport=local.transport) as client:
            return await use(client)

    return asyncio.run(call())


@pytest.mark.parametrize("name", ["rows", "words"])
def test_hits_are_those_of_the_open_index(local: Local, queries: Any, name: str) -> None:
    searcher = local.service.indexes[name]
    ids = searcher.search(queries[:3], 2).ids[:, 0]
    for given in (queries, queries[0], queries.tolist(), queries.astype(np.float64), np.asfortranarray(queries)):
        hits = through(local, name, lambda client, given=given: client.search(given, np.int64(4)))
        assert same(hits, searcher.search(given, 4))
    allowed = through(local, name, lambda client: client.search(queries, 4, allow=ids, nprobe=12))
    assert same(allowed, searcher.search(queries, 4, allow=ids, nprobe=12))
    none = through(local, name, lambda client: client.search(queries, 4, allow=[]))
    assert same(none, searcher.search(queries, 4, allow=[]))
    stored = searcher.reader.dense_rows(searcher.reader.positions_of(ids))
    assert same(through(local, name, lambda client: client.search_ids(ids, 3)), searcher.search(stored, 3))


def test_everything_else_that_the_server_does(local: Local, queries: Any) -> None:
    fates = through(local, "rows", lambda client: client.explain(queries[0], np.array([1, 2]), 5))
    assert [fate["id"] for fate in fates] == [1, 2]
    assert through(local, "rows", lambda client: client.info())["rows"] == 900
    assert through(local, "rows", lambda client: client.refresh()) is False
    assert len(through(local, "rows", lambda client: client.indexes())) == 3


def test_refusals_are_our_exceptions(local: Local, queries: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^k must be at most 1000, the limit of this server, got 2000$"):
        through(local, "rows", lambda client: client.search(queries, 2000))
    with pytest.raises(InvalidInput, match=r"^name: string should match pattern .*, got 'a b'$"):
        through(local, "a b", lambda client: client.info())
    with pytest.raises(InvalidInput, match=r"^query must be one, got 37$"):
        through(local, "rows", lambda client: client.explain(queries, [1]))
    with pytest.raises(InvalidInput, match=r"^allow must be a list of integers or of strings, got \(1,\) float64$"):
        through(local, "rows", lambda client: client.search(queries, allow=[0.5]))


Answer = Callable[[httpx.Request], httpx.Response]
Ask = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Search with a client of each kind, whose server is a function; returns hits, requests and waits."""
    waits: list[float] = []

    async def nap(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(client_module.time, "sleep", waits.append)
    monkeypatch.setattr(client_module.asyncio, "sleep", nap)

    def call(answer: Answer, **options: Any) -> tuple[Hits, list[float]]:
        waits.clear()
        transport = httpx.MockTransport(answer)
        if request.param == "sync":
            with Client(URL, "a", transport=transport, **options) as client:
                return client.search([[1.0]]), waits

        async def search() -> Hits:
            async with AsyncClient(URL, "a", transport=transport, **options) as client:
                return await client.search([[1.0]])

        return asyncio.run(search()), waits

    return call


def test_a_busy_server_is_asked_again_after_as_long_as_it_says(ask: Ask) -> None:
    answers = iter([429, 503, 200])

    def answer(request: httpx.Request) -> httpx.Response:
        status = next(answers)
        return httpx.Response(status, headers={"Retry-After": "2"}, content=pack_hits(HITS) if status == 200 else b"")

    hits, waits = ask(answer)
    assert same(hits, HITS)
    assert len(waits) == 2 and all(2 <= wait <= 2.5 for wait in waits)


def test_waiting_has_an_end(ask: Ask) -> None:
    count, after = 0, ""

    def busy(request: httpx.Request) -> httpx.Response:
        nonlocal count
        count += 1
        return httpx.Response(429, headers={"Retry-After": after}, json={"error": "full"})

    for wait, options, wanted in (("0", {"retries": 3}, 4), ("4", {"max_wait_s": 10}, 3), ("60", {}, 1), ("x", {}, 5)):
        count, after = 0, wait
        with pytest.raises(ServerUnavailable, match=r"^full$"):
            ask(busy, **options)
        assert count == wanted


def test_a_connection_that_fails_is_tried_again(ask: Ask) -> None:
    outcomes: Any = iter([httpx.ConnectError("refused"), httpx.RemoteProtocolError("gone"), None])

    def answer(request: httpx.Request) -> httpx.Response:
        error = next(outcomes)
        if error is not None:
            raise error
        return httpx.Response(200, content=pack_hits(HITS))

    assert same(ask(answer)[0], HITS)


def test_what_cannot_be_asked_is_told(ask: Ask) -> None:
    def refuse(error: Exception) -> Answer:
        def answer(request: httpx.Request) -> httpx.Response:
            raise error

        return answer

    with pytest.raises(ServerUnavailable, match=rf"^{URL} cannot be reached: refused$"):
        ask(refuse(httpx.ConnectError("refused")))
    with pytest.raises(SearchTimeout, match=rf"^{URL} did not answer within 2 s$"):
        ask(refuse(httpx.ReadTimeout("slow")), timeout_s=2)
    for status, kind in ((504, SearchTimeout), (401, VqdistillError), (500, VqdistillError), (422, InvalidInput)):
        with pytest.raises(kind, match=r"^so it is$") as raised:
            ask(lambda request, status=status: httpx.Response(status, json={"error": "so it is"}))
        assert type(raised.value) is kind
    with pytest.raises(
        VqdistillError, match=rf"^{URL} must be a vqdistill server, but answered 502 without its error$"
    ):
        ask(lambda request: httpx.Response(502, text="<html>"))
    with pytest.raises(InvalidInput, match=r"^the message must be a map of scores, ids, rows, work, got list$"):
        ask(lambda request: httpx.Response(200, content=b"\x90"))


def test_the_key_comes_along(ask: Ask) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer secret"
        return httpx.Response(200, content=pack_hits(HITS))

    ask(answer, api_key="secret")


def test_hits_survive_the_wire() -> None:
    assert same(unpack_hits(pack_hits(HITS)), HITS)


def test_the_client_loads_no_part_of_server_index_or_training() -> None:
    code = "import sys, vqdistill.client; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout))
    assert {name for name in loaded if name.startswith("vqdistill")} == {
        f"vqdistill{part}" for part in ("", ".client", ".errors", ".types", ".wire")
    }
    assert not loaded & {"torch", "numba", "h5py", "fastapi", "uvicorn", "pydantic", "prometheus_client"}


def test_there_are_as_many_queries_as_hits(local: Local, queries: Any) -> None:
    assert through(local, "rows", lambda client: client.search(queries)).scores.shape == (Q, 10)
