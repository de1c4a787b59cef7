"""A stop, a failure or an interrupt at any file operation leaves no index, the old one or the new one."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.index.disk import FailingDisk, ForgetfulDisk, PowerCutError
from tests.index.support import make_sample, open_fds, snapshot, write_sample
from vqdistill.errors import InvalidInput, VqdistillError
from vqdistill.index.files import FileOps, publish_manifest, read_manifest
from vqdistill.index.manifest import Manifest
from vqdistill.index.policy import SearchPolicy
from vqdistill.index.reader import IndexReader
from vqdistill.index.verify import verify
from vqdistill.index.writer import IndexWriter

SAMPLE = make_sample(n=40, d=3, nlist=2, m=2, dsub=2)
LATER = SearchPolicy(nprobe=2, refine=7)
HOWS = ["synced", "names", "all"]


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("wanted") / "x.vqd"
    write_sample(path, SAMPLE)
    return snapshot(path)


def _count_steps(root: Path) -> int:
    disk = ForgetfulDisk(root)
    write_sample(root / "x.vqd", SAMPLE, ops=disk)
    return disk.steps


@pytest.mark.parametrize("how", HOWS)
def test_power_cut_during_first_publish(tmp_path: Path, wanted: dict[str, bytes], how: str) -> None:
    root = tmp_path / "count"
    root.mkdir()
    steps = _count_steps(root)
    outcomes = []
    for stop in range(steps + 1):
        root, found = tmp_path / f"run{stop}", tmp_path / f"found{stop}"
        root.mkdir()
        disk = ForgetfulDisk(root, stop)
        if stop < steps:
            with pytest.raises(PowerCutError):
                write_sample(root / "x.vqd", SAMPLE, ops=disk)
        else:
            write_sample(root / "x.vqd", SAMPLE, ops=disk)
        disk.survivors(found, how)
        published = (found / "x.vqd").exists()
        outcomes.append(published)
        if published:
            assert snapshot(found / "x.vqd") == wanted, f"stop before step {stop}"
        left = [entry.name for entry in found.iterdir() if entry.name != "x.vqd"]
        assert all(name.startswith("x.vqd.tmp-") for name in left)
        if not published:
            write_sample(found / "x.vqd", SAMPLE)  # a leftover is in nobody's way
    assert outcomes[-1], "an acknowledged index must survive"
    assert outcomes == sorted(outcomes) and not outcomes[0]


def _changed(path: Path) -> Manifest:
    return replace(read_manifest(path), generation=2, search=LATER)


def _publish_change(root: Path, disk: FileOps) -> None:
    publish_manifest(disk, root / "x.vqd", _changed(root / "x.vqd"))


@pytest.mark.parametrize("how", HOWS)
def test_power_cut_during_next_generation(tmp_path: Path, how: str) -> None:
    outcomes = []
    for stop in itertools.count():
        root, found = tmp_path / f"run{stop}", tmp_path / f"found{stop}"
        root.mkdir()
        write_sample(root / "x.vqd", SAMPLE)
        disk = ForgetfulDisk(root, stop)
        finished = False
        try:
            _publish_change(root, disk)
            finished = True
        except PowerCutError:
            pass
        disk.survivors(found, how)
        with IndexReader.open(found / "x.vqd") as reader:
            outcomes.append(reader.manifest.generation)
            assert reader.manifest.search == (SAMPLE.search, LATER)[outcomes[-1] - 1]
        _ = finished or _publish_again(found, outcomes[-1])
        if finished:
            break
    assert outcomes == sorted(outcomes) and outcomes[0] == 1 and outcomes[-1] == 2


def _publish_again(found: Path, generation: int) -> None:
    """The next write succeeds in spite of what the crash left."""
    publish_manifest(FileOps(), found / "x.vqd", replace(read_manifest(found / "x.vqd"), generation=generation + 1))
    assert read_manifest(found / "x.vqd").generation == generation + 1


def test_the_disk_double_forgets(tmp_path: Path) -> None:
    """The double itself: without syncs nothing survives, and each sync saves what it names."""
    root = tmp_path / "root"
    root.mkdir()
    disk = ForgetfulDisk(root)
    fd = disk.create(root / "a")
    disk.write(fd, b"one")
    disk.sync(fd)
    disk.write(fd, b"two")
    disk.survivors(tmp_path / "no_name", "synced")
    assert snapshot(tmp_path / "no_name") == {}
    disk.survivors(tmp_path / "names", "names")
    assert snapshot(tmp_path / "names") == {"a": b"one"}
    disk.sync_dir(root)
    disk.rename(root / "a", root / "b")
    disk.survivors(tmp_path / "old_name", "synced")
    assert snapshot(tmp_path / "old_name") == {"a": b"one"}
    disk.survivors(tmp_path / "all", "all")
    assert snapshot(tmp_path / "all") == {"b": b"onetwo"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_failing_disk_leaves_nothing(tmp_path: Path, wanted: dict[str, bytes], code: int) -> None:
    target, fds = tmp_path / "x.vqd", open_fds()
    for at in itertools.count():
        disk = FailingDisk(at, lambda: OSError(code, os.strerror(code)))
        try:
            write_sample(target, SAMPLE, ops=disk)
        except VqdistillError as error:
            assert str(target) in str(error) and os.strerror(code) in str(error) and "\n" not in str(error)
            assert not isinstance(error, InvalidInput)
            assert str(error).startswith("cannot write" if code == errno.EIO else "disk full writing")
            if target.exists():
                break
            assert list(tmp_path.iterdir()) == [], f"failure at step {at}"
    # Only the last operation, the sync of the parent directory, comes after the index is there; and then it is whole.
    assert disk.steps == at + 1 and snapshot(target) == wanted and at > 50
    assert open_fds() == fds


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    target, fds = tmp_path / "x.vqd", open_fds()
    for at in itertools.count():
        with pytest.raises(KeyboardInterrupt):
            write_sample(target, SAMPLE, ops=FailingDisk(at, KeyboardInterrupt))
        if target.exists():
            break
        assert list(tmp_path.iterdir()) == [], f"interrupt at step {at}"
    assert verify(target) == []
    assert open_fds() == fds


@contextmanager
def _file_size_limit(size: int) -> Iterator[None]:
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_real_refusal_of_the_system(tmp_path: Path) -> None:
    """No double: the kernel refuses a write in the middle of a file."""
    old = tmp_path / "old.vqd"
    write_sample(old, SAMPLE)
    before = snapshot(old)
    with _file_size_limit(6000), pytest.raises(VqdistillError, match=r"cannot write .*x\.vqd: File too large"):
        write_sample(tmp_path / "x.vqd", SAMPLE)
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.vqd"]
    assert snapshot(old) == before


def test_an_existing_output_is_refused_and_untouched(tmp_path: Path) -> None:
    target = tmp_path / "x.vqd"
    write_sample(target, SAMPLE)
    before = snapshot(target)
    with pytest.raises(InvalidInput, match=r"x\.vqd must not exist"):
        write_sample(target, SAMPLE)
    assert snapshot(target) == before and os.listdir(tmp_path) == ["x.vqd"]


@pytest.mark.parametrize("what", ["empty directory", "file", "dangling link"])
def test_any_existing_output_is_refused(tmp_path: Path, what: str) -> None:
    target = tmp_path / "x.vqd"
    make = {
        "empty directory": target.mkdir,
        "file": target.touch,
        "dangling link": lambda: target.symlink_to("nowhere"),
    }
    make[what]()
    with pytest.raises(InvalidInput, match="must not exist"):
        write_sample(target, SAMPLE)
    assert os.listdir(tmp_path) == ["x.vqd"]


def test_two_writers_of_one_path(tmp_path: Path, wanted: dict[str, bytes]) -> None:
    """Both may work; the first to publish wins, the second is told so and cleans up."""
    target, other = tmp_path / "x.vqd", make_sample(n=9, d=3, nlist=2, m=2, dsub=2, seed=1)

    class Overtaken(FileOps):
        def rename(self, source: Path, to: Path) -> None:
            if to == target:
                write_sample(target, SAMPLE)
            super().rename(source, to)

    with pytest.raises(InvalidInput, match="must not exist"):
        write_sample(target, other, ops=Overtaken())
    assert snapshot(target) == wanted and os.listdir(tmp_path) == ["x.vqd"]


def test_leaving_the_block_without_publish_removes_all(tmp_path: Path) -> None:
    with IndexWriter(tmp_path / "x.vqd", SAMPLE.model, dense="f32", ids="rows", index_id=bytes(16)) as writer:
        writer.add(None, SAMPLE.codes, SAMPLE.x)
        (left,) = tmp_path.iterdir()
        assert left.name.startswith("x.vqd.tmp-")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InvalidInput, match="closed"):
        writer.add(None, SAMPLE.codes, SAMPLE.x)
