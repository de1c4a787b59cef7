"""Searcher: what it answers, what it refuses, and that every setting means what it says."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqdistill
from vqdistill.errors import InvalidInput
from vqdistill.searcher import Searcher, open

N, D, Q = 900, 24, 37


def _embeddings(seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((12, D))
    rows = centres[rng.integers(0, 12, N)] + 0.5 * rng.standard_normal((N, D))
    queries = rows[rng.integers(0, N, Q)] + 0.2 * rng.standard_normal((Q, D))
    return rows.astype(np.float32) * 3, queries.astype(np.float32) * 3


@pytest.fixture(scope="module", params=["ip", "cosine", "l2"])
def metric(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def searcher(metric: str, tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    rows, queries = _embeddings(0)
    path = tmp_path_factory.mktemp("searcher") / "rows.vqd"
    vqdistill.compile(rows, path, queries=queries, metric=metric, ram="8B/vec", dense="f32", threads=1)
    return open(path)


def _exact(metric: str, queries: Any, rows: Any) -> Any:
    x, q = rows.astype(np.float64), queries.astype(np.float64)
    if metric == "cosine":
        x, q = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, q))
    return -((q[:, None] - x[None]) ** 2).sum(-1) if metric == "l2" else q @ x.T


def test_exhaustive_settings_equal_brute_force(searcher: Searcher, metric: str) -> None:
    rows, queries = _embeddings(0)
    wanted = _exact(metric, queries, rows)
    scores, ids = searcher.search(queries, k=7, nprobe=searcher.reader.manifest.nlist, refine=N)
    assert np.array_equal(ids, np.argsort(-wanted, axis=1, kind="stable")[:, :7])
    assert np.allclose(scores, -np.sort(-wanted, axis=1)[:, :7], rtol=1e-4, atol=1e-4)


def test_codes_alone_approximate_the_scores(searcher: Searcher, metric: str) -> None:
    rows, queries = _embeddings(0)
    hits = searcher.search(queries, k=50, nprobe=searcher.reader.manifest.nlist, refine=0)
    wanted = np.take_along_axis(_exact(metric, queries, rows), hits.rows, axis=1)
    assert np.corrcoef(hits.scores.ravel(), wanted.ravel())[0, 1] > 0.8
    assert hits.stats["dense_rows"] == 0


def test_results_are_sorted_and_counted(searcher: Searcher) -> None:
    _, queries = _embeddings(0)
    hits = searcher.search(queries, k=10, nprobe=2, refine=20)
    assert (np.diff(hits.scores, axis=1) <= 0).all()
    assert hits.stats["lists_probed"] == 2 * Q
    assert 0 < hits.stats["codes_scanned"] < N * Q
    assert hits.stats["dense_rows"] == hits.stats["candidates"] <= 20 * Q
    assert hits.stats["dense_bytes"] >= hits.stats["dense_rows"] * 4 * D


def test_few_rows_in_the_visited_lists_leave_places_empty(searcher: Searcher) -> None:
    _, queries = _embeddings(0)
    scores, ids = searcher.search(queries, k=N, nprobe=1)
    missing = ids == -1
    assert missing.any()
    assert (scores[missing] == -np.inf).all()
    assert np.isfinite(scores[~missing]).all()
    assert all(len(np.unique(found[found >= 0])) == (found >= 0).sum() for found in ids)


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_do_not_change_results(searcher: Searcher, threads: int) -> None:
    _, queries = _embeddings(0)
    one, many = (searcher.search(queries, k=9, threads=t) for t in (1, threads))
    assert np.array_equal(one.ids, many.ids)
    assert np.array_equal(one.scores, many.scores)
    assert one.stats == many.stats


def test_one_index_serves_many_python_threads(searcher: Searcher) -> None:
    _, queries = _embeddings(0)
    wanted = searcher.search(queries, k=5)
    seen: list[bool] = []

    def work() -> None:
        for _ in range(20):
            found = searcher.search(queries, k=5, threads=2)
            seen.append(np.array_equal(found.ids, wanted.ids) and np.array_equal(found.scores, wanted.scores))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert seen == [True] * 80


def test_any_real_dtype_and_a_single_query(searcher: Searcher) -> None:
    _, queries = _embeddings(0)
    whole = np.rint(queries)
    wanted = searcher.search(whole.astype(np.float32), k=3)
    for same in (whole.astype(np.float64), whole.astype(np.int8), whole.tolist(), np.asfortranarray(whole)):
        assert np.array_equal(searcher.search(same, k=3).ids, wanted.ids)
    assert np.array_equal(searcher.search(whole[0], k=3).ids, wanted.ids[:1])


def test_no_query_gives_no_result(searcher: Searcher) -> None:
    scores, ids = searcher.search(np.empty((0, D), np.float32), k=4)
    assert scores.shape == ids.shape == (0, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be an integer in 1..900"),
        ({"k": N + 1}, "k must be an integer in 1..900"),
        ({"k": 1.5}, "k must be an integer"),
        ({"k": True}, "k must be an integer"),
        ({"nprobe": 0}, "nprobe must be a positive integer"),
        ({"nprobe": 10**6}, "nprobe must be in 1.."),
        ({"refine": 5}, "refine must be 0 or at least k = 10"),
        ({"refine": -1}, "refine must be a non-negative integer"),
        ({"threads": 0}, "threads must be an integer in 1..1024"),
    ],
)
def test_options_out_of_range(searcher: Searcher, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message.replace("..", r"\.\.")):
        searcher.search(np.ones((1, D), np.float32), **({"k": 10} | options))


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (np.ones((2, D + 1), np.float32), rf"queries must be of shape \(rows, {D}\), got \(2, {D + 1}\)"),
        (np.full((3, D), np.nan, np.float32), "queries row 0 holds NaN or infinity"),
        (np.array([[1.0] * D, [np.inf] * D]), "queries row 1 holds NaN or infinity"),
        (np.ones((1, D), complex), "queries must be real numbers"),
        (np.array([["a"] * D]), "queries must be real numbers"),
        (None, "queries must be"),
    ],
)
def test_unusable_queries(searcher: Searcher, queries: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        searcher.search(queries, k=1)


def test_a_zero_query_has_no_direction(searcher: Searcher, metric: str) -> None:
    zero = np.zeros((1, D), np.float32)
    if metric == "cosine":
        with pytest.raises(InvalidInput, match="queries row 0 is a zero vector"):
            searcher.search(zero, k=1)
    else:
        assert np.isfinite(searcher.search(zero, k=1).scores).all()


def test_refine_without_dense_rows(tmp_path: Path) -> None:
    rows, queries = _embeddings(1)
    vqdistill.compile(rows, tmp_path / "codes.vqd", queries=queries, metric="ip", ram="4B/vec", dense="none", threads=1)
    index = open(tmp_path / "codes.vqd")
    assert index.search(queries, k=3).stats["dense_rows"] == 0
    with pytest.raises(InvalidInput, match="refine must be 0 for an index without dense rows"):
        index.search(queries, k=3, refine=10)


def test_external_ids_come_back(tmp_path: Path) -> None:
    rows, queries = _embeddings(2)
    names = [f"document {i}" for i in range(N)]
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    options: dict[str, Any] = {"queries": queries, "metric": "ip", "ram": "4B/vec", "threads": 1}
    vqdistill.compile(rows, tmp_path / "named.vqd", ids=tmp_path / "names.txt", **options)
    hits = open(tmp_path / "named.vqd").search(queries, k=4)
    assert hits.ids.tolist() == [[names[row] for row in found] for found in hits.rows]
