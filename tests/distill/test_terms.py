"""The teacher's lists turned around: which queries rank a document, and how much each counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqdistill.data.relevance import Relevance
from vqdistill.distill.terms import QueryTerms
from vqdistill.model import learned

D = 5


def naive(relevance: Relevance, n: int, d: int) -> list[list[tuple[int, float]]]:
    """For each document its queries and weights, best rank first."""
    ranked: list[list[tuple[int, int]]] = [[] for _ in range(n)]
    for query in range(relevance.n_queries):
        begin, end = relevance.offsets[query], relevance.offsets[query + 1]
        for rank, doc in enumerate(relevance.docs[begin:end].tolist()[: learned.DEPTH]):
            ranked[doc].append((rank, query))
    return [
        [
            (query, d * learned.QUERY_WEIGHT / (1 + rank / learned._RANK_SCALE))
            for rank, query in sorted(row)[: learned.PER_ROW]
        ]
        for row in ranked
    ]


def random_relevance(seed: int, q: int, n: int) -> Relevance:
    rng = np.random.default_rng(seed)
    docs = [rng.permutation(n)[: rng.integers(0, n + 1)] for _ in range(q)]
    return Relevance.from_lists(docs, [rng.standard_normal(len(row)) for row in docs])


def queries(q: int) -> Any:
    return np.random.default_rng(q).standard_normal((q, D), np.float32)


def rows(terms: QueryTerms, n: int) -> list[list[tuple[int, float]]]:
    pairs = list(zip(terms.lists.tolist(), terms.weights.tolist(), strict=True))
    found = dict(zip(terms.docs.tolist(), zip(terms.offsets[:-1], terms.offsets[1:], strict=True), strict=True))
    return [pairs[slice(*found[row])] if row in found else [] for row in range(n)]


@given(st.integers(0, 2**32), st.integers(0, 20), st.integers(1, 30))
@settings(max_examples=40)
def test_against_a_loop(seed: int, q: int, n: int) -> None:
    relevance = random_relevance(seed, q, n)
    got = rows(QueryTerms.from_relevance(queries(q), relevance), n)
    want = naive(relevance, n, D)
    assert [[query for query, _ in row] for row in got] == [[query for query, _ in row] for row in want]
    for one, two in zip(got, want, strict=True):
        np.testing.assert_allclose([w for _, w in one], [w for _, w in two], rtol=1e-6)


def test_deep_ranks_do_not_count() -> None:
    relevance = random_relevance(1, 3, 4 * learned.DEPTH)
    got = QueryTerms.from_relevance(queries(3), relevance)
    assert len(got.lists) == np.minimum(relevance.counts, learned.DEPTH).sum()


def test_arrays_are_as_documented() -> None:
    got = QueryTerms.from_relevance(queries(9), random_relevance(2, 9, 12))
    assert (got.offsets.dtype, got.lists.dtype, got.weights.dtype, got.queries.dtype) == (
        np.int64,
        np.int32,
        np.float32,
        np.float32,
    )
    assert (
        len(got.offsets) == len(got.docs) + 1
        and (np.diff(got.docs) > 0).all()
        and (np.diff(got.offsets) <= learned.PER_ROW).all()
    )


def test_queries_are_directions_from_their_mean() -> None:
    q = queries(9) + 4
    got = QueryTerms.from_relevance(q, random_relevance(2, 9, 12)).queries
    centred = q - q.mean(axis=0)
    np.testing.assert_allclose(got, centred / np.linalg.norm(centred, axis=1, keepdims=True), atol=1e-5)


def test_no_queries() -> None:
    got = QueryTerms.from_relevance(np.empty((0, D), np.float32), Relevance.from_lists([], []))
    assert got.queries.tolist() == [[0] * D]
    taken = got.take(np.array([0, 3]))
    assert taken.lists.shape == taken.weights.shape == (2, 0)


@pytest.mark.parametrize("picked", [[], [0], [5, 2, 2, 11], list(range(12))])
def test_take_pads_to_the_longest(picked: list[int]) -> None:
    got = QueryTerms.from_relevance(queries(6), random_relevance(3, 6, 12))
    taken = got.take(np.array(picked, np.int64))
    want = [rows(got, 12)[row] for row in picked]
    assert taken.queries is got.queries
    assert taken.lists.shape == taken.weights.shape == (len(picked), max(map(len, want), default=0))
    for line, weights, row in zip(taken.lists, taken.weights, want, strict=True):
        assert line.tolist() == [query for query, _ in row] + [-1] * (len(line) - len(row))
        np.testing.assert_allclose(weights[: len(row)], [weight for _, weight in row])
        assert not weights[len(row) :].any()
