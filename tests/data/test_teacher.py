"""Exact search against its definition and faiss; caching, given relevance, pseudo-queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from tests.contracts import TeacherContract, prepared
from vqdistill.data import exact
from vqdistill.data.relevance import Relevance
from vqdistill.data.sources import EmbeddingSource, open_source
from vqdistill.data.teacher import (
    CachedTeacher,
    ExactTeacher,
    LabelTeacher,
    ScoreTeacher,
    Teacher,
    pseudo_queries,
    query_rows,
)
from vqdistill.errors import InvalidInput
from vqdistill.types import Metric

RNG = np.random.default_rng(5)
X = RNG.standard_normal((60, 8)).astype(np.float32)
Q = RNG.standard_normal((9, 8)).astype(np.float32)


class TestExact(TeacherContract):
    @pytest.fixture(params=["ip", "cosine", "l2"])
    def teacher(self, request: Any) -> Teacher:
        return ExactTeacher(open_source(X, metric=request.param))

    @pytest.fixture
    def queries(self) -> Any:
        return Q

    @pytest.fixture
    def n(self) -> int:
        return len(X)


class TestCached(TestExact):
    @pytest.fixture
    def teacher(self, tmp_path: Path) -> Teacher:
        return CachedTeacher(ExactTeacher(open_source(X)), tmp_path / "cache")


class TestGivenScores(TestExact):
    @pytest.fixture
    def teacher(self) -> Teacher:
        return ScoreTeacher(ExactTeacher(open_source(X)).relevance(Q, 20))


class TestGivenLabels(TestExact):
    @pytest.fixture
    def teacher(self) -> Teacher:
        return LabelTeacher(Relevance.from_padded(np.arange(18).reshape(9, 2)))


def slow(x: Any, q: Any, metric: Metric, exclude: Any = None) -> tuple[Any, Any]:
    """All documents of each query by (score descending, row ascending), in float64."""
    x, q = prepared(x, metric), prepared(q, metric)
    scores = -((q[:, None] - x) ** 2).sum(axis=2) if metric is Metric.L2 else q @ x.T
    if exclude is not None:
        scores[np.flatnonzero(exclude >= 0), exclude[exclude >= 0]] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")
    return order, np.take_along_axis(scores, order, 1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_small_integers_give_exact_scores_and_ties(data: st.DataObject) -> None:
    """Tiles far smaller than the data, many equal scores: the tie rule must hold across every border."""
    seed = data.draw(st.integers(0, 10**6))
    n, q, depth = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 12)), data.draw(st.integers(1, 70))
    metric = data.draw(st.sampled_from([Metric.IP, Metric.L2]))
    dtype = data.draw(st.sampled_from(["int8", "float32"]))
    rng = np.random.default_rng(seed)
    x, queries = (rng.integers(-2, 3, (rows, 3)).astype(dtype) for rows in (n, q))
    exclude = rng.integers(-1, n, q) if data.draw(st.booleans()) else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_QUERY_TILE", data.draw(st.integers(1, 5)))
        patch.setattr(exact, "_DOC_TILE", data.draw(st.integers(1, 9)))
        patch.setattr("vqdistill.data.sources._BLOCK_BYTES", 12 * data.draw(st.integers(1, 30)))
        found = ExactTeacher(open_source(x, metric=metric), threads=2).relevance(queries, depth, exclude)
    docs, scores = slow(x, queries, metric, exclude)
    for i in range(q):
        a, b = found.offsets[i : i + 2]
        assert b - a == min(depth, n - (exclude is not None and exclude[i] >= 0))
        if metric is Metric.IP or dtype == "int8":
            assert found.docs[a:b].tolist() == docs[i, : b - a].tolist()
        np.testing.assert_allclose(found.scores[a:b], scores[i, : b - a], atol=1e-5)


@pytest.mark.parametrize("metric", list(Metric))
def test_agrees_with_faiss(metric: Metric) -> None:
    rng = np.random.default_rng(1)
    x, q = rng.standard_normal((3000, 32)).astype(np.float32), rng.standard_normal((700, 32)).astype(np.float32)
    docs, scores = ExactTeacher(open_source(x, metric=metric)).relevance(q, 50).padded(50)
    kind = faiss.METRIC_L2 if metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
    a, b = (prepared(v, metric).astype(np.float32) for v in (q, x))
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    distances, wanted = faiss.knn(a, b, 50, metric=kind)
    faiss.omp_set_num_threads(before)
    assert (docs == wanted).mean() > 0.999  # neighbours closer than float32 resolves may swap
    np.testing.assert_allclose(scores, -distances if metric is Metric.L2 else distances, rtol=1e-4, atol=1e-4)


def test_threads_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_QUERY_TILE", 64)
    rng = np.random.default_rng(2)
    x, q = rng.standard_normal((5000, 48)).astype(np.float32), rng.standard_normal((300, 48)).astype(np.float32)
    src = open_source(x)
    pools = {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}
    one, two = ExactTeacher(src, threads=1).relevance(q, 30), ExactTeacher(src, threads=2).relevance(q, 30)
    assert pools == {pool["filepath"]: pool["num_threads"] for pool in threadpool_info() if pool["filepath"] in pools}
    np.testing.assert_array_equal(one.docs, two.docs)
    np.testing.assert_array_equal(one.scores, two.scores)


def test_l2_far_from_the_origin_keeps_its_digits() -> None:
    rng = np.random.default_rng(3)
    x, q = rng.standard_normal((500, 64)) + 3000, rng.standard_normal((20, 64)) + 3000
    x, q = x.astype(np.float32), q.astype(np.float32)
    docs, scores = ExactTeacher(open_source(x, metric="l2")).relevance(q, 10).padded(10)
    wanted, exact_scores = slow(x, q, Metric.L2)
    np.testing.assert_allclose(scores, exact_scores[:, :10], rtol=1e-4)
    assert (docs == wanted[:, :10]).mean() > 0.99


def test_exclude_self() -> None:
    found = ExactTeacher(open_source(X)).relevance(X, 60, exclude_self=np.arange(60))
    assert (found.counts == 59).all()
    assert not (found.docs == found.query_of_entries()).any()


def test_progress_counts_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqdistill.data.sources._BLOCK_BYTES", 7 * 8 * 4)
    seen: list[int] = []
    ExactTeacher(open_source(X), progress=seen.append).relevance(Q, 5)
    assert sum(seen) == 60 and len(seen) == 9


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (Q[:, :5], "must have dimension 8 .* got 5"),
        (np.zeros((2, 8), np.float32), "row 0 is a zero vector"),
        (np.full((2, 8), np.nan), "row 0 holds NaN"),
        (Q.astype(complex), "must be one of float64"),
        ("nowhere.npy", "no such file"),
    ],
)
def test_bad_queries(queries: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        ExactTeacher(open_source(X)).relevance(queries, 5)


def test_other_bad_arguments() -> None:
    teacher = ExactTeacher(open_source(X))
    with pytest.raises(InvalidInput, match=r"exclude_self must be one row number a query, \(9,\), got \(3,\)"):
        teacher.relevance(Q, 5, exclude_self=np.arange(3))
    with pytest.raises(InvalidInput, match="threads must be at least 1"):
        ExactTeacher(open_source(X), threads=0)
    with pytest.raises(InvalidInput, match="overflow float32"):
        ExactTeacher(open_source(X * 1e20, metric="ip")).relevance(Q * 1e20, 5)
    with pytest.raises(InvalidInput, match="given for 9 queries, got 3"):
        ScoreTeacher(teacher.relevance(Q, 5)).relevance(Q[:3], 5)


def test_queries_may_be_a_source_or_a_file(tmp_path: Path) -> None:
    src = open_source(X)
    np.save(tmp_path / "q.npy", Q)
    for queries in (open_source(Q), tmp_path / "q.npy", Q.astype(np.float64), Q.tolist()[0]):
        if isinstance(queries, list):
            queries = np.array(queries)
        np.testing.assert_allclose(query_rows(queries, src)[0], prepared(Q, Metric.COSINE)[0], rtol=1e-6)


class Counting(ExactTeacher):
    calls = 0

    def relevance(self, *args: Any, **named: Any) -> Relevance:
        self.calls += 1
        return super().relevance(*args, **named)


class TestCache:
    @pytest.fixture
    def counting(self) -> Counting:
        return Counting(open_source(X))

    def test_is_used_and_keyed_by_all_that_matters(self, counting: Counting, tmp_path: Path) -> None:
        cached = CachedTeacher(counting, tmp_path / "new/cache")
        variants: list[tuple[Any, ...]] = [(Q, 5), (Q, 6), (Q[:4], 5), (Q[::-1], 5), (Q, 5, np.arange(9))]
        first = [cached.relevance(*variant) for variant in variants]
        assert counting.calls == len(variants)
        again = [CachedTeacher(counting, tmp_path / "new/cache").relevance(*variant) for variant in variants]
        assert counting.calls == len(variants)
        for a, b, variant in zip(first, again, variants, strict=True):
            np.testing.assert_array_equal(a.docs, b.docs)
            np.testing.assert_array_equal(a.docs, ExactTeacher(open_source(X)).relevance(*variant).docs)
        other = Counting(open_source(X, metric="l2"))
        CachedTeacher(other, tmp_path / "new/cache").relevance(Q, 5)
        assert other.calls == 1

    @pytest.mark.parametrize("damage", ["garbage", "truncated", "other queries", "documents that are not there"])
    def test_damaged_files_are_made_again(self, counting: Counting, tmp_path: Path, damage: str) -> None:
        cached = CachedTeacher(counting, tmp_path)
        wanted = cached.relevance(Q, 5)
        (path,) = tmp_path.iterdir()
        if damage == "garbage":
            path.write_bytes(b"garbage")
        elif damage == "truncated":
            path.write_bytes(path.read_bytes()[:-9])
        else:
            Relevance.from_padded(np.full((2 if damage == "other queries" else 9, 1), 60)).save(path)
        np.testing.assert_array_equal(cached.relevance(Q, 5).docs, wanted.docs)
        assert counting.calls == 2
        cached.relevance(Q, 5)
        assert counting.calls == 2


class TestPseudoQueries:
    @pytest.fixture(params=["ip", "cosine", "l2"])
    def src(self, request: Any) -> EmbeddingSource:
        scales = np.linspace(0.1, 10, 60, dtype=np.float32)[:, None]
        return open_source(X * scales, metric=request.param)

    def test_near_their_documents(self, src: EmbeddingSource) -> None:
        queries, rows = pseudo_queries(src, 60, seed=3)
        assert queries.shape == (60, 8) and queries.dtype == np.float32 and sorted(rows.tolist()) == list(range(60))
        x = src.take(rows)
        if src.metric is Metric.L2:
            nearest = -ExactTeacher(src).relevance(x, 10, rows).padded(10)[1]
            assert (((queries - x) ** 2).sum(axis=1) < 0.4 * nearest[:, -1]).all()
        else:
            np.testing.assert_allclose(np.linalg.norm(queries, axis=1), np.linalg.norm(x, axis=1), rtol=1e-5)
            cosines = (queries * x).sum(axis=1) / np.linalg.norm(x, axis=1) ** 2
            assert cosines.min() > 0.7 and cosines.max() < 0.99999

    def test_origin_does_not_matter_under_l2(self) -> None:
        a, _ = pseudo_queries(open_source(X, metric="l2"), 60, 0)
        b, _ = pseudo_queries(open_source(X + 256, metric="l2"), 60, 0)
        np.testing.assert_allclose(a, b - 256, atol=1e-3)

    def test_seed_decides(self, src: EmbeddingSource) -> None:
        a, b, c = pseudo_queries(src, 20, 1), pseudo_queries(src, 20, 1, threads=2), pseudo_queries(src, 20, 2)
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
        assert not np.array_equal(a[0], c[0])

    def test_more_than_documents_and_a_single_document(self, src: EmbeddingSource) -> None:
        assert len(pseudo_queries(src, 100, 0)[0]) == 100
        queries, rows = pseudo_queries(open_source(X[:1]), 3, 0)
        assert np.isfinite(queries).all() and rows.tolist() == [0, 0, 0]

    def test_pool_that_does_not_hold_every_document(
        self, src: EmbeddingSource, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("vqdistill.data.teacher._POOL_BYTES", 10 * 8 * 4)
        queries, rows = pseudo_queries(src, 60, 0)
        assert np.isfinite(queries).all() and len(np.unique(rows)) == 60

    def test_count_is_checked(self, src: EmbeddingSource) -> None:
        with pytest.raises(InvalidInput, match="count of pseudo-queries"):
            pseudo_queries(src, 0, 0)
