"""evaluate: every figure against a second way to compute it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import vqdistill
from vqdistill.errors import InvalidInput
from vqdistill.evaluate.memory import rss_delta_bytes
from vqdistill.evaluate.run import evaluate

N, D, Q = 800, 16, 60


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with set.h5, bare.h5 (queries only) and the index a.vqd."""
    place = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((N, D)).astype(np.float32)
    queries = (rows[:Q] + 0.3 * rng.standard_normal((Q, D))).astype(np.float32)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, rows)]
    with h5py.File(place / "bare.h5", "w") as file:
        file["train"], file["test"] = rows, queries
    with h5py.File(place / "set.h5", "w") as file:
        file["train"], file["test"], file["test_labels"] = rows, queries, np.arange(Q, dtype=np.int32)
        file["neighbors"] = np.argsort(-(unit[0] @ unit[1].T), axis=1, kind="stable")[:, :100].astype(np.int32)
    vqdistill.compile(place / "set.h5", place / "a.vqd", queries="none", ram="4B/vec")
    return place


def _recall(found: Any, truth: Any) -> float:
    return float(np.mean([len(set(f) & set(t)) for f, t in zip(found.tolist(), truth.tolist(), strict=True)]) / 10)


def test_figures_agree_with_the_searcher(shelf: Path) -> None:
    measured = evaluate(shelf / "a.vqd", shelf / "set.h5", k=10, refine=40)
    index = vqdistill.open(shelf / "a.vqd")
    with h5py.File(shelf / "set.h5") as file:
        queries, truth = file["test"][:], file["neighbors"][:, :10]
    assert measured["recall_at_k"] == pytest.approx(_recall(index.search(queries, 10, refine=40).rows, truth))
    assert measured["recall_at_k_codes_only"] == pytest.approx(_recall(index.search(queries, 10, refine=0).rows, truth))
    assert measured["candidate_recall"] == pytest.approx(_recall(index.search(queries, 40, refine=0).rows, truth))
    assert measured["dense_reads_per_query"] <= 40
    ranks = [row.index(q) + 1 if q in row else np.inf for q, row in enumerate(index.search(queries).rows.tolist())]
    assert measured["mrr_at_10"] == pytest.approx(np.mean(1 / np.array(ranks)))
    assert measured["ram_bytes"] == measured["ram_bytes_fixed"] + 4 * -(-N // 32) * 32
    assert measured["queries"] == Q
    assert measured["queries_per_s"] > 0
    assert 0 < measured["p50_ms"] <= measured["p99_ms"]


def test_neighbours_are_computed_where_they_are_missing(shelf: Path) -> None:
    given, computed = (evaluate(shelf / "a.vqd", shelf / name, k=10) for name in ("set.h5", "bare.h5"))
    assert computed["recall_at_k"] == given["recall_at_k"]
    assert "mrr_at_10" not in computed


def test_all_lists_and_all_candidates_find_everything(shelf: Path) -> None:
    nlist = vqdistill.open(shelf / "a.vqd").reader.manifest.nlist
    measured = evaluate(shelf / "a.vqd", shelf / "set.h5", k=10, nprobe=nlist, refine=N)
    assert measured["recall_at_k"] == measured["candidate_recall"] == 1.0
    assert measured["mrr_at_10"] == measured["teacher_mrr_at_10"]


def test_another_data_set_is_refused(shelf: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["train"], file["test"] = np.ones((5, D), np.float32), np.ones((1, D), np.float32)
    with pytest.raises(InvalidInput, match="the index was compiled from 800 x 16"):
        evaluate(shelf / "a.vqd", tmp_path / "other.h5")
    with pytest.raises(InvalidInput, match="needs test queries"):
        with h5py.File(tmp_path / "train.h5", "w") as file:
            file["train"] = np.ones((N, D), np.float32)
        evaluate(shelf / "a.vqd", tmp_path / "train.h5")


def test_resident_memory_of_a_fresh_process(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).standard_normal((120_000, D)).astype(np.float32)
    vqdistill.compile(rows, tmp_path / "a.vqd", queries=rows[:10], ram="8B/vec", distill=False, dense="none")
    with vqdistill.open_index(tmp_path / "a.vqd") as reader:
        resident = reader.resident_bytes
    assert resident > 900_000
    assert resident < rss_delta_bytes(tmp_path / "a.vqd", rows[:3]) <= resident + (4 << 20)
