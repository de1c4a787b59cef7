"""Kill -9 at random moments of additions, deletions, compactions, merges and collections of an index.

    python bench/live_crash.py ../shared/data/debian.h5 --kills 200

After each kill the index is opened again: it must be what it was before the change or what it should be after it, the
latter if the change was acknowledged; `verify` must find nothing, and the next change must succeed. Counts go to
results/live-crash.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numba
import numpy as np
from measuring import RESULTS, stored

import vqdistill as vqd
from vqdistill.index import update
from vqdistill.index.gc import gc
from vqdistill.index.join import merge_indexes
from vqdistill.index.verify import verify

COMPILED, BATCH = 3000, 300
State = dict[str, bytes]
Change = tuple[str, Callable[[], None], State]


def main() -> None:
    """Measure, unless the result is there, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    options = parser.parse_args()
    numba.config.THREADING_LAYER = "workqueue"  # the others do not survive a fork
    with h5py.File(options.dataset) as file:
        x = file["train"][:20_000].astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    print(stored(RESULTS / "live-crash.json", lambda: Trial(x).run(options.kills)))


class Trial:
    """One index, and what must be in it."""

    def __init__(self, x: np.ndarray) -> None:
        self.x, self.rng = x, np.random.default_rng(0)
        # Scaled once more, as what is added is: it can change the last bit.
        self.stored_rows = vqd.open_source(x, metric="cosine").take(np.arange(len(x))).astype(np.float16)
        self.folder = Path(tempfile.mkdtemp(prefix="live-crash-"))
        self.path, self.other, self.out = (self.folder / f"{name}.vqd" for name in ("index", "other", "merged"))
        ids = [f"doc {row}" for row in range(COMPILED)]
        # Few additions must make several sets, so that all ways of merging come up.
        update.SMALL_ROWS = 64
        vqd.compile(x[:COMPILED], self.path, queries="none", ids=ids, distill=False, threads=1)
        shutil.copytree(self.path, self.other)
        searcher = vqd.open(self.other)
        searcher.delete(ids)
        searcher.add(x[:BATCH], [f"other {row}" for row in range(BATCH)])
        self.state, self.theirs = read(self.path), read(self.other)
        self.counts: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}
        """That each kind of change took when it was not killed."""

    def run(self, kills: int) -> dict[str, Any]:
        """Kill so many changes, and count what came of them."""
        begin = time.perf_counter()
        while self.counts["killed"] < kills:
            name, change, after = self.next_change()
            limit = 1.3 * self.rng.random() * self.seconds[name] if name in self.seconds else 60.0
            took, killed, acknowledged = stopped(change, limit)
            if not killed:
                self.seconds[name] = took
            self.check(name, after, killed, acknowledged)
        shutil.rmtree(self.folder)
        return {"counts": dict(sorted(self.counts.items())), "seconds": time.perf_counter() - begin}

    def next_change(self) -> Change:
        """Choose a change; also return the state that it leads to."""
        name = str(self.rng.choice(["add", "add", "delete", "compact", "merge", "gc"]))
        if name == "compact":
            return name, lambda: vqd.open(self.path).compact(), self.state
        if name == "gc":
            return name, lambda: (gc(self.path), None)[1], self.state
        if name == "merge":
            shutil.rmtree(self.out, ignore_errors=True)
            return name, lambda: (merge_indexes([self.path, self.other], self.out), None)[1], self.state
        if name == "delete":
            gone = self.rng.choice(list(self.state), min(BATCH, len(self.state) // 3), replace=False).tolist()
            after = {key: row for key, row in self.state.items() if key not in set(gone)}
            return name, lambda: (vqd.open(self.path).delete(gone), None)[1], after
        rows = self.rng.choice(len(self.x), BATCH, replace=False)
        ids = [f"doc {row}" for row in rows.tolist()]
        after = self.state | {key: row.tobytes() for key, row in zip(ids, self.stored_rows[rows], strict=True)}
        return name, lambda: (vqd.open(self.path).upsert(self.x[rows], ids), None)[1], after

    def check(self, name: str, after: State, killed: bool, acknowledged: bool) -> None:
        """Compare what is there with what may be."""
        found, problems = read(self.path), verify(self.path)
        allowed = [after] if acknowledged else [self.state, after]
        if problems or found not in allowed:
            raise SystemExit(f"{name} of {self.path} broke it: {problems or 'another state'}")
        self.counts["killed"] += killed
        self.counts[f"{name} {'killed' if killed else 'finished'}"] += 1
        self.counts["killed, but done"] += killed and found == after != self.state
        if name == "merge" and os.path.lexists(self.out):
            merged = read(self.out)
            if verify(self.out) or merged != self.state | self.theirs:
                raise SystemExit(f"{self.out} is no merge of both")
        self.state = found
        for left in self.folder.glob("merged.vqd.tmp-*"):
            shutil.rmtree(left)
        probe = vqd.open(self.path)
        probe.upsert(self.x[:1], ["probe"])
        probe.delete(["probe"])


def stopped(change: Callable[[], None], after_s: float) -> tuple[float, bool, bool]:
    """Make a change in a process of its own, and kill that after so many seconds.

    Returns
    -------
    Seconds it took, whether it was killed, and whether it had said that the change is made
    """
    reading, writing = os.pipe()
    begin = time.perf_counter()
    child = os.fork()
    if child == 0:
        change()
        os.write(writing, b"done")
        os._exit(0)
    os.close(writing)
    while (
        time.perf_counter() - begin < after_s
        and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    ):
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    acknowledged = os.read(reading, 4) == b"done"
    os.close(reading)
    killed = os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    if not killed and not acknowledged:
        raise SystemExit("a change failed by itself")
    return time.perf_counter() - begin, killed, acknowledged


def read(path: Path) -> State:
    """Rows of an index by id, as they are stored."""
    with vqd.open_index(path) as reader:
        positions = np.arange(reader.manifest.n)
        positions = positions[reader.alive.of(positions)]
        rows = reader.dense_rows(positions).astype(np.float16)
        ids = reader.ids_of(positions).tolist()
        assert np.array_equal(reader.positions_of(ids), positions)
    return {key: row.tobytes() for key, row in zip(ids, rows, strict=True)}


if __name__ == "__main__":
    main()
