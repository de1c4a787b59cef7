"""Ray Serve runs the processes that hold shards: places them, begins them anew, and has more of them under load."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from vqdistill.cluster import cluster
from vqdistill.errors import InvalidInput, VqdistillError, first_line
from vqdistill.index.shardset import is_sharded, read_shards
from vqdistill.server.config import FleetConfig, ServerConfig
from vqdistill.server.fleet import FleetSearcher
from vqdistill.server.links import Address
from vqdistill.server.part import PartServer

_NAMESPACE = "serve"
_ANNOUNCED_S = 1.0
"""Between two announcements of a process."""
_STALE_S = 3.5
"""After which one that says nothing is gone."""
_ANSWER_S = 10.0
_HEALTH_S = 1.0
_BUSY = 2.0
"""Searches at work or waiting in a process from which on another one is wanted."""


@dataclass(frozen=True)
class RayOpener:
    """Opens the indexes of a fleet in a process that routes searches."""

    address: str
    """Of the cluster."""
    directories: Mapping[Path, str]
    """Name of the actor that knows where the parts of an index are."""
    key: bytes
    fleet: FleetConfig

    def __call__(self, path: Path) -> FleetSearcher:
        """Return a searcher of an index."""
        _connect(self.address)
        members = _Members(self.directories[path])
        return FleetSearcher(path, parts_of(path, self.fleet.parts), members, self.key, self.fleet.on_lost)


def parts_of(path: Path, count: int | None) -> list[range]:
    """Return the shards of each part of an index, which are consecutive.

    Raises
    ------
    InvalidInput
        If the index is not in shards, or has fewer.
    """
    if not is_sharded(path):
        raise InvalidInput(f"index {path} must be in shards to be served on Ray: `vqdistill shard commit --shards N`")
    shards = len(read_shards(path).shards)
    parts = min(2, shards) if count is None else count
    if parts > shards:
        raise InvalidInput(f"parts must be in 1..{shards}, the shards of {path}, got {parts}")
    cuts = [shards * part // parts for part in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(cuts)]


@contextlib.contextmanager
def deployed(config: ServerConfig, fleet: FleetConfig, address: str | None) -> Iterator[RayOpener]:
    """Have the parts of all indexes held by processes of a cluster for the time of a `with` block.

    Parameters
    ----------
    address : of a cluster, as for `ray.init`; None = one that begins on this machine

    Raises
    ------
    InvalidInput
        If an index is not in shards.
    VqdistillError
        If Ray cannot be reached, or a part cannot be opened.
    """
    parts = {path: parts_of(path, fleet.parts) for path in config.indexes.values()}
    most = sum(map(len, parts.values())) * fleet.most
    with cluster(address, max(most + 1, len(os.sched_getaffinity(0)))):
        key, names = secrets.token_bytes(32), {path: f"vqdistill-{_digest(path)}" for path in parts}
        started: list[str] = []
        try:
            with _told(parts):
                logging.getLogger("ray.serve").setLevel(logging.ERROR)
                serve.start(proxy_location="Disabled")
                for path, name in names.items():
                    _begin_directory(name)
                    started += _start(path, name, parts[path], key, config, fleet)
            yield RayOpener(ray.get_runtime_context().gcs_address, names, key, fleet)
        finally:
            if address is not None:  # otherwise all of it ends with the cluster
                _withdraw(started, names.values())


@contextlib.contextmanager
def _told(paths: Iterable[Path]) -> Iterator[None]:
    """Have what Ray raises end as a sentence."""
    try:
        yield
    except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
        raise VqdistillError(f"Ray cannot serve {', '.join(map(str, paths))}: {first_line(error)}") from None


def _withdraw(apps: Sequence[str], directories: Iterable[str]) -> None:
    """Take what was started off a cluster, which may be gone."""
    with contextlib.suppress(Exception):
        for each in apps:
            serve.delete(each, _blocking=False)
        for name in directories:
            ray.kill(ray.get_actor(name, _NAMESPACE))


def _start(
    path: Path, name: str, parts: Sequence[range], key: bytes, config: ServerConfig, fleet: FleetConfig
) -> list[str]:
    """Start the processes of an index, and return the names of what Ray runs."""
    limits, names = config.limits, [f"{name}-{part}" for part in range(len(parts))]
    deployment = serve.deployment(
        name="part",
        ray_actor_options={"num_cpus": 1},
        health_check_period_s=_HEALTH_S,
        health_check_timeout_s=_ANSWER_S,
        graceful_shutdown_timeout_s=config.drain_s + limits.timeout_s,
        **_replicas(fleet),
    )(_Holder)
    arguments = (str(path.absolute()), name, key, config.io)
    targets = [
        serve.RunTarget(deployment.bind(part, (mine.start, mine.stop), *arguments), name=each, route_prefix=None)
        for part, (mine, each) in enumerate(zip(parts, names, strict=True))
    ]
    serve.run_many(targets)
    return names


def _replicas(fleet: FleetConfig) -> dict[str, Any]:
    if fleet.least == fleet.most:
        return {"num_replicas": fleet.most}
    policy = AutoscalingPolicy(policy_function=_wanted_replicas)
    scaling = AutoscalingConfig(
        min_replicas=fleet.least,
        max_replicas=fleet.most,
        target_ongoing_requests=_BUSY,
        upscale_delay_s=5.0,
        downscale_delay_s=60.0,
        policy=policy,
    )
    return {"autoscaling_config": scaling}


def _wanted_replicas(context: Any) -> tuple[int, dict[str, Any]]:
    """As many processes as have no more searches each than may run at the same time."""
    busy = sum((context.aggregated_metrics or {}).get("busy", {}).values())
    wanted = math.ceil(busy / context.config.target_ongoing_requests)
    least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return min(max(wanted, least), most), {}


class _Holder:
    """A process that Ray Serve runs: it holds a part, and tells the directory where."""

    def __init__(self, part: int, mine: tuple[int, int], path: str, directory: str, key: bytes, io: str) -> None:
        self._part, self._directory, self._id = part, directory, secrets.token_hex(8)
        host, concurrency = ray.util.get_node_ip_address(), len(os.sched_getaffinity(0))
        self._server = PartServer(Path(path), range(*mine), key, host, concurrency, io)
        threading.Thread(target=self._announce, daemon=True).start()

    def _announce(self) -> None:
        while self._server.alive:
            with contextlib.suppress(Exception):  # the directory may be on its way back
                directory = ray.get_actor(self._directory, _NAMESPACE)
                told = directory.announce.remote(self._part, self._id, self._server.address)
                ray.get(told, timeout=_ANSWER_S)
            time.sleep(_ANNOUNCED_S)

    def check_health(self) -> None:
        """Tell Ray Serve whether to begin this process anew."""
        if not self._server.alive:
            raise RuntimeError("routers are not let in any more")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Searches at work or waiting."""
        return {"busy": float(self._server.busy)}

    def __del__(self) -> None:
        if hasattr(self, "_server"):
            self._server.close()


