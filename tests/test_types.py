"""What crosses module borders: metrics by name, hits that unpack, and rows that are checked before use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vqdistill.errors import InvalidInput
from vqdistill.kernels.units import unit_rows
from vqdistill.types import WORK, Hits, Metric, RangeHits, as_f32_rows, require_finite

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("name", ["ip", "cosine", "l2"])
def test_metric_by_name(name: str) -> None:
    metric = Metric.parse(name)
    assert metric.value == name
    assert Metric.parse(metric) is metric


def test_stored_metric_names_never_change() -> None:
    assert [metric.value for metric in Metric] == ["ip", "cosine", "l2"]


@pytest.mark.parametrize("name", ["", "IP", "euclidean", None, 3])
def test_unknown_metric(name: Any) -> None:
    with pytest.raises(InvalidInput, match=r"metric must be one of ip, cosine, l2, got"):
        Metric.parse(name)


def test_hits_unpack() -> None:
    work = np.arange(14, dtype=np.int64).reshape(2, 7)
    hits = Hits(np.zeros((2, 3), np.float32), np.ones((2, 3), np.int64), np.ones((2, 3), np.int64), work)
    scores, ids = hits
    assert scores is hits.scores and ids is hits.ids


def test_range_hits_unpack() -> None:
    lims = np.array([0, 2, 3])
    hits = RangeHits(
        np.zeros(3, np.float32), np.ones(3, np.int64), np.ones(3, np.int64), np.zeros((2, 7), np.int64), lims
    )
    assert [part is wanted for part, wanted in zip(hits, (hits.lims, hits.scores, hits.ids), strict=True)] == [True] * 3
    assert hits.lims is lims


def test_work_by_query_and_in_total() -> None:
    work = np.arange(14, dtype=np.int64).reshape(2, 7)
    hits = Hits(np.zeros((2, 1), np.float32), np.zeros((2, 1)), np.zeros((2, 1), np.int64), work)
    assert list(hits.stats) == list(hits.query_stats) == list(WORK)
    assert hits.stats["lists_probed"] == 7 and hits.stats["wait_ns"] == 19
    assert hits.query_stats["codes_scanned"].tolist() == [1, 8]
    assert all(type(value) is int for value in hits.stats.values())


@pytest.mark.parametrize(
    "x",
    [
        ROWS,
        ROWS.tolist(),
        ROWS.astype(np.float64),
        ROWS.astype(np.float16),
        ROWS.astype(np.int8),
        ROWS.astype(">f4"),
        np.asfortranarray(ROWS),
        np.repeat(ROWS, 2, axis=1)[:, ::2],
        torch.from_numpy(ROWS),
        torch.from_numpy(ROWS).to(torch.bfloat16),
        torch.from_numpy(ROWS).clone().requires_grad_(),
        torch.from_numpy(ROWS).to(torch.int64),
    ],
)
def test_rows_of_every_kind(x: Any) -> None:
    rows = as_f32_rows(x, "queries")
    assert rows.dtype == np.float32 and rows.dtype.isnative and rows.flags.c_contiguous
    assert np.array_equal(rows, ROWS)


def test_ready_rows_are_not_copied() -> None:
    assert np.shares_memory(as_f32_rows(ROWS, "queries", 4), ROWS)


def test_one_row_where_the_dimension_is_known() -> None:
    assert as_f32_rows(ROWS[0], "queries", 4).shape == (1, 4)
    with pytest.raises(InvalidInput, match=r"queries must be of shape \(rows, d\), got \(4,\) float32"):
        as_f32_rows(ROWS[0], "queries")


def test_no_rows_are_rows() -> None:
    assert as_f32_rows(np.empty((0, 4)), "queries", 4).shape == (0, 4)


@pytest.mark.parametrize(
    "x",
    [
        ROWS[:, :3],
        ROWS[None],
        np.empty((3, 0)),
        np.float32(1),
        np.empty(0),
    ],
)
def test_wrong_shape(x: Any) -> None:
    with pytest.raises(InvalidInput, match=r"queries must be of shape \(rows, 4\), got \("):
        as_f32_rows(x, "queries", 4)


@pytest.mark.parametrize(
    "x",
    [
        "text",
        None,
        [[1, 2], [3]],
        [["a", "b"]],
        ROWS.astype(bool),
        ROWS.astype(np.complex64),
        ROWS.astype(object),
        ROWS.astype("M8[s]"),
        np.zeros((2, 4), "V4"),
        np.zeros((2, 4), [("a", "f4"), ("b", "f4")]),
    ],
)
def test_not_real_numbers(x: Any) -> None:
    with pytest.raises(InvalidInput, match=r"queries must be real numbers of shape \(rows, 4\), got"):
        as_f32_rows(x, "queries", 4)


def test_rows_at_odd_addresses_are_copied_to_even_ones() -> None:
    odd = np.frombuffer(b"x" + ROWS.tobytes(), np.float32, offset=1).reshape(ROWS.shape)
    assert not odd.flags.aligned
    out = as_f32_rows(odd, "queries")
    assert out.flags.aligned
    np.testing.assert_array_equal(out, ROWS)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_row_that_is_not_finite_is_named(bad: float) -> None:
    rows = ROWS.copy()
    rows[1, 2] = bad
    with pytest.raises(InvalidInput, match=r"queries row 1 holds NaN or infinity \(1 such rows"):
        as_f32_rows(rows, "queries")
    with pytest.raises(InvalidInput, match="train row 101 "):
        require_finite(rows, "train", 100)


def test_infinities_that_cancel_are_seen() -> None:
    rows = ROWS.copy()
    rows[0, 0], rows[2, 0] = np.inf, -np.inf
    with pytest.raises(InvalidInput, match=r"row 0 holds NaN or infinity \(2 such rows"):
        as_f32_rows(rows, "queries")


def test_doubles_beyond_float32_are_refused() -> None:
    with pytest.raises(InvalidInput, match="row 0 holds NaN or infinity"):
        as_f32_rows(np.full((2, 4), 1e300), "queries")


def test_large_finite_rows_pass() -> None:
    assert np.isfinite(as_f32_rows(np.full((64, 64), np.finfo(np.float32).max), "queries")).all()


@given(hnp.arrays(np.float32, (5, 3), elements=st.floats(-(2**90), 2**90, width=32).filter(lambda v: abs(v) > 1e-30)))
def test_unit_rows_have_unit_norm_and_direction(rows: Any) -> None:
    unit = unit_rows(rows, "train")
    assert unit.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(unit.astype(np.float64), axis=1), 1, atol=1e-6)
    assert (np.sign(unit) == np.sign(rows))[np.abs(unit) > 1e-6].all()


def test_zero_row_has_no_direction() -> None:
    rows = ROWS.copy()
    rows[2] = 0
    with pytest.raises(InvalidInput, match="train row 12 is a zero vector"):
        unit_rows(rows, "train", 10)
