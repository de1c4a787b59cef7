"""Scores and labels in every format that can be read, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vqdistill.data import judgments
from vqdistill.data.ids import build_ids
from vqdistill.data.judgments import read_labels, read_scores
from vqdistill.data.relevance import Relevance
from vqdistill.errors import InvalidInput

PAIRS = [(0, 3, 0.5), (0, 1, 2.0), (2, 1, -1.0), (2, 0, -1.0)]
WANTED = [[(1, 2.0), (3, 0.5)], [], [(0, -1.0), (1, -1.0)]]
SIZE = {"n_queries": 3, "n_docs": 5}
QUERY_IDS = build_ids([["qa", "qb", "qc"]], 3, "queries")
DOC_IDS = build_ids([[10, 11, 12, 13, -14]], 5, "docs")
NAMED = SIZE | {"query_ids": QUERY_IDS, "doc_ids": DOC_IDS}


def rows(relevance: Relevance) -> list[list[tuple[int, float]]]:
    parts = np.split(np.arange(relevance.nnz), relevance.offsets[1:-1])
    return [[(int(relevance.docs[i]), float(relevance.scores[i])) for i in part] for part in parts]


def text(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["tsv", "spaces", "header", "crlf", "trec", "npz", "parquet", "beir parquet"])
@pytest.mark.parametrize("named", [False, True])
def test_scores(tmp_path: Path, form: str, named: bool) -> None:
    q = [("qa", "qb", "qc")[q] if named else q for q, _, _ in PAIRS]
    d = [(10, 11, 12, 13, -14)[d] if named else d for _, d, _ in PAIRS]
    s = [s for _, _, s in PAIRS]
    lines = [f"{a}\t{b}\t{c}\n" for a, b, c in zip(q, d, s, strict=True)]
    if form == "npz":
        path = tmp_path / "s.npz"
        np.savez(path, qids=np.array(q), docids=np.array(d), scores=np.array(s))
    elif "parquet" in form:
        path = tmp_path / "s.parquet"
        keys = ("query-id", "corpus-id", "score") if "beir" in form else ("qid", "docid", "score")
        pq.write_table(pa.table(dict(zip(keys, (q, d, s), strict=True))), path)
    elif form == "trec":
        content = "".join(f"{a} Q0 {b} {9 - i} {c} tag\n" for i, (a, b, c) in enumerate(zip(q, d, s, strict=True)))
        path = text(tmp_path / "s.run", content)
    else:
        content = "".join(lines)
        changed = {
            "tsv": content + "\n",
            "spaces": content.replace("\t", "  "),
            "header": "query-id\tcorpus-id\tscore\n" + content,
            "crlf": "\ufeff" + content.replace("\n", "\r\n"),
        }
        path = text(tmp_path / "s.txt", changed[form])
    assert rows(read_scores(path, **(NAMED if named else SIZE))) == WANTED


def test_pieces_join_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judgments, "_PIECE_LINES", 2)
    path = text(tmp_path / "s.tsv", "qid docid score\n" + "".join(f"{q} {d} {s}\n" for q, d, s in PAIRS))
    assert rows(read_scores(path, **SIZE)) == WANTED
    with pytest.raises(InvalidInput, match="line 5 must have 3 columns as line 1 has, got 2"):
        read_scores(text(path, "0 1 1\n0 2 1\n0 3 1\n0 4 1\n1 2\n"), **SIZE)


@pytest.mark.parametrize(
    "content",
    [
        "0 0 1 2\n0 0 2 0\n0 0 3 -1\n2 0 4 1\n",
        "0 1 2\n0 2 0\n2 4 1\n",
        "query-id\tcorpus-id\tscore\n0\t1\t2\n2\t4\t1\n",
    ],
)
def test_qrels(tmp_path: Path, content: str) -> None:
    assert rows(read_labels(text(tmp_path / "q.tsv", content), **SIZE)) == [[(1, 2.0)], [], [(4, 1.0)]]


def test_qrels_by_name(tmp_path: Path) -> None:
    path = text(tmp_path / "q.tsv", "query-id\tcorpus-id\tscore\nqa\t11\t2\nqc\t-14\t1\n")
    assert rows(read_labels(path, **NAMED)) == [[(1, 2.0)], [], [(4, 1.0)]]


def test_labels_of_containers(tmp_path: Path) -> None:
    np.savez(tmp_path / "q.npz", qids=[0, 2, 0], docids=[1, 4, 2], labels=[2, 1, 0])
    assert rows(read_labels(tmp_path / "q.npz", **SIZE)) == [[(1, 2.0)], [], [(4, 1.0)]]
    pq.write_table(pa.table({"qid": ["qa"], "docid": [13], "label": [1]}), tmp_path / "q.parquet")
    assert rows(read_labels(tmp_path / "q.parquet", **NAMED)) == [[(3, 1.0)], [], []]


@pytest.mark.parametrize("labels", [[1, -1, 4], [[1, -1], [-1, -1], [-1, 4]]])
def test_label_arrays(tmp_path: Path, labels: Any) -> None:
    wanted = [[(1, 1.0)], [], [(4, 1.0)]]
    array = np.array(labels, np.int32)
    np.save(tmp_path / "l.npy", array)
    np.savez(tmp_path / "l.npz", labels=array, other=np.zeros(3))
    with h5py.File(tmp_path / "l.h5", "w") as file:
        file["learn_labels"], file["test_labels"] = array, array[:1]
    for given_ in (array, tmp_path / "l.npy", tmp_path / "l.npz", tmp_path / "l.h5", f"{tmp_path}/l.h5:learn_labels"):
        assert rows(read_labels(given_, **NAMED)) == wanted  # always row numbers


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 5, 2], r"row 1 names document 5, known are 0..4 and -1"),
        ([1, -2, 2], "row 1 names document -2"),
        ([1, 2], r"must be \(3,\) or \(3, L\) integers, got \(2,\)"),
        ([1.0, 2.0, 3.0], "integers, got .* float64"),
        ([[1, 1], [0, 0], [2, 3]], "query 0 must be sorted|names document 1 twice"),
    ],
)
def test_label_arrays_refused(labels: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_labels(np.array(labels), **SIZE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: it has no entries"),
        ("0 1\n", "line 1 must have 3 or 6 columns, got 2"),
        ("0 1 1\n0 1\n", "line 2 must have 3 columns as line 1 has, got 2"),
        ("0 1 1\n0 2 high\n", "line 2 must have a number in column 3, got 'high'"),
        ("0 1 1\n7 2 1\n9 2 1\n", "names query '7', which is not among the 3 known"),
        ("0 1 1\n0 5 1\n", "names document '5', which is not among the 5 known"),
        ("0 1 1\n0 -1 1\n", "names document '-1'"),
        ("0 1 1\n0 1_0 1\n", "names document '1_0'"),
        ("0 1 1\n0 d2 1\n", "names document 'd2'"),
        (f"0 1 1\n0 {10**30} 1\n", "names document '1000"),
        ("0 1 1\n0 2 nan\n", "must be finite, got nan for query 0, document 2"),
        ("0 1 1\n0 1 2\n", "query 0 names document 1 twice"),
    ],
)
def test_text_refused(tmp_path: Path, content: str, message: str) -> None:
    path = text(tmp_path / "s.tsv", content)
    with pytest.raises(InvalidInput, match=message) as caught:
        read_scores(path, **SIZE)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_refused(tmp_path: Path) -> None:
    (tmp_path / "b.tsv").write_bytes(b"\xff\xfe0 1 1")
    np.savez(tmp_path / "n.npz", qids=[1], docids=[1])
    np.savez(tmp_path / "u.npz", qids=[1, 2], docids=[1], scores=[1])
    np.savez(tmp_path / "t.npz", qids=[1], docids=[1], scores=["high"])
    np.savez(tmp_path / "o.npz", qids=[1], docids=np.array([{}]), scores=[1])
    (tmp_path / "g.parquet").write_bytes(b"PAR1 garbage PAR1")
    for name, message in (
        ("none.tsv", "no such file"),
        ("b.tsv", "not UTF-8"),
        ("n.npz", "has no column 'scores'; it holds docids, qids"),
        ("u.npz", "columns of one length, got 2, 1 and 1"),
        ("t.npz", "must hold numbers"),
        ("o.npz", "Python objects"),
        ("g.parquet", "not a readable Parquet file"),
    ):
        with pytest.raises(InvalidInput, match=message):
            read_scores(tmp_path / name, **SIZE)
    with pytest.raises(InvalidInput, match="no such file"):
        read_labels(tmp_path / "none.tsv", **SIZE)
    with pytest.raises(InvalidInput, match="no array named 'x'"):
        read_labels(f"{tmp_path}/n.npz:x", **SIZE)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=60) | st.text("0123 \t\n.-naeQ", max_size=40).map(str.encode))
def test_any_text_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.tsv").write_bytes(content)
    for read in (read_scores, read_labels):
        try:
            assert read(tmp_path / "s.tsv", **SIZE).n_queries == 3
        except InvalidInput as error:
            assert "\n" not in str(error)
