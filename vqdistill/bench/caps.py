"""A limit on the memory of one process: a memory cgroup where one can be made, RLIMIT_DATA otherwise."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

RLIMIT, CGROUP = "RLIMIT_DATA", "memory cgroup"


class Cap:
    """A limit, to be joined by the process that it holds for; a context manager.

    The cgroup counts the page cache that the process brings in, RLIMIT_DATA its private memory only, touched or not.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._group: Path | None = None
        for parent, name, swap in _memory_groups():
            group = parent / f"vqdistill-{os.getpid()}"
            try:
                group.mkdir()
                (group / name).write_text(str(limit))
                if (group / swap).exists():
                    (group / swap).write_text("0" if swap == "memory.swap.max" else str(limit))
                self._group = group
                break
            except OSError:
                if group.is_dir():
                    group.rmdir()
        self.kind = RLIMIT if self._group is None else CGROUP
        """What limits."""

    def join(self) -> None:
        """Put the calling process under the limit, before it runs its program."""
        if self._group is None:
            resource.setrlimit(resource.RLIMIT_DATA, (self._limit, self._limit))
        else:
            (self._group / "cgroup.procs").write_text(str(os.getpid()))

    def peak_bytes(self) -> int | None:
        """Return the most that the process was charged with, if the system counts it."""
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            if self._group is not None and (self._group / name).exists():
                return int((self._group / name).read_text())
        return None

    def __enter__(self) -> Cap:
        return self

    def __exit__(self, *_: object) -> None:
        if self._group is not None:
            self._group.rmdir()


def _memory_groups() -> Iterator[tuple[Path, str, str]]:
    """Yield our own memory cgroup of version 1 and of version 2, with its files of limits."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield Path(f"/sys/fs/cgroup/memory{path}"), "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
        if not controllers:
            yield Path(f"/sys/fs/cgroup{path}"), "memory.max", "memory.swap.max"
