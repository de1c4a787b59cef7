"""Compiles whose input and output lie in an S3-compatible store on loopback. Needs s3fs and moto; `make s3-check`."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import vqdistill as vqd
from tests.index.support import snapshot
from tests.objects.s3_server import BUCKET, Store, serving
from tests.shards.support import compile_whole, write_input
from vqdistill.errors import InvalidInput
from vqdistill.index.remote import Destination, fetch_index

if not all(importlib.util.find_spec(name) for name in ("s3fs", "moto", "werkzeug")):
    pytest.skip("needs s3fs and moto: make s3-check", allow_module_level=True)

ROOT = Path(__file__).parent.parent.parent
INPUT, OUT = f"s3://{BUCKET}/in", f"s3://{BUCKET}/deep/out.vqd"
OPTIONS = ["--ram", "4B/vec", "--codes", "pq", "--no-distill", "--threads", "1"]
COMPILE = ["compile", f"{INPUT}/rows", "-o", OUT, "--queries", f"{INPUT}/queries.npy", *OPTIONS]
WRITES = 16
"""Requests of a compile that change something: the probe and its removal, 12 segments, the manifest, CURRENT."""


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with serving() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def fs(store: Store) -> Iterator[Any]:
    """The file system behind s3://, with an empty bucket."""
    import s3fs

    found = s3fs.S3FileSystem(use_listings_cache=False)
    found.mkdir(BUCKET)
    yield found
    store.victim = None
    found.rm(BUCKET, recursive=True)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("s3")
    write_input(place)
    compile_whole(place, place / "whole")
    return place


@pytest.fixture
def place(origin: Path, fs: Any, tmp_path: Path) -> Path:
    """An empty directory; the input is in the store."""
    for path in [*origin.glob("rows/*"), origin / "queries.npy"]:
        fs.put_file(str(path), f"{BUCKET}/in/{path.relative_to(origin)}")
    return tmp_path


