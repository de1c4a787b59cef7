"""What benches compute by themselves; their runs are long and are not tests."""

from __future__ import annotations

import json
from pathlib import Path

import ablate
import certificate
import check
import guards
import h5py
import measuring
import numpy as np
import pytest
import report_table
import variants

from vqdistill.config import LOSSES, SAMPLERS, STAGES
from vqdistill.data.relevance import Relevance

BEGIN, END = measuring.markers("one")

LISTS = Relevance(np.array([0, 3, 3, 5]), np.array([4, 0, 7, 2, 4]), np.array([0.9, 0.5, 0.1, 0.8, 0.7], np.float32))


def test_exchanged_documents_are_others_with_the_scores_of_their_lists() -> None:
    docs, scores = guards.exchange_documents(LISTS, 1000, np.random.default_rng(0))
    assert np.array_equal(scores, LISTS.scores)
    assert docs[0] == docs[4]  # a document that two lists share stays one
    assert len(np.unique(docs)) == 4 and docs.max() < 1000
    assert not np.isin(docs, LISTS.docs).any()


def test_shuffled_scores_stay_in_their_list() -> None:
    rng = np.random.default_rng(0)
    firsts = set()
    for _ in range(20):
        docs, scores = guards.shuffle_scores(LISTS, 8, rng)
        assert np.array_equal(docs, LISTS.docs)
        for begin, end in ((0, 3), (3, 5)):
            assert sorted(scores[begin:end]) == sorted(LISTS.scores[begin:end])
        firsts.add(float(scores[0]))
    assert len(firsts) == 3


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    path = tmp_path / "small.h5"
    with h5py.File(path, "w") as file:
        for name, n in (("train", 300), ("test", 7), ("learn_queries", 20)):
            file[name] = rng.standard_normal((n, 16), dtype=np.float32)
    return path


@pytest.mark.parametrize("variant", variants.VARIANTS)
def test_a_variant_has_unit_rows_and_their_exact_neighbours(variant: str, dataset: Path, tmp_path: Path) -> None:
    variants.write_variant(dataset, variant, tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:
        assert {len(file[name]) for name in ("train", "test", "learn_queries")} == {300, 7, 20}
        train, test = file["train"][:].astype(float), file["test"][:].astype(float)
        neighbors, distances = file["neighbors"][:], file["distances"][:]
    assert np.allclose(np.linalg.norm(train, axis=1), 1) and np.allclose(np.linalg.norm(test, axis=1), 1)
    exact = 1 - test @ train.T
    assert np.allclose(distances, np.sort(exact, axis=1)[:, :100], atol=1e-6)
    assert np.allclose(np.take_along_axis(exact, neighbors, axis=1), distances, atol=1e-6)


def test_documents_get_one_mean_and_all_queries_another(dataset: Path) -> None:
    parts = variants.read_parts(dataset)
    moved = variants.with_mean(parts, np.random.default_rng(0))
    shifts = {name: moved[name] - parts[name] for name in parts}
    for shift in shifts.values():
        assert np.allclose(shift, shift[0], atol=1e-6)
        assert np.linalg.norm(shift[0]) == pytest.approx(variants.MEAN_NORM, rel=1e-5)
    assert np.allclose(shifts["test"][0], shifts["learn_queries"][0], atol=1e-6)
    assert not np.allclose(shifts["test"][0], shifts["train"][0], atol=0.1)


def test_the_map_has_its_condition_number() -> None:
    parts = {"train": np.eye(16, dtype=np.float32)}
    for spaced in (np.linspace, np.geomspace):
        a = variants.anisotropic(parts, np.random.default_rng(0), spaced)["train"].astype(float)
        assert np.linalg.cond(a) == pytest.approx(variants.CONDITION, rel=1e-3)


def test_a_stored_run_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "run.json"
    assert measuring.stored(path, lambda: {"figure": 1})["figure"] == 1
    assert measuring.stored(path, lambda: {"figure": 2})["figure"] == 1


def test_every_stage_loss_and_sampler_has_a_run_of_its_own() -> None:
    names = [variant.name for variant in ablate.VARIANTS]
    assert len({variant.stem for variant in ablate.VARIANTS}) == len(names)
    assert {f"without {stage}" for stage in STAGES} | {f"only {stage}" for stage in STAGES} <= set(names)
    assert {v.change.get("loss", "listnet") for v in ablate.VARIANTS} == set(LOSSES)
    assert {v.change.get("sampler", "topk") for v in ablate.VARIANTS} == set(SAMPLERS)


def test_a_table_replaces_only_what_is_between_its_markers() -> None:
    text = f"above\n\n{BEGIN}\n\nold\n\n{END}\n\nbelow\n"
    once = measuring.with_block(text, "one", "new")
    assert once == text.replace("old", "new") == measuring.with_block(once, "one", "new")


@pytest.mark.parametrize(
    "text",
    ["", BEGIN, END + BEGIN, 2 * (BEGIN + END), BEGIN + 2 * END, "".join(measuring.markers("one more"))],
)
def test_a_document_without_clear_markers_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match="must have one line"):
        measuring.with_block(text, "one", "new")


