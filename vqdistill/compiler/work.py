"""The work directory of a compile: what is finished, checksummed, so that another process can go on from there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from vqdistill.compiler.store import load_trained, save_trained
from vqdistill.compiler.trained import Trained
from vqdistill.errors import BudgetInfeasible, InvalidInput, VqdistillError
from vqdistill.index.files import FileOps, temporary_name
from vqdistill.index.remote import Destination
from vqdistill.index.runs import Run, RunLog, checksum

FORMAT = 1
"""Of the directory; another one is not resumed."""
_JOURNAL, _TRAINED, _INDEX = "journal", "trained.npz", "index"
_JOURNAL_MAX_BYTES = 1 << 28
_RUN = re.compile(r"run-[0-9]{8}")


class WorkDir:
    """Journal, trained model and runs of encoded rows; a context manager.

    The journal has a line for all that a compile is made with, and one for each thing finished, each with its own
    checksum and on stable storage before the work goes on. Files that it does not vouch for are removed. Leaving the
    context removes the directory after success and where the input is to blame, and keeps it otherwise.

    Parameters
    ----------
    path : directory, made if it does not exist
    made_with : name -> value, JSON-ready: input and options that the result depends on
    resume : whether a directory that exists is gone on with

    Raises
    ------
    InvalidInput
        If it exists and is not to be resumed, was made with something else, is in use, or is no such directory.
    VqdistillError
        If the disk refuses.
    """

    def __init__(self, path: Path, made_with: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self.runs: list[Run] = []
        """Runs on disk, from row 0 on."""
        self._ops = FileOps()
        self._trained: dict[str, Any] | None = None
        head = {"format": FORMAT, "made_with": json.loads(json.dumps(made_with))}
        try:
            self._fd = self._open(resume)
            try:
                self._recover(head)
            except BaseException:
                os.close(self._fd)
                raise
        except OSError as error:
            raise VqdistillError(f"cannot use the work directory {path}: {error.strerror or error}") from error

    @property
    def trained(self) -> Trained | None:
        """What an earlier process has trained; None if it must be done."""
        return None if self._trained is None else load_trained(self.path / _TRAINED)

    def keep_trained(self, trained: Trained) -> None:
        """Store what has been trained."""
        file = self.path / _TRAINED
        with _disk(file):
            save_trained(trained, file)
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._ops.sync(fd)
            finally:
                os.close(fd)
            self._ops.sync_dir(self.path)
            self._trained = {"crc32": checksum(file)}
            self._note({"trained": self._trained})

    @property
    def log(self) -> RunLog:
        """Where runs are kept, for `IndexWriter`."""
        return RunLog(self.path, tuple(self.runs), self._keep_run, self.path / _INDEX)

    def __enter__(self) -> WorkDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, (InvalidInput, BudgetInfeasible)):
            discard(self.path, self._ops)
        os.close(self._fd)

    def _open(self, resume: bool) -> int:
        try:
            self._ops.make_dir(self.path)
        except FileExistsError:
            if not resume:
                raise left_over(self.path) from None
            if not self.path.is_dir() or any(not _is_ours(name) for name in os.listdir(self.path)):
                raise InvalidInput(f"{self.path} is no work directory of a compile, so it cannot be resumed") from None
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self.path / _JOURNAL, flags, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise InvalidInput(f"{self.path} is in use by another compile") from None
        return fd

    def _recover(self, head: dict[str, Any]) -> None:
        """Take over what the journal vouches for; cut off and remove everything else."""
        data = os.pread(self._fd, min(_JOURNAL_MAX_BYTES, os.fstat(self._fd).st_size), 0)
        entries = _entries(data)
        whole = next(entries, None)
        if whole is None:
            end = 0
        else:
            _require_same(self.path, whole[0], head)
            end = whole[1]
            for entry, stop in entries:
                if not self._take(entry):
                    break
                end = stop
        os.ftruncate(self._fd, end)
        kept = {_JOURNAL} | {run.file for run in self.runs} | ({_TRAINED} if self._trained else set())
        for name in set(os.listdir(self.path)) - kept:
            shutil.rmtree(self.path / name) if name == _INDEX else os.unlink(self.path / name)
        if end == 0:
            self._note(head)
            self._ops.sync_dir(self.path)
            self._ops.sync_dir(self.path.parent)

    def _take(self, entry: dict[str, Any]) -> bool:
        """Whether an entry of the journal is sound, comes next, and its file is what it says."""
        if "trained" in entry and self._trained is None:
            self._trained = entry["trained"]
            if _is_file(self.path / _TRAINED, entry["trained"]):
                return True
            self._trained = None
            return False
        try:
            run = Run(**entry["run"])
        except (KeyError, TypeError):
            return False
        expected = (f"run-{len(self.runs):08d}", self.runs[-1].stop if self.runs else 0)
        if (run.file, run.start) != expected or not _is_file(self.path / run.file, {"crc32": run.crc32}):
            return False
        self.runs.append(run)
        return self._trained is not None

    def _keep_run(self, run: Run) -> None:
        self.runs.append(run)
        self._note({"run": vars(run)})

    def _note(self, entry: dict[str, Any]) -> None:
        text = json.dumps(entry, sort_keys=True).encode()
        self._ops.write(self._fd, b"%08x %s\n" % (zlib.crc32(text), text))
        self._ops.sync(self._fd)


def work_path(out: str | Path) -> Path:
    """Return where the compile of an index keeps what it has finished."""
    return Path(f"{out}.work")


def discard(path: Path, ops: FileOps) -> None:
    """Remove work whole or not at all: half of it would look like work to be done again."""
    gone = temporary_name(path)
    with contextlib.suppress(OSError):
        ops.rename(path, gone)
        ops.remove_tree(gone)


def left_over(path: Path) -> InvalidInput:
    """Return what refuses to begin beside work that waits."""
    return InvalidInput(f"{path} is left from an interrupted compile: go on with --resume (resume=True) or remove it")


def require_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with work that was made with something else; name -> value, both JSON-ready."""
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old != new:
            shown = f"another {name}" if len(f"{old}{new}") > 80 else f"{name} {old}, got {new}"
            raise InvalidInput(f"{path} was made with {shown}: ask for the same, or remove it to start afresh")


