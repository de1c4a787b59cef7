"""Every bad request gets a 4xx and one sentence; a full or stopping server says so at once."""

from __future__ import annotations

import asyncio
import io
import json
import pickle
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.searching import D, N
from tests.server.support import Local
from vqdistill.errors import InvalidInput
from vqdistill.server.bodies import parse_message, parse_npy, parse_search
from vqdistill.server.config import Limits
from vqdistill.server.problems import Problem
from vqdistill.wire import JSON, MSGPACK, NPY, pack, pack_array

GOOD = [0.5] * D
KEY = "a-key-of-sixteen-or-more"


@pytest.fixture(scope="module")
def small(shelf: dict[str, Path]) -> Iterator[Local]:
    """A server with narrow limits."""
    server = Local(shelf, limits=Limits(max_k=50, max_batch=8, max_body_bytes=8192, concurrency=1, queue=1))
    yield server
    server.service.close()


def refused(answer: httpx.Response) -> tuple[int, str]:
    assert set(answer.json()) == {"error"} and answer.headers["content-type"] == JSON
    return answer.status_code, answer.json()["error"]


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"queries": [GOOD], "k": 10**9}, "k must be at most 50, the limit of this server, got 1000000000"),
        ({"queries": [GOOD], "k": 0}, "k: input should be greater than or equal to 1, got 0"),
        ({"queries": [GOOD], "k": "3"}, "k: input should be a valid integer, got '3'"),
        ({"queries": [GOOD], "k": True}, "k: input should be a valid integer, got True"),
        ({"queries": [GOOD], "kk": 3}, "kk: extra inputs are not permitted, got 3"),
        ({"queries": [[0.5]]}, f"queries must be of shape (rows, {D}), got (1, 1) float64"),
        ({"queries": [GOOD, [1.0]]}, f"queries must be real numbers of shape (rows, {D}), got list"),
        ({"queries": "text"}, f"queries must be real numbers of shape (rows, {D}), got str"),
        ({"queries": [[True] * D]}, f"queries must be real numbers of shape (rows, {D}), got list"),
        ({"queries": []}, "queries must be 1 to 8, the limit of this server, got 0"),
        ({"queries": [GOOD] * 9}, "queries must be 1 to 8, the limit of this server, got 9"),
        ({"queries": [[1e39] * D]}, "queries row 0 holds NaN or infinity (1 such rows in this block)"),
        ({}, "a search must have either queries or ids, got neither"),
        ({"queries": [GOOD], "ids": [1]}, "a search must have either queries or ids, got both"),
        ({"ids": [N]}, f"ids must be ids of the index, got {N}, which it does not have"),
        ({"ids": ["a"]}, "ids must be integers, as the index has them, got (1,) <U1"),
        ({"ids": [1.5]}, "ids must be a list of integers or of strings, got float"),
        ({"ids": [2**63]}, "ids must be integers of 64 bits, got a larger one"),
        ({"ids": 3}, "ids must be a list of integers or of strings, got int"),
        ({"ids": []}, "queries must be 1 to 8, the limit of this server, got 0"),
        ({"queries": [GOOD], "allow": [[1], [2, 3]]}, "allow must be a list of integers or of strings, got list"),
        (
            {"queries": [GOOD], "allow": ["a"]},
            "allow must be a mask of rows or a list of ids, which are integers, got (1,) <U1",
        ),
        ({"queries": [GOOD], "nprobe": 99}, "nprobe must be in 1..12, the lists of the index, got 99"),
        ({"queries": [GOOD], "coverage": 1.5}, "coverage: input should be less than 1, got 1.5"),
        (
            {"queries": [GOOD], "recall": 0.9, "refine": 5},
            "recall must be None where refine say how to search, got 0.9",
        ),
        (
            {"queries": [GOOD], "refine": 2**63},
            "refine: input should be less than or equal to 1099511627776, got 9223372036854775808",
        ),
        ({"queries": [GOOD], "refine": 3}, "refine must be 0 or at least k = 10, got 3"),
        ([1, 2], "the body: input should be a valid dictionary or instance of SearchRequest, got [1, 2]"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_messages(small: Local, message: Any, sentence: str) -> None:
    assert refused(small.search("rows", message)) == (422, sentence)
    packed = small.ask("POST", "/v1/indexes/rows/search", content=pack(message), headers={"Content-Type": MSGPACK})
    assert refused(packed) == (422, sentence)


def npy(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def header(text: str, rest: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + rest


SHAPED = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }\n"
MISFIT = "queries must be one or two-dimensional and hold the bytes of their shape, got "


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"", 400, "the body must be an .npy file of version 1 or 2, got 0 bytes without its header"),
        (b"\x93NUMPY\x01", 400, "the body must be an .npy file of version 1 or 2, got 7 bytes without its header"),
        (pickle.dumps([1]), 400, "the body must be an .npy file of version 1 or 2, got 17 bytes without its header"),
        (header("{'descr': "), 400, "the body must be an .npy file of version 1 or 2, got 20 bytes without its header"),
        (
            npy(np.array([{}], object), allow_pickle=True),
            422,
            "queries must be little-endian real numbers of at most 8 bytes, got object",
        ),
        (
            npy(np.zeros((1, D), "S4")),
            422,
            "queries must be little-endian real numbers of at most 8 bytes, got |S4",
        ),
        (
            npy(np.zeros((1, D), ">f4")),
            422,
            "queries must be little-endian real numbers of at most 8 bytes, got >f4",
        ),
        (
            npy(np.zeros((1, D), complex)),
            422,
            "queries must be little-endian real numbers of at most 8 bytes, got complex128",
        ),
        (
            npy(np.zeros((2, D), np.float32, order="F")),
            422,
            "queries must be in C order, got Fortran order; save np.ascontiguousarray(queries)",
        ),
        (
            header(SHAPED % "1000000000000, 24"),
            422,
            f"{MISFIT}(1000000000000, 24) float32 with 0 bytes behind the header",
        ),
        (header(SHAPED % f"0, {10**30}"), 422, f"{MISFIT}(0, {10**30}) float32 with 0 bytes behind the header"),
        (header(SHAPED % "-1, -4", b"x" * 16), 422, f"{MISFIT}(-1, -4) float32 with 16 bytes behind the header"),
        (header(SHAPED % "", b"x" * 4), 422, f"{MISFIT}() float32 with 4 bytes behind the header"),
        (npy(np.zeros((1, 1, D), np.float32)), 422, f"{MISFIT}(1, 1, {D}) float32 with 96 bytes behind the header"),
        (npy(np.zeros((1, D), np.float32)) + b"x", 422, f"{MISFIT}(1, {D}) float32 with 97 bytes behind the header"),
        (npy(np.zeros((0, D), np.float32)), 422, "queries must be 1 to 8, the limit of this server, got 0"),
        (npy(np.zeros((1, 3), np.float32)), 422, f"queries must be of shape (rows, {D}), got (1, 3) float32"),
        (
            npy(np.full((1, D), np.nan, np.float32)),
            422,
            "queries row 0 holds NaN or infinity (1 such rows in this block)",
        ),
    ],
    ids=range(18),
)
def test_bad_npy_bodies(small: Local, body: bytes, status: int, sentence: str) -> None:
    answer = small.ask("POST", "/v1/indexes/rows/search", content=body, headers={"Content-Type": NPY})
    assert refused(answer) == (status, sentence)


