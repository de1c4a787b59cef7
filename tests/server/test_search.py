"""Searches over HTTP find what searches of the open index find, in every representation."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqdistill
from tests.searching import D, N, Q, write_index
from tests.server.support import Local
from vqdistill.types import WORK, Hits
from vqdistill.wire import JSON, MSGPACK, NPY, pack, pack_array, unpack_hits

OPTIONS = [
    {},
    {"k": 3},
    {"nprobe": 5},
    {"coverage": 0.5, "refine": 40},
    {"refine": 0, "k": 7},
    {"confidence": 0.9},
    {"recall": 0.9},
]
CASES = [("rows", options) for options in OPTIONS] + [
    (name, options) for name in ("words", "bare") for options in OPTIONS[:3]
]


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def of_json(answer: dict[str, Any]) -> Hits:
    scores = np.array([[-np.inf if score is None else score for score in row] for row in answer["scores"]], np.float32)
    return Hits(scores, np.array(answer["ids"]), np.array(answer["rows"]), np.array(answer["work"]))


CACHED = ("dense_pages", "dense_bytes", "wait_ns")
"""Work that depends on what the page cache has."""


def same(a: Hits, b: Hits) -> bool:
    steady = [at for at, name in enumerate(WORK) if name not in CACHED]
    return all(
        np.array_equal(*pair)
        for pair in ((a.scores, b.scores), (a.ids, b.ids), (a.rows, b.rows), (a.work[:, steady], b.work[:, steady]))
    )


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_every_representation_has_the_hits_of_the_open_index(
    local: Local, queries: Any, name: str, options: dict[str, Any]
) -> None:
    wanted = local.service.indexes[name].search(queries, **options)
    path = f"/v1/indexes/{name}/search"
    bodies = {
        JSON: local.ask("POST", path, json={"queries": queries.tolist()} | options),
        NPY: local.ask("POST", path, content=npy(queries), params=options, headers={"Content-Type": NPY}),
        MSGPACK: local.ask(
            "POST",
            path,
            content=pack({"queries": pack_array(queries)} | options),
            headers={"Content-Type": MSGPACK, "Accept": MSGPACK},
        ),
    }
    for kind, answer in bodies.items():
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == (MSGPACK if kind == MSGPACK else JSON)
        hits = unpack_hits(answer.content) if kind == MSGPACK else of_json(answer.json())
        assert same(hits, wanted), kind
        assert hits.scores.dtype == np.float32 and hits.ids.dtype.kind == wanted.ids.dtype.kind


@pytest.mark.parametrize(("name", "times", "k"), [("rows", 20, 10), ("rows", 1, 40), ("words", 20, 1)])
def test_large_ones_find_what_small_ones_do(local: Local, queries: Any, name: str, times: int, k: int) -> None:
    many = np.tile(queries, (times, 1))
    answer = local.search(name, {"queries": many.tolist(), "k": k})
    assert same(of_json(answer.json()), local.service.indexes[name].search(many, k))


def test_queries_behind_a_header_of_any_length_are_read(local: Local, queries: Any) -> None:
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {queries.shape}}}".encode().ljust(87)
    body = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + queries.tobytes()
    answer = local.ask("POST", "/v1/indexes/rows/search", content=body, headers={"Content-Type": NPY})
    assert same(of_json(answer.json()), local.service.indexes["rows"].search(queries))


@pytest.mark.parametrize("name", ["rows", "words"])
def test_npy_answers_are_records(local: Local, queries: Any, name: str) -> None:
    wanted = local.service.indexes[name].search(queries, 4)
    answer = local.search(name, {"queries": queries.tolist(), "k": 4}, headers={"Accept": NPY})
    records = np.load(io.BytesIO(answer.content), allow_pickle=False)
    assert answer.headers["content-type"] == NPY and records.shape == (Q, 4)
    for field, array in (("score", wanted.scores), ("id", wanted.ids), ("row", wanted.rows)):
        assert np.array_equal(records[field], array)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", JSON),
        ("application/*", JSON),
        ("text/html, application/x-npy;q=0.4, application/msgpack;q=0.8", MSGPACK),
        ("application/json;q=0, application/x-npy", NPY),
    ],
)
def test_accept_chooses(local: Local, queries: Any, accept: str, kind: str) -> None:
    answer = local.search("rows", {"queries": queries[0].tolist()}, headers={"Accept": accept})
    assert answer.headers["content-type"] == kind


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", "<i2", "u1"])
def test_other_dtypes_are_searched_as_float32(local: Local, queries: Any, dtype: str) -> None:
    given = np.abs(queries).astype(dtype)
    answer = local.ask("POST", "/v1/indexes/rows/search", content=npy(given), headers={"Content-Type": NPY})
    assert same(of_json(answer.json()), local.service.indexes["rows"].search(given))


@pytest.mark.parametrize("name", ["rows", "words"])
def test_only_allowed_ids_are_found(local: Local, queries: Any, name: str) -> None:
    allow: Any = list(range(0, N, 9))
    allow = allow if name == "rows" else [f"doc-{row}" for row in allow]
    wanted = local.service.indexes[name].search(queries, 5, allow=allow)
    answer = local.search(name, {"queries": queries.tolist(), "k": 5, "allow": allow})
    assert same(of_json(answer.json()), wanted)
    assert set(np.array(answer.json()["ids"]).ravel()) <= {*allow, -1, ""}


def test_where_nothing_is_allowed_nothing_is_found(local: Local, queries: Any) -> None:
    answer = local.search("words", {"queries": queries[:1].tolist(), "k": 2, "allow": []}).json()
    assert (answer["ids"], answer["rows"], answer["scores"]) == ([["", ""]], [[-1, -1]], [[None, None]])


def test_stored_rows_are_queries(local: Local) -> None:
    reader = local.service.indexes["words"].reader
    rows = reader.dense_rows(reader.positions_of(["doc-17", "doc-4"]))
    wanted = local.service.indexes["words"].search(rows, 3)
    answer = local.search("words", {"ids": ["doc-17", "doc-4"], "k": 3})
    assert same(of_json(answer.json()), wanted)
    assert [row[0] for row in answer.json()["ids"]] == ["doc-17", "doc-4"]
    numbered = local.service.indexes["rows"]
    wanted = numbered.search(numbered.reader.dense_rows(numbered.reader.positions_of([17])))
    assert same(of_json(local.search("rows", {"ids": [17]}).json()), wanted)


def test_explain_tells_the_fates(local: Local, queries: Any) -> None:
    expected = local.service.indexes["words"].search(queries[3], 5).ids[0].tolist() + ["doc-0"]
    message = {"query": queries[3].tolist(), "expected_ids": expected, "k": 3}
    answer = local.ask("POST", "/v1/indexes/words/explain", json=message)
    fates = local.service.indexes["words"].explain(queries[3], expected, 3)
    assert answer.json()["fates"] == [
        {name: getattr(fate, name) for name in ("id", "fate", "list", "list_rank", "lists_visited", "rows_read")}
        for fate in fates
    ]
    assert [fate["fate"] for fate in answer.json()["fates"]][:3] == ["found"] * 3


def test_info_is_what_the_index_is(local: Local) -> None:
    listed = local.ask("GET", "/v1/indexes").json()["indexes"]
    assert [one["name"] for one in listed] == ["bare", "rows", "words"]
    info, reader = local.ask("GET", "/v1/indexes/rows").json(), local.service.indexes["rows"].reader
    assert (info["rows"], info["dimensions"], info["metric"], info["ids"]) == (N, D, "ip", "rows")
    assert (info["resident_bytes"], info["disk_bytes"]) == (reader.resident_bytes, reader.disk_bytes)
    assert info["certificate"] == reader.manifest.certificate.to_json()  # type: ignore[union-attr]
    assert info["defaults"]["coverage"] == 0.9
    assert local.ask("GET", "/v1/indexes/bare").json()["certificate"] is None


def test_a_new_generation_is_served_after_refresh(tmp_path: Path, queries: Any) -> None:
    write_index(tmp_path / "a.vqd")
    server = Local({"a": tmp_path / "a.vqd"})
    first = server.search("a", {"queries": queries[:1].tolist(), "k": 1}).json()["ids"][0]
    vqdistill.open(tmp_path / "a.vqd").delete(first)
    assert server.search("a", {"queries": queries[:1].tolist(), "k": 1}).json()["ids"][0] == first
    assert server.ask("POST", "/v1/indexes/a/refresh").json() == {"changed": True, "generation": 2}
    assert server.search("a", {"queries": queries[:1].tolist(), "k": 1}).json()["ids"][0] != first
    assert server.ask("POST", "/v1/indexes/a/refresh").json() == {"changed": False, "generation": 2}
    assert server.ask("GET", "/v1/indexes/a").json()["rows"] == N - 1
    assert server.metric("vqdistill_index_generation", index="a") == 2
    server.service.close()


def test_a_new_generation_that_is_damaged_leaves_the_old_one(tmp_path: Path, queries: Any) -> None:
    path = tmp_path / "a.vqd"
    wanted = write_index(path).search(queries)
    server = Local({"a": path})
    vqdistill.open(path).delete([3])
    (path / "manifest-2.json").write_text("{}")
    refused = server.ask("POST", "/v1/indexes/a/refresh")
    assert (refused.status_code, refused.json()) == (500, {"error": "the index cannot be read; its log says why"})
    assert same(of_json(server.search("a", {"queries": queries.tolist()}).json()), wanted)
    assert server.metric("vqdistill_refreshes_total", index="a", outcome="failed") == 1
    server.service.close()
