"""A compile on Ray gives the bytes of a plain one, whoever dies meanwhile. Needs ray; `make ray-check` installs it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.index.support import snapshot
from tests.shards.support import OPTIONS, write_input
from vqdistill.cli import main
from vqdistill.errors import InvalidInput
from vqdistill.progress import ConsoleProgress

ROOT = Path(__file__).parent.parent.parent


def descendants(pid: int) -> list[int]:
    """Processes below one, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def workers(pid: int) -> list[int]:
    """Ray's workers below a process, but for its own agents."""
    found = []
    for each in descendants(pid):
        with contextlib.suppress(OSError):
            if re.match(rb"ray::(?!\w+Agent)", Path(f"/proc/{each}/cmdline").read_bytes()):
                found.append(each)
    return found


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


# What needs no Ray


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--address", "auto"], "--address needs --engine ray"),
        (["--engine", "ray", "--start", "x.faiss"], "--engine ray must begin from nothing"),
        (["--engine", "ray", "--warm-start", "x.vqd"], "--engine ray must begin from nothing"),
        (["--engine", "spark"], "'spark' is not 'ray'"),
    ],
)
def test_options_are_checked(
    tmp_path: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        main(["compile", "rows", "-o", str(tmp_path / "out"), *options])
    assert done.value.code == 2 and sentence in capsys.readouterr().err and names(tmp_path) == []


def test_it_says_how_to_install_ray(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "vqdistill.shards.ray_engine", raising=False)
    with pytest.raises(SystemExit) as done:
        main(["compile", "rows", "-o", str(tmp_path / "out"), "--engine", "ray"])
    assert done.value.code == 2
    assert "vqdistill: --engine ray needs ray: pip install 'vqdistill[ray]'" in capsys.readouterr().err


def test_nothing_but_the_result_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray prints to standard output that a worker is lost."""

    def chatty(*_: Any, **__: Any) -> dict[str, Any]:
        print("a worker died")
        return {"plan": 0, "prediction": 0, "certificate": 0, "timings": 0, "seconds": 1.0}

    monkeypatch.setitem(sys.modules, "vqdistill.shards.ray_engine", SimpleNamespace(compile_on_ray=chatty))
    with pytest.raises(SystemExit):
        main(["compile", "rows", "-o", str(tmp_path / "out"), "--engine", "ray", "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out)["seconds"] == 1.0 and err == "a worker died\n"


# What does


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """The module, with a cluster of two workers that all tests share."""
    ray = pytest.importorskip("ray")
    from vqdistill.cluster import cluster
    from vqdistill.shards import ray_engine

    with cluster(None, 2):
        yield ray_engine
    assert not ray.is_initialized()


@pytest.fixture
def place(origin: Path, tmp_path: Path) -> Path:
    shutil.copytree(origin / "rows", tmp_path / "in" / "rows")
    shutil.copy(origin / "queries.npy", tmp_path / "in")
    return tmp_path


def compile(engine: Any, place: Path, out: str = "out", **options: Any) -> dict[str, Any]:
    given = OPTIONS | {"queries": str(place / "in" / "queries.npy")} | options
    found: dict[str, Any] = engine.compile_on_ray(place / "in" / "rows", place / out, **given)
    return found


def test_the_bytes_are_those_of_a_plain_compile(
    engine: Any, origin: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = compile(engine, place, progress=ConsoleProgress())
    assert snapshot(place / "out") == snapshot(origin / "whole") and names(place) == ["in", "out"]
    assert done["report"]["queries"] == "queries.npy" and done["certificate"] is None
    shown = capsys.readouterr().err
    assert "\nencode: 300 rows in" in shown and "exact teacher: 300 rows" in shown and "coarse k-means" in shown


def test_lost_workers_do_not_matter(engine: Any, origin: Path, place: Path) -> None:
    over, killed, rng = threading.Event(), [0], random.Random(0)

    def kill() -> None:
        while not over.wait(0.5) and killed[0] < 4:
            victims = workers(os.getpid())
            if victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(victims), signal.SIGKILL)
                    killed[0] += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        compile(engine, place)
    finally:
        over.set()
        killer.join()
    assert killed[0] >= 2
    assert snapshot(place / "out") == snapshot(origin / "whole") and names(place) == ["in", "out"]


def test_a_lost_driver_is_resumed(engine: Any, origin: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped behind the second part; what is finished is not done again, and leftovers go."""
    kept = engine._Crew.call

    def stop(self: Any, function: Any, *arguments: Any) -> Any:
        if function is engine._commit:
            raise KeyboardInterrupt
        return kept(self, function, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(engine._Crew, "call", stop)
        with pytest.raises(KeyboardInterrupt):
            compile(engine, place)
    job = place / "out.work"
    assert names(place) == ["in", "out.work"]
    encoded = {str(file.relative_to(job)): file.read_bytes() for file in job.glob("part-*/run-*")}
    assert encoded and all((origin / "job" / name).read_bytes() == data for name, data in encoded.items())
    shutil.rmtree(job / "part-1")
    (job / "part-1.tmp-0123456789ab").mkdir()
    before = {name: (job / name).stat().st_mtime_ns for name in ("part-0", "part-2", "model")}
    with pytest.raises(InvalidInput, match=r"out\.work is left from an interrupted compile: go on with --resume"):
        compile(engine, place)
    with pytest.raises(InvalidInput, match=r"out\.work was made with another config"):
        compile(engine, place, resume=True, seed=1)

    def stop_again(*_: Any) -> None:
        assert names(job) == ["cache", "model", "part-0", "part-1", "part-2", "plan.json"]
        assert {name: (job / name).stat().st_mtime_ns for name in before} == before
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine._Crew, "call", lambda *given: stop_again() if given[1] is engine._commit else kept(*given))
        with pytest.raises(KeyboardInterrupt):
            compile(engine, place, resume=True)
    compile(engine, place, resume=True)
    assert snapshot(place / "out") == snapshot(origin / "whole") and names(place) == ["in", "out"]


def test_what_a_shard_holds_is_refused_in_one_sentence(engine: Any, tmp_path: Path) -> None:
    write_input(tmp_path / "in")
    rows = np.load(tmp_path / "in" / "rows" / "2.npy")
    rows[7, 3] = np.nan
    np.save(tmp_path / "in" / "rows" / "2.npy", rows)
    with pytest.raises(InvalidInput, match=r"2\.npy row 7 holds NaN or infinity") as caught:
        compile(engine, tmp_path)
    assert "\n" not in str(caught.value) and names(tmp_path) == ["in"]


def test_arrays_and_indexes_that_are_there_are_refused(engine: Any, place: Path) -> None:
    with pytest.raises(InvalidInput, match="queries and teacher of a job must be files"):
        compile(engine, place, queries=np.ones((3, 16), np.float32))
    (place / "out").mkdir()
    with pytest.raises(InvalidInput, match="out exists already"):
        compile(engine, place)
    assert names(place) == ["in", "out"]


def test_a_killed_driver_leaves_no_process_and_nothing_visible(place: Path) -> None:
    """The whole command, killed while it encodes; the next one goes on."""
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "vqdistill", "compile", str(place / "in" / "rows"), "-o", str(place / "out")]
    command += ["--queries", str(place / "in" / "queries.npy"), "--ram", "4B/vec", "--codes", "pq", "--no-distill"]
    command += ["--engine", "ray", "--threads", "2", "--json"]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert within(120, lambda: (place / "out.work" / "plan.json").exists())
    below, busy = descendants(driver.pid), workers(driver.pid)
    driver.kill()
    driver.wait()
    assert len(busy) >= 2
    assert within(30, lambda: not any(Path(f"/proc/{pid}").exists() for pid in busy))
    assert names(place) == ["in", "out.work"]
    done = subprocess.run([*command, "--resume"], cwd=ROOT, check=True, timeout=200, capture_output=True)
    assert json.loads(done.stdout)["index"] == str(place / "out") and names(place) == ["in", "out"]
    # Ray's agents look for a minute for those that they report to.
    assert within(90, lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))


def test_a_cluster_that_is_not_there_is_told(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    code = (
        "from vqdistill.shards.ray_engine import compile_on_ray\n"
        f"compile_on_ray('rows', {str(tmp_path / 'out')!r}, address='127.0.0.1:1')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    last = done.stderr.splitlines()[-1]
    assert "VqdistillError: Ray cannot be reached at 127.0.0.1:1: " in last
