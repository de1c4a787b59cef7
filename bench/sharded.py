"""Holds compiles in steps, by make and on Ray, against one process: bytes, lost workers, the driver's memory."""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from kill_resume import digest
from measuring import RESULTS, run, stored

import vqdistill as vqd
from vqdistill.types import F32Rows

ROOT = Path(__file__).parent.parent
SHARDS = 8
KILLS, KILLS_EACH = 10, 3
"""Workers that are killed at least, and in each compile at most."""
SMALL = 12_000, 64
"""Rows and dimensions of the compiles that lose workers."""
MANY, TIMES, ASKED = 160_000, 4, 3000
"""Rows, how many times over, and learn queries where the speed of encoding is measured: so that it takes a while."""
FEW = 25_000
"""Rows that memory is measured with, and four times as many."""
BUSY = re.compile(rb"ray::(?!\w+Agent)")


def read(dataset: str) -> tuple[F32Rows, F32Rows]:
    """Return rows and learn queries of a dataset."""
    src = vqd.open_source(dataset)
    learn = src.companion("learn_queries")
    assert learn is not None
    return np.concatenate([block.rows for block in src.blocks()]), learn.take(np.arange(learn.n))


def write(place: Path, rows: F32Rows, queries: F32Rows, times: int = 1) -> list[str]:
    """Write rows, so many times over, as parquet shards, and queries; return the options that name them."""
    (place / "rows").mkdir(parents=True)
    for number in range(SHARDS * times):
        part = np.array_split(rows, SHARDS)[number % SHARDS]
        column = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), part.shape[1])
        pq.write_table(pa.table({"embedding": column}), place / "rows" / f"{number:03d}.parquet")
    np.save(place / "queries.npy", queries)
    return [str(place / "rows"), "--queries", str(place / "queries.npy")]


def on_ray(inputs: list[str], out: Path, *options: str) -> list[str]:
    """Return arguments of a compile on Ray."""
    return [*inputs, "-o", str(out), "--engine", "ray", *options]


