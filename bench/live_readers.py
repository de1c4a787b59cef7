"""Four processes and eight threads search an index while a writer adds, deletes, compacts and collects.

    python bench/live_readers.py ../shared/data/debian.h5 --seconds 60

Every reader refreshes now and then, and notes ids that were never there and its memory; a second writer tries to get
in. The outcome goes to results/live-readers.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from measuring import RESULTS, stored

import vqdistill as vqd
from vqdistill.errors import VqdistillError
from vqdistill.index.gc import gc
from vqdistill.index.update import IndexUpdater
from vqdistill.index.verify import verify

THREADS = (1, 1, 1, 1, 8)
"""Of each reading process."""
COMPILED, BATCH = 8000, 200
REFRESH = 20
"""Searches between two refreshes."""


def main() -> None:
    """Measure, unless the result is there, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    print(stored(RESULTS / "live-readers.json", lambda: measure(options.dataset, options.seconds)))


def measure(dataset: Path, seconds: float) -> dict[str, Any]:
    """Return what readers and the writer saw."""
    with h5py.File(dataset) as file:
        x, queries = (file[name][:16_000].astype(np.float32) for name in ("train", "learn_queries"))
    path = Path(tempfile.mkdtemp(prefix="live-readers-")) / "x.vqd"
    ids = np.arange(1, COMPILED + 1)
    vqd.compile(x[:COMPILED], path, queries="none", ids=ids, distill=False, threads=1)
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    readers = [
        context.Process(target=read, args=(str(path), queries[:64], seconds, count, results)) for count in THREADS
    ]
    for reader in readers:
        reader.start()
    written = write(path, x, seconds)
    found = [results.get(timeout=60) for _ in readers]
    for reader in readers:
        reader.join()
    out = written | {
        "problems": verify(path),
        "exit_codes": [reader.exitcode for reader in readers],
        "searches": sum(part["searches"] for part in found),
        "generations_seen": [part["generations"] for part in found],
        "strange_ids": sum(part["strange"] for part in found),
        "anonymous_bytes_after_warm_up": [part["warm"] for part in found],
        "anonymous_bytes_at_the_end": [part["end"] for part in found],
    }
    shutil.rmtree(path.parent)
    return out


def write(path: Path, x: np.ndarray, seconds: float) -> dict[str, Any]:
    """Add and delete as many rows; compact and collect now and then; another writer tries while one is at work."""
    searcher, begin = vqd.open(path), time.perf_counter()
    counts = {"changes": 0, "second_writer_refused": 0, "second_writer_let_in": 0}
    next_id, rng = COMPILED + 1, np.random.default_rng(0)
    while time.perf_counter() - begin < seconds:
        with IndexUpdater(path) as updater:
            try:
                IndexUpdater(path).abort()
                counts["second_writer_let_in"] += 1
            except VqdistillError:
                counts["second_writer_refused"] += 1
            updater.delete(rng.integers(1, next_id, BATCH))
            updater.add(np.arange(next_id, next_id + BATCH), unit(x[rng.integers(0, len(x), BATCH)]))
            updater.publish()
        next_id += BATCH
        counts["changes"] += 1
        if counts["changes"] % 7 == 0:
            searcher.compact()
            gc(path)
    return counts | {"highest_id": next_id - 1}


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of unit norm."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def read(path: str, queries: np.ndarray, seconds: float, count: int, results: Any) -> None:
    """Search with so many threads, and put what was seen into the queue."""
    searcher, end = vqd.open(path), time.perf_counter() + seconds
    seen: dict[str, Any] = {"searches": 0, "strange": 0, "generations": 0, "warm": 0}

    def search() -> None:
        rng = np.random.default_rng()
        while time.perf_counter() < end:
            for _ in range(REFRESH):
                ids = searcher.search(queries[rng.integers(0, len(queries), 8)], 10, nprobe=8, refine=50).ids
                seen["strange"] += int(((ids < 1) & (ids != -1)).sum())
                seen["searches"] += 1
            seen["generations"] += searcher.refresh()
            if not seen["warm"] and time.perf_counter() > end - 0.75 * seconds:
                seen["warm"] = _anonymous()

    threads = [threading.Thread(target=search) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put(seen | {"end": _anonymous()})


def _anonymous() -> int:
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
