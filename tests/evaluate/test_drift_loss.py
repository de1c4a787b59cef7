"""What is lost among added rows: nothing to tell, rows like the compiled ones, rows that the model does not fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import vqdistill as vqd
from vqdistill.cli.commands import cli
from vqdistill.data.sources import open_source
from vqdistill.evaluate.drift_loss import DriftLoss, estimate_loss
from vqdistill.model.codebooks import train_additive_start, train_coarse
from vqdistill.model.learned import LearnQueries
from vqdistill.types import F32Rows, Metric

N, D = 2000, 16
RNG = np.random.default_rng(0)


def rows_near(centres: F32Rows, n: int) -> F32Rows:
    rows = centres[RNG.integers(0, len(centres), n)] + 0.3 * RNG.standard_normal((n, D))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


CENTRES = RNG.standard_normal((30, D)).astype(np.float32)
X, QUERIES, ALIKE = rows_near(CENTRES, N), rows_near(CENTRES, 400), rows_near(CENTRES, N)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drift") / "x.vqd"
    src = open_source(X, metric="cosine")
    plan = vqd.plan(src.facts, "4B/vec")
    model = train_additive_start(X, train_coarse(X, plan.model.nlist, 0), plan.model, Metric.COSINE, residual=False)
    scores = -np.sort(-(QUERIES @ X.T), axis=1)[:, :100]
    learned = LearnQueries(QUERIES, np.ascontiguousarray(scores), codes=True)
    vqd.build(plan, replace(model, learned=learned), src, path)
    return path


def copy_of(compiled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compiled, tmp_path / "x.vqd"))


def with_more(compiled: Path, more: F32Rows) -> vqd.Searcher:
    searcher = vqd.open(compiled)
    searcher.add(more)
    return searcher


def test_nothing_to_tell(compiled: Path, tmp_path: Path) -> None:
    assert estimate_loss(vqd.open(compiled)) is None
    vqd.compile(X, tmp_path / "pseudo.vqd", queries="none", ram="4B/vec", metric="cosine", distill=False, threads=1)
    assert estimate_loss(with_more(tmp_path / "pseudo.vqd", ALIKE)) is None
    few = with_more(copy_of(compiled, tmp_path), -X[:50])
    assert estimate_loss(few) is None


def test_rows_like_the_compiled_ones_lose_little(compiled: Path, tmp_path: Path) -> None:
    searcher = with_more(copy_of(compiled, tmp_path), ALIKE)
    loss = estimate_loss(searcher)
    assert loss is not None and loss.queries == len(QUERIES) and 0.4 < loss.added_share < 0.6
    assert loss.lost < 0.02 and loss.warnings == []
    searcher.compact()
    again = estimate_loss(searcher)
    assert again is not None and again.added_share == pytest.approx(loss.added_share, abs=0.02)


def test_rows_that_do_not_fit_are_told_by_inspect(compiled: Path, tmp_path: Path) -> None:
    """They crowd around a few of the queries, which are stored as halves."""
    path = copy_of(compiled, tmp_path)
    searcher = with_more(path, QUERIES[RNG.integers(0, 40, N)] + 0.05 * RNG.standard_normal((N, D)).astype(np.float32))
    loss = estimate_loss(searcher)
    assert loss is not None
    usual, wanted = (
        searcher.search(QUERIES, 10, **options).rows
        for options in ({}, {"nprobe": searcher.reader.manifest.nlist, "refine": 1000})
    )
    found = (wanted[:, :, None] == usual[:, None, :]).any(axis=2)
    assert loss.added_recall == pytest.approx(found[wanted >= N].mean(), abs=0.005)
    assert loss.compiled_recall == pytest.approx(found[wanted < N].mean(), abs=0.005)
    shown = json.loads(CliRunner().invoke(cli, ["inspect", str(path), "--json"]).output)
    assert shown["drift_loss"] == loss.to_json()


def test_a_loss_is_warned_of_with_its_remedy() -> None:
    loss = DriftLoss(k=10, queries=400, added_share=0.5, compiled_recall=0.98, added_recall=0.90)
    assert loss.lost == pytest.approx(0.04)
    (sentence,) = loss.warnings
    assert sentence.startswith("about 0.040 of recall@10 is lost") and "--warm-start" in sentence
    better = DriftLoss(k=10, queries=400, added_share=0.5, compiled_recall=0.90, added_recall=0.98)
    assert better.lost == 0 and better.warnings == []
