"""The server on loopback: its capacity, 80 % and 300 % of it, batches, a new generation and SIGTERM under load.

    python bench/serve.py ../shared/data/pypi200k-int8.h5 --ram 32B/vec

Compiles the dataset (or takes --index, of which it changes a copy), serves it and asks for its test queries, one a
request but for the batches, as npy and with msgpack for an answer. The load comes from this process, on the same cores,
but for the one that --loop-core gives to the server; its tail without that, and with load from any core, is measured
beside it. The capacity is the highest rate at which requests that do not wait for each other are all answered for a
minute, as long as the runs at 80 % of it, of which there are three: tails differ by the minute. Clients that wait for
answers get more, as they slow down with the machine; that is told beside it.
Results go to bench/results/serve.json.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from measuring import RESULTS, circumstances, run
from serving import Seen, Server, closed_loop, open_loop, post

import vqdistill
from vqdistill.data.sources import open_source
from vqdistill.wire import MSGPACK, NPY

K, BATCH = 10, 256
CONNECTIONS = (2, 4, 8, 16, 32)
"""Of closed loops."""
ROUNDS = 3
"""Of each, in turns, of which the median counts; and of what goes on for longer."""
STEP = 0.9
"""Between two rates that are tried to find the capacity."""
HEALTH = b"GET /health HTTP/1.1\r\nHost: bench\r\n\r\n"
"""A request without work, for what the machine itself adds to latencies."""
_STOLEN = 7
F32 = npt.NDArray[np.float32]


def main() -> None:
    """Measure, keep and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="file with queries under the key test")
    parser.add_argument("--index", type=Path, help="compiled from it; default: compile it")
    parser.add_argument("--ram", default="32B/vec")
    parser.add_argument("--seconds", type=float, default=60, help="at a rate, up to the capacity; a third for the rest")
    parser.add_argument("--out", type=Path, default=RESULTS / "serve.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vqdistill-serve-") as place:
        index = Path(place) / "index.vqd"
        if options.index is None:
            run("compile", str(options.dataset), "-o", str(index), "--metric", "cosine", "--ram", options.ram)
        else:
            shutil.copytree(options.index, index)
        result = measure(index, options.dataset, options.seconds)
    options.out.write_text(json.dumps(result | circumstances(), indent=1, sort_keys=True) + "\n")
    print(json.dumps(result, indent=1))


def measure(index: Path, dataset: Path, seconds: float) -> dict[str, Any]:
    """Return all figures."""
    test = open_source(dataset, metric="cosine").companion("test")
    if test is None:
        raise SystemExit(f"{dataset} needs queries under the key test, got none")
    queries = test.take(np.arange(min(test.n, 4096)))
    single = [request(query[None]) for query in queries]
    brief = max(seconds / 3, 1.0)
    cores = sorted(os.sched_getaffinity(0))
    ways = ("--loop-core", str(cores[0])) if len(cores) > 1 else ()
    others = set(cores[1:] or cores)
    with Server(index, *ways) as server, on_cores(others):
        asyncio.run(closed_loop(server.address, single, 8, brief / 4))  # to be warm
        closed: dict[int, list[Seen]] = {count: [] for count in CONNECTIONS}
        for _ in range(ROUNDS):
            for count, seen in closed.items():
                seen.append(asyncio.run(closed_loop(server.address, single, count, brief / 4 / ROUNDS)))
        best = max(statistics.median(each.per_second for each in seen) for seen in closed.values())
        tried = [held(server, single, best, brief)]
        while not all_answered(tried[-1]):
            rate = tried[-1][0]["rate_per_s"]
            if rate < 1:
                raise SystemExit(f"not even one request a second is answered whole: {tried[-1]}")
            tried.append(held(server, single, STEP * rate, brief))
        capacity = tried[-1][0]["rate_per_s"]
        result: dict[str, Any] = {
            "dataset": dataset.stem,
            "options": ways,
            "capacity_per_s": capacity,
            "rates_tried": tried,
            "closed_loops": {count: [each.summary() for each in seen] for count, seen in closed.items()},
            "sustained": [sustained(server, single, 0.8 * capacity, seconds) for _ in range(ROUNDS)],
            "sustained_without_work": sustained(server, [HEALTH], 0.8 * capacity, brief),
            "overload": overload(server, single, 3 * capacity, brief),
        }
    with Server(index) as server:
        asyncio.run(closed_loop(server.address, single, 8, brief / 4))
        result["sustained_anywhere"] = sustained(server, single, 0.8 * capacity, seconds)
    with Server(index, *ways) as server:
        result["batches"] = batches(server, index, queries, brief)
        with on_cores(others):
            result["new_generation"] = new_generation(server, index, single, capacity / 2, brief)
    result["sigterm"] = [sigterm(index, single) for _ in range(5)]
    return result


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Keep the calling thread, and those that it begins, on some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def request(queries: F32) -> bytes:
    """Return the request that asks for some queries."""
    file = io.BytesIO()
    np.save(file, queries)
    return post(f"/v1/indexes/index/search?k={K}", file.getvalue(), NPY, MSGPACK)


