"""A change that stops after any file operation leaves an index as it was or as it should be, and the next one works."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vqdistill as vqd
from tests.index.disk import FailingDisk, ForgetfulDisk, PowerCutError
from tests.index.support import make_sample, open_fds, snapshot, write_sample
from vqdistill.errors import VqdistillError
from vqdistill.index import update
from vqdistill.index.files import FileOps
from vqdistill.index.gc import gc
from vqdistill.index.join import merge_indexes
from vqdistill.index.update import IndexUpdater
from vqdistill.index.verify import verify

HOWS = ["all", "names", "synced"]
"""`survivors` of "all" leaves the disk as it is, the others close its files."""
X = np.random.default_rng(0).standard_normal((9, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with two sets of rows, some of them deleted, and older generations."""
    root = tmp_path_factory.mktemp("grown")
    write_sample(root / "x.vqd", make_sample(n=40, d=3, nlist=2, m=2, dsub=2, ids="int64"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(update, "SMALL_ROWS", 0)
        vqd.open(root / "x.vqd").add(X, range(100, 109))
    vqd.open(root / "x.vqd").delete([100, -2])
    return root


def add(path: Path, ops: FileOps) -> None:
    with IndexUpdater(path, ops=ops) as updater:
        updater.add([103, 200, 201], X[:3], replace=True)
        updater.publish()


def delete(path: Path, ops: FileOps) -> None:
    with IndexUpdater(path, ops=ops) as updater:
        updater.delete([105, -9, 7])
        updater.publish()


def compact(path: Path, ops: FileOps) -> None:
    with IndexUpdater(path, ops=ops) as updater:
        updater.compact()
        updater.publish()


def collect(path: Path, ops: FileOps) -> None:
    gc(path, ops=ops)


def state(path: Path) -> dict[int, bytes]:
    """Rows by id."""
    with vqd.open_index(path) as reader:
        positions = np.arange(reader.manifest.n)
        positions = positions[reader.alive.of(positions)]
        rows = reader.dense_rows(positions)
        assert np.array_equal(reader.positions_of(reader.ids_of(positions)), positions)
        return {key: row.tobytes() for key, row in zip(reader.ids_of(positions).tolist(), rows, strict=True)}


@pytest.mark.parametrize("change", [add, delete, compact, collect])
def test_power_cut_at_every_file_operation(
    tmp_path: Path, grown: Path, change: Callable[[Path, FileOps], None]
) -> None:
    before, fds = state(grown / "x.vqd"), open_fds()
    shutil.copytree(grown, tmp_path / "whole")
    change(tmp_path / "whole" / "x.vqd", FileOps())
    after = state(tmp_path / "whole" / "x.vqd")
    for stop in itertools.count():
        root = tmp_path / "run"
        shutil.copytree(grown, root)
        disk, finished = ForgetfulDisk(root, stop), False
        try:
            change(root / "x.vqd", disk)
            finished = True
        except PowerCutError:
            pass
        for how in HOWS:
            found = tmp_path / how
            disk.survivors(found, how)
            path = found / "x.vqd"
            assert verify(path) == [], (stop, how)
            assert state(path) in ([after] if finished else [before, after]), (stop, how)
            if how == HOWS[stop % 3]:  # one of three, for the time it takes
                change(path, FileOps())
                assert state(path) == after and verify(path) == [], (stop, how)
            shutil.rmtree(found)
        shutil.rmtree(root)
        if finished:
            break
    assert stop > 2 and open_fds() == fds


@pytest.mark.parametrize("how", HOWS)
def test_power_cut_during_a_merge(tmp_path: Path, grown: Path, how: str) -> None:
    write_sample(tmp_path / "b.vqd", make_sample(n=9, d=3, nlist=2, m=2, dsub=2, ids="int64"))
    with IndexUpdater(tmp_path / "b.vqd") as updater:
        updater.delete(np.arange(9) * -7 - 2)
        updater.add(range(300, 309), X)
        updater.publish()
    for stop in itertools.count():
        root, found = tmp_path / f"run{stop}", tmp_path / f"found{stop}"
        root.mkdir()
        disk = ForgetfulDisk(root, stop)
        try:
            merge_indexes([grown / "x.vqd", tmp_path / "b.vqd"], root / "c.vqd", ops=disk)
            break
        except PowerCutError:
            disk.survivors(found, how)
        if (found / "c.vqd").exists():
            assert verify(found / "c.vqd") == [] and len(state(found / "c.vqd")) == 56
    assert len(state(root / "c.vqd")) == 56 and stop > 20


def test_a_compaction_goes_on_where_it_ended(tmp_path: Path, grown: Path) -> None:
    shutil.copytree(grown, tmp_path / "run")
    path = tmp_path / "run" / "x.vqd"
    with pytest.raises(KeyboardInterrupt):
        compact(path, FailingDisk(40, KeyboardInterrupt))
    assert (path / "compaction.tmp-000000000000").exists()
    done = {name: os.stat(path / name).st_mtime_ns for name in os.listdir(path) if name.endswith("-4.seg")}
    assert done and verify(path) == []
    compact(path, FileOps())
    assert all(os.stat(path / name).st_mtime_ns == at for name, at in done.items()), "not written again"
    assert state(path) == state(grown / "x.vqd") and verify(path) == []
    assert not (path / "compaction.tmp-000000000000").exists()


def test_a_compaction_of_another_generation_is_no_use(tmp_path: Path, grown: Path) -> None:
    shutil.copytree(grown, tmp_path / "run")
    path = tmp_path / "run" / "x.vqd"
    with pytest.raises(KeyboardInterrupt):
        compact(path, FailingDisk(40, KeyboardInterrupt))
    delete(path, FileOps())
    wanted = state(path)
    compact(path, FileOps())
    assert state(path) == wanted and verify(path) == []


@pytest.mark.parametrize("change", [add, delete, compact])
def test_a_failing_disk_changes_nothing(tmp_path: Path, grown: Path, change: Callable[[Path, FileOps], None]) -> None:
    shutil.copytree(grown, tmp_path / "run")
    path, fds = tmp_path / "run" / "x.vqd", open_fds()
    before = snapshot(path)
    for at in itertools.count():
        try:
            change(path, FailingDisk(at, lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
            break
        except VqdistillError as error:
            assert str(error).startswith(f"disk full writing {path}") and "\n" not in str(error)
        now = snapshot(path)
        if now["CURRENT"] != before["CURRENT"]:
            assert verify(path) == [], "only the last sync failed"
            break
        left = {name for name in now if name not in before}
        assert all(".tmp-" in name or name.startswith("manifest-") for name in left), (at, left)
    assert verify(path) == [] and open_fds() == fds