def require_free(out: Destination, resume: bool) -> None:
    """Refuse an index that is there, unless work on it is to be resumed, and one that could not be written."""
    # A process that was killed after it published, before it removed its work, has only that left to do.
    if out.exists() and not (resume and work_path(out.local).is_dir()):
        raise InvalidInput(f"{out} exists already; remove it or choose another name")
    if not out.local.absolute().parent.is_dir():
        raise InvalidInput(f"{out} must be in a folder that exists, got {out.local.absolute().parent}")
    out.require_writable()


def _entries(data: bytes) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the sound lines of a journal and where each ends, up to the first that is not."""
    at = 0
    while (end := data.find(b"\n", at)) >= 0:
        line, at = data[at:end], end + 1
        if line[:9] != b"%08x " % zlib.crc32(line[9:]):
            return
        try:
            entry = json.loads(line[9:])
        except ValueError:
            return
        if not isinstance(entry, dict):
            return
        yield entry, at


def _require_same(path: Path, made: dict[str, Any], head: dict[str, Any]) -> None:
    if made.get("format") != FORMAT or not isinstance(made.get("made_with"), dict):
        raise InvalidInput(f"{path} is of another version, so it cannot be resumed; remove it to start afresh")
    require_same(path, made["made_with"], head["made_with"])


def _is_ours(name: str) -> bool:
    return name in (_JOURNAL, _TRAINED, _INDEX) or _RUN.fullmatch(name) is not None


def _is_file(path: Path, said: Mapping[str, Any]) -> bool:
    return path.is_file() and not path.is_symlink() and checksum(path) == said.get("crc32")


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VqdistillError(f"cannot write {path}: {error.strerror or error}") from error
