"""The command line: every command, one JSON object, and one clear sentence with exit code 2 for every bad input."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import vqdistill
from vqdistill.cli import main
from vqdistill.config import DistillConfig
from vqdistill.index import files

N, D = 600, 16
HEAVY = ["torch", "numba", "faiss", "sklearn", "h5py"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as done:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        code = done.value.code
        assert isinstance(code, int)
        return code, out, err

    return call


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """Run a command that must fail: exit code 2, one sentence, nothing else."""

    def call(*arguments: Any) -> str:
        code, out, err = run(*arguments)
        sentence = err.splitlines()[-1]
        assert (code, out) == (2, ""), (code, out, err)
        assert sentence.startswith("vqdistill: ")
        assert "Traceback" not in err
        return sentence

    return call


@pytest.fixture(scope="module")
def rows() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, rows: np.ndarray[Any, Any]) -> Path:
    """A directory with rows.npy, queries.npy, set.h5 and the index rows.vqd."""
    place = tmp_path_factory.mktemp("shelf")
    queries = rows[:40] + np.float32(0.01)
    np.save(place / "rows.npy", rows)
    np.save(place / "queries.npy", queries)
    squared = ((queries[:, None] - rows[None]) ** 2).sum(-1)
    with h5py.File(place / "set.h5", "w") as file:
        file.attrs["distance"] = "euclidean"
        file["train"], file["test"] = rows, queries
        file["neighbors"] = np.argsort(squared, axis=1, kind="stable")[:, :20].astype(np.int32)
        file["test_labels"] = np.arange(40, dtype=np.int32)
    vqdistill.compile(place / "rows.npy", place / "rows.vqd", queries="none", metric="l2", ram="8B/vec", distill=False)
    return place


@pytest.fixture
def index(shelf: Path, tmp_path: Path) -> Path:
    """A copy of the index, to be damaged."""
    return Path(shutil.copytree(shelf / "rows.vqd", tmp_path / "copy.vqd"))


def names(place: Path) -> list[str]:
    """Name what is there, but for the teacher's cache, which may outlive a failed run."""
    return sorted(path.name for path in place.iterdir() if path.suffix != ".cache")


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


# What works


