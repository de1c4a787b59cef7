"""One suite for each protocol; every implementation runs it by inheriting from it."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import numpy as np
import pytest

from vqdistill.data.sources import EmbeddingSource
from vqdistill.data.teacher import Teacher
from vqdistill.errors import InvalidInput
from vqdistill.types import Facts, Metric


class SourceContract:
    """What every EmbeddingSource must do. A child gives the fixtures `src` and `values`, the rows it should hold."""

    def test_facts(self, src: EmbeddingSource, values: Any) -> None:
        assert (src.n, src.dim) == values.shape
        assert src.facts == Facts(n=src.n, dim=src.dim, dtype=src.dtype, metric=src.metric)

    @pytest.mark.parametrize("rows", [None, 1, 7, 10**6])
    def test_blocks_cover_all_rows_in_order(self, src: EmbeddingSource, values: Any, rows: int | None) -> None:
        wanted = prepared(values, src.metric)
        at = 0
        for block in src.blocks(rows):
            assert block.start == at
            assert block.rows.dtype == np.float32 and block.rows.flags.c_contiguous and block.rows.flags.writeable
            assert 1 <= len(block.rows) <= (rows or src.n)
            np.testing.assert_allclose(block.rows, wanted[at : at + len(block.rows)], rtol=1e-6, atol=1e-12)
            at += len(block.rows)
        assert at == src.n

    def test_blocks_begin_at_any_of_their_borders(self, src: EmbeddingSource) -> None:
        whole = list(src.blocks(3))
        for number, block in enumerate(whole):
            rest = list(src.blocks(3, block.start))
            assert [other.start for other in rest] == [other.start for other in whole[number:]]
            np.testing.assert_array_equal(rest[0].rows, block.rows)
        assert list(src.blocks(3, src.n)) == []
        wide = next((block for block in whole if len(block.rows) > 1), None)
        if wide is not None:
            with pytest.raises(InvalidInput, match="blocks must start where one begins"):
                list(src.blocks(3, wide.start + 1))

    def test_memory_is_told_without_reading(self, src: EmbeddingSource) -> None:
        assert src.resident_bytes >= 0

    def test_blocks_do_not_disturb_each_other(self, src: EmbeddingSource) -> None:
        pairs = list(zip_longest(src.blocks(5), src.blocks(3)))
        first, second = (
            np.concatenate([block.rows for block in blocks if block]) for blocks in zip(*pairs, strict=True)
        )
        np.testing.assert_array_equal(first, second)

    def test_take_equals_blocks(self, src: EmbeddingSource) -> None:
        whole = np.concatenate([block.rows for block in src.blocks(7)])
        rows = np.random.default_rng(0).integers(0, src.n, 50)
        np.testing.assert_array_equal(src.take(rows), whole[rows])
        assert src.take(np.empty(0, np.int64)).shape == (0, src.dim)

    def test_changing_what_came_out_changes_nothing(self, src: EmbeddingSource) -> None:
        before = src.take(np.arange(src.n))
        src.take(np.arange(src.n))[:] = 0
        next(src.blocks()).rows[:] = 0
        np.testing.assert_array_equal(src.take(np.arange(src.n)), before)

    @pytest.mark.parametrize("rows", [[-1], [10**9], [0.5], [[0]]])
    def test_take_refuses_rows_that_are_not_there(self, src: EmbeddingSource, rows: Any) -> None:
        with pytest.raises(InvalidInput, match="row number"):
            src.take(np.array(rows))

    def test_blocks_refuses_to_be_empty(self, src: EmbeddingSource) -> None:
        with pytest.raises(InvalidInput, match="at least 1"):
            next(src.blocks(0))

    def test_fingerprint_is_stable(self, src: EmbeddingSource) -> None:
        assert src.fingerprint() == src.fingerprint()
        assert len(src.fingerprint()) == 32

    def test_ids_are_one_a_row(self, src: EmbeddingSource) -> None:
        if src.ids is not None:
            assert len(src.ids) == src.n == len(src.ids.slice(0, src.n))


class TeacherContract:
    """What every Teacher must do. A child gives the fixtures `teacher`, `queries` (q, d) and `n`, its documents."""

    def test_at_most_depth_documents_of_the_source(self, teacher: Teacher, queries: Any, n: int) -> None:
        for depth in (1, 3, n, n + 5):
            found = teacher.relevance(queries, depth)
            assert found.n_queries == len(queries)
            assert found.counts.max() <= min(depth, n)
            found.require_docs_below(n)

    def test_a_shallower_list_is_the_head_of_a_deeper_one(self, teacher: Teacher, queries: Any, n: int) -> None:
        deep, shallow = teacher.relevance(queries, n).top(3), teacher.relevance(queries, 3)
        np.testing.assert_array_equal(deep.docs, shallow.docs)
        np.testing.assert_array_equal(deep.scores, shallow.scores)

    @pytest.mark.parametrize("depth", [0, -1])
    def test_depth_must_be_positive(self, teacher: Teacher, queries: Any, depth: int) -> None:
        with pytest.raises(InvalidInput, match="depth"):
            teacher.relevance(queries, depth)

    def test_it_says_what_kind_it_is(self, teacher: Teacher) -> None:
        assert teacher.kind in ("exact", "index", "scores", "labels", "callable")


def prepared(values: Any, metric: Metric) -> Any:
    """The definition of preparation, in float64."""
    rows = np.asarray(values, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) if metric is Metric.COSINE else rows
