"""Requests that wait together are searched together, and each gets its own answer."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from tests.searching import D
from tests.server.support import Local
from tests.server.test_search import of_json, same
from vqdistill.errors import SearchTimeout
from vqdistill.server import searches
from vqdistill.server.batcher import MOST, MOST_BYTES, Batcher, Job


class Slow:
    """Calls of a searcher; the first waits until it is let go."""

    def __init__(self, search: Any) -> None:
        self._search = search
        self.go, self.calls = threading.Event(), list[tuple[int, dict[str, Any]]]()

    def __call__(self, queries: Any, **options: Any) -> Any:
        self.calls.append((len(queries) if getattr(queries, "ndim", 1) == 2 else 1, options))
        if len(self.calls) == 1:
            assert self.go.wait(30)
        return self._search(queries, **options)


async def until(done: Callable[[], bool]) -> None:
    """Wait for something that another thread or task does soon."""
    for _ in range(30_000):
        if done():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it was not done within half a minute")


def asked_at_once(local: Local, messages: Sequence[Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Slow, list[Any]]:
    """Return what came of requests that wait while a first one, of which there is no more, keeps the only thread.

    As in a fleet, the index is searched by something that is no `Searcher`.
    """
    searcher = local.service.indexes["rows"]
    slow = Slow(searcher.search)
    fleet = SimpleNamespace(reader=searcher.reader, search=slow)
    monkeypatch.setitem(local.service.indexes, "rows", fleet)
    monkeypatch.setattr(local.service.searches._batcher, "most", 1)

    async def ask() -> list[Any]:
        async with httpx.AsyncClient(transport=local.transport, base_url="http://local") as client:

            def send(message: Any) -> Any:
                return client.post("/v1/indexes/rows/search", json=message)

            first = asyncio.create_task(send({"queries": [0.5] * D}))
            await until(lambda: bool(slow.calls))
            rest = [asyncio.create_task(send(message)) for message in messages]
            await until(lambda: len(local.service.searches._batcher._jobs) == len(messages))
            slow.go.set()
            await first
            return [await one for one in rest]

    return slow, asyncio.run(ask())


def test_those_that_ask_alike_are_one_search(local: Local, queries: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [
        {"queries": queries[0].tolist()},
        {"queries": queries[1:3].tolist()},
        {"queries": queries[3].tolist(), "nprobe": 5},
        {"queries": queries[4:5].tolist()},
        {"queries": queries[5].tolist(), "allow": [1, 2, 3]},
        {"ids": [7]},
    ]
    search = local.service.indexes["rows"].search
    slow, answers = asked_at_once(local, messages, monkeypatch)
    assert [count for count, _ in slow.calls] == [1, 4, 1, 1, 1]
    reader = local.service.indexes["rows"].reader
    stored = reader.dense_rows(reader.positions_of(np.array([7])))
    for message, answer in zip(messages, answers, strict=True):
        options = {name: message[name] for name in message.keys() & {"nprobe", "allow"}}
        wanted = search(message.get("queries", stored), **options)
        assert answer.status_code == 200
        assert same(of_json(json.loads(answer.content)), wanted)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"queries": [1.0, 2.0]}, "queries must be of shape"),
        ({"queries": [[1e39] * D]}, "NaN or infinity"),
        ({"queries": [], "k": 3}, "queries must be 1 to"),
        ({"queries": "x"}, "queries must"),
        ({"queries": [[1.0], [1.0, 2.0]]}, "queries must"),
        ({"queries": [[1.0]], "ids": [1]}, "got both"),
    ],
    ids=str,
)
def test_a_bad_one_does_not_harm_those_beside_it(
    local: Local, queries: Any, monkeypatch: pytest.MonkeyPatch, bad: Any, sentence: str
) -> None:
    search = local.service.indexes["rows"].search
    good = {"queries": queries[0].tolist()}
    _, answers = asked_at_once(local, [good, bad, good], monkeypatch)
    assert [answer.status_code for answer in answers] == [200, 422, 200]
    assert sentence in answers[1].json()["error"]
    assert all(same(of_json(answers[at].json()), search(queries[0])) for at in (0, 2))


def test_a_defect_is_told_to_all_and_the_threads_live_on() -> None:
    def fail(jobs: Sequence[Job[int, int]]) -> Iterator[Sequence[Job[int, int]]]:
        for job in jobs:
            if job.request < 0:
                raise ZeroDivisionError
            job.outcome = 2 * job.request
            yield [job]

    with ThreadPoolExecutor(2) as threads:
        batcher = Batcher(fail, threads, 2)

        async def ask() -> list[Any]:
            asked = [batcher.ask(number, 1, 1.0) for number in (3, -1, 4)]
            return await asyncio.gather(*asked, return_exceptions=True)

        for _ in range(20):
            found = asyncio.run(ask())
            assert isinstance(found[1], ZeroDivisionError)
            assert all(
                each == wanted or isinstance(each, ZeroDivisionError)
                for each, wanted in zip(found, (6, 0, 8), strict=True)
            )
        assert asyncio.run(batcher.ask(5, 1, 1.0)) == 10
    assert batcher._busy == 0 and not batcher._jobs


def test_an_outcome_before_a_defect_is_told_as_well() -> None:
    began, held = threading.Event(), threading.Event()

    def answer(jobs: Sequence[Job[int, int]]) -> Iterator[Sequence[Job[int, int]]]:
        began.set()
        assert held.wait(30)
        jobs[0].outcome = 7
        if len(jobs) > 1:
            raise ZeroDivisionError
        yield jobs

    with ThreadPoolExecutor(1) as threads:
        batcher = Batcher(answer, threads, 1)

        async def ask() -> list[Any]:
            asked = [asyncio.create_task(batcher.ask(0, 1, 1.0))]
            await asyncio.to_thread(began.wait, 30)
            asked += [asyncio.create_task(batcher.ask(at, 1, 1.0)) for at in (1, 2)]
            await asyncio.sleep(0)  # both wait now
            held.set()
            return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 30)

        first, second, third = asyncio.run(ask())
    assert (first, second) == (7, 7) and isinstance(third, ZeroDivisionError)


def test_large_requests_wait_for_nobody_and_nobody_is_lost() -> None:
    seen: list[list[int]] = []
    began, held = threading.Event(), threading.Event()

    def answer(jobs: Sequence[Job[int, int]]) -> Iterator[Sequence[Job[int, int]]]:
        began.set()
        assert held.wait(30)
        seen.append([job.request for job in jobs])
        for job in jobs:
            job.outcome = job.request
        yield jobs

    sizes = [1, 10, 10, MOST_BYTES, 10, 2 * MOST_BYTES, MOST_BYTES - 1, 1, 1]
    with ThreadPoolExecutor(1) as threads:
        batcher = Batcher(answer, threads, 1)

        async def ask() -> list[int]:
            asked = [asyncio.create_task(batcher.ask(0, sizes[0], 1.0))]
            await asyncio.to_thread(began.wait, 30)
            asked += [asyncio.create_task(batcher.ask(at, sizes[at], 1.0)) for at in range(1, len(sizes))]
            await asyncio.sleep(0)  # each of them waits now
            held.set()
            return await asyncio.gather(*asked)

        assert asyncio.run(ask()) == list(range(len(sizes)))
    assert seen == [[0], [1, 2], [3], [4], [5], [6, 7], [8]]


def test_threads_share_what_waits() -> None:
    seen: list[int] = []
    held, both = threading.Event(), threading.Barrier(3)

    def answer(jobs: Sequence[Job[int, int]]) -> Iterator[Sequence[Job[int, int]]]:
        if len(seen) < 2:
            seen.append(len(jobs))
            both.wait(30)
            assert held.wait(30)
        else:
            seen.append(len(jobs))
        for job in jobs:
            job.outcome = job.request
        yield jobs

    with ThreadPoolExecutor(2) as threads:
        batcher = Batcher(answer, threads, 2)

        async def ask() -> list[int]:
            first = [asyncio.create_task(batcher.ask(at, 1, 1.0)) for at in range(2)]
            await asyncio.to_thread(both.wait, 30)
            rest = [asyncio.create_task(batcher.ask(at, 1, 1.0)) for at in range(2, 2 + 3 * MOST)]
            await asyncio.sleep(0)
            held.set()
            return await asyncio.gather(*first, *rest)

        assert asyncio.run(ask()) == list(range(2 + 3 * MOST))
    assert seen[:3] == [1, 1, MOST] and sum(seen) == 2 + 3 * MOST and max(seen) == MOST


def test_one_that_gave_up_is_passed_over() -> None:
    held = threading.Event()

    def answer(jobs: Sequence[Job[int, int]]) -> Iterator[Sequence[Job[int, int]]]:
        assert held.wait(30)
        for job in jobs:
            job.outcome = job.request
        yield jobs

    with ThreadPoolExecutor(1) as threads:
        batcher = Batcher(answer, threads, 1)

        async def ask() -> int:
            tasks = [asyncio.create_task(batcher.ask(number, 1, 1.0)) for number in range(3)]
            await asyncio.sleep(0.01)
            tasks[1].cancel()
            held.set()
            return sum(await asyncio.gather(tasks[0], tasks[2]))

        assert asyncio.run(ask()) == 2


def test_time_that_is_left_takes_few_values(monkeypatch: pytest.MonkeyPatch) -> None:
    now: Callable[[], float] = lambda: 100.0  # noqa: E731
    monkeypatch.setattr(searches.time, "monotonic", now)
    assert [searches.left_s(100.0 + left, 8.0) for left in (0.01, 1.0, 1.5, 7.99, 8.0)] == [1.0, 1.0, 2.0, 8.0, 8.0]
    with pytest.raises(SearchTimeout, match=r"waited longer than 8 s"):
        searches.left_s(100.0, 8.0)