def test_compile_prints_one_json_object_and_its_stages(shelf: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "a.vqd"
    options = ("--queries", shelf / "queries.npy", "--metric", "ip", "--ram", "8B/vec", "--no-distill", "--json")
    code, printed, progress = run("compile", shelf / "rows.npy", "-o", out, *options)
    assert code == 0
    assert isinstance(json.loads(printed), dict)
    assert progress.strip()
    assert names(tmp_path) == ["a.vqd"]
    assert run("verify", out)[0] == 0


def test_training_options_reach_the_training(shelf: Path, tmp_path: Path, run: Run) -> None:
    np.save(tmp_path / "labels.npy", np.arange(40))
    labels = ("--teacher", f"labels:{tmp_path / 'labels.npy'}", "--mix", "1", "--false-negatives", "0.9")
    options = ("--loss", "reverse_kl", "--sampler", "walk", "--debias", *labels)
    common = ("--queries", shelf / "queries.npy", "--metric", "ip", "--ram", "4B/vec", "--json")
    written = []
    for name, given in (("a.vqd", ()), ("b.vqd", options)):
        code, printed, _ = run("compile", shelf / "rows.npy", "-o", tmp_path / name, *common, *given)
        assert code == 0
        written.append(json.loads(printed)["report"])
    assert (written[0]["loss"], written[0]["sampler"]) == ("listnet", "topk")
    assert (written[1]["loss"], written[1]["sampler"]) == ("reverse_kl", "walk")


def test_labels_mixed_with_dense_scores(shelf: Path, tmp_path: Path, run: Run) -> None:
    np.save(tmp_path / "labels.npy", np.arange(40))
    options = ("--queries", shelf / "queries.npy", "--teacher", f"labels:{tmp_path / 'labels.npy'}", "--mix", "0.5")
    code, printed, _ = run(
        "compile", shelf / "rows.npy", "-o", tmp_path / "a.vqd", "--metric", "ip", "--ram", "4B/vec", "--json", *options
    )
    assert code == 0
    assert json.loads(printed)["report"]["teacher"] == {"kind": "labels", "mix": 0.5, "dense": {"kind": "exact"}}


def test_a_mixture_needs_two_teachers(shelf: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    sentence = refused("compile", shelf / "rows.npy", "-o", tmp_path / "a.vqd", "--metric", "ip", "--mix", "0.5")
    assert "mix 0.5 needs a teacher besides the dense one" in sentence
    assert names(tmp_path) == []


def test_same_seed_gives_the_same_bytes(shelf: Path, tmp_path: Path, run: Run) -> None:
    for name in ("a.vqd", "b.vqd"):
        options = ("--metric", "ip", "--ram", "4B/vec", "--seed", 3, "--no-distill")
        assert run("compile", shelf / "rows.npy", "-o", tmp_path / name, *options)[0] == 0
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("a.vqd", "b.vqd")
    )
    assert first == second


def test_plan_explains_and_trains_nothing(shelf: Path, tmp_path: Path, run: Run) -> None:
    arguments = ("plan", shelf / "rows.npy", "-o", tmp_path / "a.vqd", "--metric", "l2", "--ram", "8B/vec")
    code, printed, _ = run(*arguments, "--queries", shelf / "queries.npy")
    assert code == 0
    assert "fit_budget  m 16: 8 B a vector" in printed
    assert names(tmp_path) == []
    planned = json.loads(run(*arguments, "--json")[1])
    assert planned["ram_bytes_per_vector"] == 8
    assert planned["model"]["m"] == 16


def test_a_plan_with_labels_keeps_room_for_adapters(shelf: Path, tmp_path: Path, run: Run) -> None:
    np.save(tmp_path / "labels.npy", np.zeros(40, np.int64))
    arguments = (
        "plan",
        shelf / "rows.npy",
        "--ram",
        "8B/vec",
        "--json",
        "--teacher",
        f"labels:{tmp_path / 'labels.npy'}",
    )
    planned, bare = (json.loads(run(*arguments, *more)[1]) for more in ((), ("--no-distill",)))
    d = planned["facts"]["dim"]
    assert planned["model"]["query_units"] == planned["model"]["verify_units"] == DistillConfig().adapter_units(d)
    assert "query_up" in planned["segments"] and "query_up" not in bare["segments"]


def test_planned_bytes_are_the_written_bytes(shelf: Path, run: Run) -> None:
    planned = json.loads(run("plan", shelf / "rows.npy", "--metric", "l2", "--ram", "8B/vec", "--json")[1])
    written = json.loads(run("inspect", shelf / "rows.vqd", "--json")[1])
    assert planned["ram_bytes"] == written["resident_bytes"]
    segments = [path for path in (shelf / "rows.vqd").iterdir() if path.suffix == ".seg"]
    assert planned["disk_bytes"] == sum(path.stat().st_size for path in segments)


def test_search_writes_npz_trec_and_jsonl(shelf: Path, tmp_path: Path, run: Run) -> None:
    arguments = ("search", shelf / "rows.vqd", shelf / "queries.npy", "-k", 5, "--nprobe", "all", "--refine", 50)
    for suffix in ("npz", "trec", "jsonl"):
        assert run(*arguments, "-o", tmp_path / f"run.{suffix}")[0] == 0
    with np.load(tmp_path / "run.npz") as arrays:
        scores, ids = arrays["scores"], arrays["ids"]
    assert scores.shape == ids.shape == (40, 5)
    assert (ids[:, 0] == np.arange(40)).all()
    lines = [line.split() for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert [int(line[2]) for line in lines] == ids.ravel().tolist()
    assert [int(line[3]) for line in lines[:5]] == [1, 2, 3, 4, 5]
    assert np.allclose([float(line[4]) for line in lines], scores.ravel())
    results = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [result["ids"] for result in results] == ids.tolist()
    assert names(tmp_path) == ["run.jsonl", "run.npz", "run.trec"]


def test_search_without_a_file_prints_the_run(shelf: Path, run: Run) -> None:
    arguments = ("search", shelf / "rows.vqd", shelf / "queries.npy", "-k", 2)
    code, printed, _ = run(*arguments, "--json")
    assert code == 0
    assert len(json.loads(printed)["results"]) == 40


def test_eval_measures_against_exact_neighbours(shelf: Path, run: Run) -> None:
    arguments = ("eval", shelf / "rows.vqd", shelf / "set.h5", "-k", 10, "--nprobe", "all", "--refine", N)
    code, printed, _ = run(*arguments, "--json")
    measured = json.loads(printed)
    assert code == 0
    assert measured["recall_at_k"] == measured["candidate_recall"] == 1
    assert 0 < measured["recall_at_k_codes_only"] < 1
    assert measured["mrr_at_10"] == measured["recall_at_100"] == 1
    assert measured["ram_bytes_per_vector"] == 8
    assert measured["dense_reads_per_query"] == N
    keys = {"queries_per_s", "p50_ms", "p99_ms", "ram_bytes_fixed", "disk_bytes", "rss_delta_bytes"}
    assert keys <= measured.keys()


def test_inspect_shows_the_manifest(shelf: Path, run: Run) -> None:
    shown = json.loads(run("inspect", shelf / "rows.vqd", "--json")[1])
    assert (shown["n"], shown["d"], shown["metric"], shown["m"]) == (N, D, "l2", 16)
    assert "codes" in run("inspect", shelf / "rows.vqd")[1]


def test_verify_says_clean(shelf: Path, run: Run) -> None:
    shown = json.loads(run("verify", shelf / "rows.vqd", "--json")[1])
    assert (shown["clean"], shown["problems"]) == (True, [])


def test_it_runs_as_a_module_and_shows_help_and_version() -> None:
    command = [sys.executable, "-m", "vqdistill"]
    shown = [subprocess.run([*command, *more], capture_output=True, text=True) for more in ([], ["--version"])]
    assert all(done.returncode == 0 for done in shown)
    assert all(name in shown[0].stdout for name in ("compile", "plan", "search", "eval", "inspect", "verify"))
    assert vqdistill.__version__ in shown[1].stdout


def test_searching_imports_no_training_library(shelf: Path) -> None:
    code = (
        "import sys, numpy, vqdistill\n"
        f"index = vqdistill.open({str(shelf / 'rows.vqd')!r})\n"
        f"index.search(numpy.load({str(shelf / 'queries.npy')!r}), k=3)\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# What is refused: sources


def bad_sources(place: Path) -> dict[str, tuple[str, str]]:
    """Write unusable sources; return the argument and what the sentence must say, by name."""
    rows = np.random.default_rng(1).standard_normal((50, D)).astype(np.float32)
    nan, infinite, zero = rows.copy(), rows.copy(), rows.copy()
    nan[17, 3], infinite[49, 0], zero[23] = np.nan, np.inf, 0
    arrays = {
        "flat": rows[0],
        "nan": nan,
        "infinite": infinite,
        "zero": zero,
        "text": np.full((4, 4), "a"),
        "good": rows,
    }
    for name, array in arrays.items():
        np.save(place / f"{name}.npy", array)
    np.save(place / "none.npy", rows[:0])
    (place / "empty.npy").write_bytes(b"")
    (place / "garbage.npy").write_bytes(b"no array here")
    (place / "rows.xyz").write_bytes(b"1234")
    (place / "cut.npy").write_bytes((place / "good.npy").read_bytes()[:-5])
    with h5py.File(place / "set.h5", "w") as file:
        file["train"] = rows
    return {
        "missing file": ("absent.npy", "absent.npy"),
        "empty file": ("empty.npy", "empty.npy"),
        "no array": ("garbage.npy", "garbage.npy"),
        "truncated": ("cut.npy", "cut.npy"),
        "no rows": ("none.npy", "row"),
        "wrong key": ("set.h5:documents", "documents"),
        "one dimension": ("flat.npy", r"\(16,\)"),
        "text": ("text.npy", "text.npy"),
        "nan": ("nan.npy", "row 17 .*NaN"),
        "infinity": ("infinite.npy", "row 49 .*infinity"),
        "zero vector": ("zero.npy", "row 23 .*zero vector"),
        "unknown suffix": ("rows.xyz", "xyz"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "missing file",
        "empty file",
        "no array",
        "truncated",
        "no rows",
        "wrong key",
        "one dimension",
        "text",
        "nan",
        "infinity",
        "zero vector",
        "unknown suffix",
    ],
)
def test_unusable_sources(case: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    name, wanted = bad_sources(tmp_path)[case]
    before = names(tmp_path)
    arguments = ("compile", tmp_path / name, "-o", tmp_path / "out.vqd", "--metric", "cosine", "--ram", "8B/vec")
    assert re.search(wanted, refused(*arguments, "--no-distill"))
    assert names(tmp_path) == before


# What is refused: options


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("--ram", "lots"), "ram must be a size"),
        (("--ram", "0.5B/vec"), "smallest feasible one is 1B/vec"),
        (("--ram", "1KiB"), "smallest feasible one is"),
        (("--metric", "hamming"), "hamming"),
        (("--dense", "f64"), "f64"),
        (("--seed", "-1"), "-1"),
        (("--threads", "0"), "0"),
        (
            ("--loss", "hinge"),
            "'listnet', 'kl', 'reverse_kl', 'mse', 'margin_mse', 'ranknet', 'infonce', 'was",
        ),
        (("--sampler", "all"), "'topk', 'mined', 'walk', 'snowball'"),
        (("--false-negatives", "0"), "0"),
        (("--mix", "1.5"), "1.5"),
        (("--teacher", "oracle"), "oracle"),
        (("--teacher", "scores:absent.tsv"), "absent.tsv"),
        (("--queries", "absent.npy"), "absent.npy"),
        (("--ids", "absent.npy"), "absent.npy"),
        (("--colour", "red"), "colour"),
    ],
)
@pytest.mark.parametrize("command", ["compile", "plan"])
def test_unusable_options(
    command: str, options: tuple[str, ...], wanted: str, shelf: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    sentence = refused(command, shelf / "rows.npy", "-o", tmp_path / "out.vqd", "--metric", "ip", *options)
    assert wanted in sentence
    assert names(tmp_path) == []


@pytest.mark.parametrize("command", ["compile", "plan"])
def test_an_output_that_exists_is_kept(command: str, shelf: Path, index: Path, refused: Callable[..., str]) -> None:
    before = {path.name: path.read_bytes() for path in index.iterdir()}
    assert "exist" in refused(command, shelf / "rows.npy", "-o", index, "--metric", "ip", "--no-distill")
    assert {path.name: path.read_bytes() for path in index.iterdir()} == before
    assert names(index.parent) == [index.name]


@pytest.mark.parametrize("command", ["compile", "plan", "search"])
def test_queries_of_another_dimension(command: str, shelf: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    narrow = tmp_path / "narrow.npy"
    np.save(narrow, np.ones((3, D - 1), np.float32))
    if command == "search":
        sentence = refused("search", shelf / "rows.vqd", narrow)
    else:
        sentence = refused(
            command, shelf / "rows.npy", "-o", tmp_path / "out.vqd", "--queries", narrow, "--metric", "ip"
        )
    assert str(D) in sentence
    assert str(D - 1) in sentence


def test_more_results_than_rows(shelf: Path, refused: Callable[..., str]) -> None:
    assert str(N) in refused("search", shelf / "rows.vqd", shelf / "queries.npy", "-k", N + 1)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("-k", "0"), "0"),
        (("--nprobe", "0"), "nprobe"),
        (("--nprobe", "some"), "some"),
        (("--nprobe", "100000"), "nprobe"),
        (("--refine", "-1"), "-1"),
        (("-o", "run.xml"), "xml"),
        (("-o", "nowhere/run.trec"), "nowhere"),
    ],
)
def test_unusable_search_options(
    options: tuple[str, ...], wanted: str, shelf: Path, refused: Callable[..., str]
) -> None:
    assert wanted in refused("search", shelf / "rows.vqd", shelf / "queries.npy", *options)


