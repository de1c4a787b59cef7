"""The commands that change an index."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqdistill as vqd
from vqdistill.cli import main

D = 8
X = np.random.default_rng(0).standard_normal((300, D)).astype(np.float32)
Run = Callable[..., Any]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command; its JSON, or the sentence of what was refused."""

    def call(*arguments: Any) -> Any:
        with pytest.raises(SystemExit) as done:
            main([str(argument) for argument in arguments] + ["--json"])
        out, err = capsys.readouterr()
        if done.value.code == 0:
            return json.loads(out)
        assert (done.value.code, out) == (2, "") and "Traceback" not in err
        return err.splitlines()[-1]

    return call


@pytest.fixture
def index(tmp_path: Path) -> Path:
    path = tmp_path / "x.vqd"
    ids = [f"d{row}" for row in range(200)]
    vqd.compile(X[:200], path, queries="none", ids=ids, ram="4B/vec", distill=False, threads=1)
    np.save(tmp_path / "more.npy", X[200:])
    (tmp_path / "ids.txt").write_text("".join(f"d{row}\n" for row in range(200, 300)))
    (tmp_path / "known.txt").write_text("".join(f"d{row}\n" for row in range(150, 250)))
    return path


def test_the_life_of_an_index(index: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    more, folder = index.parent / "more.npy", index.parent
    added = run("add", index, more, "--ids", folder / "ids.txt")
    assert (added["added"], added["rows"]) == (100, 300)
    assert "got 'd150', which it has; upsert replaces" in run("add", index, more, "--ids", folder / "known.txt")
    assert run("upsert", index, more, "--ids", folder / "known.txt")["rows"] == 300
    assert run("delete", index, "d1", "d2", "nobody")["deleted"] == 2
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"d3\n\nd4\n")))
    assert run("delete", index, "--from", "-")["rows"] == 296
    shown = run("inspect", index)
    assert shown["n"] - shown["deleted"] == 296 and shown["warnings"] == []
    assert run("compact", index)["rows"] == 296
    removed = run("gc", index)
    assert removed["files"] > 10 and removed["bytes"] > 4096 and removed["kept_generations"] == 0
    assert run("verify", index)["clean"]
    assert run("inspect", index)["deleted"] == 0
    hits = vqd.open(index).search(X[200:], k=1, nprobe=1, refine=50)
    assert set(hits.ids[:, 0].tolist()) <= {f"d{row}" for row in range(300)} - {"d1", "d2", "d3", "d4"}


def test_merge(index: Path, run: Run) -> None:
    other, out = index.with_name("y.vqd"), index.with_name("z.vqd")
    vqd.compile(X[200:], other, queries="none", ids=[f"e{row}" for row in range(100)], ram="4B/vec", distill=False)
    assert "must have the same model" in run("merge", index, other, "-o", out)
    assert "two or more" in run("merge", index, "-o", out)
    assert "must not exist" in run("merge", index, index, "-o", other)


def test_bad_input(index: Path, run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", X[200:].repeat(2, axis=1))
    assert "must have 8 dimensions" in run("add", index, tmp_path / "wide.npy", "--ids", tmp_path / "ids.txt")
    assert "ids of" in run("add", index, tmp_path / "more.npy")
    assert "must be given" in run("delete", index)
    assert "nothing at" in run("compact", tmp_path / "nowhere.vqd")
    assert "nothing at" in run("gc", tmp_path / "nowhere.vqd")


def test_numbered_rows_are_added_but_not_replaced(tmp_path: Path, run: Run) -> None:
    index, more, ids = tmp_path / "x.vqd", tmp_path / "more.npy", tmp_path / "ids.txt"
    vqd.compile(X[:200], index, queries="none", ram="4B/vec", distill=False, threads=1)
    np.save(more, X[200:])
    ids.write_text("".join(f"{row}\n" for row in range(100)))
    for command in (("upsert", index, more), ("add", index, more, "--on-duplicate", "replace")):
        assert "rows cannot be replaced, got replace" in run(*command)
    assert "rows cannot be replaced, got --ids" in run("add", index, more, "--ids", ids)
    assert run("add", index, more)["rows"] == 300
