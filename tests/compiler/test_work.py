"""A compile that is stopped anywhere goes on to the same bytes, and never from what it cannot trust."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqdistill
from tests.index.support import flip, make_model
from vqdistill.compiler import build, recipe
from vqdistill.compiler.memory import Sizes
from vqdistill.compiler.store import load_trained, save_trained
from vqdistill.compiler.trained import Trained
from vqdistill.compiler.work import WorkDir, _entries, work_path
from vqdistill.data.relevance import Relevance
from vqdistill.data.sources import open_source
from vqdistill.distill.terms import QueryTerms
from vqdistill.errors import InvalidInput
from vqdistill.index.files import FileOps
from vqdistill.index.policy import SearchPolicy
from vqdistill.index.runs import EncodedRows, Runs
from vqdistill.index.verify import verify
from vqdistill.model.space import Space
from vqdistill.types import Codes

N, D = 300, 16
RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((N, D)).astype(np.float32)
QUERIES = (ROWS[:90] + 0.1 * RNG.standard_normal((90, D))).astype(np.float32)
IDS = np.arange(N) * 7 + 3
OPTIONS: dict[str, Any] = {"queries": QUERIES, "ram": "4B/vec", "codes": "pq", "distill": False, "threads": 1}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four blocks of rows, and a run for each."""
    monkeypatch.setattr(recipe, "LARGEST", Sizes(block_bytes=4 * D * 80, run_bytes=1))


