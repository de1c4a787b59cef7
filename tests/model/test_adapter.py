"""The adapter of queries against plain sums, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vqdistill.errors import InvalidInput
from vqdistill.model.adapter import QueryAdapter

UNITS, D = 5, 3


def make(rank: int = 2, unit: bool = False, scale: float = 1.0) -> QueryAdapter:
    rng = np.random.default_rng(0)
    down, bias, up = (scale * rng.standard_normal(size) for size in ((UNITS, D), UNITS, (D, UNITS)))
    return QueryAdapter(
        down=down.astype(np.float32), bias=bias.astype(np.float32), up=up.astype(np.float32), rank=rank, unit=unit
    )


def by_hand(adapter: QueryAdapter, query: np.ndarray) -> np.ndarray:
    out = query.astype(np.float64).copy()
    for unit in range(adapter.units):
        z = sum(float(a) * float(b) for a, b in zip(adapter.down[unit], query, strict=True)) + float(adapter.bias[unit])
        out += (z if unit < adapter.rank else max(z, 0.0)) * adapter.up[:, unit]
    return out / np.linalg.norm(out) if adapter.unit else out


@pytest.mark.parametrize("rank", [0, 2, UNITS])
@pytest.mark.parametrize("unit", [False, True])
def test_values(rank: int, unit: bool) -> None:
    queries = np.random.default_rng(1).standard_normal((20, D)).astype(np.float32)
    adapter = make(rank, unit)
    adapted = adapter(queries)
    assert adapted.dtype == np.float32 and (adapter.units, adapter.d) == (UNITS, D)
    for query, got in zip(queries, adapted, strict=True):
        assert got == pytest.approx(by_hand(adapter, query), abs=1e-5)


def test_without_weight_a_query_stays_what_it_is() -> None:
    queries = np.eye(D, dtype=np.float32)
    assert np.array_equal(make(unit=True, scale=0.0)(queries), queries)


def test_a_query_that_would_vanish_stays_as_it_is() -> None:
    identity = np.eye(D, dtype=np.float32)
    adapter = QueryAdapter(down=identity, bias=np.zeros(D, np.float32), up=-identity, rank=D, unit=True)
    assert np.array_equal(adapter(identity), identity)


def test_halves_for_the_engine() -> None:
    down, bias, up, rank, unit = make().for_engine("f2")
    assert (down.dtype, bias.dtype, up.dtype, rank, unit) == (np.float16, np.float32, np.float16, 2, False)
    assert np.array_equal(up, make().up.astype(np.float16))


@pytest.mark.parametrize(
    "change",
    [
        {"down": np.zeros((UNITS, D + 1), np.float32)},
        {"bias": np.zeros(UNITS + 1, np.float32)},
        {"up": np.zeros((D, UNITS + 1), np.float32)},
        {"rank": UNITS + 1},
        {"rank": -1},
    ],
)
def test_arrays_that_do_not_fit(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="adapter arrays must be"):
        QueryAdapter(**(vars(make()) | change))