def held(server: Server, requests: list[bytes], rate: float, seconds: float) -> list[dict[str, Any]]:
    """Ask at a rate for several times as long, until some request is not answered."""
    parts = [sustained(server, requests, rate, seconds)]
    while len(parts) < ROUNDS and all_answered(parts):
        parts.append(sustained(server, requests, rate, seconds))
    return parts


def all_answered(parts: list[dict[str, Any]]) -> bool:
    """Whether nothing was refused or lost."""
    return all(set(part["statuses"]) == {"200"} for part in parts)


def sustained(server: Server, requests: list[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """Ask at an even rate below the capacity, and see how much of the machine its host gave to others meanwhile."""
    before = _cpu_times()
    seen = asyncio.run(open_loop(server.address, requests, rate, seconds))
    spent = _cpu_times() - before
    ratio = seen.percentile(0.99) / seen.percentile(0.5)
    return seen.summary() | {"rate_per_s": rate, "p99_to_p50": ratio, "stolen_share": spent[_STOLEN] / spent.sum()}


def _cpu_times() -> npt.NDArray[np.int64]:
    """Ticks of all cores: user, nice, system, idle, waiting, interrupts (2), stolen."""
    with open("/proc/stat") as file:
        return np.array(file.readline().split()[1 : 2 + _STOLEN], np.int64)


def overload(server: Server, requests: list[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """Ask at a rate above the capacity, and watch the memory of the server."""
    before, highest, done = server.resident_bytes, [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            highest[0] = max(highest[0], server.resident_bytes)

    watching = threading.Thread(target=watch)
    watching.start()
    seen = asyncio.run(open_loop(server.address, requests, rate, seconds))
    done.set()
    watching.join()
    memory = {"before": before, "highest": highest[0], "after": server.resident_bytes}
    return seen.summary() | {"rate_per_s": rate, "resident_bytes": memory}


def batches(server: Server, index: Path, queries: F32, seconds: float, repetitions: int = 5) -> dict[str, Any]:
    """Compare batches over HTTP with the same batches in this process, in as many threads, taking turns."""
    threads = len(os.sched_getaffinity(0))
    parts = [queries[first : first + BATCH] for first in range(0, len(queries) // BATCH * BATCH, BATCH)] or [queries]
    requests, searcher = [request(part) for part in parts], vqdistill.open(index)
    span = seconds / repetitions / 2

    def inside() -> float:
        end, begin = time.perf_counter() + span, time.perf_counter()

        def search(first: int) -> int:
            at = first
            while time.perf_counter() < end:
                searcher.search(parts[at % len(parts)], K)
                at += threads
            return (at - first) // threads

        with ThreadPoolExecutor(threads) as pool:
            count = sum(pool.map(search, range(threads)))
        return count * len(parts[0]) / (time.perf_counter() - begin)

    def outside() -> Seen:
        return asyncio.run(closed_loop(server.address, requests, threads + 1, span))

    inside(), outside()  # to be warm
    rounds = [(inside(), outside()) for _ in range(repetitions)]
    pairs = [(alone, len(parts[0]) * seen.per_second) for alone, seen in rounds]
    return {
        "batch": len(parts[0]),
        "threads": threads,
        "in_process_per_s": statistics.median(alone for alone, _ in pairs),
        "http_per_s": statistics.median(served for _, served in pairs),
        "ratio": statistics.median(served / alone for alone, served in pairs),
        "statuses": {str(status): count for _, seen in rounds for status, count in seen.statuses.items()},
    }


def new_generation(server: Server, index: Path, requests: list[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """Delete rows again and again while requests come."""
    done, swaps = threading.Event(), [0]

    def change() -> None:
        searcher = vqdistill.open(index)
        ids = searcher.search(open_rows(searcher, 200)).ids[:, 0]
        for part in np.array_split(np.unique(ids), 20):
            if done.wait(seconds / 25):
                return
            searcher.delete(part)
            swaps[0] += 1

    writing = threading.Thread(target=change)
    writing.start()
    seen = asyncio.run(open_loop(server.address, requests, rate, seconds))
    done.set()
    writing.join()
    return seen.summary() | {"rate_per_s": rate, "generations_published": swaps[0]}


def open_rows(searcher: vqdistill.Searcher, count: int) -> F32:
    """Rows of an index."""
    return searcher.reader.dense_rows(np.arange(count, dtype=np.int64))


def sigterm(index: Path, requests: list[bytes]) -> dict[str, Any]:
    """Stop a server that has its hands full, and count what it did not answer."""
    with Server(index) as server:
        stopper = threading.Timer(1.0, server.terminate)
        stopper.start()
        seen = asyncio.run(closed_loop(server.address, requests, 16, 10.0))
        stopper.join()
        begin = time.perf_counter()
        code = server.wait()
        return seen.summary() | {"exit_code": code, "exit_after_last_answer_s": time.perf_counter() - begin}


if __name__ == "__main__":
    main()
