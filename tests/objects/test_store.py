"""Rows out of an object store are those of local files, fetched by ranges; every failure is one sentence."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqdistill.data.judgments import read_scores
from vqdistill.data.sources import open_source
from vqdistill.errors import InvalidInput, MissingDependency, VqdistillError
from vqdistill.objects.store import RemotePath, find, find_one
from vqdistill.objects.urls import absolute, is_url, local_name, require_local

N, D = 5000, 24
ROWS = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
TAKEN = np.array([4999, 0, 17, 17, 18, 2500, 1])


@pytest.fixture
def bucket(memory: Any, tmp_path: Path) -> Path:
    """Files on disk, and at memory://bucket; as a folder of three shards, as one file, with ids."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "rows").mkdir()
    for number, part in enumerate(np.array_split(ROWS, 3)):
        np.save(tmp_path / "rows" / f"{number}.npy", part)
    np.save(tmp_path / "half.npy", ROWS.astype(np.float16))
    np.save(tmp_path / "ids.npy", np.arange(N) + 7)
    (tmp_path / "ids.txt").write_text("".join(f"däta-{row}\n" for row in range(N)), encoding="utf-8")
    (tmp_path / "pairs.tsv").write_text("0\t3\t0.5\n1\t4\t0.25\n", encoding="utf-8")
    column = pa.FixedSizeListArray.from_arrays(pa.array(ROWS.ravel()), D)
    table = pa.table({"embedding": column, "id": [f"d{row}" for row in range(N)]})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=700)
    for path in tmp_path.rglob("*.*"):
        memory.put_file(str(path), f"/bucket/{path.relative_to(tmp_path)}")
    return tmp_path


def all_rows(name: str, **options: Any) -> np.ndarray:
    return np.concatenate([block.rows for block in open_source(name, metric="ip", **options).blocks(999)])


@pytest.mark.parametrize(
    "name", ["rows", "rows/*.npy", "rows/1.npy", "half.npy", "rows.parquet", "rows.parquet:embedding"]
)
def test_rows_are_those_of_local_files(bucket: Path, name: str) -> None:
    here, there = (open_source(f"{place}/{name}", metric="ip") for place in (bucket, "memory://bucket"))
    assert here.facts == there.facts and here.fingerprint() == there.fingerprint()
    assert np.array_equal(all_rows(f"{bucket}/{name}"), all_rows(f"memory://bucket/{name}"))
    taken = TAKEN % here.n
    assert np.array_equal(here.take(taken), there.take(taken))


@pytest.mark.parametrize("ids", ["id", "ids.npy", "ids.txt"])
def test_ids_are_those_of_local_files(bucket: Path, ids: str) -> None:
    names = [ids if ids == "id" else f"{place}/{ids}" for place in (bucket, "memory://bucket")]
    here, there = (
        open_source(f"{place}/rows.parquet", ids=name)
        for place, name in zip((bucket, "memory://bucket"), names, strict=True)
    )
    assert here.ids is not None and there.ids is not None
    assert list(here.ids.slice(0, N)) == list(there.ids.slice(0, N))


def test_scores_may_lie_there(bucket: Path) -> None:
    found = read_scores("memory://bucket/pairs.tsv", n_queries=2, n_docs=9)
    assert found.padded(1)[0].tolist() == [[3], [4]]


