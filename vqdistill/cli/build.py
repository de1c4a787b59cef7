"""`compile` and `plan`: embeddings in, an index out, or what it would be."""

from __future__ import annotations

import os
from typing import Any

import click

import vqdistill as vqd
from vqdistill.cli.options import build_options
from vqdistill.cli.show import show
from vqdistill.cli.tables import certificate_lines
from vqdistill.compiler.passes import default_codes
from vqdistill.errors import InvalidInput
from vqdistill.progress import ConsoleProgress


@click.command("compile")
@click.option("-o", "--out", required=True, metavar="OUT", help="Index directory to make; must not exist.")
@click.option(
    "--recall", metavar="0.95@10", help="Make the cheapest search that is proven to find so much the default."
)
@click.option("--build-ram", metavar="SIZE", help='Hard cap on the memory of the compiler itself, such as "1GiB".')
@click.option("--resume", is_flag=True, help="Go on where a compile of the same stopped, from what is in OUT.work.")
@click.option("--warm-start", metavar="OLD", help="An index of such rows, from whose model training goes on.")
@build_options
def compile_command(
    source: str, out: str, no_distill: bool, as_json: bool, queries: str | None, **options: Any
) -> None:
    """Train codebooks for INPUT within the budget and write an index."""
    report = vqd.compile(source, out, queries=queries, distill=not no_distill, progress=ConsoleProgress(), **options)
    if as_json:
        show({"index": out} | report, as_json)
        return
    del report["plan"], report["certificate"], report["timings"]  # shown before the work began, and below
    show({"index": out} | report, as_json)
    with vqd.open_index(out) as reader:
        click.echo("\n".join(certificate_lines(reader.manifest.certificate)))


@click.command("plan")
@click.option("-o", "--out", metavar="OUT", help="Checked not to exist; nothing is written.")
@build_options
def plan_command(
    source: str, out: str | None, queries: str | None, teacher: str, as_json: bool, **options: Any
) -> None:
    """Show what `compile` with the same options would build; trains nothing, writes nothing."""
    from vqdistill.data.sources import open_queries

    if out is not None and os.path.lexists(out):
        raise InvalidInput(f"{out} exists already")
    kind, _, given = teacher.partition(":")
    if teacher != "exact" and (kind not in ("scores", "labels") or not os.path.exists(given)):
        raise InvalidInput(f"teacher must be exact, or scores: or labels: and a file that exists, got {teacher!r}")
    src = vqd.open_source(source, metric=options["metric"], ids=options["ids"])
    if queries not in (None, "none"):
        open_queries(queries, src)
    ids_kind = "rows" if src.ids is None else src.ids.kind
    codes = options["codes"] or default_codes(src.metric, not options["no_distill"])
    adapted = teacher != "exact" and not options["no_distill"]
    plan = vqd.plan(
        src.facts,
        options["ram"],
        codes=codes,
        dense=options["dense"],
        seed=options["seed"],
        ids_kind=ids_kind,
        adapter_units=vqd.DistillConfig().adapter_units(src.dim) if adapted else 0,
    )
    if not as_json:
        click.echo(plan.explain())
        return
    sizes = {
        name: getattr(plan, name) for name in ("ram_bytes_per_vector", "ram_bytes_fixed", "ram_bytes", "disk_bytes")
    }
    show(plan.to_json() | sizes, as_json=True)
