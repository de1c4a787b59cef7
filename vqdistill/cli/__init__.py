"""The command line: `vqdistill compile`, `search` and the others."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

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
from vqdistill.errors import VqdistillError


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


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 2 bad input (one sentence says what), 70 a defect, 130 interrupted."""
    try:
        with cli.make_context("vqdistill", list(sys.argv[1:] if arguments is None else arguments)) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as done:  # --help and --version
        sys.exit(done.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except MemoryError:
        _fail("there is not enough memory for this", 2)
    except VqdistillError as error:
        _fail(str(error), 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        _fail(f"{where}{error.strerror or error}", 2)
    except Exception as error:
        if os.environ.get("VQDISTILL_DEBUG") == "1":
            traceback.print_exc()
        _fail(
            f"unexpected {type(error).__name__}: {error}; this is a defect, please report it with the output of"
            " VQDISTILL_DEBUG=1",
            70,
        )
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    print(f"vqdistill: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