@pytest.mark.parametrize(
    ("queries", "sentence"),
    [
        ({"dtype": "<f4"}, "queries must be a map of dtype, shape and data, got dict"),
        (
            {"dtype": "O", "shape": [1], "data": b"12345678"},
            "queries must be little-endian of a kind among f, i, u, U, got 'O'",
        ),
        (
            {"dtype": "<f4", "shape": [2**40, 2**40], "data": b"1234"},
            "queries must hold the bytes of its shape, got [1099511627776, 1099511627776] float32 and 4 bytes",
        ),
        (
            {"dtype": "<f4", "shape": [0, 2**63], "data": b""},
            "queries must hold the bytes of its shape, got [0, 9223372036854775808] float32 and 0 bytes",
        ),
        (
            {"dtype": "<f4", "shape": [True], "data": b"1234"},
            "queries must hold the bytes of its shape, got [True] float32 and 4 bytes",
        ),
        ({"dtype": "<U1", "shape": [1], "data": b"\xff" * 4}, "queries must hold characters of Unicode, got others"),
    ],
    ids=range(6),
)
def test_bad_arrays_in_msgpack(small: Local, queries: Any, sentence: str) -> None:
    body = pack({"queries": queries})
    answer = small.ask("POST", "/v1/indexes/rows/search", content=body, headers={"Content-Type": MSGPACK})
    assert refused(answer) == (422, sentence)


