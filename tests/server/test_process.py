"""Real servers: they stop without losing a request, swap generations, share metrics, and bear what is too much."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

import vqdistill
from tests.searching import N, embeddings, write_index
from tests.server.support import Process, process
from tests.server.test_search import same
from vqdistill.client import Client
from vqdistill.errors import InvalidInput
from vqdistill.index.gc import gc
from vqdistill.wire import MSGPACK, pack, pack_array

PATIENCE_S = 60
QUERIES = embeddings(0)[1]
BODY = pack({"queries": pack_array(QUERIES[:4])})
HEADERS = {"Content-Type": MSGPACK}


@pytest.fixture(scope="module")
def server(shelf: dict[str, Path]) -> Iterator[Process]:
    with process(*shelf.values()) as running:
        yield running


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


class Load:
    """Threads that ask again and again, each on a connection that it keeps, until they may not."""

    def __init__(self, url: str, threads: int, body: bytes = BODY) -> None:
        self.statuses: Counter[Any] = Counter()
        self._url, self._body = url, body
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        with httpx.Client(timeout=PATIENCE_S) as client:
            while not self._stop.is_set():
                try:
                    answer = client.post(f"{self._url}/v1/indexes/a/search", content=self._body, headers=HEADERS)
                    self.statuses[answer.status_code] += 1
                except httpx.ConnectError:  # nobody listens any more, which loses nothing
                    self.statuses["refused"] += 1
                    return
                except httpx.TransportError as error:
                    self.statuses[type(error).__name__] += 1
                    return

    def finish(self) -> Counter[Any]:
        self._stop.set()
        return self.join()

    def join(self) -> Counter[Any]:
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        return self.statuses


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_load_loses_no_request(shelf: dict[str, Path], workers: int, tmp_path: Path) -> None:
    with process(
        f"a={shelf['rows']}", "--workers", workers, "--no-access-log", env={"TMPDIR": str(tmp_path)}
    ) as running:
        load = Load(running.url, 6)
        until(lambda: load.statuses[200] > 200)
        running.terminate()
        statuses = load.join()
        assert running.wait() == 0
        assert set(statuses) == {200, "refused"} and statuses["refused"] == 6
    assert not list(tmp_path.iterdir())


def test_a_new_generation_under_load_fails_no_request(tmp_path: Path) -> None:
    write_index(tmp_path / "a.vqd")
    with process(tmp_path / "a.vqd", "--workers", 2, "--poll", 0.05, "--no-access-log") as running:
        load = Load(running.url, 4)
        gone = vqdistill.open(tmp_path / "a.vqd").search(QUERIES[:1]).ids[0, :3]
        with Client(running.url, "a") as client:
            for victim in gone:
                asked = load.statuses[200]
                vqdistill.open(tmp_path / "a.vqd").delete([victim])
                until(lambda victim=victim: not any(victim in client.search(QUERIES[:1], 5).ids for _ in range(6)))
                gc(tmp_path / "a.vqd")
                until(lambda asked=asked: load.statuses[200] > asked + 20)
            assert client.info()["generation"] == 4
        assert set(load.finish()) == {200}


def test_too_many_requests_get_429_and_the_others_their_answer(shelf: dict[str, Path]) -> None:
    many = pack({"queries": pack_array(np.tile(QUERIES, (27, 1))), "k": 100, "refine": 100})
    arguments = ("--concurrency", 1, "--queue", 1, "--no-access-log")
    with process(f"a={shelf['words']}", *arguments) as running:
        load = Load(running.url, 8, many)
        until(lambda: load.statuses[200] > 3 and load.statuses[429] > 20)
        with Client(running.url, "a", retries=20, max_wait_s=PATIENCE_S) as client:
            wanted = vqdistill.open(shelf["words"]).search(QUERIES, 3)
            load._stop.set()
            assert same(client.search(QUERIES, 3), wanted)
        assert set(load.finish()) == {200, 429}


def test_workers_count_together_and_are_replaced(shelf: dict[str, Path], tmp_path: Path) -> None:
    arguments = (f"a={shelf['rows']}", "--workers", 2, "--drain", 0)
    with process(*arguments, env={"TMPDIR": str(tmp_path)}) as running:

        def value(name: str) -> float:
            text = httpx.get(f"{running.url}/metrics").text
            return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

        def seen() -> set[int]:
            return {line["process"] for line in running.lines if line.get("path") == "/v1/indexes/a/search"}

        asked = 0
        while len(seen()) < 2:
            assert httpx.post(f"{running.url}/v1/indexes/a/search", content=BODY, headers=HEADERS).status_code == 200
            asked += 1
            assert asked < 2000
        until(
            lambda: value('vqdistill_queries_total{index="a"}') == 4 * asked
        )  # the other process counts a little later
        assert value('vqdistill_request_seconds_count{endpoint="/v1/indexes/{name}/search",status="200"}') == asked
        one = vqdistill.open(shelf["rows"]).reader.resident_bytes
        assert value('vqdistill_index_resident_bytes{index="a"}') == 2 * one
        os.kill(seen().pop(), signal.SIGKILL)
        until(lambda: any("another one begins" in line.get("message", "") for line in running.lines))
        until(lambda: value('vqdistill_index_resident_bytes{index="a"}') == 2 * one)
        assert value('vqdistill_queries_total{index="a"}') == 4 * asked
        # Without the process that watches them they end.
        os.kill(running.pid, signal.SIGKILL)
        running.wait()

        def listens() -> bool:
            try:
                return httpx.get(f"{running.url}/health").status_code == 200
            except httpx.TransportError:
                return False

        until(lambda: not listens())


def test_a_body_of_a_gigabyte_is_refused_and_never_held(server: Process) -> None:
    def resident() -> int:
        status = Path(f"/proc/{server.pid}/status").read_text()
        return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))

    def pieces() -> Iterator[bytes]:
        for _ in range(1024):
            yield bytes(1 << 20)

    before = resident()
    sentence = "the body must have at most 16777216 bytes, the limit of this server, got more"
    for headers in ({}, {"Content-Length": str(1 << 30)}):
        answer = httpx.post(
            f"{server.url}/v1/indexes/rows/search", content=pieces(), headers=HEADERS | headers, timeout=PATIENCE_S
        )
        assert (answer.status_code, answer.json()["error"]) == (413, sentence)
    assert resident() - before < 64 << 20
    assert httpx.get(f"{server.url}/ready").status_code == 200


def test_requests_that_break_off_leave_the_server_as_it_was(server: Process) -> None:
    address = urlsplit(server.url)
    lines = ("POST /v1/indexes/rows/search HTTP/1.1", "Host: x", "Content-Type: application/json", "Content-Length: 99")
    head = "\r\n".join([*lines, "", ""]).encode()
    for _ in range(40):
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(head + b"{")
    text = ""

    def nothing_in_hand() -> bool:
        nonlocal text
        text = httpx.get(f"{server.url}/metrics").text
        return "vqdistill_requests_in_hand 0.0" in text

    until(nothing_in_hand)
    assert 'status="500"' not in text


def test_requests_are_logged_as_json(server: Process) -> None:
    httpx.get(f"{server.url}/v1/indexes/none?x=1")
    until(lambda: any(line.get("path") == "/v1/indexes/none" for line in server.lines))
    line = next(line for line in server.lines if line.get("path") == "/v1/indexes/none")
    assert (line["method"], line["status"], line["client"], line["level"]) == ("GET", 404, "127.0.0.1", "info")
    assert 0 < line["ms"] < 1000 and line["bytes"] > 20


def test_the_sync_client_searches_it(server: Process) -> None:
    with Client(server.url, "words") as client:
        assert same(client.search(QUERIES, 5), vqdistill.open(_path(server, "words")).search(QUERIES, 5))
        assert client.search_ids(["doc-3"], 1).ids.tolist() == [["doc-3"]]
        with pytest.raises(InvalidInput, match=rf"^k must be an integer in 1\.\.{N}, the rows of the index, got 901$"):
            client.search(QUERIES, N + 1)


def _path(server: Process, name: str) -> str:
    arguments: list[str] = server._process.args  # type: ignore[assignment]
    return next(argument for argument in arguments if argument.endswith(f"{name}.vqd"))