def test_documents_have_the_tables_of_the_stored_reports() -> None:
    document = (Path(__file__).parent.parent / "docs" / "BENCH.md").read_text(encoding="utf-8")
    reports = {path.stem: json.loads(path.read_text()) for path in (measuring.RESULTS / "bench").glob("*.json")}
    assert len(reports) >= 2
    for name, report in reports.items():
        script = f"bench/report_table.py {name}"
        assert measuring.with_block(document, script, report_table.table(report)) == document


def test_a_report_table_has_whatever_is_less_as_columns() -> None:
    def entry(system: str, speed: float, reference: bool = False) -> dict[str, object]:
        return {"system": system, "queries_per_s": speed, "reference": reference}

    first = {"budget": "8B/vec", "target": 0.9, "entries": [entry("a", 1234.5), entry("b", 2000.0, True)]}
    second = {"budget": "8B/vec", "target": 0.95, "entries": [entry("a", 10.0)]}
    third = first | {"budget": "1MiB"}
    narrow = report_table.table({"datasets": [{"best": [first]}]}).splitlines()
    assert narrow == [
        "| system | 8 B, 0.90 |",
        "| --- | --- |",
        "| b (all in memory) | 2,000 |",
        "| a | 1,234 |",
    ]
    wide = report_table.table({"datasets": [{"best": [first, second, third]}]}).splitlines()
    assert wide[0] == "| budget, recall | b (all in memory) | a |"
    assert wide[2:] == ["| 8 B, 0.90 | 2,000 | 1,234 |", "| 8 B, 0.95 | - | 10 |", "| 1MiB, 0.90 | 2,000 | 1,234 |"]


def test_halves_of_a_dataset_share_no_test_query(dataset: Path, tmp_path: Path) -> None:
    parts = []
    for half in (0, 1):
        with h5py.File(certificate.half_of(dataset, tmp_path, half)) as file, h5py.File(dataset) as whole:
            assert np.array_equal(file["train"][:], whole["train"][:])
            assert np.array_equal(file["test"][:], whole["test"][half::2])
            parts.append(len(file["test"]))
    assert parts == [4, 3]


def test_lines_of_certificates_come_from_the_stored_results() -> None:
    for path in sorted(measuring.RESULTS.glob("certificate-*.json")):
        result = json.loads(path.read_text())
        if "explain" in result:
            assert certificate.explained_lines(result).count("wanted 80%") == 1
        else:
            rungs = result["certificate"]["rungs"]
            inside = sum(rung["low"] <= rung["test_recall"] <= rung["high"] for rung in rungs)
            assert f"inside the interval: {inside} of {len(rungs)}" in certificate.certificate_lines(result)


def test_only_a_loss_beyond_noise_fails_the_check() -> None:
    old = [check.Figure("speed", "speed", 2.0, 1.9, 2.1), check.Figure("reads", "reads", 3.0, 3.0, 3.0)]
    fine = [check.Figure("speed", "speed", 1.6, 1.5, 1.75), check.Figure("reads", "reads", 2.9, 2.9, 2.9)]
    assert check.losses(fine, old) == [] == check.losses(old, old)
    slow = [check.Figure("speed", "speed", 1.6, 1.5, 1.7), check.Figure("reads", "reads", 2.8, 2.8, 2.8)]
    assert [text.split(":")[0] for text in check.losses(slow, old)] == ["speed", "reads"]
    assert "not measured any more" in check.losses(slow[1:], old)[0]


def test_speeds_of_another_processor_are_not_compared() -> None:
    old = [check.Figure(kind, kind, 2.0, 2.0, 2.0) for kind in check.SLACK]
    here = {"processor": "A", "cpu_level": "avx2", "cores": 2}
    assert check.comparable(old, here, here | {"cores": 8}) == old
    for other in ({"processor": "B"}, {"cpu_level": "avx512"}):
        kinds = [figure.kind for figure in check.comparable(old, here | other, here)]
        assert sorted(kinds) == ["reads", "recall"]


def test_figures_are_stored_for_the_check() -> None:
    stored = check.json.loads(check.STORED.read_text(encoding="utf-8"))["figures"]
    assert {figure["kind"] for figure in stored} == set(check.SLACK)
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in stored)