@pytest.mark.parametrize(
    ("body", "kind", "start"),
    [
        (b"{", JSON, "the body must be JSON, got 1 bytes: EOF while parsing"),
        (b"\xff", JSON, "the body must be JSON, got 1 bytes: "),
        (b"[" * 8000, JSON, "the body must be JSON, got 8000 bytes: recursion limit exceeded"),
        (b"", MSGPACK, "the body must be one msgpack message, got 0 bytes: "),
        (b"\xc1", MSGPACK, "the body must be one msgpack message, got 1 bytes: "),
        (b"\x91" * 8000, MSGPACK, "the body must be one msgpack message, got 8000 bytes: "),
        (b"\xdd\xff\xff\xff\xff", MSGPACK, "the body must be one msgpack message, got 5 bytes: "),
        (b"\x01\x01", MSGPACK, "the body must be one msgpack message, got 2 bytes: "),
    ],
    ids=range(8),
)
def test_broken_bodies(small: Local, body: bytes, kind: str, start: str) -> None:
    answer = small.ask("POST", "/v1/indexes/rows/search", content=body, headers={"Content-Type": kind})
    status, sentence = refused(answer)
    assert status == 400 and sentence.startswith(start)


def test_many_small_lists_are_refused_before_they_take_memory() -> None:
    for kind, body in ((JSON, b"[" + b"[]," * 70_000 + b"[]]"), (MSGPACK, b"\xdd\x00\x01\x11\x70" + b"\x90" * 70_000)):
        with pytest.raises(Problem, match=r"65536"):
            parse_message(kind, body, b"")


def test_other_paths_methods_and_types(small: Local) -> None:
    assert refused(small.ask("GET", "/nowhere")) == (404, "there is nothing at this path")
    assert refused(small.ask("GET", "/v1/indexes/rows/search")) == (405, "the path does not take this method")
    assert refused(small.search("other", {})) == (404, "index must be one of bare, rows, words, got 'other'")
    assert refused(small.ask("GET", "/v1/indexes/other"))[0] == 404
    assert refused(small.ask("GET", "/v1/indexes/%20"))[0] == 422
    answer = small.ask("POST", "/v1/indexes/rows/search", content=b"x", headers={"Content-Type": "text/plain"})
    wanted = "application/json, application/msgpack or, for a search, application/x-npy"
    assert refused(answer) == (415, f"the content type must be {wanted}, got 'text/plain'")
    zipped = {"Content-Encoding": "gzip"}
    assert refused(small.search("rows", {}, headers=zipped)) == (415, "the body must not be encoded, got 'gzip'")
    kinds = "application/json, application/msgpack, application/x-npy"
    assert refused(small.search("rows", {}, headers={"Accept": "text/html"})) == (
        406,
        f"responses are of {kinds}, but 'text/html' is accepted",
    )
    misplaced = small.search("rows", {"queries": [GOOD]}, params={"k": 3})
    assert refused(misplaced) == (422, "options of a body of application/json stand in it, not in the URL")
    unknown = small.ask(
        "POST", "/v1/indexes/rows/search", content=npy(np.zeros(D)), params={"q": 1}, headers={"Content-Type": NPY}
    )
    assert refused(unknown) == (422, "q: extra inputs are not permitted, got '1'")


def test_numbers_without_end_are_none(small: Local) -> None:
    answer = small.search("rows", {"queries": [[10**400] + GOOD[1:]]})
    assert refused(answer) == (422, f"queries must be real numbers of shape (rows, {D}), got list")


def test_half_characters_are_no_ids(small: Local) -> None:
    for body, kind in (
        (b'{"ids": ["\\ud800x"]}', JSON),
        (pack({"ids": {"dtype": "<U1", "shape": [1], "data": b"\x00\xd8\x00\x00"}}), MSGPACK),
    ):
        answer = small.ask("POST", "/v1/indexes/words/search", content=body, headers={"Content-Type": kind})
        assert refused(answer)[0] in (400, 422)


def test_ids_need_rows_on_disk(small: Local) -> None:
    assert refused(small.search("bare", {"ids": [1]})) == (
        422,
        "dense_rows needs an index with dense rows, got one with dense=none",
    )


def test_bad_explanations(small: Local) -> None:
    for message, sentence in (
        ({"query": GOOD}, "expected_ids: field required"),
        ({"query": [GOOD, GOOD], "expected_ids": [1]}, "query must be one, got 2"),
        (
            {"query": GOOD, "expected_ids": [N]},
            f"expected_ids must be ids of the index, got {N}, which it does not have",
        ),
        (
            {"query": GOOD, "expected_ids": [1] * 51},
            "expected_ids must be at most 50, the limit of this server, got 51",
        ),
    ):
        answer = small.ask("POST", "/v1/indexes/rows/explain", json=message)
        assert refused(answer) == (422, sentence)


