"""Diagnoses of embeddings whose faults are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from vqdistill.errors import InvalidInput
from vqdistill.evaluate import diagnose as module
from vqdistill.evaluate.diagnose import diagnose

N, D = 1200, 16


@pytest.fixture
def rows() -> Any:
    return np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)


def said(found: dict[str, Any], *words: str) -> bool:
    return any(all(word in sentence for word in words) for sentence in found["suggests"])


def test_isotropic_rows(rows: Any) -> None:
    found = diagnose(rows, metric="ip")
    shape, norms = found["isotropy"], np.linalg.norm(rows.astype(np.float64), axis=1)
    assert (found["n"], found["d"], found["dtype"], found["metric"]) == (N, D, "float32", "ip")
    assert found["norms"]["mean"] == pytest.approx(norms.mean())
    assert shape["effective_dimension"] > 0.95 * D and shape["mean_norm"] < 0.1
    assert abs(shape["mean_cosine"]) < 0.01
    assert shape["directions"]["99%"] == D
    assert found["duplicates"]["rows"] == 0 and said(found, "norms differ", "ip")
    assert said(found, "no learn queries", "unproven")


def test_the_spectrum_is_that_of_the_rows(rows: Any) -> None:
    scales = np.geomspace(10, 0.1, D)
    found = diagnose((rows * scales).astype(np.float32))["isotropy"]
    values = np.linalg.eigvalsh(np.cov((rows * scales).T, bias=True))[::-1]
    assert found["effective_dimension"] == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-4)
    assert found["first_share"] == pytest.approx(values[0] / values.sum(), rel=1e-4)
    assert found["directions"]["90%"] == int(np.searchsorted(np.cumsum(values) / values.sum(), 0.9)) + 1


def test_what_cannot_be_used_is_counted(rows: Any) -> None:
    rows[3, 2], rows[7, 0], rows[9] = np.nan, np.inf, 0
    rows[20:30] = rows[40]
    found = diagnose(rows)
    assert found["unusable"] == {"not_finite": 2, "zero": 1}
    assert found["duplicates"]["rows"] == 10
    assert said(found, "2 rows", "NaN") and said(found, "1 rows", "zero") and said(found, "repeat an earlier row")
    with pytest.raises(InvalidInput, match="must have rows that are finite and not zero, got none among 5"):
        diagnose(np.zeros((5, 3), np.float32))


def test_queries_that_differ_from_rows(rows: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    narrow = np.zeros((1100, D))
    narrow[:, :3] = rng.standard_normal((1100, 3))
    alike, apart = rng.standard_normal((1100, D)), narrow + 2 * np.eye(D)[0]
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file["train"], file["learn_queries"] = rows, alike.astype(np.float32)
    np.save(tmp_path / "apart.npy", apart.astype(np.float32))
    same = diagnose(tmp_path / "set.h5")["queries"]
    other = diagnose(tmp_path / "set.h5", queries=tmp_path / "apart.npy")
    assert same["n"] == 1100 and same["mean_distance"] < 0.1 and same["gain_db"] < 0.1
    assert other["queries"]["mean_distance"] > 0.5 and other["queries"]["gain_db"] > 1
    assert other["queries"]["angles_degrees"]["most"] <= 90
    assert said(other, "differ from documents", "pay most")


def test_a_hub_is_seen(rows: Any) -> None:
    queries = 0.3 * np.random.default_rng(2).standard_normal((500, D)).astype(np.float32)
    rows[0] = 0.01  # near to everything around the origin
    found = diagnose(rows, queries=queries, metric="l2")["hubness"]
    assert found["most"] == 500 and found["skewness"] > 5


def test_large_sources_are_sampled_by_the_seed(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE_ROWS", 300)
    found = diagnose(rows, seed=4)
    assert found["sample"] == {"rows": 300, "of": N, "seed": 4}
    assert found == diagnose(rows, seed=4) and found["norms"] != diagnose(rows, seed=5)["norms"]
