"""Datasets in every layout, and what is made of what is missing."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.bench.support import LEARN, TEST, N, arrays, write_h5
from vqdistill.bench import budgets, fetch
from vqdistill.bench.datasets import Dataset, prepare, read_qrels
from vqdistill.errors import InvalidInput, VqdistillError


def test_test_tune_and_learn_queries_are_apart(dataset: Dataset) -> None:
    parts = arrays()
    tune, learn = dataset.rows("tune"), dataset.rows("learn")
    assert len(tune) == LEARN // 2 and len(learn) == LEARN - len(tune)
    together = np.concatenate([tune, learn])
    assert {row.tobytes() for row in together} == {row.tobytes() for row in parts["learn_queries"]}
    assert np.array_equal(dataset.rows("test"), parts["test"])


def test_truth_is_exact(dataset: Dataset) -> None:
    every = dataset.rows("test") @ np.asarray(dataset.rows("docs")).T
    truth = dataset.truth("test")
    assert np.array_equal(truth.ids, np.argsort(-every, axis=1, kind="stable")[:, :100])
    assert np.allclose(truth.scores, -np.sort(-every, axis=1)[:, :100], atol=1e-6)
    assert np.array_equal(dataset.f16(), np.asarray(dataset.rows("docs")).astype(np.float16))
    qrels = read_qrels(dataset.truth_path)
    assert qrels is not None and qrels.nnz == TEST // 2


def test_what_is_prepared_is_opened_again(dataset: Dataset, tmp_path: Path) -> None:
    path = write_h5(tmp_path / "a.h5", **arrays(1))
    first = prepare(str(path), tmp_path)
    stamp = first.truth_path.stat().st_mtime_ns
    assert prepare(str(path), tmp_path) == first and first.truth_path.stat().st_mtime_ns == stamp
    path.unlink()
    write_h5(path, **arrays(2))
    assert prepare(str(path), tmp_path).folder != first.folder


def test_rows_become_queries_and_are_no_documents(tmp_path: Path) -> None:
    rows = arrays()["train"]
    np.save(tmp_path / "rows.npy", rows)
    made = prepare(str(tmp_path / "rows.npy"), tmp_path)
    docs, test, tune = (np.asarray(made.rows(name)) for name in ("docs", "test", "tune"))
    assert len(docs) + len(test) + len(tune) == N
    assert not made.path("learn").exists()
    assert {row.tobytes() for row in np.concatenate([docs, test, tune])} == {row.tobytes() for row in rows}
    assert made.origin["queries_from"].startswith("rows of the file")


def test_without_learn_queries_a_part_of_the_test_is_tuned_on(tmp_path: Path) -> None:
    parts = arrays()
    made = prepare(str(write_h5(tmp_path / "a.h5", train=parts["train"], test=parts["test"])), tmp_path)
    assert (len(made.rows("test")), len(made.rows("tune"))) == (TEST - TEST // 5, TEST // 5)


def test_big_ann_files(tmp_path: Path) -> None:
    parts = arrays()
    for name in ("train", "test"):
        rows = parts[name]
        (tmp_path / f"{name}.fbin").write_bytes(struct.pack("<II", *rows.shape) + rows.tobytes())
    exact = np.argsort(-(parts["test"] @ parts["train"].T), axis=1, kind="stable")[:, :20].astype("<i4")
    known = tmp_path / "gt.ibin"
    known.write_bytes(struct.pack("<II", *exact.shape) + exact.tobytes() + np.zeros(exact.shape, "<f4").tobytes())
    source, queries = str(tmp_path / "train.fbin"), str(tmp_path / "test.fbin")
    made = prepare(source, tmp_path / "a", queries=queries, neighbors=str(known), metric="cosine")
    assert made.truth("test").ids.shape == (TEST - TEST // 5, 20)
    exact[:] = exact[::-1]
    known.write_bytes(struct.pack("<II", *exact.shape) + exact.tobytes() + np.zeros(exact.shape, "<f4").tobytes())
    with pytest.raises(InvalidInput, match="are not the nearest documents"):
        prepare(source, tmp_path / "b", queries=queries, neighbors=str(known), metric="cosine")
    assert not list((tmp_path / "b").rglob("dataset.json"))


def test_beir_folder(tmp_path: Path) -> None:
    parts = arrays()
    queries = np.concatenate([parts["test"], parts["learn_queries"]])
    np.save(tmp_path / "corpus.npy", parts["train"])
    np.save(tmp_path / "queries.npy", queries)
    for name, count in (("corpus", N), ("queries", len(queries))):
        lines = [json.dumps({"_id": f"{name[0]}{i}", "text": ""}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "qrels").mkdir()
    lines = ["query-id\tcorpus-id\tscore", "q0\tc5\t2", "q0\tc7\t1", "q3\tc9\t1"]
    (tmp_path / "qrels" / "test.tsv").write_text("\n".join(lines))
    made = prepare(str(tmp_path), tmp_path / "runs", metric="cosine")
    qrels = read_qrels(made.truth_path)
    assert qrels is not None
    assert qrels.docs.tolist() == [5, 7, 9] and qrels.scores.tolist() == [2, 1, 1]
    assert np.allclose(made.rows("test"), queries[[0, 3]])
    assert len(made.rows("tune")) + len(made.rows("learn")) == len(queries) - 2
    (tmp_path / "queries.jsonl").write_text('{"_id": "q0"}\nno json\n')
    with pytest.raises(InvalidInput, match="queries.jsonl must have a JSON object"):
        prepare(str(tmp_path), tmp_path / "runs", metric="cosine")


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", 1e6 * arrays()["train"])
    with pytest.raises(InvalidInput, match="beyond float16"):
        prepare(str(tmp_path / "a.npy"), tmp_path / "runs", metric="ip")


@pytest.mark.parametrize(
    ("text", "labels"),
    [("16,32B/vec", ["16B/vec", "32B/vec"]), ("1MiB", ["1MiB"]), ("8B/vec, 1,2MiB", ["8B/vec", "1MiB", "2MiB"])],
)
def test_budgets_take_the_next_unit(text: str, labels: list[str]) -> None:
    assert budgets.parse_budgets(text) == labels


@pytest.mark.parametrize("text", ["", "16", "x", "16B/vec,16B/vec", "16Q", "16B/vec,"])
def test_bad_budgets(text: str) -> None:
    with pytest.raises(InvalidInput):
        budgets.parse_budgets(text)


def test_a_named_set_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fetch, "_SOURCE", "http://127.0.0.1:9/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(VqdistillError, match="without a network put the file into"):
        fetch.fetch("sift-128-euclidean")
    (tmp_path / "vqdistill").mkdir(exist_ok=True)
    (tmp_path / "vqdistill" / "sift-128-euclidean.hdf5").write_bytes(b"not it")
    with pytest.raises(VqdistillError):  # a file of another checksum is not taken
        fetch.fetch("sift-128-euclidean")
