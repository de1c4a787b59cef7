"""Gains of grades, and mixtures whose softmax has the mass that both teachers asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqdistill.data.mixture import log_gains, mixed
from vqdistill.data.relevance import Relevance
from vqdistill.data.temperature import calibrate_temperatures

LENGTH = 5.0


def softmax(x: Any) -> Any:
    p = np.exp(x - x.max())
    return p / p.sum()


@pytest.mark.parametrize("grades", [[3.0, 2.0, 1.0], [1.0, 1.0], [0.5, 0.25], [4.0]])
def test_softmax_of_log_gains_is_the_share_of_gains(grades: list[float]) -> None:
    labels = Relevance.from_lists([np.arange(len(grades))], [grades])
    gains = 2 ** np.array(grades) - 1
    np.testing.assert_allclose(softmax(log_gains(labels).scores), gains / gains.sum(), rtol=1e-5)
    assert np.array_equal(log_gains(labels).docs, labels.docs)


def test_plain_labels_stay_as_they_are() -> None:
    labels = Relevance.from_lists([[4, 2], [7], []], [[1.0, 1.0], [1.0], []])
    assert log_gains(labels).scores.tolist() == [1, 1, 1]
    assert log_gains(labels).counts.tolist() == [2, 1, 0]


def test_large_and_tiny_grades_stay_finite() -> None:
    scores = log_gains(Relevance.from_lists([[0, 1]], [[2000.0, 1e-30]])).scores
    assert np.isfinite(scores).all()


def make(seed: int, queries: int = 4) -> tuple[Relevance, Relevance, Any]:
    """Dense lists of 12 of 40 documents, and given ones of 0 to 5 others or the same, on a scale a hundred times wider.

    Returns also all dense scores (q, 40).
    """
    rng = np.random.default_rng(seed)
    all_scores = rng.standard_normal((queries, 40)).astype(np.float32)
    dense = Relevance.from_padded(np.argsort(-all_scores, axis=1)[:, :12], -np.sort(-all_scores, axis=1)[:, :12].copy())
    docs = [rng.permutation(40)[: rng.integers(0, 6)] for _ in range(queries)]
    docs[0] = dense.docs[:3]
    given = Relevance.from_lists(docs, [100 * rng.standard_normal(len(row)) for row in docs])
    return dense, given, all_scores


@given(st.integers(0, 2**32), st.floats(0.05, 0.95), st.sampled_from([None, 60.0]))
@settings(max_examples=40, deadline=None)
def test_mass_is_shared_as_asked(seed: int, share: float, temperature: float | None) -> None:
    """At the dense temperature, over the documents of both lists and the dense ones' scores of what was given."""
    dense, given_, all_scores = make(seed)
    queries = given_.query_of_entries()
    found = mixed(dense, given_, all_scores[queries, given_.docs], share, LENGTH, temperature)
    scales = calibrate_temperatures(dense.padded(12)[1], LENGTH)
    for query in range(4):
        listed, own = (r.select(np.array([query])) for r in (dense, given_))
        scores = all_scores[query].astype(np.float64) / scales[query]
        total = np.exp(scores[listed.docs]).sum()
        mass = np.exp(scores) / total
        if len(own.docs):
            scale = temperature or calibrate_temperatures(own.padded(5)[1], LENGTH)[0]
            mass[own.docs] += share / (1 - share) * softmax(own.scores / np.float64(scale))
        together = found.select(np.array([query]))
        kept = min(len(np.union1d(listed.docs, own.docs)), 12)
        assert len(together.docs) == kept and set(together.docs) <= set(listed.docs) | set(own.docs)
        np.testing.assert_allclose(
            np.exp(together.scores.astype(np.float64) / scales[query]) / total, mass[together.docs], rtol=2e-4
        )


def test_what_was_not_given_keeps_its_dense_score() -> None:
    dense, given_, all_scores = make(3)
    found = mixed(dense, given_, all_scores[given_.query_of_entries(), given_.docs], 0.5, LENGTH)
    for query in range(4):
        own = given_.select(np.array([query])).docs
        together = found.select(np.array([query]))
        others = ~np.isin(together.docs, own)
        assert others.any()
        np.testing.assert_array_equal(together.scores[others], all_scores[query, together.docs[others]])
        assert (together.scores[~others] > all_scores[query, together.docs[~others]]).all()


def test_more_share_lifts_what_was_given() -> None:
    dense, given_, all_scores = make(3)
    similar = all_scores[given_.query_of_entries(), given_.docs]
    best = [mixed(dense, given_, similar, share, LENGTH).top(1).scores[0] for share in (0.1, 0.5, 0.9)]
    assert best == sorted(best) and best[0] < best[2]


def test_queries_without_given_scores_keep_their_list() -> None:
    dense, _, _ = make(0)
    none = Relevance.from_lists([[]] * 4, [[]] * 4)
    found = mixed(dense, none, np.empty(0, np.float32), 0.5, LENGTH)
    np.testing.assert_array_equal(found.docs, dense.docs)
    np.testing.assert_array_equal(found.scores, dense.scores)
