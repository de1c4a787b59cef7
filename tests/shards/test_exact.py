"""Exact search shard by shard finds what one pass finds, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.shards.support import QUERIES, N, plan
from vqdistill.data.relevance import Relevance
from vqdistill.data.teacher import ExactTeacher
from vqdistill.shards.exact import Question, ShardedTeacher, search_shard
from vqdistill.shards.job import open_job


@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
@pytest.mark.parametrize("depth", [1, 20, N + 5])
def test_merged_answers_are_those_of_one_pass(origin: Path, tmp_path: Path, metric: str, depth: int) -> None:
    job, _ = open_job(plan(origin, tmp_path / "job", metric=metric))
    src, told = job.open_source(), list[int]()

    def backwards(question: Question) -> Iterator[tuple[int, Relevance]]:
        for number in reversed(range(len(job.shards))):
            yield number, search_shard(job, number, question)

    exclude = np.where(np.arange(len(QUERIES)) % 2, np.arange(len(QUERIES)), -1)
    found = ShardedTeacher(backwards, job, src, told.append, 50).relevance(QUERIES, depth, exclude)
    wanted = ExactTeacher(src, block_rows=50).relevance(QUERIES, depth, exclude)
    for name in ("offsets", "docs", "scores"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name))
    assert sum(told) == N


def test_equal_scores_go_to_the_lower_row() -> None:
    parts = [Relevance.from_lists([list(range(start, start + 3))], [[1.0, 1.0, 1.0]]) for start in (6, 0, 3)]
    merged = parts[0].merged(parts[1], 4).merged(parts[2], 4)
    assert merged.docs.tolist() == [0, 1, 2, 3]
