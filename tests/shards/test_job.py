"""The steps of a job lead to the bytes of a plain compile, whoever runs them, in whatever order and how often."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqdistill
from tests.index.support import snapshot
from tests.shards.support import CUTS, OPTIONS, QUERIES, ROWS, N, compile_whole, plan, run_all, write_input
from vqdistill.compiler import build, recipe
from vqdistill.compiler.memory import Sizes
from vqdistill.compiler.store import load_trained
from vqdistill.compiler.train import train
from vqdistill.index.verify import verify
from vqdistill.shards import parts, training
from vqdistill.shards.parts import encode_shard
from vqdistill.shards.planning import plan_job
from vqdistill.shards.publishing import commit_job
from vqdistill.shards.training import train_job

ROOT = Path(__file__).parent.parent.parent


def part_bytes(job: Path) -> dict[str, bytes]:
    return {str(file.relative_to(job)): file.read_bytes() for file in job.glob("part-*/*")}


def test_a_job_gives_the_bytes_of_a_plain_compile(origin: Path, job: Path, tmp_path: Path) -> None:
    manifest = commit_job(job, tmp_path / "out", threads=1)
    assert snapshot(tmp_path / "out") == snapshot(origin / "whole") and verify(tmp_path / "out") == []
    assert manifest.n == N and sorted(path.name for path in tmp_path.iterdir()) == ["job", "out"]


@pytest.mark.parametrize("ids", ["column", "text sidecar", "integer sidecar"])
def test_external_ids_stay_with_their_rows(origin: Path, tmp_path: Path, ids: str) -> None:
    sidecar, rows = origin / "ids.txt", origin / "rows"
    if ids == "integer sidecar":
        sidecar = tmp_path / "ids.npy"
        np.save(sidecar, np.arange(N) * 7 - 52)
    if ids == "column":
        rows = tmp_path / "rows"
        rows.mkdir()
        for number, (a, b) in enumerate(itertools.pairwise(CUTS)):
            np.savez(rows / f"{number}.npz", train=ROWS[a:b], name=np.array([f"n{row}" for row in range(a, b)]))
    named = "name" if ids == "column" else str(sidecar)
    given = OPTIONS | {"queries": str(origin / "queries.npy"), "ids": named}
    vqdistill.compile(str(rows), tmp_path / "whole", **given)
    plan_job([str(rows)], tmp_path / "job", **given)
    run_all(tmp_path / "job", tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


@pytest.mark.slow
def test_certificate_caps_and_distilled_codes_are_those_of_a_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Enough queries for a certificate, terms of queries in the codes, blocks and runs smaller than a shard."""
    monkeypatch.setattr(recipe, "LARGEST", Sizes(block_bytes=4 * 16 * 60, run_bytes=1))
    write_input(tmp_path)
    np.save(tmp_path / "queries.npy", np.concatenate([QUERIES, QUERIES + 0.01, QUERIES - 0.01]))
    options = {"codes": "additive", "distill": True, "dense": "i8", "ids": str(tmp_path / "ids.txt")}
    compile_whole(tmp_path, tmp_path / "whole", **options)
    run_all(plan(tmp_path, tmp_path / "job", **options), tmp_path / "out")
    assert len(list((tmp_path / "job").glob("part-0/run-*"))) == 3
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")
    with vqdistill.open_index(tmp_path / "out") as reader:
        assert reader.manifest.certificate is not None


def test_rows_that_training_has_not_coded_are_coded_alike(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with more rows than training holds: codes come from the model."""
    for place in (build, training):
        monkeypatch.setattr(place, "train", lambda *given: replace(train(*given), codes=None))
    compile_whole(origin, tmp_path / "whole")
    run_all(plan(origin, tmp_path / "bare"), tmp_path / "out")
    assert load_trained(tmp_path / "bare" / "model" / "trained.npz").codes is None
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


def test_the_model_is_that_of_a_plain_compile(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that training leaves, terms and codes of the rows included."""

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "IndexWriter", stop)
    with pytest.raises(KeyboardInterrupt):
        compile_whole(origin, tmp_path / "out")
    found, wanted = (place / "trained.npz" for place in (origin / "job" / "model", tmp_path / "out.work"))
    assert found.read_bytes() == wanted.read_bytes()


