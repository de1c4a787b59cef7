"""Whole runs in fresh processes: build, tune, measure, resume, and the page that comes of it."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from tests.bench.support import write_h5
from vqdistill.bench import caps, memory, processes, report, runner, store, systems
from vqdistill.bench.datasets import Dataset
from vqdistill.bench.processes import Place, RunFailed, run_stage
from vqdistill.bench.runner import Options, run_all
from vqdistill.bench.scoring import Judge
from vqdistill.bench.summary import summarize
from vqdistill.bench.systems.base import SHARES, Task, lists_for, nprobes
from vqdistill.bench.systems.faiss_recipes import Recipe, build, resident_bytes
from vqdistill.bench.tuning import K, Point
from vqdistill.cli import main
from vqdistill.errors import BudgetInfeasible, MissingDependency, VqdistillError
from vqdistill.evaluate.run import evaluate

NAMES = ("vqdistill-undistilled", "faiss-ivfpq")
BUDGET = "8B/vec"


def options(**changed: Any) -> Options:
    core = max(os.sched_getaffinity(0))
    given: dict[str, Any] = {"budgets": (BUDGET,), "systems": NAMES, "cores": (core,), "repetitions": 2, "rounds": 1}
    return Options(**(given | {"time_limit_s": 300.0, "memory": False} | changed))


@pytest.fixture(scope="module")
def finished(dataset: Dataset) -> Dataset:
    """The dataset with one run of each system."""
    said: list[str] = []
    assert run_all(dataset, options(), said.append) == {"done": 2, "kept": 0, "failed": 0}, said
    return dataset


def runs(dataset: Dataset) -> dict[str, store.Run]:
    return {run.facts["system"]: run for run in store.runs_below(dataset.folder)}


def test_a_finished_run_is_kept_and_half_a_run_is_not(finished: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = []

    def spy(stage: str, *rest: Any) -> Any:
        stages.append(stage)
        return run_stage(stage, *rest)

    monkeypatch.setattr(runner, "run_stage", spy)
    assert run_all(finished, options(), lambda text: None) == {"done": 0, "kept": 2, "failed": 0}
    assert stages == []
    path = next(finished.folder.glob("faiss-ivfpq*.run.h5"))
    before = store.read_run(path)
    half = path.with_name(f".{path.name}.1.part")
    half.write_bytes(path.read_bytes()[:5000])
    path.unlink()
    assert run_all(finished, options(), lambda text: None) == {"done": 1, "kept": 1, "failed": 0}
    assert stages == ["measure"]  # what was built and tuned is not again
    after = store.read_run(path)
    half.unlink()
    assert [old.facts["setting"] for old in before.operations] == [new.facts["setting"] for new in after.operations]
    for old, new in zip(before.operations, after.operations, strict=True):
        assert np.array_equal(new.ids, old.ids) and np.array_equal(new.scores, old.scores)
    path.unlink()
    run_all(finished, options(targets=(0.85,)), lambda text: None)
    assert stages == ["measure", "tune", "measure"]
    assert 0.85 in {operation.facts["target"] for operation in store.read_run(path).operations}


def test_raw_results_and_circumstances_are_stored(finished: Dataset) -> None:
    for name, run in runs(finished).items():
        facts = run.facts
        assert facts["machine"]["processor"] and facts["versions"]["numpy"] == np.__version__
        assert facts["build"]["seconds"] > 0 and facts["seed"] == 0 and facts["budget"] == BUDGET
        assert 0 < sum(facts["bytes"].values()) <= facts["allowance_bytes"]
        assert len(facts["yardstick_s"]) == 2
        for operation in run.operations:
            assert operation.ids.shape == operation.scores.shape == (len(finished.rows("test")), K)
            assert operation.seconds.shape == (2, 1) and operation.latencies.shape[0] == 2
            assert operation.deep_ids.shape[1] == 100
            assert operation.facts["findings"] == [], name


def test_recall_of_faiss_is_that_of_faiss(finished: Dataset) -> None:
    run = runs(finished)["faiss-ivfpq"]
    index = faiss.read_index(str(finished.folder / "work" / "faiss-ivfpq-8Bvec-seed0" / "index" / "index.faiss"))
    scan = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    queries, docs = finished.rows("test"), np.asarray(finished.rows("docs"))
    truth = finished.truth("test").ids[:, :K]
    judge = Judge.of(finished.truth_path)
    assert run.operations
    for operation in run.operations:
        setting = operation.facts["setting"]
        scan.nprobe, scan.implem = setting["nprobe"], setting["implem"]
        _, found = index.search(queries, max(K, setting["refine"]))
        exact = np.where(found >= 0, np.einsum("qd,qrd->qr", queries, docs[found]), -np.inf)
        best = np.take_along_axis(found, np.argsort(-exact, axis=1, kind="stable")[:, :K], axis=1)
        direct = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(best, truth, strict=True)])
        assert judge.per_query(operation)["recall_by_id"].mean() == pytest.approx(direct, abs=1e-6)


def test_our_recall_is_that_of_eval(finished: Dataset, tmp_path: Path) -> None:
    run = runs(finished)["vqdistill-undistilled"]
    path = finished.folder / "work" / "vqdistill-undistilled-8Bvec-seed0" / "index" / "index.vqd"
    parts = {"train": np.asarray(finished.rows("docs")), "test": finished.rows("test")}
    file = write_h5(tmp_path / "set.h5", **parts, neighbors=finished.truth("test").ids)
    judge = Judge.of(finished.truth_path)
    for operation in run.operations:
        measured = evaluate(path, file, k=K, **operation.facts["setting"])
        assert judge.per_query(operation)["recall_by_id"].mean() == pytest.approx(measured["recall_at_k"], abs=1e-9)


def test_the_page_fetches_nothing_and_says_where_rivals_win(finished: Dataset, tmp_path: Path) -> None:
    ours = runs(finished)["vqdistill-undistilled"]
    ours.facts |= {"system": "vqdistill", "build": ours.facts["build"] | {"seconds": 1e4}}
    extra = finished.folder / "vqdistill.run.h5"
    store.write_run(ours, extra)
    try:
        _check_page(finished, tmp_path / "report.html")
    finally:
        extra.unlink()


def _check_page(finished: Dataset, out: Path) -> None:
    written = report.write_report(finished.folder, out, [0.5, 0.9])
    page = out.read_text()
    assert written["bytes"] == out.stat().st_size < report.MAX_BYTES
    own = re.sub(r"<script>.*?</script>", "", page, count=1, flags=re.S)  # Plotly's own code names its makers
    assert not re.search(r"(src|href)=[\"'](?!#|data:)", own) and "http://" not in own and "https://" not in own
    assert "Content-Security-Policy" in page and 'lang="en"' in page
    for name in NAMES:
        assert name in page
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    drawn = set(re.findall(r'data-figure="([^"]+)"', page))
    assert drawn == set(figures) and len(drawn) >= 4
    assert any(text.startswith("faiss-ivfpq: less build time") for text in written["rival_wins"])
    summary = json.loads(report.to_json(summarize(finished.folder, [0.5, 0.9])))
    best = summary["datasets"][0]["best"]
    assert [(one["budget"], one["target"]) for one in best] == [(BUDGET, 0.5), (BUDGET, 0.9)]
    markdown = report.to_markdown(summarize(finished.folder, [0.5]))
    assert "| faiss-ivfpq |" in markdown and "### Where a rival wins" in markdown


def test_what_is_refused_failed_or_missing_is_listed(finished: Dataset, tmp_path: Path) -> None:
    run = runs(finished)["faiss-ivfpq"]
    run.facts |= {"system": "liar", "repeat": 0}
    text = "liar returned a document twice for 1 of 60 queries"
    run.operations[0].facts["findings"] = [{"kind": "duplicates", "count": 1, "text": text, "refused": True}]
    extra = [finished.folder / name for name in ("liar.run.h5", "x.failed.json")]
    store.write_run(run, extra[0])
    extra[1].write_text(json.dumps({"system": "slow", "budget": BUDGET, "repeat": 0, "reason": "build took longer"}))
    missing = finished.folder / "missing.json"
    kept = missing.read_text()
    missing.write_text(json.dumps([{"system": "absent", "install": "pip install absent"}]))
    try:
        summary = summarize(finished.folder, [0.5])["datasets"][0]
        page = report.to_html(summarize(finished.folder, [0.5]))
    finally:
        missing.write_text(kept)
        for path in extra:
            path.unlink()
    assert all(one["system"] != "liar" for one in summary["runs"])
    for part in (text, "build took longer", "pip install absent"):
        assert part in page


def test_a_build_that_takes_too_long_is_ended(dataset: Dataset, tmp_path: Path) -> None:
    said: list[str] = []
    slow = options(systems=("faiss-pq",), time_limit_s=0.2)
    assert run_all(dataset, slow, said.append)["failed"] == 1
    assert said == ["faiss-pq-8Bvec-seed0-0: build took longer than 0.2 s"]
    said.clear()
    assert run_all(dataset, slow, said.append)["failed"] == 1
    assert said == ["faiss-pq-8Bvec-seed0-0: failed before, see faiss-pq-8Bvec-seed0-0.failed.json"]
    next(dataset.folder.glob("faiss-pq*.failed.json")).unlink()


def test_a_process_that_dies_is_explained(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="build failed after .*exit code 1: "):
        run_stage("build", {}, tmp_path, Place((max(os.sched_getaffinity(0)),), 60))
    assert processes._why(-9, tmp_path / "build.log").startswith("signal SIGKILL")


def test_memories_and_limits(finished: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "STEPS", 1)
    folder = finished.folder / "work" / "vqdistill-undistilled-8Bvec-seed0"
    setting = runs(finished)["vqdistill-undistilled"].operations[0].facts["setting"]
    place = Place((max(os.sched_getaffinity(0)),), 120)
    prober = memory.Prober(finished, "vqdistill-undistilled", setting, folder, place)
    found = memory.memories(prober)
    assert 0 <= found["anonymous_bytes"] < 64 << 20
    assert len(found["warm"]["seconds"]) == len(found["cold"]["seconds"]) == found["queries"]
    cap = found["cap"]
    assert cap["kind"] in (caps.CGROUP, caps.RLIMIT) and 1 <= len(cap["tried"]) <= 2
    free = memory.Answers({}, np.zeros(0, np.int64), np.zeros(0), took=0.02)
    assert memory._holds(prober, 1 << 20, free, 10.0) == (False, None)  # no process lives in a mebibyte
    monkeypatch.setattr(memory, "_PATIENCE_S", 0.0)
    with caps.Cap(1 << 40) as ample, pytest.raises(RunFailed, match=r"probe took longer than 0\.1 s"):
        prober.ask_under(ample, free)


def test_repeats_share_an_index_and_are_compared(finished: Dataset) -> None:
    again = options(systems=("faiss-ivfpq",), repeats=2)
    assert run_all(finished, again, lambda text: None) == {"done": 1, "kept": 1, "failed": 0}
    second = next(finished.folder.glob("faiss-ivfpq*-1.run.h5"))
    repeats = summarize(finished.folder, [0.5])["datasets"][0]["repeats"]
    second.unlink()
    assert all(row["same_results"] for row in repeats)
    assert all(row["queries_per_s_ratio"] > 0 for row in repeats)


def test_rounds_add_passes_in_turn_and_only_once(finished: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def spy(stage: str, job: dict[str, Any], *rest: Any) -> Any:
        asked.append((stage, job["system"]))
        return run_stage(stage, job, *rest)

    monkeypatch.setattr(runner, "run_stage", spy)
    before = runs(finished)
    kept = {name: run.path.read_bytes() for name, run in before.items() if run.path is not None}
    thrice = options(rounds=3, repetitions=1)
    try:
        assert run_all(finished, thrice, lambda text: None) == {"done": 0, "kept": 2, "failed": 0}
        order = [run.entry.name for run in runner.planned(finished, thrice)]
        assert asked == [("again", name) for name in order * 2]
        for name, run in runs(finished).items():
            assert run.facts["rounds"] == 3 and len(run.facts["yardstick_s"]) == 4
            for old, new in zip(before[name].operations, run.operations, strict=True):
                assert new.seconds.shape == new.cpu_seconds.shape == (4, old.seconds.shape[1])
                assert new.latencies.shape == (4, old.latencies.shape[1]) and (new.seconds > 0).all()
                assert np.array_equal(new.seconds[:2], old.seconds) and np.array_equal(new.ids, old.ids)
        run_all(finished, thrice, lambda text: None)
        assert len(asked) == 4
    finally:
        for name, run in before.items():
            if run.path is not None:
                run.path.write_bytes(kept[name])


def test_given_settings_are_measured_instead_of_tuned_ones(finished: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def spy(stage: str, *rest: Any) -> Any:
        asked.append(stage)
        return run_stage(stage, *rest)

    monkeypatch.setattr(runner, "run_stage", spy)
    point = Point(0.7, {"nprobe": 2, "implem": 0, "refine": 17}, None)
    again = options(systems=NAMES[1:], repeats=2, given={NAMES[1]: (point,)})
    assert run_all(finished, again, lambda text: None) == {"done": 1, "kept": 1, "failed": 0}
    path = next(finished.folder.glob("faiss-ivfpq*-1.run.h5"))
    (operation,) = store.read_run(path).operations
    path.unlink()
    assert asked == ["measure"]
    facts = {name: operation.facts[name] for name in ("target", "setting", "tune_recall", "reads")}
    assert facts == {"target": 0.7, "setting": point.setting, "tune_recall": None, "reads": 17.0}


def test_a_round_needs_the_index(finished: Dataset) -> None:
    work = finished.folder / "work"
    said: list[str] = []
    work.rename(finished.folder / "away")
    try:
        run_all(finished, options(systems=NAMES[1:], rounds=2), said.append)
    finally:
        (finished.folder / "away").rename(work)
    assert "kept" in said[0] and "round 2 is missing" in said[1] and "does not have its index" in said[1]


def test_codes_of_faiss_stay_within_what_was_reckoned() -> None:
    faiss.omp_set_num_threads(1)
    docs = np.random.default_rng(0).standard_normal((500, 24)).astype(np.float32)
    for recipe in (Recipe("pq", 8), Recipe("pq", 10, 4, rotated=True), Recipe("rq", 4), Recipe("lsq", 4)):
        index = build(recipe, docs, train_rows=400)
        assert sum(resident_bytes(index).values()) <= recipe.bytes_at_most(500, 24), recipe


def test_a_budget_that_nothing_fits(dataset: Dataset) -> None:
    docs = np.asarray(dataset.rows("docs"))
    task = Task(docs, "ip", None, dataset.path("docs"), "1B/vec", 100, 1, 0)
    with pytest.raises(BudgetInfeasible, match="fit 100 B"):
        systems.load("faiss-ivfpq").build(task, dataset.folder)


def test_lists_and_shares() -> None:
    assert lists_for(31_929) == 512 and lists_for(100) == 2 and lists_for(1) == 1
    assert [probe["nprobe"] for probe in nprobes(8)] == [8, 4, 3, 2, 1]
    assert list(SHARES) == sorted(SHARES, reverse=True)


@pytest.mark.parametrize("name", [e.name for e in systems.SYSTEMS if e.name not in NAMES and e.name != "vqdistill"])
def test_every_installed_system_finds_documents(name: str, dataset: Dataset, tmp_path: Path) -> None:
    entry = systems.entry(name)
    if not entry.available:
        with pytest.raises(MissingDependency, match=re.escape(entry.install)):
            systems.require(name)
        pytest.skip(f"{name} is not installed: {entry.install}")
    docs = np.asarray(dataset.rows("docs"))
    allowance = 0 if entry.reference else 120 * len(docs)
    task = Task(docs, "ip", None, dataset.path("docs"), "32B/vec", allowance, 1, 0)
    system = systems.load(name)
    if name == "svs" and "GenuineIntel" not in Path("/proc/cpuinfo").read_text():
        with pytest.raises(VqdistillError, match="processor of Intel"):
            system.build(task, tmp_path)
        pytest.skip("svs does not run on this processor")
    assert isinstance(system.build(task, tmp_path), dict)
    index = system.open(tmp_path, dataset.f16(), "ip")
    assert sum(index.bytes.values()) > 0
    setting = index.ladders()[0][-1]
    queries, truth = dataset.rows("test"), dataset.truth("test").ids[:, :K]
    found = index.search(queries, K, setting)
    one = index.search(queries[:1], K, setting)
    recall = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found.ids, truth, strict=True)])
    assert recall > 0.8, name
    assert np.array_equal(one.ids, found.ids[:1]) and found.scores.shape == found.ids.shape == (len(queries), K)


def test_what_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.delitem(sys.modules, "vqdistill.bench.plots", raising=False)
    monkeypatch.delitem(sys.modules, "vqdistill.bench.report", raising=False)
    with pytest.raises(SystemExit) as done:
        main(["report", ".", "-o", "r.html"])
    err = capsys.readouterr().err
    assert done.value.code == 2 and "pip install 'vqdistill[bench]'" in err and "plotly" in err


def test_the_command_line(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*arguments: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as done:
            main(list(arguments))
        return done.value.code, *capsys.readouterr()

    code, out, _ = call("bench", "x", "--systems", "list")
    assert code == 0 and all(entry.name in out for entry in systems.SYSTEMS)
    sentences = {
        ("bench", "nowhere"): "DATASET must be a file",
        ("bench", "nowhere.npy"): "nowhere.npy",
        ("bench", "x.npy", "--budgets", "16"): "budgets must be sizes",
        ("bench", "x.npy", "--systems", "nope"): "systems must be among",
        ("bench", "x.npy", "--time-limit", "soon"): "time-limit must be a time",
        ("bench", "x.npy", "--targets", "2"): "targets must be recalls",
        ("bench", "x.npy", "--cores", "9999"): "cores must be among",
        ("report", str(tmp_path / "none"), "-o", "r.html"): "must be a folder",
        ("report", str(tmp_path), "-o", "r.html"): "holds no runs",
        ("report", str(tmp_path), "-o", "r.pdf"): "must end in one of",
    }
    for arguments, sentence in sentences.items():
        code, _, err = call(*arguments)
        assert code == 2 and sentence in err and "Traceback" not in err, (arguments, err)
