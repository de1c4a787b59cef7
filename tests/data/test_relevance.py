"""Relevance against dictionaries, and refusal of arrays that are none."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqdistill.data.relevance import Relevance
from vqdistill.errors import InvalidInput

Model = list[dict[int, float]]
# Few documents and scores, so that ties are common.
models = st.lists(st.dictionaries(st.integers(0, 9), st.integers(-2, 2).map(float), max_size=8), max_size=6)


def build(model: Model, seed: int = 0) -> Relevance:
    entries = [(q, d, s) for q, row in enumerate(model) for d, s in row.items()]
    order = np.random.default_rng(seed).permutation(len(entries))
    q, d, s = np.array([entries[i] for i in order], np.float64).reshape(-1, 3).T
    return Relevance.from_pairs(q.astype(int), d.astype(int), s, len(model))


def rows(relevance: Relevance) -> list[list[tuple[int, float]]]:
    pairs = list(zip(relevance.docs.tolist(), relevance.scores.tolist(), strict=True))
    return [pairs[a:b] for a, b in pairwise(relevance.offsets)]


def expected(model: Model) -> list[list[tuple[int, float]]]:
    return [sorted(row.items(), key=lambda entry: (-entry[1], entry[0])) for row in model]


@given(models, st.integers(0, 99))
def test_order_of_pairs_does_not_matter(model: Model, seed: int) -> None:
    assert rows(build(model, seed)) == expected(model)


@given(models)
def test_lists_and_pairs_agree(model: Model) -> None:
    made = Relevance.from_lists([list(row) for row in model], [list(row.values()) for row in model])
    assert rows(made) == expected(model)
    assert made.n_queries == len(model) and made.nnz == sum(map(len, model))
    assert made.counts.tolist() == [len(row) for row in model]


@given(models, st.integers(0, 10))
def test_top(model: Model, k: int) -> None:
    assert rows(build(model).top(k)) == [row[:k] for row in expected(model)]


@given(models, st.sets(st.integers(0, 9)))
def test_restrict(model: Model, docs: set[int]) -> None:
    got = rows(build(model).restrict(np.array(sorted(docs), np.int64)))
    assert got == [[entry for entry in row if entry[0] in docs] for row in expected(model)]


@given(models, st.data())
def test_select(model: Model, data: st.DataObject) -> None:
    some = data.draw(st.lists(st.integers(0, len(model) - 1), max_size=9)) if model else []
    assert rows(build(model).select(np.array(some, np.int64))) == [expected(model)[i] for i in some]


@given(models, st.integers(1, 10))
def test_padded_and_back(model: Model, k: int) -> None:
    docs, scores = build(model).padded(k)
    assert docs.shape == scores.shape == (len(model), k)
    assert ((docs == -1) == np.isneginf(scores)).all()
    assert rows(Relevance.from_padded(docs, scores)) == [row[:k] for row in expected(model)]


@given(models)
def test_save_and_load(tmp_path_factory: Any, model: Model) -> None:
    path = tmp_path_factory.mktemp("r") / "r.npz"
    build(model).save(path)
    assert rows(Relevance.load(path)) == expected(model)
    assert [file.name for file in path.parent.iterdir()] == ["r.npz"]


def test_saving_again_replaces(tmp_path: Path) -> None:
    build([{1: 1.0}]).save(tmp_path / "r.npz")
    build([{2: 1.0}]).save(tmp_path / "r.npz")
    assert Relevance.load(tmp_path / "r.npz").docs.tolist() == [2]


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        build([{1: 1.0}]).save(tmp_path / "r.npz")
    assert list(tmp_path.iterdir()) == []


def test_every_damaged_byte_is_found_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    made = build([{1: 1.0, 4: 0.5}, {}, {2: 2.0}])
    made.save(path)
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        with suppress(InvalidInput):
            assert rows(Relevance.load(path)) == rows(made)
        path.write_bytes(content[:at])
        with pytest.raises(InvalidInput, match="no readable relevance file"):
            Relevance.load(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no readable relevance file"):
        Relevance.load(tmp_path / "r.npz")


def i64(*values: int) -> Any:
    return np.array(values, np.int64)


def f32(*values: float) -> Any:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("offsets", "docs", "scores", "message"),
    [
        (i64(0, 1), i64(1).astype(np.int32), f32(1), "docs must be one-dimensional int64, got .* int32"),
        (i64(0, 1), i64(1), np.ones(1), "scores must be one-dimensional float32"),
        ([0, 1], i64(1), f32(1), "offsets must be one-dimensional int64, got list"),
        (i64(), i64(), f32(), "offsets must rise"),
        (i64(0, 2), i64(1), f32(1), "offsets must rise"),
        (i64(1, 1), i64(1), f32(1), "offsets must rise"),
        (i64(0, 2, 1, 2), i64(1, 2), f32(1, 1), "offsets must rise"),
        (i64(0, 1), i64(1), f32(1, 1), "offsets must rise"),
        (i64(0, 1), i64(-1), f32(1), "at least 0"),
        (i64(0, 1), i64(1), f32(np.nan), "finite scores"),
        (i64(0, 1), i64(1), f32(np.inf), "finite scores"),
        (i64(0, 0, 2), i64(1, 2), f32(1, 2), "query 1 must be sorted"),
        (i64(0, 2), i64(2, 1), f32(1, 1), "query 0 must be sorted"),
        (i64(0, 2), i64(1, 1), f32(2, 1), "query 0 names document 1 twice"),
        (i64(0, 2), i64(1, 1), f32(1, 1), "query 0 must be sorted"),
    ],
)
def test_arrays_that_are_no_relevance(offsets: Any, docs: Any, scores: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Relevance(offsets, docs, scores)


@pytest.mark.parametrize(
    ("queries", "docs", "scores", "message"),
    [
        ([0, 2], [1, 1], [1, 1], r"queries must be in 0..1, got 0..2"),
        ([-1], [1], [1], "queries must be in"),
        ([0], [-5], [1], "at least 0"),
        ([0], [1, 2], [1], "must be"),
        ([0, 0], [1, 1], [1, 2], "query 0 names document 1 twice"),
        ([0, 1], [1, 7], [1, np.nan], "got nan for query 1, document 7"),
        ([0], [1], [1e300], "got inf for query 0, document 1"),
    ],
)
def test_pairs_that_are_no_relevance(queries: Any, docs: Any, scores: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Relevance.from_pairs(np.array(queries), np.array(docs), np.array(scores), 2)


def test_arguments_are_checked() -> None:
    made = build([{1: 1.0}])
    with pytest.raises(InvalidInput, match="same lengths"):
        Relevance.from_lists([[1]], [[1.0, 2.0]])
    with pytest.raises(InvalidInput, match="k must be at least 0"):
        made.top(-1)
    with pytest.raises(InvalidInput, match=r"in 0..0"):
        made.select(np.array([1]))
    with pytest.raises(InvalidInput, match=r"names document 1, but there are only rows 0..0"):
        made.require_docs_below(1)
