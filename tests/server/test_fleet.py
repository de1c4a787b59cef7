"""Parts of an index in other processes (here: threads) answer as the index of one piece, whoever is lost meanwhile."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Client as Connect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqdistill
from tests.searching import CALIBRATED, NLIST, PLAIN, N, embeddings, write_index
from tests.server.support import Local
from tests.sharding import write_sharded
from vqdistill.errors import InvalidInput, SearchTimeout, ShardsLost, VqdistillError
from vqdistill.index.regather import publish_shards
from vqdistill.server.config import FleetConfig, parse_replicas
from vqdistill.server.fleet import FleetSearcher
from vqdistill.server.links import Link, decode, encode
from vqdistill.server.part import PartServer
from vqdistill.wire import MSGPACK, NPY, pack_hits, unpack_hits

KEY = bytes(range(32))
PARTS = [range(0, 1), range(1, 3), range(3, 4)]
WHOLE = [range(0, 4)]
"""All shards in one process, of which there may be copies."""
QUERIES = embeddings(0)[1]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"search": PLAIN, "dense": "f16"},
    "additive": {"search": CALIBRATED, "additive": True, "tables": "i8", "dense": "i8"},
    "l2": {"metric": "l2", "search": replace(PLAIN, nprobe=5)},
    "bare": {"search": type(PLAIN)(nprobe=3, refine=0), "dense": "none"},
    "words": {"metric": "cosine", "search": PLAIN, "ids": [f"doc-{row}" for row in range(N)]},
}


class Fleet:
    """Part servers that may be lost, and a searcher over them."""

    def __init__(self, path: Path, on_lost: str = "fail", copies: int = 1, parts: list[range] = PARTS) -> None:
        self.path, self.parts = path, parts
        self.servers = [[self.started(part) for _ in range(copies)] for part in range(len(parts))]
        self.searcher = FleetSearcher(path, parts, self.members, KEY, on_lost)

    def started(self, part: int) -> PartServer:
        return PartServer(self.path, self.parts[part], KEY, "127.0.0.1", 2)

    def members(self) -> dict[int, list[Any]]:
        return {part: [server.address for server in servers] for part, servers in enumerate(self.servers)}

    def lose(self, part: int) -> None:
        """End a process as a kill does: nobody says so, and connections break."""
        server = self.servers[part].pop(0)
        server.close()
        for connection in list(server.connections):
            # One whose router has left may be closed by now.
            with suppress(OSError), socket.socket(fileno=connection.fileno()) as raw:
                try:
                    raw.shutdown(socket.SHUT_RDWR)
                finally:
                    raw.detach()

    def close(self) -> None:
        self.searcher.reader.close()
        for server in (server for servers in self.servers for server in servers):
            server.close()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    place, found = tmp_path_factory.mktemp("pairs"), {}
    for name, options in KINDS.items():
        found[name] = (place / f"{name}.vqd", place / f"{name}-shards.vqd")
        write_index(found[name][0], **options)
        write_sharded(found[name][1], **options)
    return found


@pytest.fixture
def start() -> Iterator[Callable[..., Fleet]]:
    running: list[Fleet] = []

    def started(*given: Any, **options: Any) -> Fleet:
        running.append(Fleet(*given, **options))
        return running[-1]

    yield started
    for fleet in running:
        fleet.close()


def same(found: Any, wanted: Any) -> bool:
    return all(np.array_equal(getattr(found, name), getattr(wanted, name)) for name in ("scores", "ids", "rows"))


@pytest.mark.parametrize("parts", [PARTS, WHOLE], ids=["parts", "whole"])
@pytest.mark.parametrize("kind", KINDS)
def test_results_are_those_of_one_piece(
    pairs: dict[str, tuple[Path, Path]], start: Callable[..., Fleet], kind: str, parts: list[range]
) -> None:
    one, many = vqdistill.open(pairs[kind][0]), start(pairs[kind][1], parts=parts).searcher
    asked: list[dict[str, Any]] = [{}, {"refine": 0}, {"nprobe": 2}, {"nprobe": NLIST}, {"k": N, "refine": 0}]
    asked += [] if kind == "bare" else [{"refine": 30, "k": 30}]
    asked += [{"coverage": 0.99, "confidence": 0.7}, {"coverage": 0.6, "nprobe": 2}] if kind == "additive" else []
    for options in asked:
        wanted, found = (searcher.search(QUERIES, **{"k": 10} | options) for searcher in (one, many))
        assert same(found, wanted), options
        assert np.array_equal(found.work[:, :3], wanted.work[:, :3]) and found.searched == 1
        alone = [searcher.search(QUERIES[3], **{"k": 10} | options, timeout_s=9) for searcher in (one, many)]
        assert same(*alone)
    some = one.search(QUERIES, 50, nprobe=NLIST).ids[0, ::2]
    for options in ({}, {"nprobe": 2}):
        assert same(many.search(QUERIES, 5, allow=some, **options), one.search(QUERIES, 5, allow=some, **options))


def test_deleted_rows_are_not_found(
    pairs: dict[str, tuple[Path, Path]], start: Callable[..., Fleet], tmp_path: Path
) -> None:
    for options in ({"search": PLAIN}, {"search": CALIBRATED, "additive": True}):
        one, many = tmp_path / f"one{len(options)}", tmp_path / f"many{len(options)}"
        write_index(one, **options)
        write_sharded(many, **options)
        gone = np.arange(0, 400, 3)
        vqdistill.open(one).delete(gone)
        vqdistill.open(many / "shard-0").delete(gone)
        publish_shards(many)
        fleet, single = start(many).searcher, vqdistill.open(one)
        for asked in ({}, {"nprobe": 2}, {"refine": 0}):
            assert same(fleet.search(QUERIES, 10, **asked), single.search(QUERIES, 10, **asked))
        assert fleet.reader.manifest.live == N - len(gone)


def test_mistakes_are_named(pairs: dict[str, tuple[Path, Path]], start: Callable[..., Fleet]) -> None:
    many = start(pairs["plain"][1]).searcher
    for sentence, options in {
        "k must be an integer in 1..900": {"k": 0},
        "queries must be of shape": {"queries": np.zeros((2, 3))},
        "recall needs an index with a certificate": {"recall": 0.9},
        "allow must be a mask of rows or a list of ids, which are integers": {"allow": ["x"]},
    }.items():
        with pytest.raises(InvalidInput, match=sentence):
            many.search(**{"queries": QUERIES} | options)
    with pytest.raises(InvalidInput, match="explain must be asked of a server that has all shards in one process"):
        many.explain(QUERIES[0], [1])
    with pytest.raises(SearchTimeout):
        many.search(np.tile(QUERIES, (400, 1)), 10, timeout_s=0.001)
    assert same(many.search(QUERIES), vqdistill.open(pairs["plain"][0]).search(QUERIES))


# Losses


def test_a_lost_part_is_an_error_until_it_is_back(
    pairs: dict[str, tuple[Path, Path]], start: Callable[..., Fleet]
) -> None:
    fleet, wanted = start(pairs["plain"][1]), vqdistill.open(pairs["plain"][0]).search(QUERIES)
    assert same(fleet.searcher.search(QUERIES), wanted) and fleet.searcher.ready
    fleet.lose(1)
    with pytest.raises(ShardsLost, match="1 of 3 parts of the index are lost for the moment; try again"):
        fleet.searcher.search(QUERIES)
    assert not fleet.searcher.ready and fleet.searcher.lost == [1]
    fleet.servers[1].append(fleet.started(1))
    end = time.monotonic() + 10
    while fleet.searcher.lost:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert same(fleet.searcher.search(QUERIES), wanted)


def test_the_others_answer_where_that_is_wanted(
    pairs: dict[str, tuple[Path, Path]], start: Callable[..., Fleet]
) -> None:
    fleet, one = start(pairs["plain"][1], "degrade"), vqdistill.open(pairs["plain"][0])
    fleet.lose(1)
    found = fleet.searcher.search(QUERIES, nprobe=NLIST)
    assert found.searched == pytest.approx((N - 300) / N) and fleet.searcher.ready
    left = np.r_[0:400, 700:N]
    assert same(found, one.search(QUERIES, allow=left, nprobe=NLIST))
    fleet.lose(0)
    fleet.lose(2)
    with pytest.raises(ShardsLost, match="3 of 3 parts"):
        fleet.searcher.search(QUERIES)
    assert not fleet.searcher.ready


@pytest.mark.parametrize("parts", [PARTS, WHOLE], ids=["parts", "whole"])
def test_a_copy_takes_over_without_an_error(
    pairs: dict[str, tuple[Path, Path]], start: Callable[..., Fleet], parts: list[range]
) -> None:
    fleet = start(pairs["plain"][1], copies=2, parts=parts)
    wanted = vqdistill.open(pairs["plain"][0]).search(QUERIES)
    over, wrong = threading.Event(), list[Any]()

    def load() -> None:
        while not over.is_set():
            try:
                if not same(fleet.searcher.search(QUERIES), wanted):
                    wrong.append("another result")
            except VqdistillError as error:
                wrong.append(error)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for part in (2, 0, 1):
        time.sleep(0.1)
        if part < len(parts):
            fleet.lose(part)
    time.sleep(0.1)
    over.set()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("parts", [PARTS, WHOLE], ids=["parts", "whole"])
def test_generations_are_never_mixed(start: Callable[..., Fleet], tmp_path: Path, parts: list[range]) -> None:
    """Each answer is that of the generation before or of that after, while parts open it one after the other."""
    write_sharded(tmp_path / "many", search=PLAIN)
    fleet = start(tmp_path / "many", parts=parts)
    before = fleet.searcher.search(QUERIES, 20)
    assert not fleet.searcher.refresh()
    for shard in range(4):
        own = before.ids[(before.ids >= fleet.searcher.reader.shards.shards[shard].first_row)]
        vqdistill.open(tmp_path / "many" / f"shard-{shard}").delete(np.unique(own)[::2])
    publish_shards(tmp_path / "many")
    after = vqdistill.open(tmp_path / "many").search(QUERIES, 20)
    over, seen = threading.Event(), set[str]()

    def load() -> None:
        while not over.is_set():
            found = fleet.searcher.search(QUERIES, 20)
            seen.add("before" if same(found, before) else "after" if same(found, after) else "mixed")

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    assert fleet.searcher.refresh()
    time.sleep(0.2)
    over.set()
    for thread in threads:
        thread.join()
    assert seen == {"before", "after"} and same(fleet.searcher.search(QUERIES, 20), after)
    fleet.servers[0][0].close()
    fleet.servers[0] = [fleet.started(0)]
    assert same(fleet.searcher.search(QUERIES, 20), after)


@pytest.mark.parametrize("parts", [PARTS, WHOLE], ids=["parts", "whole"])
def test_a_process_that_began_later_opens_what_is_asked_for(
    start: Callable[..., Fleet], tmp_path: Path, parts: list[range]
) -> None:
    write_sharded(tmp_path / "many", search=PLAIN)
    fleet = start(tmp_path / "many", parts=parts)
    before = fleet.searcher.search(QUERIES, 20)
    vqdistill.open(tmp_path / "many" / "shard-0").delete(before.ids[:, 0])
    publish_shards(tmp_path / "many")
    for part in range(len(parts)):
        fleet.lose(part)
        fleet.servers[part].append(fleet.started(part))
    fleet.searcher._look()
    assert same(fleet.searcher.search(QUERIES, 20), before)
    assert fleet.searcher.refresh() and not same(fleet.searcher.search(QUERIES, 20), before)


# What comes over the wire


def test_only_routers_are_let_in(pairs: dict[str, tuple[Path, Path]], start: Callable[..., Fleet]) -> None:
    fleet = start(pairs["plain"][1])
    address = fleet.servers[0][0].address
    for at in (address[:2], f"\0{address.local}"):
        with pytest.raises(Exception, match=r"digest|rejected|closed|reset|HMAC"):
            Connect(at, authkey=b"another").close()
    with socket.create_connection(address[:2]) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
    wanted = vqdistill.open(pairs["plain"][0]).search(QUERIES)
    assert same(fleet.searcher.search(QUERIES), wanted) and fleet.servers[0][0].alive


@pytest.mark.parametrize(("local", "family"), [(True, socket.AF_UNIX), (False, socket.AF_INET), (None, socket.AF_INET)])
def test_a_machine_of_its_own_is_reached_without_the_network(
    pairs: dict[str, tuple[Path, Path]], start: Callable[..., Fleet], local: bool | None, family: socket.AddressFamily
) -> None:
    """Otherwise nobody listens at the name, or there is none."""
    address = start(pairs["plain"][1]).servers[0][0].address
    assert address.local
    link = Link(address if local else address._replace(local="" if local is None else "nobody"), KEY)
    with socket.socket(fileno=os.dup(link.fileno())) as held:
        assert held.family == family
    with pytest.raises(VqdistillError, match="KeyError"):
        link.ask({"ask": "find"})
        link.answer(10)
    link.close()


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"ask": "score", "reads": np.zeros(2, np.int64), "timeout_s": 1.0},
        {"ask": "find"},
        {"ask": "search"},
        {"ask": "find", "index_id": b"", "generation": 3, "queries": QUERIES},
        {"ask": "open", "manifest": b"{}\n00000000\n"},
        {"ask": "find", "index_id": 5, "generation": [], "queries": "x"},
    ],
)
def test_odd_questions_are_answered_with_an_error(
    pairs: dict[str, tuple[Path, Path]], start: Callable[..., Fleet], question: dict[str, Any]
) -> None:
    fleet = start(pairs["plain"][1])
    link = Link(fleet.servers[0][0].address, KEY)
    for _ in range(2):
        link.ask(question)
        with pytest.raises(VqdistillError):
            link.answer(10)
    link.close()


def test_messages_hold_arrays() -> None:
    message = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": [1, "x"], "c": b"\x00"}
    found = decode(encode(message))
    assert np.array_equal(found.pop("a"), message.pop("a")) and found == message
    for data in (b"", b"\xc1", encode({})[:-1], b"\x05", b"\x81\x01\x02"):
        with pytest.raises(InvalidInput):
            decode(data)


# Over HTTP


@pytest.fixture
def served(pairs: dict[str, tuple[Path, Path]], start: Callable[..., Fleet]) -> Iterator[tuple[Fleet, Local]]:
    fleet = start(pairs["plain"][1], "degrade")
    local = Local({"plain": pairs["plain"][1]}, opener=lambda _: fleet.searcher)
    yield fleet, local
    local.service.close()


def test_the_paths_are_those_of_the_single_server(
    pairs: dict[str, tuple[Path, Path]], served: tuple[Fleet, Local]
) -> None:
    single = Local({"plain": pairs["plain"][0]})
    body = {"queries": QUERIES[:3].tolist(), "k": 4}
    answers = [local.search("plain", body).json() for local in (served[1], single)]
    assert all(answers[0][name] == answers[1][name] for name in ("scores", "ids", "rows"))
    answers = [local.search("plain", {"ids": [7, 800], "k": 2}).json() for local in (served[1], single)]
    assert answers[0]["ids"] == answers[1]["ids"] and 800 in answers[0]["ids"][1]
    told = [local.ask("GET", "/v1/indexes/plain").json() for local in (served[1], single)]
    assert all(told[0][name] == told[1][name] for name in ("rows", "lists", "defaults", "resident_bytes"))
    body = {"query": QUERIES[0].tolist(), "expected_ids": [1]}
    refused = served[1].ask("POST", "/v1/indexes/plain/explain", json=body)
    assert refused.status_code == 422 and "explain must be asked" in refused.json()["error"]
    assert served[1].ask("POST", "/v1/indexes/plain/refresh").json() == {"changed": False, "generation": 1}
    assert served[1].metric("vqdistill_queries_total", index="plain") == 5
    single.service.close()


def test_degraded_answers_say_so(served: tuple[Fleet, Local]) -> None:
    fleet, local = served
    fleet.lose(1)
    body, share = {"queries": QUERIES[:3].tolist()}, (N - 300) / N
    answer = local.search("plain", body)
    assert answer.json()["degraded"] is True and answer.json()["searched"] == pytest.approx(share)
    assert float(answer.headers["x-vqdistill-searched"]) == pytest.approx(share, abs=1e-6)
    assert "x-vqdistill-searched" in local.search("plain", body, headers={"Accept": NPY}).headers
    packed = local.search("plain", body, headers={"Accept": MSGPACK})
    assert unpack_hits(packed.content).searched == pytest.approx(share)
    assert local.metric("vqdistill_degraded_total", index="plain") == 3
    assert local.ask("GET", "/ready").status_code == 200
    for part in (0, 2):
        fleet.lose(part)
    assert local.search("plain", body).status_code == 503 and local.ask("GET", "/ready").status_code == 503
    assert local.search("plain", body).headers["retry-after"] == "1"


def test_clients_read_degraded_hits() -> None:
    hits = vqdistill.Hits(*(np.zeros((1, 2), kind) for kind in ("f4", "i8", "i8")), np.zeros((1, 7), np.int64), 0.5)
    assert unpack_hits(pack_hits(hits)).searched == 0.5 and b"searched" not in pack_hits(replace(hits, searched=1.0))
    for old, new in ((b"\xc3", b"\xc2"), (b"\xcb\x3f\xe0", b"\xcb\x40\xe0")):
        with pytest.raises(InvalidInput, match="searched must be a share below 1"):
            unpack_hits(pack_hits(hits).replace(old, new))


@pytest.mark.parametrize(("text", "found"), [("2", (2, 2)), ("1-3", (1, 3))])
def test_replicas_are_a_number_or_a_range(text: str, found: tuple[int, int]) -> None:
    assert parse_replicas(text) == found
    for bad in ("", "x", "1-", "-1", "1-2-3"):
        with pytest.raises(InvalidInput, match="replicas must be N or MIN-MAX"):
            parse_replicas(bad)
    for wrong in ({"least": 0}, {"least": 2, "most": 1}, {"on_lost": "x"}):
        with pytest.raises(InvalidInput):
            FleetConfig(**wrong)
