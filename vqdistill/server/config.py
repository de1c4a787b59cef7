"""What a server is told when it starts: which indexes, and how much a request may take."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vqdistill.errors import InvalidInput
from vqdistill.objects.urls import require_local

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Names of indexes, which stand in URLs."""
_MIN_KEY = 16
ON_LOST = ("fail", "degrade")
"""What to do with searches of an index of which shards are lost: refuse them, or search the others."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request, and all of them together, may take of a worker; see docs/SERVER.md."""

    max_k: int = 1000
    """Results a query. A response has 24 bytes or more for each."""
    max_batch: int = 1024
    """Queries of a request. Batches of 256 are as fast a query as larger ones."""
    max_body_bytes: int = 16 << 20
    """Bytes of a body; 1,024 queries of 4,096 float32. A request with more is refused while it streams in."""
    concurrency: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Searches that run at the same time, a thread each. More than cores only make each slower."""
    queue: int = 128
    """Requests that may wait beyond those. Longer queues ride out longer stalls, but answer later when there is too
    much, and may hold more bodies."""
    timeout_s: float = 10.0
    """Seconds from the arrival of a request, waiting included, after which a search is given up."""

    def __post_init__(self) -> None:
        for name, least in (("max_k", 1), ("max_batch", 1), ("max_body_bytes", 1024), ("concurrency", 1), ("queue", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidInput(f"{name} must be an integer of at least {least}, got {value!r}")
        _require_seconds("timeout_s", self.timeout_s, zero=False)

    @property
    def places(self) -> int:
        """Requests that a worker has in hand at most."""
        return self.concurrency + self.queue


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """A server's indexes and ways."""

    indexes: dict[str, Path]
    """Directory of each index, by the name that requests use."""
    limits: Limits = field(default_factory=Limits)
    api_key: str | None = field(default=None, repr=False)
    """What requests must bring; None = everyone may ask."""
    poll_s: float = 1.0
    """Seconds between two looks for a new generation."""
    drain_s: float = 2.0
    """Seconds for which connections that are open when the server stops may still bring requests."""
    io: str = "auto"
    """How dense rows are read; see `IndexReader.engine`."""
    access_log: bool = True
    """Whether each request is logged."""
    loop_core: int | None = None
    """Core of the thread that reads and answers requests; see `LoopCore`."""

    def __post_init__(self) -> None:
        if not self.indexes:
            raise InvalidInput("indexes to serve must be given, got none")
        for name in self.indexes:
            _require_name(name)
        _require_seconds("poll_s", self.poll_s, zero=False)
        _require_seconds("drain_s", self.drain_s, zero=True)
        key = self.api_key
        if key is not None and not (len(key) >= _MIN_KEY and key.isascii() and key.isprintable() and " " not in key):
            raise InvalidInput(
                f"the API key must be at least {_MIN_KEY} printable ASCII characters without spaces, got {len(key)}"
            )


@dataclass(frozen=True, kw_only=True)
class FleetConfig:
    """How processes on a cluster hold the shards of indexes."""

    parts: int | None = None
    """Processes that share the shards of an index; None = 2, or as many as there are shards."""
    least: int = 1
    """Copies of each at least."""
    most: int = 1
    """Copies of each at most; between these, as many as there is work for."""
    on_lost: str = "fail"
    """What is done with searches while nobody holds a part: a value of ON_LOST."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise InvalidInput(f"replicas must be N or MIN-MAX with 1 <= MIN <= MAX, got {self.least}-{self.most}")
        if self.on_lost not in ON_LOST:
            raise InvalidInput(f"on_lost must be one of {', '.join(ON_LOST)}, got {self.on_lost!r}")


def parse_replicas(text: str) -> tuple[int, int]:
    """Turn `N` or `MIN-MAX` into two numbers.

    Raises
    ------
    InvalidInput
        If it is neither.
    """
    found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", text)
    if found is None:
        raise InvalidInput(f"replicas must be N or MIN-MAX, got {text!r}")
    return int(found[1]), int(found[2] or found[1])


def parse_indexes(given: Sequence[str]) -> dict[str, Path]:
    """Turn `path` and `name=path` into directories by name; the name of a bare path is its stem.

    Raises
    ------
    InvalidInput
        If a name is no name, or stands for two indexes, or a path is a URL.
    """
    found: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or "/" in name:
            name, path = Path(text).stem, text
        place = require_local(path)
        _require_name(name)
        if name in found:
            raise InvalidInput(
                f"names of indexes must differ, got {name!r} for {found[name]} and {path}; say NAME={path}"
            )
        found[name] = place
    return found


def read_key(file: str | None, variable: str) -> str | None:
    """Return the API key: the content of `file`, or else of the environment variable; None if there is neither.

    Raises
    ------
    InvalidInput
        If the file cannot be read.
    """
    if file is None:
        return os.environ.get(variable)
    try:
        return Path(file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise InvalidInput(f"the API key cannot be read from {file}: {reason}") from None


def _require_name(name: str) -> None:
    if not re.match(NAME, name) or name.endswith("\n"):
        raise InvalidInput(
            f"names of indexes must be 1 to 64 letters, digits, dots, dashes or underscores, got {name!r}; say N=PATH"
        )


def _require_seconds(name: str, value: float, zero: bool) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero):
        raise InvalidInput(
            f"{name} must be a {'non-negative' if zero else 'positive'} number of seconds, got {value!r}"
        )
