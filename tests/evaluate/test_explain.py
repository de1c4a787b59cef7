"""Explanations add up to the deficit, and suggestions keep what they promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.searching import CALIBRATED, N, Q, embeddings, exact_scores, write_index
from vqdistill.evaluate.explain import explain
from vqdistill.evaluate.run import evaluate
from vqdistill.index.policy import SearchPolicy

SETTINGS: list[dict[str, Any]] = [
    {"nprobe": 1, "refine": 10},
    {"coverage": 0.5, "confidence": 0.3},
    {"nprobe": 12, "refine": 12},
    {"nprobe": 12, "refine": 0},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the indexes a.vqd (coarse stored rows) and codes.vqd (none), and set.h5."""
    place = tmp_path_factory.mktemp("explain")
    rows, queries = embeddings(0)
    write_index(place / "a.vqd", search=replace(CALIBRATED, error=5.0), dense="i8")
    write_index(place / "codes.vqd", search=SearchPolicy(nprobe=12, refine=0), dense="none")
    write_index(place / "codes16.vqd", search=SearchPolicy(nprobe=12, refine=100), dense="f16")
    with h5py.File(place / "set.h5", "w") as file:
        file.attrs["distance"] = "ip"
        file["train"], file["test"] = rows, queries
        file["neighbors"] = np.argsort(-exact_scores("ip", queries, rows), axis=1, kind="stable")[:, :20]
    return place


@pytest.mark.parametrize("setting", SETTINGS)
def test_shares_add_up_and_promises_are_kept(place: Path, setting: dict[str, Any]) -> None:
    index, dataset = place / "a.vqd", place / "set.h5"
    explained = explain(index, dataset, **setting)
    measured = evaluate(index, dataset, **setting)["recall_at_k"]
    causes = explained["causes"].values()
    assert explained["recall"] == pytest.approx(measured, abs=1e-12)
    assert sum(cause["lost"] for cause in causes) == explained["lost"] > 0
    assert sum(cause["deficit"] for cause in causes) == pytest.approx(1 - measured, abs=1e-12)
    assert sum(cause["share"] for cause in causes) == pytest.approx(1)
    assert sum(tenth["queries"] for tenth in explained["deciles"]) == Q and len(explained["deciles"]) == 10
    lost = [tenth["queries"] * (1 - tenth["recall"]) for tenth in explained["deciles"]]
    assert 10 * sum(lost) == pytest.approx(explained["lost"])
    gains = [suggestion["gains"] for suggestion in explained["suggestions"]]
    assert gains == sorted(gains, reverse=True) and gains[0] > 0
    first = next(suggestion for suggestion in explained["suggestions"] if "setting" in suggestion)
    assert evaluate(index, dataset, **first["setting"])["recall_at_k"] == pytest.approx(first["recall"])


def test_dense_rows_win_back_what_codes_lose(place: Path) -> None:
    explained = explain(place / "codes.vqd", place / "set.h5")
    assert explained["causes"]["quantization"]["lost"] == explained["lost"]
    (suggestion,) = explained["suggestions"]
    assert suggestion["compile"] == {"dense": "f16"}
    after = evaluate(place / "codes16.vqd", place / "set.h5")["recall_at_k"]
    assert after - explained["recall"] == pytest.approx(suggestion["gains"], abs=0.02)


def test_nothing_is_lost_where_all_is_read(place: Path) -> None:
    explained = explain(place / "codes16.vqd", place / "set.h5", nprobe=12, refine=N)
    assert explained["lost"] <= 2  # rows of nearly equal scores, stored in half precision
    assert all("setting" not in suggestion for suggestion in explained["suggestions"])