@pytest.fixture(scope="module")
def input(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("input") / "rows.npy"
    np.save(path, ROWS)
    return path


def compile(input: Any, out: Path, **options: Any) -> dict[str, Any]:
    return vqdistill.compile(input, out, **OPTIONS | {"ids": IDS} | options)


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


def left(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.suffix != ".cache")


def dies(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Stop as if killed before the step `at` that changes the disk."""
    step = itertools.count()

    def dying(act: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            if next(step) >= at:
                raise KeyboardInterrupt
            return act(*arguments)

        return run

    for name in ("make_dir", "create", "write", "sync", "rename"):
        monkeypatch.setattr(FileOps, name, dying(getattr(FileOps, name)))


def test_wherever_it_stops_it_goes_on_to_the_same_bytes(input: Path, tmp_path: Path) -> None:
    compile(input, tmp_path / "whole")
    wanted, stopped = files(tmp_path / "whole"), 0
    for at in itertools.count(1, 29):
        out = tmp_path / f"at-{at}"
        with pytest.MonkeyPatch.context() as patch:
            dies(patch, at)
            try:
                compile(input, out)
            except KeyboardInterrupt:
                stopped += 1
        if out.exists() and not work_path(out).exists():
            break
        assert work_path(out).exists()
        compile(input, out, resume=True)
        assert files(out) == wanted and not work_path(out).exists(), f"stopped before step {at}"
    assert stopped > 4


def test_what_training_leaves_encodes_the_same(input: Path, tmp_path: Path) -> None:
    """Distilled, with additive codes and terms of queries: all that training leaves is kept."""
    options = OPTIONS | {"codes": "additive", "distill": True, "dense": "i8"}
    compile(input, tmp_path / "whole", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "IndexWriter", stop)
        with pytest.raises(KeyboardInterrupt):
            compile(input, tmp_path / "out", **options)
    assert sorted(files(work_path(tmp_path / "out"))) == ["journal", "trained.npz"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "train", None)  # it is not asked again
        compile(input, tmp_path / "out", **options, resume=True)
    assert files(tmp_path / "out") == files(tmp_path / "whole") and verify(tmp_path / "out") == []


@pytest.fixture(scope="module")
def trained() -> Trained:
    """All that a model may have, without any training."""
    rng, src = np.random.default_rng(1), open_source(ROWS)
    made = make_model(rng, D, 4, 8, D, "cosine", True, (3, 2))
    ranked = Relevance.from_lists([[3, 1], [1]], [[0.9, 0.8], [0.7]])
    terms = QueryTerms.from_relevance(ROWS[:2], ranked)
    space = Space.of_metric(np.diag(np.arange(1.0, D + 1)))
    model = replace(made, space=space, terms=terms, list_terms=terms, anchors=made.coarse)
    drawn = vqdistill.plan(src.facts, "4B/vec")
    policy = SearchPolicy(nprobe=2, refine=100)
    codes = Codes(np.arange(9, dtype=np.int32) % 4, rng.integers(0, 16, (9, 8), dtype=np.uint8))
    return Trained(plan=drawn, model=model, report={"a": [1.5, None]}, search=policy, reserved=QUERIES, codes=codes)


def test_what_is_trained_comes_back_as_it_was(trained: Trained, tmp_path: Path) -> None:
    save_trained(trained, tmp_path / "x.npz")
    back = load_trained(tmp_path / "x.npz")
    save_trained(back, tmp_path / "y.npz")
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()
    assert (back.plan, back.report, back.search) == (trained.plan, trained.report, trained.search)
    assert back.codes is not None and trained.codes is not None
    assert all(np.array_equal(getattr(back.codes, name), getattr(trained.codes, name)) for name in ("lists", "codes"))
    known = back.model.terms.take(np.array([0, 1, 3]))
    assert known.lists.tolist() == [[-1, -1], [1, 0], [0, -1]]
    assert back.held_out is None and np.array_equal(back.reserved, QUERIES)


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive at all"])
def test_what_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"x\.npz is damaged"):
        load_trained(tmp_path / "x.npz")


def work(place: Path, resume: bool = True, **made: Any) -> WorkDir:
    return WorkDir(place / "x.work", {"seed": 0, "input": "abc"} | made, resume=resume)


def kept(place: Path, trained: Trained) -> Path:
    """A work directory with a model and three runs, as a killed process leaves it."""
    found = work(place)
    found.keep_trained(trained)
    rows = Runs(FileOps(), found.path, {"codes": 2}, texts=False, nlist=3, memory_bytes=1, log=found.log)
    for _ in range(3):
        rows.add(EncodedRows(np.zeros(5, np.int32), np.ones((5, 2), np.uint8), None, None, None))
    os.close(found._fd)
    (found.path / "run-00000003").write_bytes(b"half")
    (found.path / "index").mkdir()
    return found.path


def test_what_is_finished_is_found_and_what_is_not_is_removed(trained: Trained, tmp_path: Path) -> None:
    path = kept(tmp_path, trained)
    found = work(tmp_path)
    assert found.trained is not None and [run.stop for run in found.runs] == [5, 10, 15]
    assert sorted(files(path)) == ["journal", "run-00000000", "run-00000001", "run-00000002", "trained.npz"]


@pytest.mark.parametrize(
    ("file", "model", "runs"),
    [("trained.npz", False, 0), ("run-00000000", True, 0), ("run-00000001", True, 1), ("run-00000002", True, 2)],
)
@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "link"])
def test_a_damaged_file_and_what_follows_is_done_again(
    file: str, model: bool, runs: int, harm: str, trained: Trained, tmp_path: Path
) -> None:
    target = kept(tmp_path, trained) / file
    if harm == "flip":
        flip(target, target.stat().st_size // 2)
    elif harm == "cut":
        target.write_bytes(target.read_bytes()[:-1])
    else:
        target.unlink()
    if harm == "link":
        target.symlink_to("/dev/zero")
    found = work(tmp_path)
    assert (found.trained is not None, len(found.runs)) == (model, runs)


def test_every_byte_of_the_journal_counts(trained: Trained, tmp_path: Path) -> None:
    journal = kept(tmp_path, trained) / "journal"
    whole = journal.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == 10]
    for at in range(0, len(whole), 37):
        journal.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        entries, _ = zip(*_entries(journal.read_bytes()), strict=True) if at >= ends[0] else ((), None)
        assert len(entries) == sum(end <= at for end in ends), at
        journal.write_bytes(whole[:at])
        assert len(list(_entries(journal.read_bytes()))) == sum(end <= at for end in ends)


@pytest.mark.parametrize(
    ("resume", "made", "wanted"),
    [
        (False, {}, r"x\.work is left from an interrupted compile: go on with --resume .* or remove it"),
        (True, {"seed": 1}, r"x\.work was made with seed 0, got 1: ask for the same, or remove it to start afresh"),
        (True, {"input": "abd" * 40}, r"x\.work was made with another input"),
        (True, {"more": 1}, r"made with more None, got 1"),
    ],
)
def test_what_is_not_to_be_resumed(
    resume: bool, made: dict[str, Any], wanted: str, trained: Trained, tmp_path: Path
) -> None:
    path = kept(tmp_path, trained)
    before = files_of(path)
    with pytest.raises(InvalidInput, match=wanted):
        work(tmp_path, resume, **made)
    assert files_of(path) == before


def test_two_compiles_do_not_share_a_directory(tmp_path: Path) -> None:
    first = work(tmp_path)
    with pytest.raises(InvalidInput, match="in use by another compile"):
        work(tmp_path)
    with first:
        pass
    assert left(tmp_path) == []


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x.work").mkdir()
    (tmp_path / "x.work" / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="no work directory of a compile"):
        work(tmp_path)
    assert (tmp_path / "x.work" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("change", ["input", "touched", "queries", "seed", "ram", "build_ram"])
def test_a_changed_input_or_option_is_noticed(change: str, input: Path, tmp_path: Path) -> None:
    own, out = tmp_path / "own.npy", tmp_path / "out"
    np.save(own, ROWS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            compile(own, out)
    if change == "input":
        np.save(own, np.concatenate([ROWS[:-1], ROWS[:1]]))
    elif change == "touched":
        os.utime(own, ns=(1, 1))
    changes: dict[str, Any] = {"queries": QUERIES[:-1], "seed": 1, "ram": "3B/vec", "build_ram": "8GiB"}
    options = {change: changes[change]} if change in changes else {}
    with pytest.raises(InvalidInput, match=r"out\.work was made with"):
        compile(own, out, resume=True, **options)


def stop(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def test_bad_input_leaves_no_work(tmp_path: Path) -> None:
    rows = ROWS.copy()
    rows[200, 3] = np.nan
    with pytest.raises(InvalidInput, match=r"row 200 holds NaN"):
        compile(rows, tmp_path / "out")
    assert left(tmp_path) == []
