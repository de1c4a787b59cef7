"""An index in shards behind Ray Serve answers as that of one piece. Needs ray[serve]; `make ray-check` installs it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

import vqdistill
from tests.searching import CALIBRATED, N, embeddings, write_index
from tests.server.support import Process, process
from tests.sharding import write_sharded
from tests.shards.test_ray_engine import descendants, within, workers
from vqdistill.cli import main
from vqdistill.client import Client
from vqdistill.errors import InvalidInput, ServerUnavailable
from vqdistill.index.regather import publish_shards

QUERIES = embeddings(0)[1]
OPTIONS: dict[str, Any] = {"search": CALIBRATED, "additive": True, "dense": "f16"}
PATIENCE_S = 20


def same(found: Any, wanted: Any) -> bool:
    return all(np.array_equal(getattr(found, name), getattr(wanted, name)) for name in ("scores", "ids", "rows"))


# What needs no Ray


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--parts", "2"], "--address, --parts, --replicas and --on-lost need --engine ray"),
        (["--on-lost", "degrade"], "--address, --parts, --replicas and --on-lost need --engine ray"),
        (["--engine", "ray", "--replicas", "x"], "replicas must be N or MIN-MAX, got 'x'"),
        (["--engine", "ray", "--on-lost", "wait"], "'wait' is not one of"),
    ],
)
def test_options_are_checked(options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["serve", "x.vqd", *options])
    assert done.value.code == 2 and sentence in capsys.readouterr().err


def test_it_says_how_to_install_ray(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "vqdistill.server.ray_serve", raising=False)
    with pytest.raises(SystemExit) as done:
        main(["serve", "x.vqd", "--engine", "ray"])
    assert done.value.code == 2
    assert "--engine ray needs ray[serve]: pip install 'vqdistill[ray]'" in capsys.readouterr().err


# What does


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same rows in one piece and in shards."""
    place = tmp_path_factory.mktemp("ray-served")
    write_index(place / "one.vqd", **OPTIONS)
    write_sharded(place / "many.vqd", **OPTIONS)
    return place / "one.vqd", place / "many.vqd"


@pytest.fixture(scope="module")
def server(indexes: tuple[Path, Path]) -> Iterator[Process]:
    pytest.importorskip("ray.serve")
    with process(indexes[1], "--engine", "ray", "--on-lost", "degrade", "--poll", "0.2") as running:
        yield running
        began = descendants(running.pid)
        running.terminate()
        assert running.wait() == 0
    assert began and within(PATIENCE_S, lambda: not any(Path(f"/proc/{pid}").exists() for pid in began))


def test_results_are_those_of_one_piece(server: Process, indexes: tuple[Path, Path]) -> None:
    one = vqdistill.open(indexes[0])
    with Client(server.url, "many") as client:
        for options in ({}, {"nprobe": 2, "refine": 40}, {"refine": 0}, {"coverage": 0.6, "confidence": 0.7}):
            assert same(client.search(QUERIES, 10, **options), one.search(QUERIES, 10, **options)), options
        some = list(range(0, N, 2))
        assert same(client.search(QUERIES, 10, allow=some), one.search(QUERIES, 10, allow=some))
        with pytest.raises(InvalidInput, match="k must be an integer in 1..900"):
            client.search(QUERIES, 901)
        assert client.info()["rows"] == N
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'vqdistill_queries_total{index="many"}' in metrics


def test_a_lost_process_begins_anew(server: Process, indexes: tuple[Path, Path]) -> None:
    wanted, seen, over = vqdistill.open(indexes[0]).search(QUERIES, 10), Counter[str](), threading.Event()
    share = set[float]()

    def load() -> None:
        with Client(server.url, "many", retries=0) as client:
            while not over.is_set():
                try:
                    found = client.search(QUERIES, 10)
                except ServerUnavailable:
                    seen["503"] += 1
                    continue
                share.add(found.searched)
                seen["degraded" if found.searched < 1 else "right" if same(found, wanted) else "wrong"] += 1

    thread = threading.Thread(target=load)
    thread.start()
    try:
        time.sleep(0.5)
        part = next(pid for pid in workers(server.pid) if b"ServeReplica" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(part, signal.SIGKILL)
        assert within(PATIENCE_S, lambda: seen["degraded"] > 0)

        def whole() -> bool:
            before = seen["degraded"]
            time.sleep(0.5)
            return seen["degraded"] == before

        assert within(PATIENCE_S, whole)
    finally:
        over.set()
        thread.join()
    assert not seen["wrong"] and seen["right"] and len(share) == 2


def test_a_new_generation_is_served(server: Process, indexes: tuple[Path, Path]) -> None:
    with Client(server.url, "many") as client:
        best = int(client.search(QUERIES[:1], 1).ids[0, 0])
        number = next(at for at, first in enumerate([0, 400, 401, 700]) if best < [400, 401, 700, N][at])
        vqdistill.open(indexes[1] / f"shard-{number}").delete([best])
        assert int(client.search(QUERIES[:1], 1).ids[0, 0]) == best
        publish_shards(indexes[1])
        assert within(PATIENCE_S, lambda: client.info()["generation"] == 2)
        assert same(client.search(QUERIES, 10), vqdistill.open(indexes[1]).search(QUERIES, 10))


def test_what_cannot_be_served_is_told(
    indexes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray.serve")
    shutil.copytree(indexes[1], tmp_path / "broken.vqd")
    (tmp_path / "broken.vqd" / "SHARDS").write_bytes(b"{}")
    for path, options, sentence in (
        (indexes[0], [], "must be in shards to be served on Ray: `vqdistill shard commit --shards N`"),
        (indexes[1], ["--parts", "5"], "parts must be in 1..4, the shards of"),
        (tmp_path / "broken.vqd", [], "SHARDS: the last line must be"),
        (indexes[1], ["--address", "127.0.0.1:1"], "Ray cannot be reached at 127.0.0.1:1"),
    ):
        with pytest.raises(SystemExit) as done:
            main(["serve", str(path), "--engine", "ray", *options])
        assert done.value.code == 2 and sentence in capsys.readouterr().err


def test_copies_are_as_many_as_there_is_work_for() -> None:
    pytest.importorskip("ray.serve")
    from vqdistill.server.ray_serve import _wanted_replicas

    def wanted(*busy: float) -> int:
        metrics = {"busy": dict(enumerate(busy))}
        config = SimpleNamespace(target_ongoing_requests=2.0)
        limits = {"capacity_adjusted_min_replicas": 1, "capacity_adjusted_max_replicas": 3}
        return _wanted_replicas(SimpleNamespace(aggregated_metrics=metrics, config=config, **limits))[0]

    assert [wanted(), wanted(0.0), wanted(2.0, 2.0), wanted(9.0, 9.0)] == [1, 1, 2, 3]