def test_only_what_is_asked_for_is_fetched(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[tuple[int, int]] = []
    read = RemotePath.read_spans

    def counted(file: RemotePath, wanted: Any) -> list[bytes]:
        spans.extend(wanted)
        return read(file, wanted)

    monkeypatch.setattr(RemotePath, "read_spans", counted)
    monkeypatch.setattr("vqdistill.data.ranges._NEAR_BYTES", 10 * 4 * D)
    src = open_source("memory://bucket/rows/1.npy", metric="ip")
    header = spans.copy()
    assert len(header) == 1 and spans.clear() is None
    src.take(np.array([1000, 3, 5, 12]))
    assert [stop - start for start, stop in spans] == [3 * 4 * D, 4 * D, 4 * D]  # rows 3 to 5 are near


def test_file_urls_are_local_paths(bucket: Path) -> None:
    assert np.array_equal(all_rows(f"file://{bucket}/rows"), ROWS)
    assert local_name("file:///a/b") == "/a/b" and absolute("s3://b/x") == "s3://b/x" and absolute("x") != "x"
    with pytest.raises(InvalidInput, match="must have an absolute path"):
        local_name("file://rows.npy")
    assert not is_url("C:/x") and not is_url("a:b") and not is_url("dir/s3://x")


def test_an_index_is_opened_on_a_disk_only() -> None:
    with pytest.raises(InvalidInput, match=r"local disk .*s3://b/x\.vqd.*`vqdistill fetch s3://b/x\.vqd -o DIR`"):
        require_local("s3://b/x.vqd")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("memory://bucket/none.npy", "no such file or folder: memory://bucket/none.npy"),
        ("memory://bucket/none/*.npy", "no such file or folder"),
        ("nosuch://bucket/x.npy", "must have a scheme that fsspec knows, such as s3, gs or file, got nosuch"),
        ("memory://bucket/ids.txt", "unknown suffix"),
        ("memory://bucket/rows.h5", "must end in .npy, .lance or .parquet to be read from an object store, got '.h5'"),
        ("memory://bucket/fortran.npy", "must be in C order"),
        ("memory://bucket/short.npy", "is truncated"),
        ("memory://bucket/text.npy", "is not a .npy array"),
        ("memory://bucket/text.parquet", "is not a readable Parquet file"),
        ("memory://bucket/empty.npy", "is empty"),
    ],
)
def test_what_cannot_be_read_is_refused(bucket: Path, memory: Any, tmp_path: Path, name: str, sentence: str) -> None:
    np.save(tmp_path / "fortran.npy", np.asfortranarray(ROWS))
    memory.put_file(str(tmp_path / "fortran.npy"), "/bucket/fortran.npy")
    whole = (tmp_path / "half.npy").read_bytes()
    contents = {
        "short.npy": whole[:-1],
        "text.npy": b"x" * 99,
        "text.parquet": b"x" * 99,
        "empty.npy": b"",
        "rows.h5": b"x",
    }
    for key, data in contents.items():
        memory.pipe_file(f"/bucket/{key}", data)
    with pytest.raises(InvalidInput, match=sentence) as refused:
        open_source(name)
    assert "\n" not in str(refused.value)


def test_a_file_that_shrinks_is_refused(bucket: Path, memory: Any) -> None:
    src = open_source("memory://bucket/rows/0.npy")
    memory.pipe_file("/bucket/rows/0.npy", b"short")
    with pytest.raises(InvalidInput, match=r"rows/0\.npy ends before byte"):
        src.take(np.array([1000]))


class Oops(Exception):
    """What the driver of some store raises."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (Oops("no route\nmore"), "bucket/rows.parquet cannot be reached: no route"),
        (PermissionError("Access Denied"), "is refused: Access Denied; give credentials"),
        (Oops("Unable to locate credentials"), "is refused: Unable to locate credentials; give credentials"),
    ],
)
def test_a_store_that_fails_is_named(
    bucket: Path, memory: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    """In the middle of a file too, where readers would take it for damage."""

    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr("vqdistill.objects.store.READ_BYTES", 1024)
    src = open_source("memory://bucket/rows.parquet")
    monkeypatch.setattr(type(memory), "cat_ranges", fails)
    with pytest.raises(VqdistillError, match=sentence) as failed:
        src.take(np.array([4000]))
    assert not isinstance(failed.value, InvalidInput)
    monkeypatch.setattr(type(memory), "info", fails)
    with pytest.raises(VqdistillError, match=sentence):
        find("memory://bucket/rows.parquet")


@pytest.mark.parametrize(("scheme", "library", "what"), [("s3", "s3fs", "'vqdistill[s3]'"), ("gs", "gcsfs", "gcsfs")])
def test_it_says_what_to_install(scheme: str, library: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(import_module("fsspec.registry")._registry, scheme, raising=False)
    with pytest.raises(MissingDependency, match=re.escape(f"{scheme}:// needs {library}: pip install {what}")):
        open_source(f"{scheme}://bucket/x.npy")


def test_fsspec_itself_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingDependency, match=r"memory:// needs fsspec: pip install 'vqdistill\[objects\]'"):
        open_source("memory://bucket/x.npy")


def test_a_path_says_what_it_is(bucket: Path) -> None:
    file = find_one("memory://bucket/ids.txt")
    assert (file.name, file.suffix, file.is_file()) == ("ids.txt", ".txt", True)
    assert file.stat().st_size == (bucket / "ids.txt").stat().st_size and not file.tagged
    with file.open("rb") as stream:
        stream.seek(-5, 2)
        assert stream.read() == b"4999\n" and stream.read() == b"" and stream.tell() == file.size
    with pytest.raises(InvalidInput, match="no such file: memory://bucket/rows"):
        find_one("memory://bucket/rows")
