"""Training goes on from an index: fewer steps, the same shape, and as good on rows of the same kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqdistill as vqd
from vqdistill.config import DistillConfig
from vqdistill.distill.warm import WarmStart
from vqdistill.errors import InvalidInput
from vqdistill.types import Metric

D = 16


def rows_of(seed: int, n: int) -> Any:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((8, D))
    return (centres[rng.integers(0, 8, n)] + 0.4 * rng.standard_normal((n, D))).astype(np.float32)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("warm") / "old.vqd"
    vqd.compile(rows_of(1, 600), path, queries=rows_of(2, 150), ram="4B/vec", threads=1)
    return path


@pytest.mark.parametrize("more", [20, 200], ids=["same lists", "more lists"])
def test_a_warm_start(old: Path, tmp_path: Path, more: int) -> None:
    x = np.concatenate([rows_of(1, 600), rows_of(3, more)])
    recalls = []
    for name, start in (("cold", None), ("warm", old), ("again", old)):
        report = vqd.compile(x, tmp_path / name, queries=rows_of(2, 150), ram="4B/vec", warm_start=start, threads=1)
        ids = vqd.open(tmp_path / name).search(rows_of(4, 100), 10, nprobe=1, refine=30).ids
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        truth = np.argsort(-rows_of(4, 100) @ unit.T, axis=1)[:, :10]
        recalls.append(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids.tolist(), truth.tolist(), strict=True)]))
        assert ("warm" in report["report"]["start"]) == (start is not None)
        stages = [stage["stage"] for stage in report["report"]["stages"]]
        assert ("codes for queries" in stages) == (start is None), "it was decided when the old model was trained"
    assert recalls[1] == recalls[2] > recalls[0] - 0.05
    files = {file.name: file.read_bytes() for file in (tmp_path / "warm").iterdir()}
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()}


def test_the_start_of_a_warm_start_is_the_old_model(old: Path) -> None:
    with vqd.open_index(old) as reader:
        warm = WarmStart(reader.model)
    back = warm.moved.in_rows_space(warm.model.space)
    for name in ("coarse", "router", "mean", "codewords"):
        assert np.allclose(getattr(back, name), getattr(warm.model, name), atol=1e-4)
    config = DistillConfig()
    assert warm.shorter(config).steps < config.steps and warm.shorter(config).router_steps < config.router_steps


def test_what_does_not_fit_is_refused(old: Path, tmp_path: Path) -> None:
    queries = rows_of(2, 150)
    with pytest.raises(InvalidInput, match="warm_start must be an index of additive codes"):
        vqd.compile(rows_of(1, 600), tmp_path / "x", queries=queries, ram="8B/vec", warm_start=old)
    with pytest.raises(InvalidInput, match="warm_start must be"):
        vqd.compile(rows_of(1, 600), tmp_path / "x", queries=queries, ram="4B/vec", codes="pq", warm_start=old)
    with pytest.raises(InvalidInput, match="warm_start needs distillation"):
        vqd.compile(rows_of(1, 600), tmp_path / "x", queries=queries, ram="4B/vec", distill=False, warm_start=old)
    with vqd.open_index(old) as reader, pytest.raises(InvalidInput, match="warm_start must be"):
        WarmStart(reader.model).require_match(vqd.plan(_facts(), "4B/vec").model, Metric.COSINE, D + 1)


def _facts() -> Any:
    return vqd.open_source(rows_of(1, 600)).facts
