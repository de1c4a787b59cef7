"""Ranks of new rows: every CPU level against a loop, in every company."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqdistill import _native
from vqdistill.kernels import available_levels

LEVELS = available_levels()
NOT_RANKED = 2**31 - 1


def integer_rankings(rng: np.random.Generator, n: int, q: int, cells: int, depth: int, d: int = 3) -> dict[str, Any]:
    """Rows whose products are exact in float32 in any order, and often equal."""
    x, queries = (rng.integers(-2, 3, (rows, d)).astype(np.float32) for rows in (n, q))
    where = rng.integers(0, cells, n)
    members = [np.flatnonzero(rng.random(q) < 0.7).astype(np.int32) for _ in range(cells)]
    order = np.argsort(where, kind="stable")
    return {
        "x": x,
        "order": order,
        "starts": np.searchsorted(where[order], np.arange(cells + 1)),
        "offsets": np.cumsum([0, *map(len, members)]),
        "members": np.concatenate(members),
        "queries": queries,
        "scores": -np.sort(-rng.integers(-6, 7, (q, depth)).astype(np.float32), axis=1),
    }


def wanted(given: dict[str, Any], most: int) -> list[list[tuple[int, int]]]:
    """Ranks and queries of each row, one pair after the other."""
    found: list[list[tuple[int, int]]] = [[] for _ in given["x"]]
    for cell in range(len(given["starts"]) - 1):
        tried = given["members"][given["offsets"][cell] : given["offsets"][cell + 1]].tolist()
        for row in given["order"][given["starts"][cell] : given["starts"][cell + 1]].tolist():
            products = given["queries"][tried] @ given["x"][row]
            pairs = zip(tried, products.tolist(), strict=True)
            falling = given["scores"]
            found[row] = sorted((int((falling[q] > p).sum()), q) for q, p in pairs if p > falling[q, -1])[:most]
            found[row] += [(NOT_RANKED, -1)] * (most - len(found[row]))
    return found


@pytest.mark.parametrize("level", LEVELS)
@given(
    seed=st.integers(0, 2**32),
    n=st.sampled_from([0, 1, 9, 255, 256, 700]),
    q=st.sampled_from([1, 2, 16, 17, 50]),
    cells=st.integers(1, 3),
    depth=st.integers(1, 5),
    most=st.integers(1, 4),
    threads=st.sampled_from([1, 3]),
)
@settings(max_examples=40, deadline=None)
def test_ranks_against_a_loop(
    level: str, seed: int, n: int, q: int, cells: int, depth: int, most: int, threads: int
) -> None:
    given = integer_rankings(np.random.default_rng(seed), n, q, cells, depth)
    queries, ranks = _native.best_ranks(level, **given, most=most, threads=threads)
    got = [list(zip(a, b, strict=True)) for a, b in zip(ranks.tolist(), queries.tolist(), strict=True)]
    assert got == wanted(given, most)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("d", [1, 24, 33])
def test_ranks_do_not_depend_on_other_rows(level: str, d: int) -> None:
    rng = np.random.default_rng(d)
    given = integer_rankings(rng, 600, 40, 2, 5, d)
    for name in ("x", "queries"):
        given[name] = rng.standard_normal(given[name].shape, np.float32)
    queries, ranks = _native.best_ranks(level, **given, most=4, threads=1)
    for row in given["order"][[0, 1, 299, 400]].tolist():
        cell = int(np.searchsorted(given["starts"], np.flatnonzero(given["order"] == row)[0], side="right")) - 1
        alone = {"x": given["x"][row : row + 1], "order": np.zeros(1, np.int64)}
        alone["starts"] = (np.arange(len(given["starts"])) > cell).astype(np.int64)
        one = _native.best_ranks(level, **given | alone, most=4, threads=1)
        assert np.array_equal(one[0][0], queries[row]) and np.array_equal(one[1][0], ranks[row])


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_no_number_ranks_nowhere(level: str) -> None:
    given = integer_rankings(np.random.default_rng(0), 5, 3, 1, 2)
    given["x"][2] = np.nan
    queries, ranks = _native.best_ranks(level, **given, most=2, threads=1)
    assert queries[2].tolist() == [-1, -1] and ranks[2].tolist() == [NOT_RANKED] * 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"order": np.array([0, 1, 5])}, "order must be numbers below 3, got others"),
        ({"order": np.array([0, 1, -1])}, "order must be numbers below 3"),
        ({"members": np.array([0, 2], np.int32)}, "members must be numbers below 2"),
        ({"starts": np.array([0, 2, 1, 3])}, "starts must be"),
        ({"starts": np.array([0, 2, 4])}, "starts must be rising from 0 to 3"),
        ({"starts": np.array([1, 2, 3])}, "starts must be rising from 0 to 3"),
        ({"offsets": np.array([0, 2, 1])}, "offsets must be rising from 0 to 2"),
        ({"offsets": np.zeros(0, np.int64), "starts": np.zeros(0, np.int64)}, "starts must be rising"),
        ({"scores": np.zeros((2, 0), np.float32)}, "r must be in 1.."),
        ({"scores": np.zeros((3, 2), np.float32)}, r"scores must be \(q, r\) float32"),
        ({"queries": np.zeros((2, 4), np.float32)}, r"queries must be \(q, d\) float32"),
        ({"most": 0}, "most must be in 1.."),
        ({"threads": 0}, "threads must be in 1.."),
    ],
)
def test_wrong_arguments(wrong: dict[str, Any], message: str) -> None:
    right = {
        "x": np.zeros((3, 2), np.float32),
        "order": np.arange(3),
        "starts": np.array([0, 1, 3]),
        "offsets": np.array([0, 1, 2]),
        "members": np.array([0, 1], np.int32),
        "queries": np.zeros((2, 2), np.float32),
        "scores": np.zeros((2, 1), np.float32),
        "most": 2,
        "threads": 1,
    }
    assert _native.best_ranks(LEVELS[0], **right)[0].shape == (3, 2)
    with pytest.raises(ValueError, match=message):
        _native.best_ranks(LEVELS[0], **right | wrong)
