"""Searcher: what it answers, what it refuses, and that every setting means what it says."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.searching import CALIBRATED, NLIST, PLAIN, RUNGS, D, N, Q, embeddings, exact_scores, write_index
from vqdistill.errors import InvalidInput, SearchTimeout, VqdistillError
from vqdistill.index.policy import SearchPolicy
from vqdistill.searcher import Searcher
from vqdistill.types import WORK

EVERYTHING: dict[str, Any] = {"nprobe": NLIST, "refine": N}
"""Exhaustive settings: what they find is exact."""


@pytest.fixture(scope="module", params=["ip", "cosine", "l2"])
def metric(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def searcher(metric: str, tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    return write_index(tmp_path_factory.mktemp("searcher") / "rows.vqd", metric)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    path = tmp_path_factory.mktemp("calibrated") / "rows.vqd"
    return write_index(path, search=CALIBRATED, additive=True, tables="f16")


@pytest.fixture(scope="module")
def by_code(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    """An index without dense rows."""
    path = tmp_path_factory.mktemp("codes") / "rows.vqd"
    return write_index(path, search=SearchPolicy(nprobe=3, refine=0), dense="none")


NAMES = [f"document {i}" for i in range(N)]
NUMBERS = np.arange(N, dtype=np.int64) * 7 - 1000


@pytest.fixture(scope="module", params=["rows", "int64", "str"])
def named(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Searcher, Any]:
    """A searcher of each kind of ids, and the id of each row."""
    ids: Any = {"rows": np.arange(N), "int64": NUMBERS, "str": np.array(NAMES)}[request.param]
    path = tmp_path_factory.mktemp("named") / "rows.vqd"
    stored = None if request.param == "rows" else ids.tolist()
    return write_index(path, search=CALIBRATED, ids=stored), ids


def test_exhaustive_settings_equal_brute_force(searcher: Searcher, metric: str) -> None:
    rows, queries = embeddings(0)
    wanted = exact_scores(metric, queries, rows)
    scores, ids = searcher.search(queries, k=7, **EVERYTHING)
    assert np.array_equal(ids, np.argsort(-wanted, axis=1, kind="stable")[:, :7])
    assert np.allclose(scores, -np.sort(-wanted, axis=1)[:, :7], rtol=1e-4, atol=1e-4)


def test_codes_alone_approximate_the_scores(searcher: Searcher, metric: str) -> None:
    rows, queries = embeddings(0)
    hits = searcher.search(queries, k=50, nprobe=NLIST, refine=0)
    wanted = np.take_along_axis(exact_scores(metric, queries, rows), hits.rows, axis=1)
    assert np.corrcoef(hits.scores.ravel(), wanted.ravel())[0, 1] > 0.8
    assert hits.stats["dense_rows"] == 0


def test_results_are_sorted_and_counted(searcher: Searcher) -> None:
    _, queries = embeddings(0)
    hits = searcher.search(queries, k=10, nprobe=2, refine=20)
    assert (np.diff(hits.scores, axis=1) <= 0).all()
    assert hits.stats["lists_probed"] == 2 * Q
    assert 0 < hits.stats["codes_scanned"] < N * Q
    assert hits.stats["dense_rows"] == hits.stats["candidates"] <= 20 * Q
    assert hits.stats["dense_bytes"] >= hits.stats["dense_rows"] * 4 * D


def test_few_rows_in_the_visited_lists_leave_places_empty(searcher: Searcher) -> None:
    _, queries = embeddings(0)
    scores, ids = searcher.search(queries, k=N, nprobe=1)
    missing = ids == -1
    assert missing.any()
    assert (scores[missing] == -np.inf).all()
    assert np.isfinite(scores[~missing]).all()
    assert all(len(np.unique(found[found >= 0])) == (found >= 0).sum() for found in ids)


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_do_not_change_results(searcher: Searcher, threads: int) -> None:
    _, queries = embeddings(0)
    one, many = (searcher.search(queries, k=9, threads=t) for t in (1, threads))
    assert np.array_equal(one.ids, many.ids)
    assert np.array_equal(one.scores, many.scores)
    assert np.array_equal(one.work[:, :4], many.work[:, :4])


def test_one_index_serves_many_python_threads(searcher: Searcher) -> None:
    _, queries = embeddings(0)
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
    _, queries = embeddings(0)
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
        ({"refine": -1}, r"refine must be an integer in 0\.\.2\^40"),
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


def test_refine_without_dense_rows(by_code: Searcher) -> None:
    _, queries = embeddings(0)
    assert by_code.search(queries, k=3).stats["dense_rows"] == 0
    with pytest.raises(InvalidInput, match="refine must be 0 for an index without dense rows, got 10"):
        by_code.search(queries, k=3, refine=10)
    with pytest.raises(InvalidInput, match="verify must be False for an index without dense rows, got True"):
        by_code.range_search(queries, 1.0, verify=True)


def test_external_ids_come_back(named: tuple[Searcher, Any]) -> None:
    searcher, ids = named
    hits = searcher.search(embeddings(0)[1], k=4)
    assert np.array_equal(hits.ids, ids[hits.rows])


def test_work_of_each_query_adds_up(calibrated: Searcher) -> None:
    hits = calibrated.search(embeddings(0)[1], k=5)
    assert list(hits.stats) == list(hits.query_stats) == list(WORK)
    assert all(hits.stats[name] == hits.query_stats[name].sum() for name in WORK)
    work = hits.query_stats
    assert all(values.shape == (Q,) for values in work.values())
    assert (work["dense_rows"] <= work["candidates"]).all() and (work["candidates"] <= work["codes_scanned"]).all()
    assert 1 <= work["lists_probed"].min() < work["lists_probed"].max() <= NLIST
    alone = calibrated.search(embeddings(0)[1][:1], k=5)
    assert np.array_equal(alone.work[0, :4], hits.work[0, :4])


def _lists(searcher: Searcher, **options: Any) -> Any:
    return searcher.search(embeddings(0)[1], k=5, **options).query_stats["lists_probed"]


def _reads(searcher: Searcher, **options: Any) -> Any:
    return searcher.search(embeddings(0)[1], k=5, **{"nprobe": NLIST} | options).query_stats["dense_rows"]


def test_coverage_and_nprobe(calibrated: Searcher, searcher: Searcher) -> None:
    assert (_lists(searcher) == PLAIN.nprobe).all(), "nothing is calibrated: the policy's nprobe"
    assert np.array_equal(_lists(calibrated), _lists(calibrated, coverage=CALIBRATED.coverage))
    assert (_lists(calibrated, nprobe=2) == 2).all(), "nprobe alone is exact"
    steps = [_lists(calibrated, coverage=coverage) for coverage in (0.1, 0.5, 0.7, 0.9, 0.99)]
    assert np.array_equal(steps[0], steps[1]), "below the first rung is the first rung"
    assert all((a <= b).all() for a, b in itertools.pairwise(steps)) and steps[0].mean() < steps[-1].mean()
    both = _lists(calibrated, nprobe=2, coverage=0.99)
    assert np.array_equal(both, np.minimum(steps[-1], 2)), "with coverage, nprobe is a bound"


def test_confidence_and_refine(calibrated: Searcher, searcher: Searcher) -> None:
    assert (_reads(searcher) == PLAIN.refine).all()
    assert (_reads(searcher, refine=200) == 200).all()
    assert np.array_equal(_reads(calibrated), _reads(calibrated, refine=100, confidence=0.98))
    assert (_reads(calibrated, refine=60) == 60).all(), "refine alone is exact"
    steps = [_reads(calibrated, confidence=confidence) for confidence in (0.5, 0.9, 0.98, 0.9999)]
    assert all((a <= b).all() for a, b in itertools.pairwise(steps)) and steps[0].mean() < steps[-1].mean()
    assert (steps[-1] <= CALIBRATED.refine).all()
    assert (_reads(calibrated, refine=20, confidence=0.9999) <= 20).all()
    assert (_reads(calibrated, refine=0, confidence=0.9) == 0).all()
    hits = calibrated.search(embeddings(0)[1], k=300)
    assert (hits.query_stats["candidates"] == np.minimum(300, hits.query_stats["codes_scanned"])).all(), "k at least"


def test_defaults_find_nearly_all(calibrated: Searcher) -> None:
    rows, queries = embeddings(0)
    wanted = np.argsort(-exact_scores("ip", queries, rows), axis=1)[:, :10]
    _, ids = calibrated.search(queries, k=10)
    assert np.mean([len(np.intersect1d(a, b)) for a, b in zip(ids, wanted, strict=True)]) > 9


UNCALIBRATED: list[tuple[dict[str, Any], str]] = [
    ({"coverage": 0.9}, "coverage needs an index that was calibrated, got 0.9; say nprobe instead"),
    ({"confidence": 0.9}, "confidence needs an index that was calibrated, got 0.9; say refine instead"),
    ({"confidence": 0.9, "refine": 20}, "confidence needs an index that was calibrated, got 0.9; say refine instead"),
]


@pytest.mark.parametrize(("options", "message"), UNCALIBRATED)
def test_what_needs_a_calibration(searcher: Searcher, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        searcher.search(np.ones((1, D), np.float32), k=10, **options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"coverage": 0.995},
            f"coverage must be at most {RUNGS[-1][0]}, the last that the index was calibrated for, got 0.995;"
            f" nprobe={NLIST} visits all lists",
        ),
        *(({"coverage": x}, f"coverage must be a number between 0 and 1, got {x!r}") for x in (0, 1, 1.5, -0.1, "all")),
        *(({"confidence": x}, f"confidence must be a number between 0 and 1, got {x!r}") for x in (0, 1.0, True)),
        ({"confidence": math.nan}, "confidence must be a number between 0 and 1, got nan"),
        *(
            ({"timeout_s": x}, f"timeout_s must be a positive number of seconds, got {x!r}")
            for x in (0, -1.0, math.inf, "1")
        ),
        ({"refine": 9}, "refine must be 0 or at least k = 10, got 9"),
        ({"refine": 9, "confidence": 0.9}, "refine must be 0 or at least k = 10, got 9"),
    ],
)
def test_options_of_a_calibrated_index(calibrated: Searcher, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        calibrated.search(np.ones((1, D), np.float32), k=10, **options)
    assert str(caught.value) == message


def _masks() -> Iterator[Any]:
    rng = np.random.default_rng(4)
    yield from (rng.random(N) < share for share in (0.5, 0.03))
    yield np.zeros(N, bool)
    yield np.arange(N) == 17
    yield np.ones(N, bool)


@pytest.mark.parametrize("mask", list(_masks()), ids=["half", "few", "none", "one", "all"])
def test_filters_find_the_best_of_what_they_allow(named: tuple[Searcher, Any], mask: Any) -> None:
    searcher, ids = named
    rows, queries = embeddings(0)
    wanted = np.where(mask, exact_scores("ip", queries, rows), -np.inf)
    order = np.argsort(-wanted, axis=1, kind="stable")[:, :7]
    order[np.take_along_axis(wanted, order, axis=1) == -np.inf] = -1
    missing = "" if ids.dtype.kind == "U" else -1
    chosen = ids[mask]
    shuffled = np.random.default_rng(0).permutation(chosen)
    for allow in (mask, chosen, shuffled, shuffled.tolist(), searcher.prepare(mask), searcher.prepare(chosen)):
        hits = searcher.search(queries, k=7, allow=allow, **EVERYTHING)
        assert np.array_equal(hits.rows, order)
        assert np.array_equal(hits.ids, np.where(order < 0, missing, ids[order]))
        assert (np.isfinite(hits.scores) == (order >= 0)).all()
    assert searcher.prepare(chosen).count == mask.sum()


@pytest.mark.parametrize("settings", [{}, {"nprobe": 2}, {"coverage": 0.5}, {"refine": 0}])
def test_filters_hold_at_any_setting(named: tuple[Searcher, Any], settings: dict[str, Any]) -> None:
    searcher, _ = named
    mask = np.random.default_rng(1).random(N) < 0.05
    hits = searcher.search(embeddings(0)[1], k=9, allow=mask, **settings)
    found = hits.rows[hits.rows >= 0]
    assert mask[found].all() and len(found)


def test_a_filter_makes_a_search_look_deeper(calibrated: Searcher) -> None:
    mask = np.random.default_rng(1).random(N) < 0.02
    few, all_rows = _lists(calibrated, allow=mask), _lists(calibrated)
    assert (few >= np.minimum(all_rows, few.max())).mean() > 0.9 and few.mean() > all_rows.mean()


def test_ids_that_the_index_does_not_have_allow_nothing(named: tuple[Searcher, Any]) -> None:
    searcher, ids = named
    unknown = ["nobody", ""] if ids.dtype.kind == "U" else [10**9, -1]
    scores, found = searcher.search(embeddings(0)[1], k=3, allow=unknown)
    assert (scores == -np.inf).all() and (found == ("" if ids.dtype.kind == "U" else -1)).all()
    _, found = searcher.search(embeddings(0)[1], k=3, allow=[*unknown, ids[5]])
    assert (found[:, 0] == ids[5]).any() and (found[:, 1:] == found[0, 2]).all()


def test_an_empty_list_allows_nothing(named: tuple[Searcher, Any]) -> None:
    searcher, _ = named
    assert (searcher.search(embeddings(0)[1], k=3, allow=[], **EVERYTHING).rows == -1).all()
    assert len(searcher.range_search(embeddings(0)[1], -1e9, allow=[]).rows) == 0


def test_filters_that_are_none(named: tuple[Searcher, Any]) -> None:
    searcher, ids = named
    kind = "strings" if ids.dtype.kind == "U" else "integers"
    wrong = [1, 2] if kind == "strings" else ["a"]
    for allow in (np.ones(N - 1, bool), np.ones((N, 1), bool), [True]):
        with pytest.raises(InvalidInput, match=f"allow must be a mask of {N} rows, got shape "):
            searcher.search(np.ones((1, D)), k=1, allow=allow)
    for allow in ([1.0, 2.0], wrong, [[ids[0]]], 3, np.array([1 + 1j])):
        message = f"allow must be a mask of rows or a list of ids, which are {kind}, got "
        with pytest.raises(InvalidInput, match=message):
            searcher.search(np.ones((1, D)), k=1, allow=allow)


def test_a_filter_belongs_to_its_index(named: tuple[Searcher, Any], by_code: Searcher) -> None:
    prepared = by_code.prepare(np.ones(N, bool))
    with pytest.raises(InvalidInput, match="allow must be prepared for the index that it filters, got that of another"):
        named[0].search(np.ones((1, D)), k=1, allow=prepared)


def _within(scores: Any, threshold: float) -> list[Any]:
    """Rows of each query that reach the threshold, best first."""
    return [np.argsort(-row, kind="stable")[: (row >= threshold).sum()] for row in scores]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_range_search_equals_brute_force(searcher: Searcher, metric: str, share: float) -> None:
    """All lists and a threshold far from any score; uncalibrated codes have no margin, so they must reach it, too."""
    rows, queries = embeddings(0)
    wanted = exact_scores(metric, queries, rows)
    threshold = float(np.quantile(wanted, 1 - share)) + (1e9 if share == 0 else -1e9 if share == 1 else 0)
    lims, scores, ids = hits = searcher.range_search(queries, threshold, nprobe=NLIST)
    assert lims.dtype == np.int64 and lims.shape == (Q + 1,) and lims[0] == 0 and lims[-1] == len(ids) == len(scores)
    reached = _within(wanted, threshold)
    for i, best in enumerate(reached):
        found = hits.rows[lims[i] : lims[i + 1]]
        assert np.isin(found, best).all(), "verified results reach the threshold"
        assert (np.diff(scores[lims[i] : lims[i + 1]]) <= 0).all()
        assert np.allclose(scores[lims[i] : lims[i + 1]], wanted[i][found], rtol=1e-4, atol=1e-4)
        if share in (0.0, 1.0):
            assert len(found) == len(best)
    assert lims[-1] >= 0.5 * sum(len(best) for best in reached)
    assert hits.stats["dense_rows"] == hits.stats["candidates"] >= lims[-1]


@pytest.fixture(scope="module")
def cautious(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    """An index whose margin is wider than any error of its codes."""
    path = tmp_path_factory.mktemp("cautious") / "rows.vqd"
    return write_index(path, search=replace(CALIBRATED, error=100.0), ids=NAMES)


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5])
@pytest.mark.parametrize("allow", [None, np.arange(N) % 3 == 0])
def test_range_search_with_a_margin_is_exact(cautious: Searcher, share: float, allow: Any) -> None:
    rows, queries = embeddings(0)
    wanted = exact_scores("ip", queries, rows)
    threshold = float(np.quantile(wanted, 1 - share))
    if allow is not None:
        wanted[:, ~allow] = -np.inf
    hits = cautious.range_search(queries, threshold, nprobe=NLIST, allow=allow, threads=2)
    reached = _within(wanted, threshold)
    assert np.array_equal(hits.rows, np.concatenate(reached))
    assert np.array_equal(np.diff(hits.lims), [len(best) for best in reached])
    assert hits.ids.tolist() == [NAMES[row] for row in hits.rows]
    again = cautious.range_search(queries[3], threshold, nprobe=NLIST, allow=allow)
    assert np.array_equal(again.rows, reached[3]) and again.lims.tolist() == [0, len(reached[3])]


def test_range_search_by_code(by_code: Searcher, calibrated: Searcher) -> None:
    _, queries = embeddings(0)
    for searcher in (by_code, calibrated):
        everything = searcher.search(queries, k=N, nprobe=NLIST, refine=0)
        threshold = float(np.quantile(everything.scores, 0.9)) + 1e-3
        hits = searcher.range_search(queries, threshold, nprobe=NLIST, verify=False)
        assert hits.stats["dense_rows"] == 0 and (hits.scores >= threshold).all()
        for i, (scores, rows) in enumerate(zip(everything.scores, everything.rows, strict=True)):
            best = rows[scores >= threshold]
            found = hits.rows[hits.lims[i] : hits.lims[i + 1]]
            assert np.isin(found, best).all() and len(found) >= 0.9 * len(best), "8-bit tables choose, float ones score"


def test_range_search_without_queries_or_results(searcher: Searcher) -> None:
    lims, scores, ids = searcher.range_search(np.empty((0, D), np.float32), 0.0)
    assert lims.tolist() == [0] and scores.shape == ids.shape == (0,)
    hits = searcher.range_search(embeddings(0)[1], 1e30)
    assert hits.lims.tolist() == [0] * (Q + 1) and hits.ids.dtype == np.int64 and hits.stats["candidates"] == 0


@pytest.mark.parametrize("threshold", [math.nan, math.inf, -math.inf, "1", None, [1.0]])
def test_a_threshold_is_a_finite_number(searcher: Searcher, threshold: Any) -> None:
    with pytest.raises(InvalidInput, match="threshold must be a finite number, got "):
        searcher.range_search(np.ones((1, D)), threshold)


def test_a_search_that_takes_too_long(searcher: Searcher) -> None:
    many = np.tile(embeddings(0)[1], (8000, 1))
    wanted = searcher.search(many[:Q], k=5)
    for threads in (1, 2):
        begin = time.perf_counter()
        with pytest.raises(SearchTimeout, match=rf"the search of {len(many)} queries took longer than 0\.05 s"):
            searcher.search(many, k=5, threads=threads, timeout_s=0.05, **EVERYTHING)
        assert time.perf_counter() - begin < 0.05 + 1.0, "preparing the queries counts as well"
    with pytest.raises(SearchTimeout):
        searcher.range_search(many, -1e9, timeout_s=1e-6)
    again = searcher.search(many[:Q], k=5, timeout_s=1000)
    assert np.array_equal(again.ids, wanted.ids) and issubclass(SearchTimeout, (VqdistillError, TimeoutError))
