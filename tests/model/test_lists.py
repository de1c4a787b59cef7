"""Lists for the queries: signatures by hand, and rows that share queries share a list."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vqdistill.config import IvfPqConfig
from vqdistill.errors import InvalidInput
from vqdistill.model import lists as module
from vqdistill.model.additive import RowTerms, directions, own_directions
from vqdistill.model.codebooks import train_coarse, train_query_coarse, train_start
from vqdistill.model.lists import assign, assign_rows, list_means, signatures
from vqdistill.types import F32Rows, Metric


def two_kinds(n: int = 400, d: int = 20) -> tuple[F32Rows, RowTerms]:
    """Rows of one cloud; the queries along one axis rank the even ones, those along another the odd ones."""
    x = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)
    queries = np.eye(d, dtype=np.float32)[:2]
    which = (np.arange(n) % 2).astype(np.int32)[:, None]
    return x, RowTerms(which, np.full((n, 1), 10 * d, np.float32), queries)


def test_signatures_by_hand() -> None:
    x = np.array([[3, 1], [1, 3], [1, 1]], np.float32)
    mean, weight = np.ones(2, np.float32), 0.005 * 2
    terms = RowTerms(
        np.array([[0, 1], [0, -1], [-1, -1]], np.int32),
        np.array([[weight, 2 * weight], [weight, 0], [0, 0]], np.float32),
        np.array([[0, 1], [-1, 0]], np.float32),
    )
    want = np.array([[1 - 2 / 4, 1 / 4], [0, 1 + 1 / 2], [0, 0]])
    np.testing.assert_allclose(
        signatures(own_directions(x, mean), terms), directions(want.astype(np.float32)), atol=1e-6
    )
    np.testing.assert_allclose(signatures(own_directions(x, mean), None), [[1, 0], [0, 1], [0, 0]], atol=1e-6)


def test_rows_of_the_same_queries_share_a_list() -> None:
    x, terms = two_kinds()
    coarse = train_query_coarse(x, terms, 2, 0)
    same = coarse.lists[::2]
    assert (same == same[0]).mean() > 0.9 and (coarse.lists[1::2] != same[0]).mean() > 0.9
    plain = train_coarse(x, 2, 0)
    assert 0.3 < (plain.lists[::2] == plain.lists[0]).mean() < 0.7


def test_centroids_are_means_and_lists_are_assigned_again(monkeypatch: pytest.MonkeyPatch) -> None:
    x, terms = two_kinds()
    coarse = train_query_coarse(x, terms, 8, 0)
    for number in np.unique(coarse.lists):
        np.testing.assert_allclose(coarse.centroids[number], x[coarse.lists == number].mean(axis=0), atol=1e-5)
    assert coarse.anchors is not None
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 37)
    mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    assert np.array_equal(assign_rows(x, mean, terms, coarse.anchors), coarse.lists)


def test_an_empty_list_lies_at_the_mean() -> None:
    x = np.array([[1, 0], [3, 0]], np.float32)
    means = list_means(x, np.array([1, 1], np.int32), 3, np.array([9, 9], np.float32))
    assert means.tolist() == [[9, 9], [2, 0], [9, 9]]


def test_seed_decides() -> None:
    x, terms = two_kinds()
    first, again, other = (train_query_coarse(x, terms, 8, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.lists, again.lists) and np.array_equal(first.centroids, again.centroids)
    assert not np.array_equal(first.lists, other.lists)


@pytest.mark.parametrize("metric", list(Metric))
def test_a_model_assigns_by_its_anchors(metric: Metric) -> None:
    """With the queries as in training; without them by the row alone, as rows that come later are."""
    x, terms = two_kinds()
    coarse = train_query_coarse(x, terms, 8, 0)
    model = train_start(x, coarse, IvfPqConfig(nlist=8, m=4, codes="pq"), metric, residual=False)
    assert np.array_equal(model.assign(x, terms), coarse.lists)
    assert np.array_equal(model.encode(x, None, terms).lists, coarse.lists)
    assert coarse.anchors is not None
    alone = assign(own_directions(x, model.mean), None, coarse.anchors)
    assert np.array_equal(model.assign(x), alone) and not np.array_equal(alone, coarse.lists)
    plain = replace(model, anchors=None)
    distances = ((x[:, None] - plain.coarse) ** 2).sum(axis=2)
    assert np.array_equal(plain.assign(x), distances.argmin(axis=1))


def test_anchors_must_fit() -> None:
    x, terms = two_kinds()
    model = train_start(
        x, train_query_coarse(x, terms, 8, 0), IvfPqConfig(nlist=8, m=4, codes="pq"), Metric.IP, residual=False
    )
    with pytest.raises(InvalidInput, match="model arrays must agree"):
        replace(model, anchors=np.zeros((7, 20), np.float32))