class _Directory:
    """An actor that knows which processes hold which part of an index."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, str], tuple[Address, float]] = {}

    def announce(self, part: int, who: str, address: Address) -> None:
        """Take note of a process."""
        self._seen[part, who] = (address, time.monotonic())

    def members(self) -> dict[int, list[Address]]:
        """Return where the processes of each part listen."""
        now = time.monotonic()
        self._seen = {who: seen for who, seen in self._seen.items() if now - seen[1] < _STALE_S}
        found: dict[int, list[Address]] = {}
        for (part, _), (address, _) in self._seen.items():
            found.setdefault(part, []).append(address)
        return found


def _begin_directory(name: str) -> None:
    """Have a directory, which outlives this process as the parts do."""
    actor: Any = ray.remote(_Directory)
    options = {"name": name, "namespace": _NAMESPACE, "get_if_exists": True, "lifetime": "detached"}
    actor.options(num_cpus=0, max_restarts=-1, **options).remote()


class _Members:
    """Asks the directory."""

    def __init__(self, name: str) -> None:
        self._actor = ray.get_actor(name, _NAMESPACE)

    def __call__(self) -> Mapping[int, Sequence[Address]]:
        found: dict[int, list[Address]] = ray.get(self._actor.members.remote(), timeout=_ANSWER_S)
        return {part: [Address(*each) for each in members] for part, members in found.items()}


def _connect(address: str) -> None:
    """Reach the cluster from a process that is one of several routers."""
    if ray.is_initialized():
        return
    before = signal.getsignal(signal.SIGTERM)
    ray.init(address, log_to_driver=False, logging_level="ERROR", namespace=_NAMESPACE)
    signal.signal(signal.SIGTERM, before)  # how a server ends is not Ray's business


def _digest(path: Path) -> str:
    return hashlib.blake2b(str(path.absolute()).encode(), digest_size=6).hexdigest()
