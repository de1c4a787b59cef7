"""`compile` and `plan`: embeddings in, an index out, or what it would be."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import click

import vqdistill as vqd
from vqdistill.cli.options import build_options, build_ram_option, model_options
from vqdistill.cli.paper import read_rows, show_capacity
from vqdistill.cli.show import show
from vqdistill.cli.tables import certificate_lines
from vqdistill.errors import InvalidInput, needed_by
from vqdistill.index.remote import Destination
from vqdistill.progress import ConsoleProgress


@click.command("compile")
@click.option("-o", "--out", required=True, metavar="OUT", help="Index directory to make, or URL; must not exist.")
@build_ram_option
@click.option("--resume", is_flag=True, help="Go on where a compile of the same stopped, from what is in OUT.work.")
@click.option("--warm-start", metavar="OLD", help="An index of such rows, from whose model training goes on.")
@click.option("--start", metavar="F", help="A faiss IVF-PQ index of 4 bits, whose lists and codebooks are distilled.")
@click.option("--engine", type=click.Choice(["ray"]), help="Run on Ray, a task for each file. Default: this process.")
@click.option("--address", metavar="A", help="Of a Ray cluster. Default: this machine.")
@build_options
def compile_command(
    source: str, out: str, no_distill: bool, as_json: bool, engine: str | None, address: str | None, **options: Any
) -> None:
    """Train codebooks for INPUT within the budget and write an index."""
    options |= {"distill": not no_distill, "progress": ConsoleProgress()}
    if engine is None:
        if address is not None:
            raise InvalidInput("--address needs --engine ray, whose cluster it is")
        if options["start"] is not None:
            options["start"] = _start(options["start"], source, options["metric"])
        report = vqd.compile(source, out, **options)
    else:
        report = _on_ray(source, out, address, **options)
    if as_json:
        show({"index": out} | report, as_json)
        return
    del (
        report["plan"],
        report["prediction"],
        report["certificate"],
        report["timings"],
    )  # shown before the work began, and below
    show({"index": out} | report, as_json)
    click.echo("\n".join(certificate_lines(Destination(out).published().certificate)))


def _on_ray(
    source: str, out: str, address: str | None, start: str | None, warm_start: str | None, **options: Any
) -> dict[str, Any]:
    if start is not None or warm_start is not None:
        raise InvalidInput("--engine ray must begin from nothing, got --start or --warm-start")
    with needed_by("--engine ray", "ray", extra="ray"):
        from vqdistill.shards.ray_engine import compile_on_ray
    with contextlib.redirect_stdout(sys.stderr):  # where Ray tells of lost workers, between our JSON
        return compile_on_ray(source, out, address=address, **options)


def _start(path: str, source: str, metric: str | None) -> Any:
    """The model of a faiss index, for the metric of the embeddings."""
    with needed_by("--start", "faiss", extra="faiss"):
        from vqdistill.interchange.from_faiss import model_from_faiss
    return model_from_faiss(path, vqd.open_source(source, metric=metric).metric)


@click.command("plan")
@click.argument("source", metavar="[INPUT]", required=False)
@click.option("--rows", callback=read_rows, metavar="N", help="Instead of INPUT: so many rows, such as 1e9, on paper.")
@click.option("--dim", type=click.IntRange(1, 65536), metavar="D", help="Of these, dimensions.")
@click.option(
    "--machine", metavar="M", help='With --rows: what a machine has, such as "64 cores, 256GiB, 4 NVMe of 3.84TB".'
)
@build_ram_option
@click.option("-o", "--out", metavar="OUT", help="Checked not to exist; nothing is written.")
@model_options
def plan_command(
    source: str | None,
    out: str | None,
    queries: str | None,
    teacher: str,
    as_json: bool,
    rows: int | None,
    dim: int | None,
    machine: str | None,
    **options: Any,
) -> None:
    """Show what `compile` with the same options would build; writes nothing, and trains nothing without --recall.

    With --rows, --dim and --machine in place of INPUT: machines, bytes, hours and queries a second, on paper.
    """
    from vqdistill.compiler.decide import Wishes, decide
    from vqdistill.data.sources import open_queries

    if source is None:
        paper = options | {"queries": queries, "teacher": teacher, "out": out}
        show_capacity(rows, dim, machine, as_json, **paper)
        return
    for name, value in (("rows", rows), ("dim", dim), ("machine", machine), ("build-ram", options["build_ram"])):
        if value is not None:
            raise InvalidInput(f"--{name} stands in for INPUT, got both")
    if out is not None and Destination(out).exists():
        raise InvalidInput(f"{out} exists already")
    src = vqd.open_source(source, metric=options["metric"], ids=options["ids"])
    if queries not in (None, "none"):
        open_queries(queries, src)
    asked = {name: options[name] for name in ("ram", "recall", "codes", "dense", "mix", "seed", "threads")}
    wishes = Wishes(queries=queries, distill=not options["no_distill"], teacher=teacher, **asked)
    decision = decide(src, wishes, ConsoleProgress())
    if not as_json:
        click.echo(decision.explain())
        return
    plan = decision.plan
    sizes = {
        name: getattr(plan, name) for name in ("ram_bytes_per_vector", "ram_bytes_fixed", "ram_bytes", "disk_bytes")
    }
    show(plan.to_json() | sizes | decision.to_json(), as_json=True)