def test_a_cap_on_memory_holds_in_every_step(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same sizes as in one process, and no freed memory is kept."""
    kept = list[str]()
    monkeypatch.setattr(recipe, "give_back_freed_memory", lambda: kept.append("step"))
    compile_whole(origin, tmp_path / "whole", build_ram="600MiB")
    run_all(plan(origin, tmp_path / "job", build_ram="600MiB"), tmp_path / "out")
    assert len(kept) == 1 + 3 + len(CUTS) - 1
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


def test_what_is_done_is_not_done_again(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = part_bytes(job)
    monkeypatch.setattr(training, "train", None)
    monkeypatch.setattr(parts, "seal", None)
    assert not train_job(job) and not encode_shard(job, 1)
    assert part_bytes(job) == before
    first = commit_job(job, tmp_path / "out", threads=1)
    assert commit_job(job, tmp_path / "out", threads=1).index_id == first.index_id


def test_order_of_shards_and_the_process_do_not_matter(origin: Path, job: Path) -> None:
    for number in range(len(CUTS) - 1):
        shutil.rmtree(job / f"part-{number}")
    for number in (2, 0, 1):
        assert encode_shard(job, number, threads=1)
    assert part_bytes(job) == part_bytes(origin / "job")


def test_a_damaged_part_is_encoded_anew(origin: Path, job: Path) -> None:
    (job / "part-1" / "run-00000000").write_bytes(b"")
    assert encode_shard(job, 1, threads=1)
    assert part_bytes(job) == part_bytes(origin / "job")
    assert sorted(path.name for path in job.iterdir()) == ["cache", "model", "part-0", "part-1", "part-2", "plan.json"]


def test_encoding_reads_its_own_shard_only(origin: Path, tmp_path: Path) -> None:
    write_input(tmp_path)
    train_job(plan(tmp_path, tmp_path / "job"), threads=1)
    for other in (0, 2):
        (tmp_path / "rows" / f"{other}.npy").unlink()
    assert encode_shard(tmp_path / "job", 1, threads=1)
    assert not (tmp_path / "job" / "part-0").exists()


def test_several_may_encode_the_same_shard(origin: Path, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All reach the moment before the rename, and then go on together."""
    shutil.rmtree(job / "part-0")
    together, kept, done = threading.Barrier(3), parts._stamp, list[bool]()

    def waiting(shard: Any) -> Any:
        together.wait(20)
        return kept(shard)

    monkeypatch.setattr(parts, "_stamp", waiting)
    at_once = [threading.Thread(target=lambda: done.append(encode_shard(job, 0, threads=1))) for _ in range(3)]
    for thread in at_once:
        thread.start()
    for thread in at_once:
        thread.join()
    assert done == [True] * 3 and part_bytes(job) == part_bytes(origin / "job")
    assert not list(job.glob("*.tmp-*"))


@pytest.mark.slow
def test_the_printed_makefile_gives_the_same_index(origin: Path, tmp_path: Path) -> None:
    shutil.copytree(origin / "rows", tmp_path / "rows")
    text = (ROOT / "docs" / "SHARDS.md").read_text(encoding="utf-8")
    (makefile,) = re.findall(r"^```make\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "Makefile").write_text(makefile, encoding="utf-8")
    options = "--ram 4B/vec --codes pq --no-distill --threads 1"
    command = ["make", "-j2", f"VQDISTILL={sys.executable} -m vqdistill", f"OPTIONS={options}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    vqdistill.compile(str(origin / "rows"), tmp_path / "whole", **OPTIONS)
    assert snapshot(tmp_path / "corpus.vqd") == snapshot(tmp_path / "whole")
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "up to date" in again.stdout


def test_a_plan_is_readable_json(origin: Path) -> None:
    record = json.loads((origin / "job" / "plan.json").read_text(encoding="utf-8"))
    assert [(shard["start"], shard["rows"]) for shard in record["shards"]] == [(0, 130), (130, 1), (131, 169)]
    assert record["protocol"] == 1 and record["seed"] == 0
