"""Options: what is accepted, what is refused with which sentence, and sizes written as people write them."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqdistill.config import Budget, DistillConfig, IvfPqConfig, RecallTarget, SearchParams
from vqdistill.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64", 64),
        ("64B", 64),
        ("1kB", 1000),
        ("1.5MB", 1_500_000),
        ("2GB", 2 * 10**9),
        ("1TB", 10**12),
        ("1K", 1024),
        ("1KiB", 1024),
        ("64MiB", 64 << 20),
        ("64mib", 64 << 20),
        (" 2 G ", 2 << 30),
        ("0.5TiB", 1 << 39),
    ],
)
def test_whole_sizes(text: str, size: int) -> None:
    assert Budget.parse(text) == Budget(ram_bytes=size)
    assert isinstance(Budget.parse(text).ram_bytes, int)


@pytest.mark.parametrize(
    ("text", "size"), [("32B/vec", 32.0), ("32/vec", 32.0), ("16.5 B / vector", 16.5), ("1KiB/vec", 1024.0)]
)
def test_sizes_a_vector(text: str, size: float) -> None:
    assert Budget.parse(text) == Budget(bytes_per_vector=size)


def test_a_budget_is_its_own_parse() -> None:
    budget = Budget(ram_bytes=7)
    assert Budget.parse(budget) is budget


@pytest.mark.parametrize(
    "text",
    ["", "B", "-1B", "1e6", "32B/row", "32 bytes", "nan", "inf", "1.B", ".5MB", "1 MB 2", "32B/vecs", None, b"1"],
)
def test_no_size(text: Any) -> None:
    with pytest.raises(InvalidInput, match='ram must be a size such as "32B/vec" or "64MiB", got'):
        Budget.parse(text)


@pytest.mark.parametrize("text", ["0", "0B/vec", "0.3B", "99999999TB", "9" * 400, "9" * 400 + "B/vec"])
def test_sizes_out_of_range(text: str) -> None:
    with pytest.raises(InvalidInput, match="budget must be a positive number of bytes"):
        Budget.parse(text)


@given(st.integers(1, 2**40), st.sampled_from(["", "B"]))
def test_any_number_of_bytes(size: int, unit: str) -> None:
    assert Budget.parse(f"{size}{unit}").ram_bytes == size
    assert Budget.parse(f"{size}{unit}/vec").bytes_per_vector == size


@pytest.mark.parametrize("values", [{}, {"ram_bytes": 1, "bytes_per_vector": 1.0}])
def test_exactly_one_bound(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="budget must be exactly one of"):
        Budget(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"ram_bytes": 0},
        {"ram_bytes": -5},
        {"ram_bytes": "9"},
        {"bytes_per_vector": float("nan")},
        {"bytes_per_vector": float("inf")},
        {"bytes_per_vector": -0.5},
    ],
)
def test_bound_must_be_positive(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="budget must be a positive number of bytes"):
        Budget(**values)


MODEL = {"nlist": 4, "m": 8}
SEARCH: dict[str, Any] = {}
RATES = ("codewords", "rotation", "tables", "router")

REFUSED = [
    (IvfPqConfig, MODEL, "nlist", [0, -1, 2**24 + 1, 2.0, "4", True, None]),
    (IvfPqConfig, MODEL, "m", [0, 1, 3, 258, 8.0, None]),
    (IvfPqConfig, MODEL, "codes", ["opq", "PQ", "", None]),
    (IvfPqConfig, MODEL, "residual", ["yes", 1]),
    (IvfPqConfig, MODEL, "seed", [-1, 0.5, None]),
    (DistillConfig, {}, "depth", [0, -1, 1.5, None]),
    (DistillConfig, {}, "batch", [0, "8"]),
    (DistillConfig, {}, "steps", [0, False]),
    (DistillConfig, {}, "eval_every", [0]),
    (DistillConfig, {}, "patience", [0]),
    *((DistillConfig, {}, f"router_{name}", [0, 1.0, None]) for name in ("steps", "batch", "eval_every")),
    (DistillConfig, {}, "held_out", [0]),
    (DistillConfig, {}, "mine_every", [0, 1.0]),
    (DistillConfig, {}, "loss", ["hinge", "", None]),
    (DistillConfig, {}, "sampler", ["random", None]),
    (DistillConfig, {}, "temperature", ["none", 1.0]),
    (DistillConfig, {}, "false_negatives", [0, -0.5, float("nan"), True, "0.9"]),
    (DistillConfig, {}, "random_docs", [-1, 0.0]),
    (DistillConfig, {}, "seed", [-1, None]),
    (DistillConfig, {}, "train_bytes", [0, (1 << 20) - 1, float(1 << 30)]),
    (DistillConfig, {}, "list_length", [1, 0.0, 200.5, float("nan"), float("inf")]),
    *((DistillConfig, {}, f"{name}_rate", [-0.1, float("nan"), float("inf"), None]) for name in RATES),
    (IvfPqConfig, MODEL, "tables", ["bf16", "F16", None]),
    (IvfPqConfig, MODEL | {"codes": "pq"}, "tables", ["f16"]),
    (SearchParams, SEARCH, "nprobe", [0, -1, 1.0, True]),
    (SearchParams, SEARCH, "coverage", [0, 0.0, 1, 1.0, -0.5, float("nan"), float("inf"), True, "0.9"]),
    (SearchParams, SEARCH, "refine", [-1, 0.5, True, 2**40 + 1]),
    (SearchParams, SEARCH, "confidence", [0, 0.0, 1, 1.0, -0.5, float("nan"), float("inf"), True, "0.9"]),
    (SearchParams, SEARCH, "threads", [0, 1025, None]),
    (SearchParams, SEARCH, "timeout_s", [0, 0.0, -1, float("nan"), float("inf"), True, "1"]),
]


@pytest.mark.parametrize(
    ("config", "base", "name", "value"),
    [(config, base, name, value) for config, base, name, values in REFUSED for value in values],
)
def test_refused(config: Any, base: dict[str, Any], name: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=rf"^{name} must be .*, got "):
        config(**base | {name: value})


@pytest.mark.parametrize(
    ("config", "base", "name", "value"),
    [
        (IvfPqConfig, MODEL, "nlist", 1),
        (IvfPqConfig, MODEL, "nlist", 2**24),
        (IvfPqConfig, MODEL, "m", 2),
        (IvfPqConfig, MODEL, "m", 256),
        (IvfPqConfig, MODEL, "codes", "pq"),
        (IvfPqConfig, MODEL, "seed", 2**70),
        (DistillConfig, {}, "random_docs", 0),
        (DistillConfig, {}, "list_length", 200.0),
        (DistillConfig, {}, "train_bytes", 1 << 20),
        (SearchParams, SEARCH, "refine", 0),
        (SearchParams, SEARCH, "refine", None),
        (SearchParams, SEARCH, "coverage", None),
        (SearchParams, SEARCH, "coverage", 1e-9),
        (SearchParams, SEARCH, "confidence", 1 - 1e-9),
        (SearchParams, SEARCH, "timeout_s", 1e-9),
        (SearchParams, SEARCH, "timeout_s", 10**9),
        (SearchParams, SEARCH, "threads", 1024),
        (IvfPqConfig, MODEL, "tables", "f16"),
    ],
)
def test_bounds_belong_to_the_range(config: Any, base: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(config(**base | {name: value}), name) == value


@pytest.mark.parametrize("config", [IvfPqConfig(**MODEL), DistillConfig(), SearchParams(**SEARCH)])
def test_options_are_frozen_and_replaced_with_a_check(config: Any) -> None:
    with pytest.raises(FrozenInstanceError):
        config.seed = 1
    name = "m" if isinstance(config, IvfPqConfig) else "steps" if isinstance(config, DistillConfig) else "nprobe"
    with pytest.raises(InvalidInput):
        replace(config, **{name: 0})


def test_list_length_is_held_against_depth() -> None:
    with pytest.raises(InvalidInput, match="list_length must be above 1 and at most depth 30, got 40"):
        DistillConfig(depth=30)
    assert DistillConfig(depth=30, list_length=30).depth == 30


@pytest.mark.parametrize(
    ("text", "recall", "k"), [("0.95@10", 0.95, 10), (".9", 0.9, 10), (0.8, 0.8, 10), (" 0.99 @ 100 ", 0.99, 100)]
)
def test_recall_targets(text: Any, recall: float, k: int) -> None:
    target = RecallTarget.parse(text)
    assert target == RecallTarget(recall=recall, k=k) == RecallTarget.parse(target) == RecallTarget.parse(str(target))


@pytest.mark.parametrize("text", ["", "95%", "0.95@", "@10", "0.95@1.5", "nan", None, "-0.5"])
def test_no_recall_target(text: Any) -> None:
    with pytest.raises(InvalidInput, match='recall must be a target such as "0.95@10", got'):
        RecallTarget.parse(text)


@pytest.mark.parametrize("text", ["0", "1", "95@10", "0.95@0", "0.95@1001", "0.95@999999999"])
def test_recall_targets_out_of_range(text: str) -> None:
    with pytest.raises(InvalidInput, match="recall must be a number between 0 and 1|k of a recall target must be"):
        RecallTarget.parse(text)
