"""`serve`: open indexes answer requests over HTTP."""

from __future__ import annotations

import os
from typing import Any

import click

from vqdistill.errors import MissingDependency, needed_by

_SIZE = click.IntRange(min=1)
_WAITING = 4
"""Searches a core that a process routes at a time."""
_SECONDS = click.FloatRange(min=0, min_open=True)


@click.command("serve")
@click.argument("indexes", metavar="INDEX...", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 = all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 = one that is free.")
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Processes, each with the indexes in its own memory.",
)
@click.option(
    "--loop-core",
    type=click.IntRange(min=0),
    metavar="CORE",
    help="Core of the one thread that reads and answers requests; small searches run on the others.",
)
@click.option("--max-k", type=_SIZE, default=1000, show_default=True, help="Results of a query.")
@click.option("--max-batch", type=_SIZE, default=1024, show_default=True, help="Queries of a request.")
@click.option(
    "--max-body-bytes", type=click.IntRange(min=1024), default=16 << 20, show_default=True, help="Bytes of a request."
)
@click.option(
    "--concurrency",
    type=_SIZE,
    help="Searches at a time, of each worker. Default: cores / workers, and 4 times that with --engine.",
)
@click.option(
    "--queue",
    type=click.IntRange(min=0),
    default=128,
    show_default=True,
    help="Requests of each worker that wait beyond those; more are refused with 429.",
)
@click.option(
    "--timeout", "timeout_s", type=_SECONDS, default=10.0, show_default=True, metavar="SECONDS", help="Of a request."
)
@click.option("--api-key-file", metavar="F", help="File with the key that requests must bring.")
@click.option(
    "--api-key-env",
    metavar="NAME",
    default="VQDISTILL_API_KEY",
    show_default=True,
    help="Environment variable with it, where there is no file; without either everyone may ask.",
)
@click.option(
    "--poll",
    "poll_s",
    type=_SECONDS,
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks for a new generation.",
)
@click.option(
    "--drain",
    "drain_s",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="For which open connections may bring requests after SIGTERM.",
)
@click.option(
    "--io", default="auto", metavar="auto|map|pread|uring", help="How dense rows are read.", show_default=True
)
@click.option(
    "--engine", type=click.Choice(["ray"]), help="Have processes of a Ray cluster hold the shards; this one routes."
)
@click.option("--address", metavar="ADDRESS", help="Of a Ray cluster. Default: one begins on this machine.")
@click.option("--parts", type=_SIZE, metavar="N", help="With --engine: processes that share the shards. Default: 2.")
@click.option(
    "--replicas",
    default="1",
    show_default=True,
    metavar="N|MIN-MAX",
    help="With --engine: copies of each of them; between MIN and MAX, as many as there is work for.",
)
@click.option(
    "--on-lost",
    type=click.Choice(["fail", "degrade"]),
    default="fail",
    show_default=True,
    help="With --engine, while nobody holds some shards: answer 503, or from the others and say so.",
)
@click.option("--access-log/--no-access-log", default=True, show_default=True, help="A line of JSON for each request.")
def serve_command(
    indexes: tuple[str, ...],
    host: str,
    port: int,
    workers: int,
    loop_core: int | None,
    api_key_file: str | None,
    api_key_env: str,
    poll_s: float,
    drain_s: float,
    io: str,
    engine: str | None,
    address: str | None,
    parts: int | None,
    replicas: str,
    on_lost: str,
    access_log: bool,
    **limits: Any,
) -> None:
    """Answer searches of each INDEX, a directory or NAME=DIRECTORY, over HTTP until SIGTERM or Ctrl-C."""
    try:
        from vqdistill.server.config import FleetConfig, Limits, ServerConfig, parse_indexes, parse_replicas, read_key
        from vqdistill.server.run import serve
    except ModuleNotFoundError as error:
        raise MissingDependency(f"the server needs {error.name}: pip install 'vqdistill[server]'") from None
    if limits["concurrency"] is None:
        # Where searches go on elsewhere, threads only wait for them.
        threads = len(os.sched_getaffinity(0)) * (1 if engine is None else _WAITING)
        limits["concurrency"] = max(1, threads // workers)
    config = ServerConfig(
        indexes=parse_indexes(indexes),
        limits=Limits(**limits),
        api_key=read_key(api_key_file, api_key_env),
        poll_s=poll_s,
        drain_s=drain_s,
        io=io,
        access_log=access_log,
        loop_core=loop_core,
    )
    if loop_core is not None and workers > 1:
        raise click.UsageError(f"--loop-core is for the loop of one worker, got --workers {workers}")
    if engine is None:
        if address is not None or parts is not None or replicas != "1" or on_lost != "fail":
            raise click.UsageError("--address, --parts, --replicas and --on-lost need --engine ray")
        serve(config, host, port, workers)
        return
    least, most = parse_replicas(replicas)
    fleet = FleetConfig(parts=parts, least=least, most=most, on_lost=on_lost)
    with needed_by("--engine ray", "ray[serve]", extra="ray"):
        from vqdistill.server.ray_serve import deployed
    with deployed(config, fleet, address) as opener:
        serve(config, host, port, workers, opener)
