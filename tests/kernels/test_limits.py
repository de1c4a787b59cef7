"""A call that ends before its work is done: by its time limit, and by Ctrl-C."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.kernels.support import Shape, random_arrays
from vqdistill.kernels import Engine

SHAPE = Shape(n=200_000, d=8, m=32, dsub=1, nlist=16)
LONG = {"k": 10, "nprobe": 16, "refine": 0}
QUERIES = 240_000
"""Searched in many seconds."""
SOON_S = 0.3
"""A moment, on a machine that does other things besides."""


@pytest.fixture(scope="module")
def native():
    return Engine(**random_arrays(SHAPE))


@pytest.fixture(scope="module")
def queries():
    return np.random.default_rng(0).standard_normal((QUERIES, SHAPE.d)).astype(np.float32)


def searches(native, queries):
    yield lambda **limits: native.search(queries, **LONG, **limits)
    yield lambda **limits: native.search(queries, **LONG | {"nprobe": 15}, **limits)
    yield lambda **limits: native.range_search(queries, threshold=1e9, margin=0.0, verify=False, nprobe=16, **limits)


@pytest.mark.parametrize("threads", [1, 2])
def test_time_is_over_soon_after_the_limit(native, queries, threads):
    few = native.search(queries[:5], **LONG, threads=1)
    for search in searches(native, queries):
        begin = time.perf_counter()
        with pytest.raises(TimeoutError, match="timed out"):
            search(threads=threads, timeout_s=0.05)
        assert 0.05 <= time.perf_counter() - begin < 0.05 + SOON_S
        again = native.search(queries[:5], **LONG, threads=threads)
        assert all(np.array_equal(a, b) for a, b in zip(few, again, strict=True)), "the engine stays usable"


@pytest.mark.parametrize("timeout_s", [1e-9, 60.0, 1e12, np.inf])
def test_a_limit_that_is_not_reached_changes_nothing(native, queries, timeout_s):
    if timeout_s < 1:
        with pytest.raises(TimeoutError):
            native.search(queries[:5], **LONG, threads=1, timeout_s=timeout_s)
        return
    found, wanted = (native.search(queries[:5], **LONG, threads=1, **limit) for limit in ({"timeout_s": timeout_s}, {}))
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


INTERRUPTED = """
import sys, threading, time, os, signal
import numpy as np
from tests.kernels.support import random_arrays
from tests.kernels.test_limits import LONG, QUERIES, SHAPE
from vqdistill.kernels import Engine

native = Engine(**random_arrays(SHAPE))
queries = np.random.default_rng(0).standard_normal((QUERIES, SHAPE.d)).astype(np.float32)
native.search(queries[:5], **LONG, threads=1)
sent = []

def interrupt():
    time.sleep(0.3)
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    native.search(queries, **LONG, threads=int(sys.argv[1]))
except KeyboardInterrupt:
    late = time.perf_counter() - sent[0]
    native.search(queries[:5], **LONG, threads=1)
    print(late)
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_ends_a_long_search(threads):
    command = [sys.executable, "-c", INTERRUPTED, str(threads)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, timeout=60
    )
    late = float(done.stdout)
    print(f"KeyboardInterrupt {1000 * late:.1f} ms after SIGINT, {threads} threads")
    assert late < SOON_S


def ends_at(search, timeout_s):
    """Return the seconds until a search is over its time."""
    begin = time.perf_counter()
    with pytest.raises(TimeoutError):
        search(timeout_s)
    return time.perf_counter() - begin


def test_the_scan_of_a_single_long_list_can_end():
    native = Engine(**random_arrays(Shape(n=8_000_000, d=4, m=2, dsub=1, nlist=1, residual=True)))
    query = np.ones((1, 4), np.float32)
    ends_at(lambda timeout_s: native.search(query, k=1, nprobe=1, refine=0, threads=1, timeout_s=timeout_s), 5e-4)


def test_routing_among_many_lists_can_end():
    arrays = random_arrays(Shape(n=100, d=128, m=2, dsub=1, nlist=2))
    nlist = 60_000
    tables = np.random.default_rng(0).standard_normal((nlist, 128)).astype(np.float32)
    offsets = np.minimum(np.arange(nlist + 1, dtype=np.int64), 100)
    native = Engine(**arrays | {"router": tables, "coarse": tables, "list_offsets": offsets})
    queries = np.ones((128, 128), np.float32)

    def search(timeout_s=np.inf):
        native.search(queries, k=1, nprobe=1, refine=0, threads=1, timeout_s=timeout_s)

    begin = time.perf_counter()
    search()
    whole = time.perf_counter() - begin
    assert min(ends_at(search, whole / 20) for _ in range(3)) < whole / 2
