"""The scikit-learn estimator: scikit-learn's own checks, and NearestNeighbors as the oracle."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="pip install 'vqdistill[sklearn]'")

from sklearn.base import clone
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.estimator_checks import parametrize_with_checks

from vqdistill.errors import InvalidInput
from vqdistill.integrations.sklearn import VqdistillNeighbors

N, D = 400, 12


def rows(n: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).standard_normal((8, D))
    return centres[rng.integers(0, 8, n)] * 2 + 0.7 * rng.standard_normal((n, D))


X, QUERIES = rows(N, 0), rows(30, 1)


def inapplicable(estimator: VqdistillNeighbors) -> dict[str, str]:
    """Checks that cannot pass, and why; all others do."""
    if estimator.metric != "cosine":
        return {}
    return {"check_estimators_dtypes": "it draws rows of zeros, which have no direction under cosine"}


@parametrize_with_checks(  # type: ignore[untyped-decorator]
    [VqdistillNeighbors(), VqdistillNeighbors(metric="cosine")], expected_failed_checks=inapplicable
)
def test_scikit_learn_takes_it_for_an_estimator(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module", params=["euclidean", "cosine"])
def pairs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The exact and the compiled estimator, and scikit-learn's."""
    metric, path = request.param, tmp_path_factory.mktemp("sklearn") / "index"
    compiled = VqdistillNeighbors(metric=metric, compile_at=256, distill=False, path=path).fit(X)
    assert compiled.index_path_ == str(path)
    return {
        "exact": VqdistillNeighbors(metric=metric).fit(X),
        "compiled": compiled,
        "oracle": NearestNeighbors(metric=metric, algorithm="brute").fit(X),
    }


@pytest.mark.parametrize("queries", [QUERIES, None], ids=["queries", "themselves"])
def test_exact_neighbours_are_those_of_scikit_learn(pairs: dict[str, Any], queries: Any) -> None:
    distances, numbers = pairs["exact"].kneighbors(queries, 7)
    wanted, wanted_numbers = pairs["oracle"].kneighbors(queries, 7)
    np.testing.assert_allclose(distances, wanted, rtol=1e-4, atol=1e-5)
    assert (numbers == wanted_numbers).mean() > 0.995  # but for ties
    graph = pairs["exact"].kneighbors_graph(queries, 7, mode="distance")
    assert graph.shape == (len(X) if queries is None else len(queries), N)
    np.testing.assert_allclose(graph.sum(axis=1), wanted.sum(axis=1, keepdims=True), rtol=1e-4)
    assert pairs["exact"].kneighbors_graph(queries, 3).sum() == 3 * graph.shape[0]


@pytest.mark.parametrize("queries", [QUERIES, None], ids=["queries", "themselves"])
def test_compiled_neighbours_have_exact_distances(pairs: dict[str, Any], queries: Any) -> None:
    distances, numbers = pairs["compiled"].kneighbors(queries, 7)
    asked = X if queries is None else queries
    assert numbers.shape == distances.shape == (len(asked), 7) and (numbers >= 0).all()
    assert all(len(set(row)) == 7 for row in numbers.tolist())
    if queries is None:
        assert not (numbers == np.arange(N)[:, None]).any()
    exact = NearestNeighbors(n_neighbors=N, metric=pairs["oracle"].metric, algorithm="brute").fit(X)
    every, order = exact.kneighbors(asked)
    table = np.empty((len(asked), N))
    np.put_along_axis(table, order, every, axis=1)
    np.testing.assert_allclose(distances, np.take_along_axis(table, numbers, axis=1), rtol=1e-3, atol=1e-3)
    best = pairs["oracle"].kneighbors(queries, 7, return_distance=False)
    assert np.mean([len(set(a) & set(b)) / 7 for a, b in zip(numbers, best, strict=True)]) > 0.6


