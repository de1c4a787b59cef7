"""A job becomes several indexes under one manifest, which are searched as the one index of all rows."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqdistill
from tests.index.support import snapshot
from tests.shards.support import QUERIES, N, compile_whole, plan, run_all, write_input
from vqdistill.cli import main
from vqdistill.errors import InvalidInput
from vqdistill.index.opening import open_index
from vqdistill.index.shardset import read_shards
from vqdistill.index.verify import verify
from vqdistill.shards.job import InputShard, StoredFile
from vqdistill.shards.publishing import commit_job
from vqdistill.shards.splitting import split


def same(found: Any, wanted: Any) -> bool:
    return all(np.array_equal(getattr(found, name), getattr(wanted, name)) for name in ("scores", "ids", "rows"))


@pytest.mark.parametrize("shards", [2, 3])
def test_results_are_those_of_a_plain_compile(origin: Path, job: Path, tmp_path: Path, shards: int) -> None:
    manifest = commit_job(job, tmp_path / "split", threads=1, shards=shards)
    assert (
        manifest.n == N and verify(tmp_path / "split") == [] and len(read_shards(tmp_path / "split").shards) == shards
    )
    one, many = vqdistill.open(origin / "whole"), vqdistill.open(tmp_path / "split")
    for options in ({}, {"nprobe": 2, "refine": 20}, {"refine": 0}):
        assert same(many.search(QUERIES, 10, **options), one.search(QUERIES, 10, **options))
    if shards == 2:
        assert snapshot(tmp_path / "split") == snapshot(origin / "split")


def test_certificate_and_defaults_are_those_of_one_piece(tmp_path: Path) -> None:
    """But for pages, of which the rows of a query lie in more."""
    write_input(tmp_path)
    np.save(tmp_path / "queries.npy", np.concatenate([QUERIES, QUERIES + 0.01, QUERIES - 0.01]))
    options = {"ids": str(tmp_path / "ids.txt"), "recall": "0.5@10"}
    compile_whole(tmp_path, tmp_path / "whole", **options)
    run_all(plan(tmp_path, tmp_path / "job", **options), tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")
    commit_job(tmp_path / "job", tmp_path / "split", threads=1, shards=3)
    one, many = (open_index(tmp_path / name).manifest for name in ("out", "split"))
    assert one.search == many.search and one.certificate is not None and many.certificate is not None
    rungs = [[replace(rung, pages=0.0) for rung in each.certificate.rungs] for each in (one, many)]  # type: ignore[union-attr]
    assert rungs[0] == rungs[1]
    hits = vqdistill.open(tmp_path / "split").search(QUERIES, 10, recall=0.5)
    assert same(hits, vqdistill.open(tmp_path / "out").search(QUERIES, 10, recall=0.5)) and hits.ids[0, 0][:3] == "id-"


def test_commit_again_is_harmless(origin: Path, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["shard", "commit", str(job), "-o", str(tmp_path / "split"), "--shards", "2", "--threads", "1", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert done.value.code == 0 and told == {"index": str(tmp_path / "split"), "rows": N, "shards": 2}
    before = snapshot(tmp_path / "split")
    assert commit_job(job, tmp_path / "split", threads=1, shards=2).n == N
    assert snapshot(tmp_path / "split") == before == snapshot(origin / "split")
    for shards in (1, 3):
        with pytest.raises(InvalidInput, match="split exists already, and is not what this"):
            commit_job(job, tmp_path / "split", threads=1, shards=shards)
    with pytest.raises(InvalidInput, match=r"shards must be in 1\.\.3, the files of the job, got 4"):
        commit_job(job, tmp_path / "other", threads=1, shards=4)


def test_commands_work_on_shards(origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, queries, out = str(origin / "split"), str(origin / "queries.npy"), tmp_path / "out.npz"
    for command in (["search", index, queries, "-o", str(out)], ["inspect", index], ["verify", index]):
        with pytest.raises(SystemExit) as done:
            main(command)
        assert done.value.code == 0
    assert "shards: " in capsys.readouterr().out
    assert np.array_equal(np.load(out)["ids"], vqdistill.open(origin / "whole").search(QUERIES, 10).ids)
    with pytest.raises(SystemExit) as done:
        main(["compact", index])
    assert done.value.code == 2 and "must be of one piece for this, got one in shards" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sizes", "count", "ends"),
    [
        ([1, 1, 1, 1], 2, [2, 4]),
        ([10, 1, 1], 3, [10, 11, 12]),
        ([1, 1, 10], 2, [2, 12]),
        ([5, 5, 5, 5, 5], 2, [10, 25]),
    ],
)
def test_shards_have_about_as_many_rows(sizes: list[int], count: int, ends: list[int]) -> None:
    starts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    file = StoredFile("x", 0, "")
    files = [InputShard(file=file, key=None, start=a, rows=b) for a, b in zip(starts, sizes, strict=False)]
    groups = split(files, count)
    assert [group.stop for group in groups] == ends and groups[0].start == 0
    assert all(a.stop == b.start for a, b in pairwise(groups))