def same(dataset: str, place: Path, options: list[str]) -> dict[str, Any]:
    """One process, Ray with two workers, and make: indexes of the same shards."""
    inputs, found = write(place, *read(dataset)), {}
    found["one process"] = run("compile", *inputs, "-o", str(place / "one"), *options)
    found["ray"] = run("compile", *on_ray(inputs, place / "ray", "--threads", "2", *options))
    text = (ROOT / "docs" / "SHARDS.md").read_text(encoding="utf-8")
    (makefile,) = re.findall(r"^```make\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (place / "Makefile").write_text(makefile, encoding="utf-8")
    given = " ".join([*inputs[1:], *options])
    command = ["make", "-j2", f"VQDISTILL={sys.executable} -m vqdistill", f"OPTIONS={given}"]
    begin = time.perf_counter()
    subprocess.run(command, cwd=place, check=True, stdout=subprocess.DEVNULL)
    found["make"] = {"seconds": time.perf_counter() - begin}
    for name, index in (("one process", "one"), ("ray", "ray"), ("make", "corpus.vqd")):
        evaluated = run("eval", str(place / index), dataset, "-k", "10")["output"]
        found[name] |= {"digest": digest(place / index), "recall": evaluated["recall_at_k"]}
    return found


def workers(pid: int) -> list[int]:
    """Ray's workers below a process, but for its agents."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return sorted(each for each in below - {pid} if _is_busy(each))


def _is_busy(pid: int) -> bool:
    try:
        return BUSY.match(Path(f"/proc/{pid}/cmdline").read_bytes()) is not None
    except OSError:
        return False


def killed(dataset: str, place: Path, options: list[str]) -> dict[str, Any]:
    """Workers killed at random moments, and then the driver of another compile."""
    rows, queries = read(dataset)
    inputs = write(place, np.ascontiguousarray(rows[: SMALL[0], : SMALL[1]]), queries[:500, : SMALL[1]].copy())
    run("compile", *inputs, "-o", str(place / "one"), *options)
    run("shard", "plan", *inputs, "-o", str(place / "job"), *options)
    run("shard", "train", str(place / "job"))
    wanted, rng, kills = digest(place / "one"), random.Random(0), list[dict[str, Any]]()
    compiles, span = list[dict[str, Any]](), 90.0
    while len(kills) < KILLS:
        out = place / f"ray{len(compiles)}"
        if compiles:  # the first does all, the others encode and publish
            shutil.copytree(place / "job", f"{out}.work")
        with _begun(on_ray(inputs, out, "--threads", "2", "--resume", *options)) as driver:
            begin, moments = time.perf_counter(), sorted(rng.uniform(2, span) for _ in range(KILLS_EACH))
            for moment in moments:
                with suppress(subprocess.TimeoutExpired):
                    driver.wait(max(0.0, begin + moment - time.perf_counter()))
                stage = sorted(path.name for path in Path(f"{out}.work").glob("*"))
                if driver.poll() is None and (victims := workers(driver.pid)):
                    os.kill(rng.choice(victims), signal.SIGKILL)
                    kills.append({"compile": len(compiles), "after_s": moment, "job": stage})
            driver.wait()
            span = time.perf_counter() - begin
        compiles.append({"same": digest(out) == wanted, "left": _left(place, out)})
    out = place / "lost"
    with _begun(on_ray(inputs, out, "--threads", "2", *options)) as driver:
        while not list(place.glob("lost.work/part-?")):
            time.sleep(0.05)
        below = workers(driver.pid)
        driver.kill()
        driver.wait()
    seen, parts = _left(place, out), len(list(place.glob("lost.work/part-?")))
    time.sleep(20)
    orphans = sum(Path(f"/proc/{pid}").exists() for pid in below)
    run("compile", *on_ray(inputs, out, "--threads", "2", "--resume", *options))
    lost = {"parts": parts, "left": seen, "workers": len(below), "orphans": orphans, "same": digest(out) == wanted}
    return {"kills": kills, "compiles": compiles, "driver": lost}


@contextmanager
def _begun(arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "vqdistill", "compile", *arguments]
    with tempfile.TemporaryFile("w+") as said:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said) as driver:
            yield driver
        if driver.returncode not in (0, -signal.SIGKILL):
            said.seek(0)
            raise SystemExit(f"failed: {said.read()}")


def _left(place: Path, out: Path) -> list[str]:
    """Names beside an index that begin as it does, but for itself."""
    return sorted(path.name for path in place.glob(f"{out.name}*") if path != out)


def memory(dataset: str, place: Path, options: list[str]) -> dict[str, Any]:
    """Peak of the driver's own memory, and then with four times the rows."""
    rows, queries = read(dataset)
    found = {}
    for times in (1, 4):
        inputs = write(place / str(times), rows[:FEW], queries[:500], times)
        peak = 0
        with _begun(on_ray(inputs, place / f"out{times}", "--threads", "2", *options)) as driver:
            while driver.poll() is None:
                peak = max(peak, _peak(driver.pid))
                time.sleep(0.2)
        found[str(times * FEW)] = {"peak_rss_bytes": peak}
    return found


def _peak(pid: int) -> int:
    """Largest resident set of a process so far; 0 if it has ended."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return 0 if found is None else 1024 * int(found[1])


def speed(dataset: str, place: Path, options: list[str]) -> dict[str, Any]:
    """Seconds that one worker and two take to encode all shards, and what the plan on paper says of them."""
    rows, queries = read(dataset)
    rows, queries = rows[:MANY], queries[:ASKED]
    inputs = write(place, rows, queries, TIMES)
    run("shard", "plan", *inputs, "-o", str(place / "job"), *options)
    run("shard", "train", str(place / "job"))
    return encoded(place / "job", SHARDS * TIMES, len(rows) * TIMES, rows.shape[1], options)


def encoded(job: Path, shards: int, n: int, d: int, options: list[str]) -> dict[str, Any]:
    """Encode the shards of a trained job, by one worker and by two."""
    found: dict[str, Any] = {"rows": n, "load": os.getloadavg()[0]}
    for workers in (1, 2):
        for part in job.glob("part-*"):
            shutil.rmtree(part)
        begin = time.perf_counter()
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_ready) as pool:
            list(pool.map(_ready, range(workers)))  # libraries are loaded, and loops compiled
            begin, spent = time.perf_counter(), time.process_time()
            cpu = list(pool.map(_encoded, [str(job)] * shards, range(shards)))
            seconds, spent = time.perf_counter() - begin, time.process_time() - spent
        asked = [*options, "--queries", str(ASKED), "--rows", str(n), "--dim", str(d)]
        planned = run("plan", *asked, "--machine", f"{workers} cores, 24GiB, 1 NVMe")["output"]
        (paper,) = (each["value"] for each in planned["figures"] if each["name"] == "encoding")
        found[str(workers)] = {"seconds": seconds, "cpu_s": sum(cpu) + spent, "planned_s": paper}
    return found


def _ready(*_: int) -> None:
    from vqdistill.shards.parts import encode_shard

    assert callable(encode_shard)


def _encoded(job: str, number: int) -> float:
    from vqdistill.shards.parts import encode_shard

    begin = time.process_time()
    encode_shard(job, number, threads=1)
    return time.process_time() - begin


MEASURES = {
    "same": (same, ["--ram", "16B/vec"]),
    "killed": (killed, ["--ram", "8B/vec", "--codes", "pq", "--no-distill"]),
    "speed": (speed, ["--ram", "16B/vec", "--build-ram", "2GiB"]),
    "memory": (memory, ["--ram", "16B/vec", "--codes", "pq", "--no-distill"]),
}


def lines(name: str, found: dict[str, Any]) -> Iterator[str]:
    """Say what was found."""
    if name == "same":
        for who in ("one process", "ray", "make"):
            each = found[who]
            yield f"{who}: index {each['digest']}, recall@10 {each['recall']:.4f}, {each['seconds']:.0f} s"
    elif name == "killed":
        equal = sum(each["same"] and not each["left"] for each in found["compiles"])
        yield f"{len(found['kills'])} workers killed in {len(found['compiles'])} compiles, {equal} with the same index"
        yield f"driver killed: {found['driver']}"
    elif name == "speed":
        one, two = found["1"], found["2"]
        yield f"{found['rows']:,} rows: {one['seconds']:.1f} s by one worker, {two['seconds']:.1f} s by two"
        yield f"on paper {one['planned_s']:.1f} s and {two['planned_s']:.1f} s; load {found['load']:.1f} before"
    else:
        few, many = found[str(FEW)], found[str(4 * FEW)]
        megabytes = [each["peak_rss_bytes"] / 1e6 for each in (few, many)]
        yield f"driver: {megabytes[0]:.0f} MB with {FEW:,} rows, {megabytes[1]:.0f} MB with four times as many"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--dir", help="folder for inputs and indexes; default: one that is removed")
    arguments = parser.parse_args()
    for name in arguments.only:
        measure, options = MEASURES[name]

        def measured(measure: Any = measure, options: list[str] = options) -> dict[str, Any]:
            with tempfile.TemporaryDirectory(dir=arguments.dir) as place:
                return dict(measure(arguments.dataset, Path(place), options))

        for text in lines(name, stored(RESULTS / "sharded" / f"{name}.json", measured)):
            print(f"{name}: {text}", flush=True)


if __name__ == "__main__":
    main()
