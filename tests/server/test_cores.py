"""The loop has the core that it was given, small searches leave it alone, and nothing else is held to a core."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.searching import D
from tests.server.support import process
from tests.server.test_search import npy
from vqdistill.cli import main
from vqdistill.errors import InvalidInput
from vqdistill.server.cores import LoopCore
from vqdistill.wire import NPY

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
several = pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")


def test_without_a_core_nothing_is_kept() -> None:
    async def work() -> set[int]:
        with LoopCore(None).kept():
            return os.sched_getaffinity(0)

    assert asyncio.run(work()) == set(CORES)


@several
def test_the_loop_is_kept_and_its_threads_are_not() -> None:
    async def work() -> tuple[set[int], set[int]]:
        with LoopCore(CORES[1]).kept():
            return os.sched_getaffinity(0), await asyncio.to_thread(os.sched_getaffinity, 0)

    assert asyncio.run(work()) == ({CORES[1]}, set(CORES))
    assert os.sched_getaffinity(0) == set(CORES)


@pytest.mark.parametrize("core", [max(CORES, default=0) + 1, None])
def test_a_core_must_be_one_of_several(core: int | None) -> None:
    seen: list[str] = []

    def ask(given: int) -> None:
        os.sched_setaffinity(0, {CORES[0]} if core is None else set(CORES))
        with pytest.raises(InvalidInput) as raised:
            LoopCore(given)
        seen.append(str(raised.value))

    asking = threading.Thread(target=ask, args=(CORES[0] if core is None else core,))
    asking.start()
    asking.join()
    cores = ", ".join(map(str, CORES[:1] if core is None else CORES))
    got = CORES[0] if core is None else core
    assert seen == [f"loop_core must be one of several cores that this process may use, {cores}, got {got}"]


def test_one_loop_has_one_core(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["serve", "a.vqd", "--workers", "2", "--loop-core", "0"])
    assert done.value.code == 2
    assert "--loop-core is for the loop of one worker, got --workers 2" in capsys.readouterr().err


@several
def test_a_server_keeps_small_searches_off_the_core_of_its_loop(shelf: dict[str, Path]) -> None:
    loop, given = {CORES[-1]}, set(CORES)

    def of_threads(pid: int) -> list[set[int]]:
        return [os.sched_getaffinity(int(task)) for task in os.listdir(f"/proc/{pid}/task") if int(task) != pid]

    with process(f"a={shelf['rows']}", "--loop-core", CORES[-1], "--concurrency", 2) as running:

        def search(count: int, k: int = 10) -> Any:
            queries = np.random.default_rng(count).standard_normal((count, D)).astype(np.float32)
            url = f"{running.url}/v1/indexes/a/search?k={k}"
            assert httpx.post(url, content=npy(queries), headers={"Content-Type": NPY}).status_code == 200

        assert os.sched_getaffinity(running.pid) == loop
        assert of_threads(running.pid).count(given - loop) == 0
        search(1)
        assert of_threads(running.pid).count(given - loop) == 1
        search(64, k=100)  # so large that a thread puts the response together
        httpx.post(f"{running.url}/v1/indexes/a/refresh")
        assert set(map(frozenset, of_threads(running.pid))) <= {frozenset(given), frozenset(given - loop)}
        running.terminate()
        assert running.wait() == 0
