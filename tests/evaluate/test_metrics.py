"""Metrics against values worked out by hand, slow definitions, and their bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqdistill.errors import InvalidInput
from vqdistill.evaluate.metrics import (
    candidate_recall,
    label_recall_at_k,
    mrr_at_k,
    ndcg_at_k,
    recall_at_k,
    recall_at_k_by_score,
)

IDS = [[3, 1, 7, 9], [5, -1, -1, -1]]


def test_recall_counts_the_true_top_k() -> None:
    assert recall_at_k(IDS, [[1, 3, 4, 7], [5, 6, 8, 9]], 2).tolist() == [1.0, 0.5]
    assert recall_at_k(IDS, [[1, 3, 4, 7], [5, 6, 8, 9]], 3).tolist() == pytest.approx([2 / 3, 1 / 3])


def test_recall_of_a_truth_that_is_shorter_than_k() -> None:
    assert recall_at_k(IDS, [[3, -1], [-1, -1]], 2).tolist() == [1.0, 0.0]


def test_missing_results_never_match_missing_truth() -> None:
    assert recall_at_k([[-1, -1]], [[2, -1]], 2).tolist() == [0.0]


def test_candidate_recall_looks_at_every_candidate() -> None:
    assert candidate_recall(IDS, [[9, 7, 0], [5, 6, 0]], 2).tolist() == [1.0, 0.5]


def test_recall_by_score_counts_ties() -> None:
    assert recall_at_k_by_score([[0.9, 0.5]], [[0.9, 0.5, 0.5]], 2).tolist() == [1.0]
    assert recall_at_k_by_score([[0.9, 0.4995]], [[0.9, 0.5]], 2).tolist() == [1.0]
    assert recall_at_k_by_score([[0.9, 0.498]], [[0.9, 0.5]], 2).tolist() == [0.5]
    assert recall_at_k_by_score([[0.9, -np.inf]], [[0.9, 0.5]], 2).tolist() == [0.5]


def test_mrr_is_the_reciprocal_rank() -> None:
    assert mrr_at_k(IDS, [7, 4], 4).tolist() == pytest.approx([1 / 3, 0])
    assert mrr_at_k(IDS, [7, 4], 2).tolist() == [0, 0]
    assert mrr_at_k(IDS, [[9, 1], [5, -1]], 10).tolist() == [0.5, 1.0]


def test_label_recall_counts_right_documents() -> None:
    assert label_recall_at_k(IDS, [[9, 1], [5, -1]], 3).tolist() == [0.5, 1.0]
    assert label_recall_at_k(IDS, [-1, 5], 3).tolist() == [0.0, 1.0]


def test_ndcg_by_hand() -> None:
    gain = 1 / math.log2(3) + 1 / math.log2(5)
    ideal = 1 + 1 / math.log2(3)
    assert ndcg_at_k(IDS, [[1, 9], [5, -1]], 4).tolist() == pytest.approx([gain / ideal, 1.0])
    assert ndcg_at_k(IDS, [[3, 1, 7, 9, 0], [6, -1, -1, -1, -1]], 2).tolist() == pytest.approx([1.0, 0.0])


@st.composite
def rankings(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int]:
    depth = draw(st.integers(1, 12))
    order = st.permutations(range(15))
    ids = np.array([draw(order)[:depth] for _ in range(3)])
    truth = np.array([draw(order)[:depth] for _ in range(3)])
    return ids, truth, draw(st.integers(1, depth))


@given(rankings())
def test_recall_is_set_intersection(case: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int]) -> None:
    ids, truth, k = case
    slow = [len(set(a[:k]) & set(b[:k])) / k for a, b in zip(ids.tolist(), truth.tolist(), strict=True)]
    assert recall_at_k(ids, truth, k).tolist() == pytest.approx(slow)


@given(rankings())
def test_every_metric_is_a_share_and_is_full_for_the_truth(
    case: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int],
) -> None:
    ids, truth, k = case
    for metric in (recall_at_k, candidate_recall, mrr_at_k, label_recall_at_k, ndcg_at_k):
        values = metric(ids, truth, k)
        assert ((values >= 0) & (values <= 1 + 1e-12)).all()
    for metric in (recall_at_k, candidate_recall, mrr_at_k, ndcg_at_k):
        assert metric(truth, truth, k) == pytest.approx(1)


@pytest.mark.parametrize("metric", [recall_at_k, candidate_recall, mrr_at_k, label_recall_at_k, ndcg_at_k])
@pytest.mark.parametrize(
    ("ids", "truth", "message"),
    [
        ([1, 2], [[1, 2]], r"ids must be of shape \(queries, at least"),
        ([[1, 1]], [[1, 2]], "ids must not repeat an id within a query"),
        ([[1, 2], [3, 4]], [[1, 2]], "as many queries, got 2 and 1"),
    ],
)
def test_unusable_rankings_are_refused(
    metric: Callable[[Any, Any, int], Any], ids: Any, truth: Any, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        metric(ids, truth, 2)


def test_k_beyond_the_depth_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"at least 5\), got \(2, 4\)"):
        recall_at_k(IDS, IDS, 5)
    with pytest.raises(InvalidInput, match=r"at least 3\), got \(1, 2\)"):
        recall_at_k_by_score([[1.0, 2.0]], [[1.0, 2.0, 3.0]], 3)
