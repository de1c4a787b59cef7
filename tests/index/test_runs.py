"""Runs of encoded rows: any number of them, of any size, merge into the same index, in one process or in several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.index.support import make_sample, snapshot, write_sample
from vqdistill.errors import InvalidInput
from vqdistill.index.files import FileOps
from vqdistill.index.runs import EncodedRows, Run, RunLog, Runs, checksum


def widths_of(m: int, dense: int) -> dict[str, int]:
    return {"codes": m, "dense": dense, "keys": 8}


@pytest.mark.parametrize("ids", ["rows", "int64", "str"])
@pytest.mark.parametrize("memory_bytes", [1, 200, 900, 5000])
def test_the_size_of_runs_and_buckets_changes_no_byte(tmp_path: Path, ids: str, memory_bytes: int) -> None:
    """One byte makes a run of each block and a bucket of each list; the others make buckets of some lists."""
    sample = make_sample(n=71, nlist=9, ids=ids)
    write_sample(tmp_path / "whole", sample)
    write_sample(tmp_path / "pieces", sample, batch=10, memory_bytes=memory_bytes)
    assert snapshot(tmp_path / "pieces") == snapshot(tmp_path / "whole")


@pytest.mark.parametrize("ids", ["int64", "str"])
def test_repeated_ids_in_different_runs_are_refused(tmp_path: Path, ids: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqdistill.index.runs._KEY_BYTES", 100_000)  # keys are sorted in nine parts
    sample = make_sample(n=90, ids=ids)
    again = np.asarray(sample.ids).tolist()
    again[83] = again[7]
    wanted = rf"must be unique, got {again[7]!r} for rows 7 and 83"
    with pytest.raises(InvalidInput, match=wanted):
        write_sample(tmp_path / "x", type(sample)(**vars(sample) | {"ids": again}), batch=10, memory_bytes=300)
    assert list(tmp_path.iterdir()) == []


def test_a_log_lets_another_writer_go_on(tmp_path: Path) -> None:
    sample, work, noted = make_sample(n=100, ids="str"), tmp_path / "work", []
    write_sample(tmp_path / "whole", sample)
    work.mkdir()

    class StoppedError(Exception):
        pass

    def note(run: Run) -> None:
        noted.append(run)
        if len(noted) == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        write_sample(tmp_path / "x", sample, batch=10, memory_bytes=1, log=RunLog(work, [], note))
    assert [run.stop for run in noted] == [10, 20, 30] and sorted(work.iterdir()) == [work / run.file for run in noted]
    assert all(checksum(work / run.file) == run.crc32 for run in noted)
    write_sample(tmp_path / "x", sample, batch=10, memory_bytes=1, log=RunLog(work, tuple(noted), noted.append))
    assert len(noted) == 10 and snapshot(tmp_path / "x") == snapshot(tmp_path / "whole")


def test_memory_for_rows_bounds_runs_and_buckets(tmp_path: Path) -> None:
    rng, wide, memory_bytes = np.random.default_rng(0), 100, 10_000
    runs = Runs(FileOps(), tmp_path, widths_of(4, wide), texts=False, nlist=50, memory_bytes=memory_bytes)
    for _ in range(40):
        lists, dense = rng.integers(0, 50, 20).astype(np.int32), rng.integers(0, 9, (20, wide)).astype(np.uint8)
        runs.add(EncodedRows(lists, np.zeros((20, 4), np.uint8), dense, np.arange(20), None))
    runs.flush()
    assert max(run.n for run in runs.runs) * (wide + 24) <= memory_bytes + 20 * (wide + 24) and len(runs.runs) > 5
    chunks = list(runs.merged("dense"))
    assert sum(map(len, chunks)) == 800 and max(chunk.nbytes for chunk in chunks) <= memory_bytes


def test_a_missing_part_of_a_run_is_told(tmp_path: Path) -> None:
    runs = Runs(FileOps(), tmp_path, {"codes": 2}, texts=False, nlist=3, memory_bytes=1)
    runs.add(EncodedRows(np.zeros(4, np.int32), np.zeros((4, 2), np.uint8), None, None, None))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(Exception, match=r"run-00000000: \d+ more bytes wanted"):
        list(runs.merged("codes"))