def test_a_long_body_is_refused_while_it_streams_in(small: Local) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1_000_000):
            sent += 1024
            yield bytes(1024)

    async def call() -> httpx.Response:
        async with httpx.AsyncClient(transport=small.transport, base_url="http://local") as client:
            return await client.post("/v1/indexes/rows/search", content=body(), headers={"Content-Type": NPY})

    sentence = "the body must have at most 8192 bytes, the limit of this server, got more"
    answer = asyncio.run(call())
    assert refused(answer) == (413, sentence) and answer.headers["connection"] == "close"
    assert sent == 9 * 1024
    declared = small.ask("POST", "/v1/indexes/rows/search", content=b"", headers={"Content-Length": str(1 << 30)})
    assert refused(declared) == (413, sentence)


def test_a_full_server_refuses_at_once(small: Local) -> None:
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(small.service.places)
        answer = small.search("rows", {"queries": [GOOD]})
        sentence = "the server has 2 requests in hand, as many as it takes; try again"
        assert refused(answer) == (429, sentence) and answer.headers["retry-after"] == "1"
        assert small.metric("vqdistill_refused_total", reason="full") == 1
        assert small.ask("GET", "/health").status_code == small.ask("GET", "/ready").status_code == 200
        small.service.stopping = True
        assert refused(small.search("rows", {"queries": [GOOD]})) == (503, "the server is stopping")
        ready = small.ask("GET", "/ready")
        assert refused(ready) == (503, "the server is stopping") and ready.headers["connection"] == "close"
        small.service.stopping = False
    assert small.search("rows", {"queries": [GOOD]}).status_code == 200


def test_a_search_that_waits_too_long_is_given_up(shelf: dict[str, Path]) -> None:
    server = Local(shelf, limits=Limits(timeout_s=1e-9))
    assert refused(server.search("rows", {"queries": [GOOD]})) in (
        (504, "the search waited longer than 1e-09 s"),
        (408, "the body must arrive within 1e-09 s"),
    )
    server.service.close()


def test_a_body_that_does_not_come_is_given_up(shelf: dict[str, Path]) -> None:
    server = Local(shelf, limits=Limits(timeout_s=0.05))

    async def call() -> httpx.Response:
        never = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            await never.wait()
            yield b""

        async with httpx.AsyncClient(transport=server.transport, base_url="http://local") as client:
            return await client.post("/v1/indexes/rows/search", content=body(), headers={"Content-Type": JSON})

    assert refused(asyncio.run(call())) == (408, "the body must arrive within 0.05 s")
    server.service.close()


def test_the_key_is_asked_for(shelf: dict[str, Path]) -> None:
    server = Local(shelf, api_key=KEY)
    sentence = "the request must bring the API key, as Authorization: Bearer KEY, got none or another"
    for headers in ({}, {"Authorization": KEY}, {"Authorization": "Bearer other"}, {"Authorization": "Bearer \xff"}):
        answer = server.ask("GET", "/v1/indexes", headers={k: v.encode("latin-1") for k, v in headers.items()})
        assert refused(answer) == (401, sentence) and answer.headers["www-authenticate"] == "Bearer"
    right = {"Authorization": f"Bearer {KEY}"}
    assert server.ask("GET", "/v1/indexes", headers=right).status_code == 200
    for path in ("/", "/health", "/ready", "/openapi.json"):
        assert server.ask("GET", path).status_code == 200
    assert server.ask("GET", "/metrics").status_code == 401
    assert 'vqdistill_refused_total{reason="key"} 5.0' in server.ask("GET", "/metrics", headers=right).text
    server.service.close()


def test_a_defect_is_a_sentence_too(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(local.service.indexes["rows"], "call", broken)
    assert refused(local.search("rows", {"queries": [GOOD]})) == (500, "the server failed; its log says why")


LIMITS = Limits()
VALID = {
    NPY: npy(np.zeros((2, D), np.float32)),
    MSGPACK: pack({"queries": pack_array(np.zeros((2, D), np.float32)), "k": 3, "allow": [1, 2]}),
    JSON: json.dumps({"queries": [GOOD], "k": 3, "allow": [1, 2]}).encode(),
}


@given(kind=st.sampled_from(sorted(VALID)), data=st.data())
def test_damaged_bodies_are_refused_or_read_but_nothing_else(kind: str, data: st.DataObject) -> None:
    body = bytearray(VALID[kind])
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(body) - 1), st.integers(0, 255)), max_size=6)):
        body[at] = value
    cut = data.draw(st.integers(0, len(body)))
    for given_body in (bytes(body), bytes(body[:cut]), bytes(body[cut:])):
        with suppress(Problem, ValueError):  # InvalidInput and what pydantic finds are a ValueError
            parse_search(kind, given_body, b"", LIMITS)


@given(st.binary(max_size=300))
def test_any_header_of_an_npy_body_is_refused_or_read(rest: bytes) -> None:
    for version in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        with suppress(Problem, InvalidInput):
            parse_npy(b"\x93NUMPY" + version + rest)
