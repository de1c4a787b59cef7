"""Indexes at URLs: the bytes of local ones, visible when they are whole and not before, and checked when fetched."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqdistill
from tests.index.disk import FailingDisk
from tests.index.support import snapshot
from tests.objects.support import dies, memory
from tests.shards.support import OPTIONS, run_all, write_input
from vqdistill.cli import main
from vqdistill.compiler import build
from vqdistill.errors import CorruptIndex, InvalidInput, VqdistillError
from vqdistill.index.files import CURRENT
from vqdistill.index.remote import Destination, fetch_index
from vqdistill.shards.planning import plan_job
from vqdistill.shards.publishing import commit_job

__all__ = ["memory"]
URL = "memory://bucket/deep/out.vqd"
FOLDER = "/bucket/deep/out.vqd"


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Input, a job with all parts, and the index of a plain compile (`whole`); to be copied, not changed."""
    place = tmp_path_factory.mktemp("remote")
    write_input(place)
    plan_job([place / "rows"], place / "job", **OPTIONS | {"queries": place / "queries.npy"})
    run_all(place / "job", place / "whole")
    return place


@pytest.fixture
def place(origin: Path, memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; the input is at memory://bucket too."""
    for path in [*origin.glob("rows/*"), origin / "queries.npy"]:
        memory.put_file(str(path), f"/bucket/{path.relative_to(origin)}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def objects(memory: Any) -> dict[str, bytes]:
    return {name.removeprefix(f"{FOLDER}/"): memory.cat_file(name) for name in memory.find(FOLDER)}


def compile(origin: Path, out: str = URL, **options: Any) -> dict[str, Any]:
    return vqdistill.compile(str(origin / "rows"), out, **OPTIONS | {"queries": str(origin / "queries.npy")} | options)


def test_a_compile_between_stores_gives_the_bytes_of_a_local_one(origin: Path, place: Path, memory: Any) -> None:
    given = OPTIONS | {"queries": "memory://bucket/queries.npy"}
    vqdistill.compile("memory://bucket/rows", URL, **given)
    assert objects(memory) == snapshot(origin / "whole") and names(place) == ["out.vqd.upload.cache"]
    manifest = fetch_index(URL, place / "here.vqd")
    assert snapshot(place / "here.vqd") == snapshot(origin / "whole")
    assert manifest.n == 300 and names(place) == ["here.vqd", "out.vqd.upload.cache"]


def test_a_job_of_files_in_a_store_gives_the_same(origin: Path, place: Path, memory: Any) -> None:
    options = OPTIONS | {"queries": "memory://bucket/queries.npy"}
    plan_job(["memory://bucket/rows"], place / "job", **options)
    run_all(place / "job", URL)  # type: ignore[arg-type]
    assert objects(memory) == snapshot(origin / "whole")
    before = objects(memory)
    assert commit_job(place / "job", URL, threads=1).n == 300  # harmless
    assert objects(memory) == before and not (place / "job" / "out.vqd.upload").exists()


def test_a_shard_that_changes_is_noticed(place: Path, memory: Any) -> None:
    from vqdistill.shards.job import open_job

    plan_job(["memory://bucket/rows"], place / "job", **OPTIONS | {"queries": "none"})
    job, _ = open_job(place / "job")
    memory.pipe_file("/bucket/rows/1.npy", memory.cat_file("/bucket/rows/1.npy")[:-1] + b"!")
    with pytest.raises(InvalidInput, match=r"memory:///bucket/rows/1\.npy has changed since the plan"):
        job.open_shard(job.shards[1])
    memory.rm_file("/bucket/rows/1.npy")
    with pytest.raises(InvalidInput, match=r"no such file: memory:///bucket/rows/1\.npy"):
        job.open_shard(job.shards[1])


def test_wherever_an_upload_dies_nothing_is_visible_and_it_goes_on(
    origin: Path, place: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process changes nothing any more: neither what lies here nor what lies there."""
    wanted = snapshot(origin / "whole")
    visible = []
    for at in itertools.count():
        shutil.copytree(origin / "job", place / "job")
        with pytest.MonkeyPatch.context() as patch:
            dies(patch, memory, at, KeyboardInterrupt())
            try:
                commit_job(place / "job", URL, threads=1)
                died = False
            except KeyboardInterrupt:
                died = True
        visible.append(Destination(URL).exists())
        if visible[-1]:
            assert fetch_index(URL, place / "seen").n == 300
        else:
            with pytest.raises(InvalidInput, match="holds no index"):
                fetch_index(URL, place / "seen")
        commit_job(place / "job", URL, threads=1)
        assert objects(memory) == wanted, f"died before step {at}"
        shutil.rmtree(place / "job")
        memory.rm(FOLDER, recursive=True)
        if not died:
            break
    assert visible == sorted(visible) and len(visible) == 2 + len(wanted) + 1  # probe, its removal, objects


@pytest.mark.parametrize("step", [0, 5])
def test_a_network_that_fails_leaves_the_work(origin: Path, place: Path, memory: Any, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        dies(patch, memory, step, ConnectionError("no route"))
        with pytest.raises(VqdistillError, match="cannot be reached: no route"):
            compile(origin)
    assert not Destination(URL).exists()
    if step == 0:  # before anything was trained
        assert names(place) == []
        return
    assert names(place) == ["out.vqd.upload", "out.vqd.upload.cache", "out.vqd.upload.work"]
    with pytest.raises(InvalidInput, match=r"out\.vqd\.upload\.work is left from an interrupted compile"):
        compile(origin)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "train", None)  # it is not asked again
        patch.setattr(build, "_write", None)
        compile(origin, resume=True)
    assert objects(memory) == snapshot(origin / "whole") and names(place) == ["out.vqd.upload.cache"]


def test_a_process_that_dies_when_all_is_done_has_only_to_tidy_up(origin: Path, place: Path, memory: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Destination, "tidy", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            compile(origin)
    assert Destination(URL).exists() and "out.vqd.upload" in names(place)
    compile(origin, resume=True)
    assert objects(memory) == snapshot(origin / "whole") and names(place) == ["out.vqd.upload.cache"]


def test_what_is_there_is_never_overwritten(origin: Path, place: Path, memory: Any) -> None:
    compile(origin)
    before = objects(memory)
    with pytest.raises(InvalidInput, match="exists already"):
        compile(origin)
    with pytest.raises(InvalidInput, match="exists already, and is not what this work leads to"):
        plan_job([origin / "rows"], place / "job", **OPTIONS | {"queries": "none", "seed": 1})
        run_all(place / "job", URL)  # type: ignore[arg-type]
    assert objects(memory) == before
    memory.rm(FOLDER, recursive=True)
    memory.pipe_file(f"{FOLDER}/notes.txt", b"mine")
    with pytest.raises(InvalidInput, match=r"must hold nothing, or .* but there is .*notes\.txt"):
        compile(origin)
    assert objects(memory) == {"notes.txt": b"mine"}


def test_an_index_that_appears_meanwhile_stays(origin: Path, place: Path, memory: Any) -> None:
    put = type(memory).put_file

    def meanwhile(store: Any, source: str, target: str, **options: Any) -> None:
        put(store, source, target, **options)
        store.pipe_file(f"{FOLDER}/{CURRENT}", b"another's")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(memory), "put_file", meanwhile)
        with pytest.raises(VqdistillError, match="and no others"):
            compile(origin)
    assert objects(memory)[CURRENT] == b"another's"


def damaged(memory: Any, name: str, data: bytes) -> None:
    memory.pipe_file(f"{FOLDER}/{name}", data)


@pytest.mark.parametrize(
    ("name", "spoil", "error", "sentence"),
    [
        ("codes-1.seg", lambda data: data[:-4096], CorruptIndex, r"codes-1\.seg: file size must be"),
        ("codes-1.seg", lambda data: data[:4100] + b"?" + data[4101:], CorruptIndex, "is damaged: codes-1.seg"),
        ("codes-1.seg", None, CorruptIndex, r"codes-1\.seg of the index is missing"),
        ("manifest-1.json", lambda data: data + b" ", CorruptIndex, r"manifest-1\.json: crc32 must be"),
        ("manifest-1.json", None, InvalidInput, r"no such file: .*manifest-1\.json"),
        (CURRENT, lambda _: b"../../x 00000000\n", CorruptIndex, "CURRENT must be"),
        (CURRENT, lambda data: data * 99, CorruptIndex, "file size must be at most"),
        (CURRENT, None, InvalidInput, "holds no index: there is no CURRENT"),
    ],
)
def test_a_damaged_index_is_not_fetched(
    origin: Path, place: Path, memory: Any, name: str, spoil: Any, error: type[Exception], sentence: str
) -> None:
    for path in (origin / "whole").iterdir():
        memory.put_file(str(path), f"{FOLDER}/{path.name}")
    if spoil is None:
        memory.rm_file(f"{FOLDER}/{name}")
    else:
        damaged(memory, name, spoil(memory.cat_file(f"{FOLDER}/{name}")))
    with pytest.raises(error, match=sentence):
        fetch_index(URL, place / "here.vqd")
    assert names(place) == []


def test_a_full_disk_leaves_nothing_of_what_is_fetched(origin: Path, place: Path, memory: Any) -> None:
    for path in (origin / "whole").iterdir():
        memory.put_file(str(path), f"{FOLDER}/{path.name}")
    for at in itertools.count(0, 7):
        try:
            fetch_index(URL, place / "here.vqd", ops=FailingDisk(at, lambda: OSError(28, "No space left on device")))
        except VqdistillError as error:
            assert "disk full writing" in str(error)
            assert at > 40 or names(place) == []
        else:
            break
    assert at > 20 and snapshot(place / "here.vqd") == snapshot(origin / "whole")


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", URL, "q.npy"],
        ["serve", URL],
        ["serve", f"name={URL}"],
        ["eval", URL, "x.h5"],
        ["explain", URL, "x.h5"],
        ["inspect", URL],
        ["verify", URL],
        ["export", URL, "--to", "numpy", "-o", "x.npz"],
        ["add", URL, "rows.npy"],
        ["delete", URL, "1"],
        ["compact", URL],
        ["gc", URL],
        ["merge", URL, URL, "-o", "x"],
        ["compile", "rows", "-o", "x", "--warm-start", URL],
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_opens_an_index_refuses_a_url(
    origin: Path, place: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(origin / "rows", place / "rows")
    np.save(place / "rows.npy", np.ones((2, 16), np.float32))
    with pytest.raises(SystemExit) as done:
        main(arguments)
    said = capsys.readouterr()
    assert done.value.code == 2 and said.out == ""
    assert f"vqdistill: an index must be on a local disk to be used, got {URL}" in said.err.splitlines()[-1]


def test_the_command_fetches(origin: Path, place: Path, memory: Any, capsys: pytest.CaptureFixture[str]) -> None:
    compile(origin)
    with pytest.raises(SystemExit) as done:
        main(["fetch", URL, "-o", "here.vqd", "--json"])
    assert done.value.code == 0 and '"rows": 300' in capsys.readouterr().out
    for arguments, sentence in (
        (["fetch", URL, "-o", "here.vqd"], "here.vqd must not exist"),
        (["fetch", "here.vqd", "-o", "there.vqd"], "must be a URL"),
        (["fetch", "memory://bucket/none", "-o", "there.vqd"], "holds no index"),
        (["shard", "plan", "rows", "-o", "s3://bucket/job"], "job must be a folder that all machines see"),
    ):
        with pytest.raises(SystemExit) as done:
            main(arguments)
        assert done.value.code == 2 and sentence in capsys.readouterr().err.splitlines()[-1]
