"""Searches in threads of the native module find what others do, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqdistill
from tests.kernels.support import Shape, random_arrays
from tests.searching import PLAIN, D, write_index
from tests.server.test_search import CASES, same
from vqdistill._native import Engine, PreparedSearch
from vqdistill._native import SearchPool as NativePool
from vqdistill.errors import SearchTimeout, VqdistillError
from vqdistill.searcher import Searcher
from vqdistill.server.pool import SearchPool
from vqdistill.types import Hits

SPAN_S = 60
SLOW = 4096
"""Queries whose search takes a while."""


@pytest.fixture(scope="module")
def searchers(shelf: dict[str, Path]) -> Iterator[dict[str, Searcher]]:
    opened = {name: vqdistill.open(path) for name, path in shelf.items()}
    yield opened
    for searcher in opened.values():
        searcher.reader.close()


@pytest.fixture(params=[1, 2, 5])
def pool(request: pytest.FixtureRequest) -> Iterator[SearchPool]:
    made = SearchPool(request.param)
    yield made
    made.close()


async def find(pool: SearchPool, searcher: Searcher, queries: Any, **options: Any) -> Hits:
    call = searcher.call(queries, **options)
    return call.hits(await asyncio.wait_for(pool.run(call), SPAN_S))


def slow(searcher: Searcher, **options: Any) -> Any:
    return searcher.call(np.ones((SLOW, D), np.float32), nprobe=12, refine=0, **options)


def test_many_at_once_find_what_each_finds_alone(
    pool: SearchPool, searchers: dict[str, Searcher], queries: Any
) -> None:
    asked = [
        (searchers[name], queries[first : first + 1 + first % 3], options)
        for name, options in CASES
        for first in range(0, len(queries), 2)
    ]
    asked = [asked[at] for at in np.random.default_rng(0).permutation(len(asked))]
    large, filtered = (np.tile(queries, (3, 1)), {}), (queries, {"allow": range(0, 900, 7)})
    asked += [(searchers["rows"], *each) for each in (large, filtered)]

    async def ask() -> list[Hits]:
        return await asyncio.gather(*(find(pool, searcher, rows, **options) for searcher, rows, options in asked))

    for (searcher, rows, options), hits in zip(asked, asyncio.run(ask()), strict=True):
        assert same(hits, searcher.search(rows, **options))


def test_one_whose_time_is_over_harms_none_beside_it(
    pool: SearchPool, searchers: dict[str, Searcher], queries: Any
) -> None:
    searcher = searchers["rows"]

    async def ask() -> list[Any]:
        keeping = [asyncio.ensure_future(pool.run(slow(searcher))) for _ in range(5)]
        asked = [find(pool, searcher, queries[:1], timeout_s=1e-7 if at % 3 == 1 else 30.0) for at in range(30)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        await asyncio.gather(*keeping)
        return found

    wanted = searcher.search(queries[:1])
    for at, found in enumerate(asyncio.run(ask())):
        if at % 3 == 1:
            assert isinstance(found, SearchTimeout)
            assert str(found) == "the search of 1 queries took longer than 1e-07 s"
        else:
            assert same(found, wanted)


def test_rows_that_cannot_be_read_are_told(pool: SearchPool, queries: Any, tmp_path: Path) -> None:
    write_index(tmp_path / "i.vqd", search=PLAIN)
    searcher = vqdistill.open(tmp_path / "i.vqd", io="pread")
    (dense,) = (path for path in (tmp_path / "i.vqd").rglob("*") if path.name.startswith("dense"))
    os.truncate(dense, 4096)

    async def ask() -> list[Any]:
        asked = [find(pool, searcher, queries[:1], **options) for options in ({}, {"refine": 0}, {}, {"refine": 0})]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(ask())
    for failure in found[::2]:
        assert type(failure) is VqdistillError and "dense rows cannot be read" in str(failure)
    for hits in found[1::2]:
        assert same(hits, searcher.search(queries[:1], refine=0))
    searcher.reader.close()


def test_one_that_gave_up_is_passed_over(pool: SearchPool, searchers: dict[str, Searcher], queries: Any) -> None:
    searcher = searchers["rows"]

    async def ask() -> list[Hits]:
        tasks = [asyncio.create_task(find(pool, searcher, queries[at : at + 1])) for at in range(12)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        return await asyncio.gather(*tasks[1::2])

    for at, hits in zip(range(1, 12, 2), asyncio.run(ask()), strict=True):
        assert same(hits, searcher.search(queries[at : at + 1]))


def test_loops_of_several_threads_share_a_pool(pool: SearchPool, searchers: dict[str, Searcher], queries: Any) -> None:
    searcher, wrong = searchers["rows"], list[int]()
    wanted = [searcher.search(query[None]) for query in queries]

    def work() -> None:
        async def ask() -> None:
            for _ in range(10):
                found = await asyncio.gather(*(find(pool, searcher, query[None]) for query in queries))
                wrong.extend(at for at, pair in enumerate(zip(found, wanted, strict=True)) if not same(*pair))

        asyncio.run(ask())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SPAN_S)
    assert not any(thread.is_alive() for thread in threads) and not wrong


def test_closing_waits_for_those_that_began_and_cancels_the_rest(searchers: dict[str, Searcher]) -> None:
    searcher = searchers["rows"]
    open_before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None
    pool = SearchPool(1)
    wanted = slow(searcher).engine("search")

    async def ask() -> list[Any]:
        tasks = [asyncio.create_task(pool.run(slow(searcher, k=10))) for _ in range(40)]
        await asyncio.sleep(0.01)
        await asyncio.to_thread(pool.close)
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), SPAN_S)

    found = asyncio.run(ask())
    done = [each for each in found if isinstance(each, tuple)]
    assert len(done) + sum(isinstance(each, asyncio.CancelledError) for each in found) == 40
    assert 1 <= len(done) < 40 and all(np.array_equal(each[1], wanted[1]) for each in done)
    pool.close()
    if open_before is not None:
        assert len(os.listdir("/proc/self/fd")) == open_before
    with pytest.raises(ValueError, match="the pool must be open, but it is closed"):
        asyncio.run(pool.run(slow(searcher)))


def test_closing_beside_loops_of_other_threads_leaves_no_descriptor(
    searchers: dict[str, Searcher], queries: Any
) -> None:
    def descriptors() -> list[str]:
        return [name for name in map(target, os.listdir("/proc/self/fd")) if "eventfd" in name or "pipe" in name]

    def target(name: str) -> str:
        try:
            return os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the listing's own
            return ""

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs /proc")
    loops = [asyncio.new_event_loop() for _ in range(4)]
    threads = [threading.Thread(target=loop.run_forever) for loop in loops]
    for thread in threads:
        thread.start()
    before, call = len(descriptors()), searchers["rows"].call(queries[:1])
    for _ in range(100):
        pool = SearchPool(2)
        asked = [asyncio.run_coroutine_threadsafe(pool.run(call), loop) for loop in loops]
        for each in asked:
            each.result(SPAN_S)
        pool.close()
    for loop in loops:
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(SPAN_S)  # they have left by now
    assert len(descriptors()) == before
    for loop, thread in zip(loops, threads, strict=True):
        loop.call_soon_threadsafe(loop.stop)
        thread.join(SPAN_S)
        loop.close()


def test_a_pool_that_nobody_asked_closes() -> None:
    pool = SearchPool(3)
    pool.close()
    pool.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def prepared(queries: Any) -> tuple[PreparedSearch, Any]:
    engine = Engine(**random_arrays(Shape()))
    options: Any = {"k": 5, "nprobe": 3, "refine": 0, "threads": 1}
    return engine.prepare_search(queries, **options), engine.search(queries, **options)


def test_a_search_lives_until_it_is_collected(pipe: tuple[int, int]) -> None:
    pool = NativePool(1, pipe[1])
    queries = np.random.default_rng(0).standard_normal((6, Shape().d)).astype(np.float32)
    search, wanted = prepared(queries)
    gc.collect()  # the engine has no other holder
    with pytest.raises(ValueError, match="search must have ended, but it has not"):
        search.result()
    pool.submit(search, "ticket")
    with pytest.raises(ValueError, match="search must be new, but it was begun before"):
        pool.submit(search, "again")
    assert len(os.read(pipe[0], 100)) == 8
    assert pool.collect() == ["ticket"] and pool.collect() == []
    assert all(np.array_equal(*pair) for pair in zip(search.result(), wanted, strict=True))
    assert pool.close() == [] == pool.close()
    with pytest.raises(ValueError, match="the pool must be open"):
        pool.submit(prepared(queries)[0], None)


def test_the_pool_refuses_what_it_cannot_run(pipe: tuple[int, int]) -> None:
    for threads in (0, 1025):
        with pytest.raises(ValueError, match="threads must be"):
            NativePool(threads, pipe[1])
    with pytest.raises((TypeError, RuntimeError)):
        NativePool(1, pipe[1]).submit("search", None)  # type: ignore[arg-type]
