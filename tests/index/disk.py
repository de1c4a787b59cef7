"""A disk that stops, fails and forgets: file operations for the crash tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vqdistill.index.files import FileOps


class PowerCutError(BaseException):
    """The machine stopped; nothing that runs afterwards reaches the disk."""


@dataclass
class _File:
    path: Path
    synced: bytes = b""


@dataclass
class _Dir:
    entries: dict[str, _File | _Dir] = field(default_factory=dict)
    synced: dict[str, _File | _Dir] = field(default_factory=dict)


class ForgetfulDisk(FileOps):
    """Works on real files under `root`, remembers what was synced, and loses power before step `stop`.

    `root` and what is in it at the start count as synced. `survivors(target, how)` writes what a reboot may find:
    "synced": synced names with synced content; "names": all names, synced content (a rename that overtook its data);
    "all": everything that was written (a killed process).
    """

    def __init__(self, root: Path, stop: int | None = None) -> None:
        self.root, self.stop, self.steps = root, stop, 0
        self._files: dict[int, _File] = {}
        self._tree = self._scan(root)

    def _scan(self, path: Path) -> _Dir:
        entries: dict[str, _File | _Dir] = {
            entry.name: self._scan(entry) if entry.is_dir() else _File(entry, entry.read_bytes())
            for entry in path.iterdir()
        }
        return _Dir(entries, dict(entries))

    def _step(self) -> None:
        if self.stop is not None and self.steps >= self.stop:
            raise PowerCutError
        self.steps += 1

    def _dir(self, path: Path) -> _Dir:
        node = self._tree
        for name in path.relative_to(self.root).parts:
            found = node.entries[name]
            assert isinstance(found, _Dir)
            node = found
        return node

    def make_dir(self, path: Path) -> None:
        self._step()
        super().make_dir(path)
        self._dir(path.parent).entries[path.name] = _Dir()

    def create(self, path: Path) -> int:
        self._step()
        fd = super().create(path)
        self._files[fd] = file = _File(path)
        self._dir(path.parent).entries[path.name] = file
        return fd

    def write(self, fd: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        if self.stop is not None and self.steps >= self.stop:
            super().write(fd, view[: view.nbytes // 2])
        self._step()
        super().write(fd, view)

    def sync(self, fd: int) -> None:
        self._step()
        self._files[fd].synced = self._files[fd].path.read_bytes()

    def close(self, fd: int) -> None:
        super().close(fd)
        self._files.pop(fd)
        self._step()

    def sync_dir(self, path: Path) -> None:
        self._step()
        node = self._dir(path)
        node.synced = dict(node.entries)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)
        node = self._dir(source.parent).entries.pop(source.name)
        self._dir(target.parent).entries[target.name] = node
        if isinstance(node, _File):
            node.path = target

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)
        del self._dir(path.parent).entries[path.name]

    def remove_tree(self, path: Path) -> None:
        self._step()
        super().remove_tree(path)
        self._dir(path.parent).entries.pop(path.name, None)

    def survivors(self, target: Path, how: str) -> None:
        if how == "all":
            shutil.copytree(self.root, target)
            return
        for fd in self._files:
            os.close(fd)
        self._files.clear()
        self._restore(self._tree, target, synced_names=how == "synced")

    def _restore(self, node: _Dir, target: Path, synced_names: bool) -> None:
        target.mkdir()
        for name, child in (node.synced if synced_names else node.entries).items():
            if isinstance(child, _Dir):
                self._restore(child, target / name, synced_names)
            else:
                (target / name).write_bytes(child.synced)


class FailingDisk(FileOps):
    """Raises what `error` makes at step `at`; removing works always."""

    def __init__(self, at: int, error: Callable[[], BaseException]) -> None:
        self.at, self.error, self.steps = at, error, 0

    def _step(self) -> None:
        self.steps += 1
        if self.steps - 1 == self.at:
            raise self.error()

    def make_dir(self, path: Path) -> None:
        self._step()
        super().make_dir(path)

    def create(self, path: Path) -> int:
        self._step()
        return super().create(path)

    def write(self, fd: int, data: bytes | memoryview) -> None:
        self._step()
        super().write(fd, data)

    def sync(self, fd: int) -> None:
        self._step()

    def close(self, fd: int) -> None:
        super().close(fd)
        self._step()

    def sync_dir(self, path: Path) -> None:
        self._step()

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)
