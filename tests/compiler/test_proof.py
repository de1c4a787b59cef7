"""Compiled indexes carry a certificate, and a wanted recall becomes the default search or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqdistill
from vqdistill.compiler.supervision import DenseTeacher, supervise
from vqdistill.errors import BudgetInfeasible, InvalidInput
from vqdistill.index.opening import open_index
from vqdistill.progress import Progress

N, D, Q = 700, 16, 400
OPTIONS: dict[str, Any] = {"ram": "4B/vec", "distill": False, "metric": "ip", "threads": 1}


@pytest.fixture(scope="module")
def rows() -> Any:
    return np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)


@pytest.fixture(scope="module")
def queries(rows: Any) -> Any:
    rng = np.random.default_rng(1)
    return (rows[rng.integers(0, N, Q)] + 0.3 * rng.standard_normal((Q, D))).astype(np.float32)


@pytest.fixture(scope="module")
def done(rows: Any, queries: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("proof") / "a.vqd"
    return path, vqdistill.compile(rows, path, queries=queries, recall="0.9@5", **OPTIONS)


def test_a_wanted_recall_becomes_the_default_search(
    done: tuple[Path, dict[str, Any]], rows: Any, queries: Any, tmp_path: Path
) -> None:
    path, report = done
    with open_index(path) as reader:
        certificate, policy = reader.manifest.certificate, reader.manifest.search
        assert certificate is not None and certificate.to_json() == report["certificate"]
        assert (certificate.k, certificate.queries, certificate.tuned_on) == (5, Q // 5, (Q - Q // 5) // 5)
        assert certificate.real_queries and certificate.truth == "exact"
        rung = certificate.choose(0.9, 5)
        assert (policy.nprobe, policy.refine) == (rung.nprobe, rung.refine)
        assert (policy.coverage, policy.confidence) == (rung.coverage, rung.confidence)
        assert policy.to_json() == report["search"]
    assert [timing["target"] for timing in report["timings"]] == [rung.target for rung in certificate.rungs]
    index = vqdistill.open(path)
    assert np.array_equal(index.search(queries, 5).ids, index.search(queries, 5, recall=0.9).ids)
    # Of the same bytes as another run, which takes other times.
    vqdistill.compile(rows, tmp_path / "b.vqd", queries=queries, recall="0.9@5", **OPTIONS)
    for file in path.iterdir():
        assert file.read_bytes() == (tmp_path / "b.vqd" / file.name).read_bytes(), file.name


def test_the_certificate_is_of_queries_that_nothing_has_seen(rows: Any, queries: Any, tmp_path: Path) -> None:
    src = vqdistill.open_source(rows, metric="ip")
    dense = DenseTeacher(src, tmp_path, 0, 1, Progress())
    lesson = supervise(src, queries, "exact", dense)
    seen, kept = ({row.tobytes() for row in part} for part in (lesson.queries, lesson.reserved))
    assert not seen & kept and seen | kept == {row.tobytes() for row in queries}
    other = supervise(src, queries, "exact", DenseTeacher(src, tmp_path, 1, 1, Progress()))
    assert not np.array_equal(other.reserved, lesson.reserved)


def test_pseudo_queries_prove_nothing_of_real_ones(rows: Any, tmp_path: Path) -> None:
    report = vqdistill.compile(rows, tmp_path / "a.vqd", queries="none", **OPTIONS)
    assert report["certificate"]["real_queries"] is False
    assert (report["certificate"]["k"], report["certificate"]["queries"]) == (10, N // 5)


def test_few_queries_are_all_for_training(rows: Any, queries: Any, tmp_path: Path) -> None:
    report = vqdistill.compile(rows, tmp_path / "a.vqd", queries=queries[:199], **OPTIONS)
    assert report["certificate"] is None and report["timings"] == []
    assert report["report"]["reserved_queries"] == 0
    assert "at least 200" in report["report"]["no_certificate"]
    with pytest.raises(InvalidInput, match="recall needs at least 200 queries to be proven on, got 199"):
        vqdistill.compile(rows, tmp_path / "b.vqd", queries=queries[:199], recall=0.9, **OPTIONS)


def test_what_is_not_reached_is_not_published(rows: Any, queries: Any, tmp_path: Path) -> None:
    with pytest.raises(BudgetInfeasible, match=r"recall 0.99@10 is not reached by this index: .* at most 0\.[3-9]"):
        vqdistill.compile(rows, tmp_path / "a.vqd", queries=queries, recall="0.99@10", dense="none", **OPTIONS)
    with pytest.raises(InvalidInput, match="recall must count at most the 700 rows, got 0.9@701"):
        vqdistill.compile(rows, tmp_path / "a.vqd", queries=queries, recall="0.9@701", **OPTIONS)
    assert [path.suffix for path in tmp_path.iterdir()] == [".cache"]


def test_behind_an_adapter_the_truth_is_that_of_adapted_queries(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((600, 24)).astype(np.float32)
    labels = rng.integers(0, 600, 1000)
    turned = x[labels] @ np.linalg.qr(rng.standard_normal((24, 24)))[0] + 0.03 * rng.standard_normal((1000, 24))
    np.save(tmp_path / "labels.npy", labels)
    options = {"teacher": f"labels:{tmp_path / 'labels.npy'}", "ram": "8B/vec", "metric": "cosine"}
    path = tmp_path / "a.vqd"
    certificate = vqdistill.compile(x, path, queries=turned.astype(np.float32), **options)["certificate"]
    with open_index(path) as reader:
        assert "query" in reader.manifest.adapters
    assert certificate["rungs"][-1]["recall"] > 0.95
