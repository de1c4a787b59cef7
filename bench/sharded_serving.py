"""Holds an index that is served in shards on Ray against the same rows in one piece: results, a lost process, speed.

python bench/sharded_serving.py DATASET.h5 [--one ONE.vqd --many MANY.vqd]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import os
import signal
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measuring import RESULTS, circumstances, run, stored
from serving import Server, closed_loop, post
from sharded import read, workers, write

import vqdistill as vqd
from vqdistill.client import Client
from vqdistill.errors import ServerUnavailable, VqdistillError
from vqdistill.index.files import FileOps
from vqdistill.index.manifest import Manifest
from vqdistill.index.shardset import ShardSet, name_of, shard_of, write_shards
from vqdistill.index.writer import IndexWriter
from vqdistill.kernels import unpack_codes
from vqdistill.types import Codes, F32Rows
from vqdistill.wire import MSGPACK, NPY

SHARDS, PARTS, K = 4, 2, 10
QUERIES, BATCH = 10_000, 64
CONNECTIONS, TURNS, SPAN_S = 4, 3, 6.0
"""Of the comparison of speed: requests at a time, and how often and how long each server is asked."""
LOAD, BEFORE_S, MOST_S = 3, 3.0, 40.0
"""Of the lost process: clients, seconds before it, and for which it is waited at most."""
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "nprobe=64, refine=100": {"nprobe": 64, "refine": 100},
    "coverage=0.9, confidence=0.9": {"coverage": 0.9, "confidence": 0.9},
    "refine=0": {"refine": 0},
}
RAY = ("--engine", "ray", "--parts", str(PARTS), "--no-access-log")
COPIES = ("--engine", "ray", "--parts", "1", "--replicas", "2", "--no-access-log")
SERVERS = {"one piece": ("--no-access-log",), "parts": RAY, "copies": COPIES}
"""Whose speed is compared: one process, two with half of the shards each, two with all of them."""


def queries_of(dataset: str) -> F32Rows:
    """Return test queries and, in front of them, as many learn queries as make 10,000."""
    test = vqd.open_source(dataset).companion("test")
    assert test is not None
    asked = test.take(np.arange(test.n))
    learn = read(dataset)[1]
    return np.concatenate([np.resize(learn, (QUERIES - len(asked), learn.shape[1])), asked])


def make(dataset: str, place: Path, options: list[str]) -> tuple[Path, Path]:
    """Compile the rows of a dataset into one index, and into one in shards."""
    inputs, job = write(place, *read(dataset)), place / "job"
    run("shard", "plan", *inputs, "-o", str(job), *options)
    run("shard", "train", str(job))
    for number in range(len(list((place / "rows").iterdir()))):
        run("shard", "encode", str(job), "--shard", str(number))
    one, many = place / "one.vqd", place / "many.vqd"
    run("shard", "commit", str(job), "-o", str(one))
    run("shard", "commit", str(job), "-o", str(many), "--shards", str(SHARDS))
    return one, many


def equal(dataset: str, one: Path, many: Path) -> dict[str, Any]:
    """Queries whose results differ: of the shards in one process, and behind the server on Ray."""
    queries, single, here = queries_of(dataset), vqd.open(one), vqd.open(many)
    found: dict[str, Any] = {}
    with Server(many, *RAY) as server, Client(server.url, many.stem) as client:
        for name, options in SETTINGS.items():
            wanted = single.search(queries, K, threads=2, **options)
            local = here.search(queries, K, threads=2, **options)
            parts = [client.search(queries[at : at + 500], K, **options) for at in range(0, len(queries), 500)]
            scores, ids = (np.concatenate([getattr(part, what) for part in parts]) for what in ("scores", "ids"))
            found[name] = {
                "queries": len(queries),
                "most_rows_scanned": int(wanted.query_stats["codes_scanned"].max()),
                "differ_in_one_process": _differ(wanted, local.scores, local.ids),
                "differ_on_ray": _differ(wanted, scores, ids),
                "lower_on_ray": int((scores.sum(axis=1) < wanted.scores.sum(axis=1)).sum()),
            }
    return found


def _differ(wanted: vqd.Hits, scores: Any, ids: Any) -> int:
    return int(((wanted.scores != scores) | (wanted.ids != ids)).any(axis=1).sum())


def lost(dataset: str, one: Path, many: Path) -> dict[str, Any]:
    """A process that holds half of the shards is killed under load, for each of the policies."""
    queries = queries_of(dataset)[:BATCH]
    wanted = vqd.open(one).search(queries, K, nprobe=64)
    return {policy: _killed(policy, many, queries, wanted) for policy in ("fail", "degrade")}


def _killed(policy: str, many: Path, queries: F32Rows, wanted: vqd.Hits) -> dict[str, Any]:
    with Server(many, *RAY, "--on-lost", policy) as server:
        seen: list[tuple[float, str]] = []
        over = threading.Event()

        def ask() -> None:
            with Client(server.url, many.stem, retries=0) as client:
                while not over.is_set():
                    begin = time.perf_counter()
                    seen.append((begin, _outcome(client, queries, wanted)))

        threads = [threading.Thread(target=ask) for _ in range(LOAD)]
        for thread in threads:
            thread.start()
        time.sleep(BEFORE_S)
        victim = min(pid for pid in workers(server.pid) if b"ServeReplica" in Path(f"/proc/{pid}/cmdline").read_bytes())
        at = time.perf_counter()
        os.kill(victim, signal.SIGKILL)
        time.sleep(1.0)
        while time.perf_counter() < at + MOST_S and any(what != "right" for when, what in seen if when > _now() - 2):
            time.sleep(0.2)
        over.set()
        for thread in threads:
            thread.join()
    bad = [when for when, what in seen if what != "right"]
    return {
        "outcomes": dict(Counter(what for _, what in seen)),
        "before_the_kill": dict(Counter(what for when, what in seen if when < at - 1)),
        "first_after_s": max(0.0, min(bad, default=at) - at),
        "whole_again_after_s": max(bad, default=at) - at,
    }


def _now() -> float:
    return time.perf_counter()


def _outcome(client: Client, queries: F32Rows, wanted: vqd.Hits) -> str:
    try:
        hits = client.search(queries, K, nprobe=64)
    except ServerUnavailable:
        time.sleep(0.05)
        return "503"
    except VqdistillError as error:
        return f"error: {error}"
    if hits.searched < 1:
        return "degraded"
    return "wrong" if _differ(wanted, hits.scores, hits.ids) else "right"


def speed(dataset: str, one: Path, many: Path) -> dict[str, Any]:
    """Batches a second of the server of one piece and of those on Ray, which take turns on the same cores."""
    queries = queries_of(dataset)
    found: dict[str, list[float]] = {name: [] for name in SERVERS}
    for _ in range(TURNS):
        for name, options in SERVERS.items():
            index = many if "ray" in options else one
            requests = [_request(index.stem, queries[at : at + BATCH]) for at in range(0, QUERIES - BATCH, BATCH)]
            with Server(index, *options) as server:
                asyncio.run(closed_loop(server.address, requests, CONNECTIONS, SPAN_S / 4))
                seen = asyncio.run(closed_loop(server.address, requests, CONNECTIONS, SPAN_S))
            assert set(seen.statuses) == {200}, seen.statuses
            found[name].append(BATCH * seen.per_second)
    alone = found["one piece"]
    ratios = {name: [b / a for a, b in zip(alone, found[name], strict=True)] for name in ("parts", "copies")}
    return {"queries_per_s": found, "ratios": ratios}


def large(dataset: str, one: Path, many: Path) -> dict[str, Any]:
    """The same for the rows of the dataset four times over, each time a shard."""
    with tempfile.TemporaryDirectory() as place:
        return speed(dataset, *tiled(one, Path(place)))


def tiled(one: Path, place: Path) -> tuple[Path, Path]:
    """Write the rows of an index so many times over as there are shards, in one piece and in shards."""
    whole, many = place / "one.vqd", place / "many.vqd"
    many.mkdir()
    with vqd.open_index(one) as reader:
        manifest, n = reader.manifest, reader.manifest.n
        order = np.argsort(reader.rows_of(np.arange(n)))
        lists = np.repeat(np.arange(manifest.nlist, dtype=np.int32), reader.list_sizes)[order]
        codes = Codes(lists, unpack_codes(reader.sets[0].arrays["codes"], n)[order])
        rows, model, policy = reader.dense_rows(order), reader.model, manifest.search

        def published(path: Path, times: int, first_row: int) -> Manifest:
            options: dict[str, Any] = {"dense": manifest.dense, "tables": manifest.tables, "ids": "rows"}
            index_id = hashlib.blake2b(path.name.encode(), digest_size=16).digest()
            with IndexWriter(path, model, index_id=index_id, first_row=first_row, **options) as writer:
                for _ in range(times):
                    writer.add(None, codes, rows)
                return writer.publish({}, policy, {})

        published(whole, SHARDS, 0)
        shards = [shard_of(published(many / name_of(at), 1, at * n), at * n) for at in range(SHARDS)]
    whole_set = ShardSet(
        generation=1,
        index_id=bytes(16),
        model_id=manifest.model_id,
        search=policy.to_json(),
        certificate=None,
        shards=tuple(shards),
    )
    write_shards(FileOps(), many, whole_set)
    return whole, many


def _request(name: str, queries: F32Rows) -> bytes:
    file = io.BytesIO()
    np.save(file, queries)
    return post(f"/v1/indexes/{name}/search?k={K}", file.getvalue(), NPY, MSGPACK)


MEASURES = {"equal": equal, "lost": lost, "speed": speed, "large": large}


def lines(name: str, found: dict[str, Any]) -> Iterator[str]:
    """Say what was found."""
    if name == "equal":
        for setting in SETTINGS:
            each = found[setting]
            yield (
                f"{setting}: of {each['queries']:,} queries {each['differ_in_one_process']} differ in one process,"
                f" {each['differ_on_ray']} on Ray, {each['lower_on_ray']} to lower scores;"
                f" at most {each['most_rows_scanned']:,} rows scanned"
            )
    elif name == "lost":
        for policy in ("fail", "degrade"):
            each = found[policy]
            yield f"{policy}: {each['outcomes']}, whole again after {each['whole_again_after_s']:.1f} s"
    else:
        for server, rates in found["queries_per_s"].items():
            yield f"{server}: {statistics.median(rates):,.0f} queries/s"
        for server, ratios in found["ratios"].items():
            yield f"{server}: ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--one", type=Path, help="index of the dataset; default: compile it")
    parser.add_argument("--many", type=Path, help="the same in 4 shards")
    parser.add_argument("--ram", default="24B/vec")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        made: list[Path] = [] if arguments.one is None else [arguments.one, arguments.many]
        for name in arguments.only:

            def measured(name: str = name) -> dict[str, Any]:
                made.extend([] if made else make(arguments.dataset, Path(place), ["--ram", arguments.ram]))
                return MEASURES[name](arguments.dataset, *made) | circumstances()

            for text in lines(name, stored(RESULTS / "sharded" / f"serve-{name}.json", measured)):
                print(f"{name}: {text}", flush=True)


if __name__ == "__main__":
    main()