def test_a_compiled_estimator_finds_as_many_as_are_asked_for(pairs: dict[str, Any]) -> None:
    """However few lists a search visits by itself: all rows are found, each once."""
    numbers = pairs["compiled"].kneighbors(QUERIES[:3], N, return_distance=False)
    assert all(sorted(row) == list(range(N)) for row in numbers.tolist())


@pytest.mark.parametrize("which", ["exact", "compiled"])
@pytest.mark.parametrize("queries", [QUERIES, None], ids=["queries", "themselves"])
def test_all_within_a_radius_are_found(pairs: dict[str, Any], which: str, queries: Any) -> None:
    radius = 2.5 if pairs["oracle"].metric == "euclidean" else 0.08
    distances, numbers = pairs[which].radius_neighbors(queries, radius)
    _, wanted = pairs["oracle"].radius_neighbors(queries, radius)
    assert sum(map(len, wanted)) > 100
    found = [(set(a.tolist()), set(b.tolist())) for a, b in zip(numbers, wanted, strict=True)]
    assert sum(len(a ^ b) for a, b in found) <= (0.01 * sum(map(len, wanted)) if which == "compiled" else 1)
    for row in distances:
        assert (np.diff(row) >= 0).all() and (row <= radius * (1 + 1e-5)).all()


def test_a_cloned_estimator_is_fitted_anew(pairs: dict[str, Any], tmp_path: Path) -> None:
    fresh = clone(pairs["compiled"]).set_params(path=tmp_path / "again", n_jobs=2)
    assert fresh.get_params()["distill"] is False and not hasattr(fresh, "n_features_in_")
    same = fresh.fit(X).kneighbors(QUERIES, 5)
    np.testing.assert_array_equal(same[1], pairs["compiled"].kneighbors(QUERIES, 5)[1])


def test_an_estimator_is_pickled_with_the_path_of_its_index(pairs: dict[str, Any]) -> None:
    for which in ("exact", "compiled"):
        again = pickle.loads(pickle.dumps(pairs[which]))
        for one, other in zip(again.kneighbors(QUERIES), pairs[which].kneighbors(QUERIES), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_temporary_index_goes_with_its_estimator() -> None:
    estimator = VqdistillNeighbors(compile_at=256, distill=False).fit(X)
    path = Path(str(estimator.index_path_))
    assert path.is_dir() and not path.with_name("index.cache").exists()
    with pytest.raises(InvalidInput, match="^an estimator whose index is temporary cannot be copied or pickled: fit"):
        pickle.dumps(estimator)
    del estimator
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VqdistillNeighbors(metric="ip").fit(X), "metric must be one of euclidean, l2, cosine, got 'ip'"),
        (
            lambda: VqdistillNeighbors(compile_at=3).fit(X),
            "compile_at must be an integer of at least 256, got 3",
        ),
        (
            lambda: VqdistillNeighbors().fit(X).kneighbors(QUERIES, N + 1),
            "n_neighbors must be at most 400, the rows to choose from, got 401",
        ),
        (
            lambda: VqdistillNeighbors().fit(X).kneighbors(None, N),
            "n_neighbors must be at most 399, the rows to choose from, got 400",
        ),
        (
            lambda: VqdistillNeighbors(n_neighbors=0).fit(X).kneighbors(X),
            "n_neighbors must be a positive integer, got 0",
        ),
        (
            lambda: VqdistillNeighbors().fit(X).kneighbors_graph(X, mode="weights"),
            "mode must be one of connectivity, distance, got 'weights'",
        ),
        (lambda: VqdistillNeighbors().fit(X).radius_neighbors(X, -1), "radius must be a number of at least 0, got -1"),
        (
            lambda: VqdistillNeighbors().fit(X).radius_neighbors(X, 1, False, True),
            "return_distance must be True if sort_results is, got False",
        ),
        (
            lambda: VqdistillNeighbors(metric="cosine").fit(np.zeros((3, 2))),
            "X row 0 is a zero vector, which has no direction under metric cosine",
        ),
    ],
)
def test_what_cannot_be_used_is_said(make: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make()
    assert str(caught.value) == message
