"""All commands: `vqdistill compile`, `search` and the others."""

from __future__ import annotations

import click

import vqdistill as vqd
from vqdistill.bench.commands import bench_command, report_command
from vqdistill.cli.build import compile_command, plan_command
from vqdistill.cli.evaluate import eval_command, explain_command
from vqdistill.cli.export import export_command
from vqdistill.cli.fetch import fetch_command
from vqdistill.cli.inspect import inspect_command, verify_command
from vqdistill.cli.search import search_command
from vqdistill.cli.serve import serve_command
from vqdistill.cli.shard import shard_group
from vqdistill.cli.update import (
    add_command,
    compact_command,
    delete_command,
    gc_command,
    merge_command,
    upsert_command,
)


@click.group(invoke_without_command=True)
@click.version_option(vqd.__version__)
@click.pass_context
def cli(context: click.Context) -> None:
    """Compile embeddings into a compact index whose codes are distilled from their own rankings, and search it."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (
    compile_command,
    plan_command,
    search_command,
    eval_command,
    explain_command,
    inspect_command,
    verify_command,
    add_command,
    upsert_command,
    delete_command,
    compact_command,
    merge_command,
    gc_command,
    fetch_command,
    shard_group,
    export_command,
    bench_command,
    report_command,
    serve_command,
):
    cli.add_command(command)