# What is refused: indexes


@pytest.mark.parametrize("command", ["inspect", "verify", "search", "eval"])
def test_what_is_no_index(command: str, tmp_path: Path, shelf: Path, refused: Callable[..., str]) -> None:
    more = {"search": [shelf / "queries.npy"], "eval": [shelf / "set.h5"]}.get(command, [])
    assert "absent.vqd" in refused(command, tmp_path / "absent.vqd", *more)
    (tmp_path / "bare.vqd").mkdir()
    assert "CURRENT" in refused(command, tmp_path / "bare.vqd", *more)


def test_every_truncated_file_is_found_at_open(index: Path, refused: Callable[..., str]) -> None:
    for path in sorted(index.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        assert path.name in refused("inspect", index)
        path.write_bytes(whole)


def test_a_flipped_bit_in_any_payload_is_found_by_verify(index: Path, run: Run) -> None:
    for path in sorted(index.glob("*.seg")):
        flip(path, 4096 + 5)
        code, printed, err = run("verify", index, "--json")
        assert code == 2
        assert path.name in err
        assert json.loads(printed)["clean"] is False
        flip(path, 4096 + 5)
    assert run("verify", index)[0] == 0


def test_a_flipped_bit_in_header_manifest_or_current_is_found_at_open(index: Path, refused: Callable[..., str]) -> None:
    for path in sorted(index.iterdir()):
        flip(path, 20)
        assert refused("inspect", index)
        flip(path, 20)


def test_an_index_of_a_newer_format(index: Path, refused: Callable[..., str]) -> None:
    manifest = next(index.glob("manifest-*.json"))
    changed = manifest.read_bytes().replace(b'"version":4', b'"version":5')
    manifest.write_bytes(changed)
    (index / "CURRENT").write_text(f"{manifest.name} {zlib.crc32(changed):08x}\n")
    assert "version 5 is newer" in refused("inspect", index)


# What goes wrong on the way


@pytest.mark.parametrize("room", [0, 5000, 40_000, 60_000])
def test_a_full_disk_leaves_only_work_to_resume(
    room: int,
    shelf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    refused: Callable[..., str],
) -> None:
    left = room
    write = files.FileOps.write

    def scarce(ops: files.FileOps, fd: int, data: bytes | memoryview) -> None:
        nonlocal left
        left -= memoryview(data).nbytes
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(ops, fd, data)

    arguments = ("compile", shelf / "rows.npy", "-o", tmp_path / "out.vqd", "--metric", "ip", "--no-distill")
    with monkeypatch.context() as patch:
        patch.setattr(files.FileOps, "write", scarce)
        assert re.search("disk full|No space", refused(*arguments))
    assert names(tmp_path) == ["out.vqd.work"]
    assert "go on with --resume" in refused(*arguments)
    assert run(*arguments, "--resume")[0] == 0 and names(tmp_path) == ["out.vqd"]


@pytest.mark.parametrize(
    ("error", "code", "wanted"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "there is not enough memory"),
        (OSError(errno.EIO, "Input/output error", "disk"), 2, "disk: Input/output error"),
        (RuntimeError("two\nlines"), 70, "unexpected RuntimeError: two lines; this is a defect"),
    ],
)
def test_whatever_happens_is_one_line(
    error: BaseException, code: int, wanted: str, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(vqdistill, "open_source", fail, raising=False)
    got, printed, err = run("plan", "x.npy")
    assert (got, printed) == (code, "")
    assert err.startswith(f"vqdistill: {wanted}")
    assert err.count("\n") == 1


def test_a_traceback_is_shown_on_request(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("deep inside")

    monkeypatch.setattr(vqdistill, "open_source", fail, raising=False)
    monkeypatch.setenv("VQDISTILL_DEBUG", "1")
    code, _, err = run("plan", "x.npy")
    assert code == 70
    assert "Traceback" in err


def test_a_failed_search_keeps_the_old_results(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    out = tmp_path / "run.npz"
    out.write_text("old")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", fail)
    assert "No space" in refused("search", shelf / "rows.vqd", shelf / "queries.npy", "-o", out)
    assert (names(tmp_path), out.read_text()) == (["run.npz"], "old")


def test_a_reader_that_has_seen_enough_is_no_error(shelf: Path) -> None:
    command = f"'{sys.executable}' -m vqdistill search '{shelf}/rows.vqd' '{shelf}/queries.npy' -k 500 | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith("0 Q0 ")
    assert done.stderr == ""


def test_a_cpu_level_that_does_not_run_here_is_one_sentence() -> None:
    command = [sys.executable, "-m", "vqdistill", "--version"]
    failed = subprocess.run(command, env=os.environ | {"VQDISTILL_CPU": "avx3"}, capture_output=True, text=True)
    assert failed.returncode == 2
    assert re.fullmatch(
        r"vqdistill: environment variable VQDISTILL_CPU: CPU level must be .*, got 'avx3'\n", failed.stderr
    )


# Certificates, explanations, diagnoses


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory, rows: np.ndarray[Any, Any]) -> Path:
    """A directory with set.h5, which has learn queries, and its index a.vqd."""
    place = tmp_path_factory.mktemp("proven")
    rng = np.random.default_rng(5)
    near = rows[rng.integers(0, N, 320)] + 0.3 * rng.standard_normal((320, D)).astype(np.float32)
    with h5py.File(place / "set.h5", "w") as file:
        file["train"], file["learn_queries"], file["test"] = rows, near[:250], near[250:]
    vqdistill.compile(place / "set.h5", place / "a.vqd", ram="8B/vec", distill=False, threads=1)
    return place


def test_the_ladder_is_shown_and_searched_and_measured(proven: Path, run: Run, refused: Callable[..., str]) -> None:
    index, dataset = proven / "a.vqd", proven / "set.h5"
    shown = run("inspect", index)[1]
    assert "certificate: recall@10 on 50 reserved learn queries; neighbours exact" in shown
    certificate = json.loads(run("inspect", index, "--json")[1])["certificate"]
    for rung in certificate["rungs"]:
        assert f"{rung['recall']:.4f}" in shown
    measured = json.loads(run("eval", index, dataset, "--recall", "0.8", "--json")[1])
    assert measured["recall"] == 0.8 and measured["recall_at_k"] > 0.75
    checked = json.loads(run("eval", index, dataset, "--certificate", "--json")[1])
    assert checked["of"] == len(certificate["rungs"]) and checked["queries"] == 70
    code, table, _ = run("eval", index, dataset, "--certificate")
    assert code == 0 and f"holds at {checked['hold']}" in table
    assert "--certificate has settings of its own, got refine" in refused(
        "eval", index, dataset, "--certificate", "--refine", 20
    )
    assert "recall must be at most" in refused("eval", index, dataset, "--recall", "0.99999")
    assert "recall must be a target" in refused("compile", dataset, "-o", proven / "b.vqd", "--recall", "much")


def test_a_certificate_of_other_rows_is_called_stale(proven: Path, run: Run, tmp_path: Path) -> None:
    index = shutil.copytree(proven / "a.vqd", tmp_path / "a.vqd")
    assert "stale" not in run("inspect", index)[1]
    run("delete", index, 0)
    assert "neighbours exact; stale: rows were added or deleted since" in run("inspect", index)[1]


def test_a_loss_is_explained(proven: Path, run: Run) -> None:
    arguments = ("explain", proven / "a.vqd", proven / "set.h5", "--nprobe", 1, "--refine", 10)
    explained = json.loads(run(*arguments, "--json")[1])
    assert sum(cause["lost"] for cause in explained["causes"].values()) == explained["lost"] > 0
    text = run(*arguments)[1]
    assert "tenths of the queries, hardest first:" in text
    assert f"recall {explained['suggestions'][0]['recall']:.4f}" in text


def test_embeddings_are_diagnosed(proven: Path, run: Run, refused: Callable[..., str]) -> None:
    found = json.loads(run("inspect", proven / "set.h5", "--json")[1])
    assert (found["n"], found["d"], found["queries"]["n"]) == (N, D, 250)
    text = run("inspect", proven / "set.h5")[1]
    assert all(sentence in text for sentence in found["suggests"])
    assert "is an index" in refused("inspect", proven / "a.vqd", "--metric", "ip")
    assert "nowhere" in refused("inspect", proven / "nowhere.npy")
