"""The search for additive codes: every CPU level against its NumPy definition, in every company."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqdistill import _native
from vqdistill.kernels import available_levels, reference

LEVELS = available_levels()
KSUB = 16


def integer_rows(rng: np.random.Generator, n: int, m: int, d: int) -> dict[str, Any]:
    """Rows whose sums are exact in float32 in any order; weights are squares, so their roots are exact, too."""

    def draw(most: int, *shape: int) -> Any:
        return rng.integers(-most, most + 1, shape).astype(np.float32)

    lists = rng.integers(0, 5, (n, 3), dtype=np.int32)
    lists[np.arange(3) >= rng.integers(0, 4, n)[:, None]] = -1
    return {
        "y": draw(9, n, d),
        "x": draw(1, n, d),
        "eta": float(rng.choice([0, 1, 4])),
        "lists": lists,
        "weights": rng.choice([0, 1, 4], (n, 3)).astype(np.float32),
        "queries": draw(1, 5, d),
        "codewords": draw(3, m, KSUB, d),
    }


def normal_rows(rng: np.random.Generator, n: int, m: int, d: int) -> dict[str, Any]:
    rows = integer_rows(rng, n, m, d)
    for name in ("y", "x", "queries", "codewords"):
        rows[name] = rng.standard_normal(rows[name].shape, np.float32)
    return rows


def start_codes(rng: np.random.Generator, n: int, m: int) -> Any:
    return rng.integers(0, KSUB, (n, m), dtype=np.uint8)


def costs(rows: dict[str, Any], codes: Any) -> Any:
    """e^T A e (n,) in float64."""
    words = rows["codewords"].astype(np.float64)
    e = rows["y"] - words[np.arange(len(words)), codes].sum(axis=1)
    seen = np.einsum("nrd,nd->nr", rows["queries"].astype(np.float64)[rows["lists"]], e) ** 2
    of_queries = (np.where(rows["lists"] >= 0, rows["weights"], 0) * seen).sum(axis=1)
    return (e**2).sum(axis=1) + rows["eta"] * np.einsum("nd,nd->n", rows["x"], e) ** 2 + of_queries


@pytest.mark.parametrize("level", LEVELS)
@given(st.integers(0, 2**32), st.integers(1, 7), st.integers(1, 5), st.integers(0, 3), st.integers(0, 3), st.booleans())
@settings(max_examples=25, deadline=None)
def test_exact_sums_give_the_codes_of_the_definition(
    level: str, seed: int, m: int, d: int, sweeps: int, rounds: int, fresh: bool
) -> None:
    rng = np.random.default_rng(seed)
    rows, codes = integer_rows(rng, 3, m, d), None if fresh else start_codes(rng, 3, m)
    effort = {"sweeps": sweeps, "rounds": rounds}
    wanted = reference.encode_additive(**rows, codes=codes, **effort)
    assert np.array_equal(_native.encode_additive(level, **rows, codes=codes, **effort, threads=1), wanted)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rounds", [0, 3])
def test_costs_are_those_of_the_definition_up_to_rounding(level: str, rounds: int) -> None:
    """Where two codes tie up to rounding, the searches part ways; that is rare."""
    rows = normal_rows(np.random.default_rng(rounds), 40, 5, 9)
    got, wanted = (
        costs(rows, codes)
        for codes in (
            _native.encode_additive(level, **rows, sweeps=9, rounds=rounds, threads=1),
            reference.encode_additive(**rows, sweeps=9, rounds=rounds),
        )
    )
    assert np.isclose(got, wanted, rtol=1e-5).mean() >= 0.95
    assert got.mean() <= 1.01 * wanted.mean()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("m", [1, 31, 256])
def test_no_single_change_lowers_the_cost(level: str, m: int) -> None:
    rng = np.random.default_rng(m)
    rows = normal_rows(rng, 9, m, 20)
    codes = _native.encode_additive(level, **rows, sweeps=200, rounds=2, threads=1)
    reached = costs(rows, codes)
    for j in rng.integers(0, m, 8):
        for k in range(KSUB):
            changed = codes.copy()
            changed[:, j] = k
            assert (costs(rows, changed) >= reached - 1e-4 * m).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("d", [1, 24, 33])
def test_codes_depend_neither_on_other_rows_nor_on_threads(level: str, threads: int, d: int) -> None:
    rows = normal_rows(np.random.default_rng(d), 97, 6, d)
    whole = _native.encode_additive(level, **rows, sweeps=3, rounds=2, threads=1)
    for first, last in ((0, 97), (0, 1), (31, 64), (5, 7)):
        part = rows | {name: rows[name][first:last] for name in ("y", "x", "lists", "weights")}
        got = _native.encode_additive(level, **part, sweeps=3, rounds=2, threads=threads)
        assert np.array_equal(got, whole[first:last])


def test_no_rows_no_queries_no_lists() -> None:
    rows = normal_rows(np.random.default_rng(0), 3, 4, 5)
    none = {"lists": np.empty((3, 0), np.int32), "weights": np.empty((3, 0), np.float32)}
    few = rows | none | {"queries": np.empty((0, 5), np.float32)}
    assert _native.encode_additive(LEVELS[0], **few, sweeps=2, rounds=1, threads=1).shape == (3, 4)
    empty = {name: rows[name][:0] for name in ("y", "x", "lists", "weights")}
    assert _native.encode_additive(LEVELS[0], **(rows | empty), sweeps=2, rounds=1, threads=2).shape == (0, 4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"y": np.zeros((3, 5))}, r"y must be \(n, d\) float32"),
        ({"x": np.zeros((2, 5), np.float32)}, r"x must be \(n, d\) float32"),
        ({"lists": np.full((3, 3), 5, np.int32)}, "lists must be -1 or a number below 5, got 5"),
        ({"lists": np.full((3, 3), -2, np.int32)}, "lists must be -1 or a number below 5, got -2"),
        ({"weights": np.zeros((3, 2), np.float32)}, r"weights must be \(n, r\) float32"),
        ({"eta": -1.0}, "eta must be at least 0"),
        ({"queries": np.zeros((5, 4), np.float32)}, r"queries must be \(q, d\) float32"),
        ({"codewords": np.zeros((4, 15, 5), np.float32)}, r"codewords must be \(m, 16, d\) float32"),
        ({"codewords": np.zeros((257, 16, 5), np.float32)}, "m must be in 1..256, got 257"),
        ({"codes": np.zeros((3, 3), np.uint8)}, r"codes must be \(n, m\) uint8"),
        ({"codes": np.full((3, 4), 16, np.uint8)}, "codes must be below 16"),
        ({"sweeps": -1}, "sweeps must be in"),
        ({"rounds": -1}, "rounds must be in"),
        ({"threads": 0}, "threads must be in"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict[str, Any], message: str) -> None:
    rows = normal_rows(np.random.default_rng(0), 3, 4, 5) | {"sweeps": 1, "rounds": 1, "threads": 1}
    with pytest.raises((TypeError, ValueError), match=message):
        _native.encode_additive(LEVELS[0], **(rows | wrong))
