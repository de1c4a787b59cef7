"""Lance datasets as embedding files."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import vqdistill as vqd
from vqdistill.errors import InvalidInput, MissingDependency
from vqdistill.shards.job import open_job

X = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
IDS = [f"d{row}" for row in range(len(X))]


def dataset(path: Path, x: Any = X, ids: list[str] = IDS, **options: Any) -> Any:
    """Write rows of x, a few to a file."""
    lance = pytest.importorskip("lance", reason="pylance: pip install 'vqdistill[lance]'")
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
    table = pa.table({"id": ids, "vector": column, "words": pa.array([["a"]] * len(x))})
    return lance.write_dataset(table, str(path), max_rows_per_file=100, **options)


def test_rows_and_ids(tmp_path: Path) -> None:
    dataset(tmp_path / "x.lance")
    src = vqd.open_source(tmp_path / "x.lance", metric="ip", ids="id")
    assert (src.n, src.dim, src.dtype) == (600, 8, "float32")
    np.testing.assert_array_equal(np.concatenate([block.rows for block in src.blocks(70)]), X)
    rows = np.array([599, 0, 250, 250])
    np.testing.assert_array_equal(src.take(rows), X[rows])
    assert src.ids is not None
    assert src.ids.slice(98, 102) == IDS[98:102]
    assert vqd.open_source(f"{tmp_path}/x.lance:vector", metric="ip").n == 600


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8"])
def test_element_types(dtype: str, tmp_path: Path) -> None:
    x = (10 * X).astype(dtype)
    dataset(tmp_path / "x.lance", x)
    src = vqd.open_source(tmp_path / "x.lance", metric="ip")
    assert src.dtype == dtype
    np.testing.assert_array_equal(src.take(np.arange(600)), x.astype(np.float32))


def test_deleted_rows_are_passed_over(tmp_path: Path) -> None:
    dataset(tmp_path / "x.lance").delete("id = 'd3' or id = 'd450'")
    src = vqd.open_source(tmp_path / "x.lance", metric="ip", ids="id")
    left = np.delete(np.arange(600), [3, 450])
    assert src.n == 598
    np.testing.assert_array_equal(src.take(np.arange(598)), X[left])
    assert src.ids is not None
    assert src.ids.slice(0, 598) == [IDS[row] for row in left]


def test_tables_of_a_database_are_shards(tmp_path: Path) -> None:
    dataset(tmp_path / "db" / "a.lance", X[:200], IDS[:200])
    dataset(tmp_path / "db" / "b.lance", X[200:], IDS[200:])
    src = vqd.open_source(tmp_path / "db", metric="ip", ids="id")
    np.testing.assert_array_equal(src.take(np.arange(600)), X)


def test_a_compile_and_a_job_of_it_are_those_of_an_array(tmp_path: Path) -> None:
    dataset(tmp_path / "x.lance")
    options: dict[str, Any] = {"metric": "cosine", "ram": "4B/vec", "distill": False, "codes": "pq", "queries": "none"}
    vqd.compile(tmp_path / "x.lance", tmp_path / "lance.vqd", ids="id", **options)
    vqd.compile(X, tmp_path / "array.vqd", ids=IDS, **options)
    ours, theirs = (vqd.open(tmp_path / name).search(X[:20], 5) for name in ("lance.vqd", "array.vqd"))
    assert ours.ids.tolist() == theirs.ids.tolist()
    np.testing.assert_array_equal(ours.scores, theirs.scores)


def test_a_job_notices_another_version(tmp_path: Path) -> None:
    dataset(tmp_path / "x.lance")
    plan = {"ram": "4B/vec", "codes": "pq", "distill": False, "queries": "none"}
    from vqdistill.shards.planning import plan_job
    from vqdistill.shards.training import train_job

    plan_job([f"{tmp_path}/x.lance"], tmp_path / "job", **plan)
    assert open_job(tmp_path / "job")[0].shards[0].rows == 600
    dataset(tmp_path / "x.lance", mode="append")
    with pytest.raises(InvalidInput, match="has changed since the plan"):
        train_job(tmp_path / "job", threads=1)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    dataset(tmp_path / "x.lance")
    for name, sentence in {
        "x.lance:id": "must be a column of lists of numbers, got string",
        "x.lance:words": "must be a column of lists of numbers",
        "x.lance:no": "no array named 'no'; it holds id, vector, words",
    }.items():
        with pytest.raises(InvalidInput, match=sentence):
            vqd.open_source(f"{tmp_path}/{name}")
    (tmp_path / "empty.lance").mkdir()
    with pytest.raises(InvalidInput, match="cannot be read by Lance"):
        vqd.open_source(tmp_path / "empty.lance")
    (tmp_path / "file.lance").write_bytes(b"no directory")
    with pytest.raises(InvalidInput, match="must be a directory, as every Lance dataset is, got a file"):
        vqd.open_source(tmp_path / "file.lance")


@pytest.mark.parametrize("part", ["data", "_versions"])
def test_damaged_files_are_refused(part: str, tmp_path: Path) -> None:
    dataset(tmp_path / "x.lance")
    for path in (tmp_path / "x.lance" / part).iterdir():
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InvalidInput, match="cannot be read by Lance"):
        vqd.open_source(f"{tmp_path}/x.lance:vector").take(np.arange(600))


def test_without_lance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.lance").mkdir()
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(MissingDependency, match=r"pip install 'vqdistill\[lance\]'"):
        vqd.open_source(tmp_path / "x.lance")