def begun(place: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vqdistill", *arguments],
        cwd=place,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(place: Path, *arguments: str) -> str:
    with begun(place, *arguments) as process:
        said = process.communicate()[1]
    assert process.returncode == 0, said
    return said


def objects(fs: Any) -> dict[str, bytes]:
    return {name.rpartition("/")[2]: fs.cat_file(name) for name in fs.find(f"{BUCKET}/deep")}


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_a_compile_gives_the_bytes_of_a_local_one(origin: Path, place: Path, fs: Any, store: Store) -> None:
    store.changes = 0
    run(place, *COMPILE)
    assert objects(fs) == snapshot(origin / "whole") and names(place) == ["out.vqd.upload.cache"]
    assert store.changes == WRITES
    run(place, "fetch", OUT, "-o", "here.vqd")
    assert snapshot(place / "here.vqd") == snapshot(origin / "whole")


def nothing_is_visible(place: Path, fs: Any) -> None:
    assert not Destination(OUT).exists() and "CURRENT" not in objects(fs)
    with pytest.raises(InvalidInput, match="holds no index"):
        fetch_index(OUT, place / "seen.vqd")


@pytest.mark.parametrize(("at", "after"), [(1, True), (3, False), (9, True), (WRITES, False)])
def test_an_upload_that_is_killed_leaves_nothing_visible(
    origin: Path, place: Path, fs: Any, store: Store, at: int, after: bool
) -> None:
    """kill -9 while the store has a request of the compile, before (`after` false) or after it has carried it out."""
    store.changes, store.kill_at, store.kill_after = 0, at, after
    with begun(place, *COMPILE) as process:
        store.victim = lambda: process.pid
        process.communicate()
    store.victim = None
    assert process.returncode == -9
    nothing_is_visible(place, fs)
    assert len(objects(fs)) == max(0, at - 2 - (not after)) if at > 2 else len(objects(fs)) <= 1
    run(place, *COMPILE, "--resume")
    assert objects(fs) == snapshot(origin / "whole") and names(place) == ["out.vqd.upload.cache"]


def test_one_that_is_killed_when_all_is_there_has_only_to_tidy_up(
    origin: Path, place: Path, fs: Any, store: Store
) -> None:
    store.changes, store.kill_at, store.kill_after = 0, WRITES, True
    with begun(place, *COMPILE) as process:
        store.victim = lambda: process.pid
        process.communicate()
    store.victim = None
    assert process.returncode == -9 and objects(fs) == snapshot(origin / "whole")
    run(place, *COMPILE, "--resume")
    assert objects(fs) == snapshot(origin / "whole") and names(place) == ["out.vqd.upload.cache"]


@pytest.mark.parametrize("sign", ["out.vqd.upload.work/journal", "out.vqd.upload.work/trained.npz"])
def test_one_that_is_killed_before_leaves_nothing_at_all(origin: Path, place: Path, fs: Any, sign: str) -> None:
    with begun(place, *COMPILE) as process:
        while not (place / sign).exists() and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.communicate()
    assert process.returncode == -9
    nothing_is_visible(place, fs)
    assert objects(fs) == {}
    run(place, *COMPILE, "--resume")
    assert objects(fs) == snapshot(origin / "whole")


def test_uploads_in_parts_that_were_never_finished_are_forgotten(origin: Path, place: Path, fs: Any) -> None:
    """They are invisible, and paid for."""
    for key in ("deep/out.vqd/codes-1.seg", "deep/out.vqd2/codes-1.seg"):
        fs.call_s3("create_multipart_upload", Bucket=BUCKET, Key=key)
    run(place, *COMPILE)
    assert [each["Key"] for each in fs.list_multipart_uploads(BUCKET)] == ["deep/out.vqd2/codes-1.seg"]
    fs.clear_multipart_uploads(BUCKET)


def test_only_a_sample_is_fetched_where_a_sample_is_enough(place: Path, fs: Any, store: Store) -> None:
    rows = np.random.default_rng(0).standard_normal((100_000, 64)).astype(np.float32)
    np.save(place / "rows.npy", rows)
    fs.put_file(str(place / "rows.npy"), f"{BUCKET}/in/large.npy")
    store.read = 0
    run(place, "plan", f"{INPUT}/large.npy", "--ram", "8B/vec")
    assert store.read < 100_000
    run(place, "shard", "plan", f"{INPUT}/large.npy", "-o", "job", "--ram", "8B/vec")
    assert store.read < 1.1 * rows.nbytes  # for the fingerprint; the store has checksums of its own
    assert sum(path.stat().st_size for path in place.rglob("*") if path.name != "rows.npy") < 1_000_000


def test_the_steps_notice_an_object_that_has_changed(place: Path, fs: Any) -> None:
    run(place, "shard", "plan", f"{INPUT}/rows", "-o", "job", *OPTIONS, "--queries", f"{INPUT}/queries.npy")
    run(place, "shard", "train", "job")
    run(place, "shard", "encode", "job", "--shard", "0")
    fs.pipe_file(f"{BUCKET}/in/rows/1.npy", fs.cat_file(f"{BUCKET}/in/rows/1.npy")[:-1] + b"!")
    with begun(place, "shard", "encode", "job", "--shard", "1") as process:
        said = process.communicate()[1]
    assert process.returncode == 2 and "in/rows/1.npy has changed since the plan" in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        (["plan", f"s3://{BUCKET}/none"], {}, "no such file or folder"),
        (["plan", "s3://no-such-bucket/x.npy"], {}, "no such file or folder"),
        ([*COMPILE[:3], "s3://no-such-bucket/out.vqd", *COMPILE[4:]], {}, "there is no such bucket"),
        (COMPILE, {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "cannot be reached: Could not connect"),
        (COMPILE, {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "credentials; give credentials"),
    ],
)
def test_what_is_missing_is_named(
    place: Path,
    arguments: list[str],
    variables: dict[str, str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with begun(place, *arguments) as process:
        said = process.communicate()[1]
    assert process.returncode == 2 and sentence in said.splitlines()[-1]
    assert "Traceback" not in said and names(place) == []


def test_ray_compiles_between_stores(origin: Path, place: Path, fs: Any) -> None:
    pytest.importorskip("ray")
    run(place, *COMPILE[:-2], "--engine", "ray", "--threads", "2")
    assert objects(fs) == snapshot(origin / "whole") and names(place) == []
    shutil.rmtree(place)


def test_a_lance_dataset_is_read_where_it_lies(
    origin: Path, place: Path, fs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lance = pytest.importorskip("lance", reason="pylance: pip install 'vqdistill[lance]'")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    src = vqd.open_source(origin / "rows")
    rows = pa.FixedSizeListArray.from_arrays(pa.array(src.take(np.arange(src.n)).ravel()), src.dim)
    lance.write_dataset(pa.table({"vector": rows}), f"{INPUT}/x.lance")
    queries = ["--queries", f"{INPUT}/queries.npy"]
    run(place, "compile", f"{INPUT}/x.lance", "-o", "remote.vqd", *queries, *OPTIONS)
    run(place, "compile", str(origin / "rows"), "-o", "local.vqd", *queries, *OPTIONS)
    found, wanted = (vqd.open(place / name).search(src.take(np.arange(50)), 10) for name in ("remote.vqd", "local.vqd"))
    assert found.ids.tolist() == wanted.ids.tolist()
    with pytest.raises(InvalidInput, match="no such file or folder"):
        vqd.open_source(f"{INPUT}/other.lance")
