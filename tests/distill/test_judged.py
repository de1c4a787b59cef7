"""Judged queries: gains, targets and quality of rankings by hand, and the batches that teach them."""

from __future__ import annotations

import numpy as np
import pytest

from vqdistill.data.relevance import Relevance
from vqdistill.data.temperature import effective_lengths
from vqdistill.distill.judged import HardSampler, JudgedQueries, Judgments, renumber

QUERIES = np.eye(3, 4, dtype=np.float32)
GRADES = Relevance.from_lists([[7, 2, 5], [4], [1, 9]], [[1.0, 3.0, 2.0], [2.0], [1.0, 1.0]])


def judged(scored: bool = False, length: float = 1.5) -> JudgedQueries:
    return JudgedQueries.from_relevance(QUERIES, GRADES, scored=scored, length=length)


def ranking(*rows: list[int]) -> np.ndarray:
    found = np.full((len(rows), 12), -1)
    for row, docs in zip(found, rows, strict=True):
        row[: len(docs)] = docs
    return found


def test_grades_are_gains_and_targets_in_proportion() -> None:
    found = judged()
    assert found.docs.tolist() == [[2, 5, 7], [4, -1, -1], [1, 9, -1]] and found.docs.dtype == np.int32
    assert found.gains.tolist() == [[3, 2, 1], [2, 0, 0], [1, 1, 0]]
    assert found.targets == pytest.approx(np.array([[1 / 2, 1 / 3, 1 / 6], [1, 0, 0], [1 / 2, 1 / 2, 0]]))
    assert (found.graded, found.measure) == (True, "nDCG@10")


def test_pair_scores_count_by_their_differences_within_a_query() -> None:
    found = judged(scored=True)
    assert found.gains.tolist() == [[1, 0.5, 0], [1, 0, 0], [1, 1, 0]]
    assert found.targets.sum(axis=1) == pytest.approx([1, 1, 1])
    assert found.targets[0, 0] > found.targets[0, 1] > found.targets[0, 2] > 0 and found.targets[2, 0] == 0.5
    shifted = Relevance(GRADES.offsets, GRADES.docs, GRADES.scores * 40 - 300)
    again = JudgedQueries.from_relevance(QUERIES, shifted, scored=True, length=1.5)
    assert again.targets == pytest.approx(found.targets, abs=1e-4) and again.gains == pytest.approx(found.gains)
    with np.errstate(divide="ignore"):
        assert effective_lengths(np.log(found.targets), 1.0).mean() == pytest.approx(1.5, abs=0.01)


def test_ndcg_of_a_ranking() -> None:
    assert judged().quality(ranking([2, 5, 7], [4], [9, 1])) == pytest.approx([1.0, 1.0, 1.0])
    best = 3 + 2 / np.log2(3) + 1 / 2
    first = (2 + 3 / np.log2(4)) / best
    second = 1 / np.log2(11)
    assert judged().quality(ranking([5, 0, 2], [0] * 9 + [4], [3])) == pytest.approx([first, second, 0])


def test_reciprocal_ranks_of_plain_labels() -> None:
    labels = Relevance.from_padded(np.array([[2, 5], [4, -1], [9, -1]]))
    plain = JudgedQueries.from_relevance(QUERIES, labels, scored=False)
    assert (plain.graded, plain.measure) == (False, "MRR@10")
    assert plain.quality(ranking([0, 5, 2], [4], [0] * 10 + [9])) == pytest.approx([1 / 2, 1, 0])
    assert plain.quality(ranking([], [-1, 4], [])) == pytest.approx([0, 1 / 2, 0])


def test_a_batch_teaches_the_targets_against_what_it_shares() -> None:
    hard = np.array([[2, 8, 3], [0, 0, -1], [9, -1, -1]], np.int32)
    sampler = HardSampler(judged(), hard, per_query=4, n=10)
    seen: set[int] = set()
    for seed in range(20):
        batch = sampler.draw(np.random.default_rng(seed), 2)
        assert batch.docs.shape == batch.teacher.shape == batch.real.shape and len(batch.queries) == 2
        for query, docs, teacher, real in zip(batch.queries, batch.docs, batch.teacher, batch.real, strict=True):
            i = int(query.argmax())
            right = {int(d): float(t) for d, t in zip(judged().docs[i], judged().targets[i], strict=True) if d >= 0}
            taught = np.exp(teacher[np.isfinite(teacher)])
            assert dict(zip(docs[np.isfinite(teacher)].tolist(), taught, strict=True)) == pytest.approx(right)
            negatives = docs[real & ~np.isfinite(teacher)].tolist()
            assert len(set(negatives)) == len(negatives) and not set(negatives) & set(right)
            seen |= set(negatives)
    assert seen >= {8, 3, 0} and -1 not in seen


def test_judgments_over_a_part_of_the_rows() -> None:
    held = np.array([False, True, False])
    judgments = Judgments(GRADES, held, scored=False, length=5.0)
    rows = np.array([2, 7, 9])
    local = renumber(GRADES, rows)
    assert local.padded(2)[0].tolist() == [[0, 1], [-1, -1], [2, -1]]
    assert [part.tolist() for part in judgments.split(local)] == [[0, 2], []]
    train, _ = judgments.local(QUERIES, rows)
    assert train.docs.tolist() == [[0, 1], [2, -1]] and np.array_equal(train.queries, QUERIES[[0, 2]])
    assert [part.tolist() for part in judgments.split(GRADES)] == [[0, 2], [1]]
