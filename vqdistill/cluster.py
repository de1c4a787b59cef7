"""A cluster of Ray for a command: one that runs, or one that begins and ends with it on this machine."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import ray

from vqdistill.errors import VqdistillError, first_line

_ANSWER_S = 10.0
"""Within which a cluster takes a connection."""


@contextlib.contextmanager
def cluster(address: str | None, threads: int | None) -> Iterator[None]:
    """Connect to a cluster for the time of a `with` block, or begin one on this machine."""
    if ray.is_initialized():
        yield
        return
    if address is not None:
        _require_listener(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local: dict[str, Any] = {"num_cpus": threads or len(os.sched_getaffinity(0)), "include_dashboard": False}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **({} if address else local))
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise VqdistillError(f"Ray cannot be reached at {address or 'this machine'}: {first_line(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Refuse `host:port` where nothing listens, for which Ray would look for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), _ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise VqdistillError(f"Ray cannot be reached at {address}: {error}") from None
