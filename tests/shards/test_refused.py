"""What a job is given is checked: one sentence names what is wrong, and nothing is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.index.support import flip
from tests.shards.support import OPTIONS, QUERIES, ROWS, plan, write_input
from vqdistill.cli import main
from vqdistill.compiler.trained import Trained
from vqdistill.errors import InvalidInput, VqdistillError
from vqdistill.shards.job import StoredFile, open_job
from vqdistill.shards.parts import encode_shard
from vqdistill.shards.planning import plan_job
from vqdistill.shards.publishing import commit_job
from vqdistill.shards.sealed import _signed
from vqdistill.shards.training import train_job

# Plans


def add(place: Path, name: str, rows: np.ndarray) -> None:
    np.save(place / "rows" / name, rows)


def twice(place: Path) -> None:
    os.symlink(place / "rows" / "0.npy", place / "rows" / "again.npy")


REFUSED_INPUTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "dimensions": (lambda place: add(place, "9.npy", ROWS[:4, :8]), r"shard .*9\.npy has rows of 8 float32"),
    "elements": (lambda place: add(place, "9.npy", ROWS[:4].astype(np.int8)), r"shard .*9\.npy has rows of 16 int8"),
    "twice": (twice, r"different files, got .*again\.npy and .*0\.npy"),
    "empty": (lambda place: (place / "rows" / "9.npy").write_bytes(b""), r"9\.npy is empty"),
    "none": (lambda place: shutil.rmtree(place / "rows"), "no such file or folder"),
}


@pytest.mark.parametrize("case", REFUSED_INPUTS)
def test_inputs_that_disagree_are_refused(tmp_path: Path, case: str) -> None:
    spoil, sentence = REFUSED_INPUTS[case]
    write_input(tmp_path)
    spoil(tmp_path)
    with pytest.raises(InvalidInput, match=sentence):
        plan(tmp_path, tmp_path / "job")
    assert not list(tmp_path.glob("job*"))


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (([1, 2], ["a", "b"]), r"ids of .*1\.npz must be int64, as those of .*0\.npz, got str"),
        (([1, 2], None), r"ids name must be in every shard, but .*1\.npz has none"),
        (([1, 2], [2, 3]), "ids name must be unique: 2 of row 2 has occurred before"),
    ],
)
def test_ids_that_disagree_are_refused(tmp_path: Path, names: tuple[Any, Any], sentence: str) -> None:
    for number, column in enumerate(names):
        more = {} if column is None else {"name": np.array(column)}
        np.savez(tmp_path / f"{number}.npz", train=ROWS[2 * number : 2 * number + 2], **more)
    with pytest.raises(InvalidInput, match=sentence):
        plan_job([tmp_path / "0.npz", tmp_path / "1.npz"], tmp_path / "job", ids="name", **OPTIONS)
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"queries": QUERIES}, "queries and teacher of a job must be files, got an array"),
        ({"teacher": lambda queries, docs: docs}, "must be files, got an array or a function"),
        ({"queries": "nowhere.npy"}, "no such file or folder"),
        ({"ids": "nowhere.txt"}, r"ids '.*nowhere\.txt' must name an array, column or file"),
        ({"ram": "0.5B/vec"}, "smallest feasible"),
        ({"build_ram": "1MiB"}, "smallest feasible"),
        ({"false_negatives": 0.5}, "false_negatives needs"),
    ],
)
def test_options_are_checked(origin: Path, tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(VqdistillError, match=sentence):
        plan(origin, tmp_path / "job", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("job", ["there", "no/folder"])
def test_the_folder_must_be_free(origin: Path, tmp_path: Path, job: str) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(InvalidInput, match=f"job .*{job} must not exist"):
        plan(origin, tmp_path / job)
    assert list((tmp_path / "there").iterdir()) == []


# Later steps


def discard(name: str, job: Path) -> None:
    """Remove what a step has made."""
    made = {"train": job / "model", "encode": job / "part-1"}.get(name)
    if made is not None:
        shutil.rmtree(made)


def step(name: str, job: Path) -> None:
    if name == "train":
        train_job(job, threads=1)
    elif name == "encode":
        encode_shard(job, 1, threads=1)
    else:
        commit_job(job, job.parent / "out", threads=1)


@pytest.mark.parametrize("name", ["train", "encode", "commit"])
def test_a_shard_that_has_changed_is_named(tmp_path: Path, name: str) -> None:
    write_input(tmp_path)
    job, shard = plan(tmp_path, tmp_path / "job"), tmp_path / "rows" / "1.npy"
    train_job(job, threads=1)
    for number in range(3):
        encode_shard(job, number, threads=1)
    discard(name, job)
    flip(shard, shard.stat().st_size - 2)
    with pytest.raises(InvalidInput, match=r"rows/1\.npy has changed since the plan"):
        step(name, job)
    shard.unlink()
    with pytest.raises(InvalidInput, match=r"rows/1\.npy"):
        step(name, job)
    assert not (tmp_path / "out").exists() and not list(job.glob("*.tmp-*"))


def test_queries_that_have_changed_are_named(tmp_path: Path) -> None:
    write_input(tmp_path)
    job = plan(tmp_path, tmp_path / "job")
    np.save(tmp_path / "queries.npy", QUERIES[:-1])
    with pytest.raises(InvalidInput, match=r"queries\.npy has changed since the plan"):
        train_job(job, threads=1)
    assert sorted(path.name for path in job.iterdir()) == ["plan.json"]


def test_a_shard_that_changes_while_it_is_encoded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_input(tmp_path)
    job = plan(tmp_path, tmp_path / "job")
    train_job(job, threads=1)
    kept = Trained.codes_of

    def touching(*arguments: Any) -> Any:
        os.utime(tmp_path / "rows" / "0.npy", (1, 1))
        return kept(*arguments)

    monkeypatch.setattr(Trained, "codes_of", touching)
    with pytest.raises(InvalidInput, match=r"0\.npy has changed while it was encoded"):
        encode_shard(job, 0, threads=1)
    assert not list(job.glob("part-*"))


@pytest.mark.parametrize("number", [-1, 3, 10**9])
def test_a_wrong_shard_number_is_refused(job: Path, number: int) -> None:
    with pytest.raises(InvalidInput, match=rf"shard must be in 0\.\.2, got {number}"):
        encode_shard(job, number)


def test_steps_say_which_one_is_missing(origin: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"must be a folder made by `vqdistill shard plan`"):
        train_job(tmp_path / "job")
    plan(origin, tmp_path / "job")
    for late in (lambda: encode_shard(tmp_path / "job", 0), lambda: commit_job(tmp_path / "job", tmp_path / "out")):
        with pytest.raises(InvalidInput, match=r"model is missing: train it with `vqdistill shard train .*job`"):
            late()


@pytest.mark.parametrize("file", ["plan.json", "model/model.json", "part-1/part.json"])
def test_every_byte_of_a_record_counts(job: Path, tmp_path: Path, file: str) -> None:
    size = (job / file).stat().st_size
    for offset in range(0, size - 1, max(1, size // 60)):
        flip(job / file, offset)
        with pytest.raises(InvalidInput):
            commit_job(job, tmp_path / "out", threads=1)
        flip(job / file, offset)
    for kept in (0, 1, size // 2):
        os.truncate(job / file, kept)
        with pytest.raises(InvalidInput):
            commit_job(job, tmp_path / "out", threads=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["flipped", "cut", "longer", "gone"])
@pytest.mark.parametrize("file", ["model/trained.npz", "part-1/run-00000000"])
def test_every_byte_of_a_file_counts(job: Path, tmp_path: Path, file: str, change: str) -> None:
    path = job / file
    if change == "flipped":
        flip(path, path.stat().st_size - 9)
    elif change == "gone":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size + (-1 if change == "cut" else 1))
    with pytest.raises(InvalidInput, match=f"{path.parent.name}.* is damaged"):
        commit_job(job, tmp_path / "out", threads=1)
    assert not (tmp_path / "out").exists()


def test_missing_parts_are_named_together(job: Path, tmp_path: Path) -> None:
    shutil.rmtree(job / "part-0")
    shutil.rmtree(job / "part-2")
    with pytest.raises(InvalidInput, match=r"2 of 3 parts must be encoded first: .*part-0 is missing; .*part-2 is mis"):
        commit_job(job, tmp_path / "out", threads=1)


def test_a_part_of_another_shard_is_refused(job: Path, tmp_path: Path) -> None:
    shutil.rmtree(job / "part-0")
    shutil.copytree(job / "part-1", job / "part-0")
    with pytest.raises(InvalidInput, match=r"part-0 must be of shard 0, got 1"):
        commit_job(job, tmp_path / "out", threads=1)


def test_models_and_parts_of_another_job_are_refused(origin: Path, job: Path, tmp_path: Path) -> None:
    other = plan(origin, tmp_path / "other", seed=1)
    train_job(other, threads=1)
    encode_shard(other, 0, threads=1)
    shutil.rmtree(job / "part-0")
    shutil.copytree(other / "part-0", job / "part-0")
    with pytest.raises(InvalidInput, match=r"part-0 must be of plan \w{32}, got '\w{32}'"):
        commit_job(job, tmp_path / "out", threads=1)
    shutil.rmtree(job / "model")
    shutil.copytree(other / "model", job / "model")
    for late in (lambda: train_job(job), lambda: encode_shard(job, 0), lambda: commit_job(job, tmp_path / "out")):
        with pytest.raises(InvalidInput, match=r"model must be a model of protocol 1 and plan \w{32}, got 1, '\w{32}'"):
            late()


def test_a_part_of_another_model_is_refused(job: Path, tmp_path: Path) -> None:
    """Of the same plan, as if it had been trained by other code."""
    record = json.loads((job / "model" / "model.json").read_text())
    del record["digest"]
    with (job / "model" / "trained.npz").open("ab") as file:
        file.write(b"\0")
    now = StoredFile.of(job / "model" / "trained.npz")
    record["trained"] = {"bytes": now.bytes, "digest": now.digest}
    (job / "model" / "model.json").write_bytes(_signed(record))
    with pytest.raises(InvalidInput, match=r"3 of 3 parts must be encoded first: .*part-0 must be of model \w{32}"):
        commit_job(job, tmp_path / "out", threads=1)


FORGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another protocol": lambda record: record.update(protocol=2),
    "no plan": lambda record: record.pop("plan"),
    "no shards": lambda record: record.update(shards=[]),
    "shards of text": lambda record: record.update(shards=["x"]),
    "a gap": lambda record: record["shards"][1].update(start=5),
    "rows beyond the plan": lambda record: record["shards"][2].update(rows=10**9),
    "sizes of nothing": lambda record: record["sizes"].update(run_bytes=0),
    "sizes of text": lambda record: record["sizes"].update(run_bytes="9"),
    "an unknown loss": lambda record: record["config"].update(loss="x"),
    "no teacher": lambda record: record.update(teacher=None),
    "a list": lambda record: record.update(plan=[]),
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_plans_are_refused(job: Path, case: str) -> None:
    record = json.loads((job / "plan.json").read_text())
    del record["digest"]
    FORGED[case](record)
    (job / "plan.json").write_bytes(_signed(record))
    with pytest.raises(InvalidInput, match=r"plan\.json is no plan that can be used: "):
        open_job(job)


@pytest.mark.parametrize(
    "run",
    [{"file": "../../rows/1.npy"}, {"start": 0}, {"n": 2}, {"n": 0}, {"crc32": "x"}, {"start": True}, {"more": 1}],
)
def test_forged_parts_are_refused(job: Path, tmp_path: Path, run: dict[str, Any]) -> None:
    record = json.loads((job / "part-1" / "part.json").read_text())
    del record["digest"]
    record["runs"][0].update(run)
    (job / "part-1" / "part.json").write_bytes(_signed(record))
    with pytest.raises(InvalidInput, match="part-1"):
        commit_job(job, tmp_path / "out", threads=1)


def test_strange_files_in_a_part_are_refused(job: Path, tmp_path: Path) -> None:
    (job / "part-1" / "more").write_bytes(b"x")
    with pytest.raises(InvalidInput, match=r"part-1 is damaged: more is none of its files"):
        commit_job(job, tmp_path / "out", threads=1)


def test_an_index_that_is_there_is_not_touched(job: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InvalidInput, match="out exists already, and is not what this work leads to"):
        commit_job(job, tmp_path / "out", threads=1)
    assert list((tmp_path / "out").iterdir()) == []


# Commands


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "nowhere"], "must be a folder made by"),
        (["encode", "{job}", "--shard", "7"], "shard must be in 0..2, got 7"),
        (["encode", "{job}"], "Missing option '--shard'"),
        (["commit", "{job}", "-o", "{job}"], "exists already"),
        (["plan", "-o", "x"], "Missing argument 'INPUT...'"),
    ],
)
def test_commands_refuse_in_one_sentence(
    job: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        main(["shard", *(argument.format(job=job) for argument in arguments)])
    out, err = capsys.readouterr()
    assert (done.value.code, out) == (2, "") and sentence in err.splitlines()[-1] and "Traceback" not in err
