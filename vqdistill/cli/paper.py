"""`plan` without INPUT: what so many rows take, on paper."""

from __future__ import annotations

from typing import Any

import click

from vqdistill.cli.show import show
from vqdistill.errors import InvalidInput

MOST_ROWS = 10**12


def read_rows(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    """Read a number of rows, such as 1e9."""
    if value is None:
        return None
    try:
        rows = float(value.replace("_", ""))
        if rows == int(rows) and 1 <= rows <= MOST_ROWS:
            return int(rows)
    except (ValueError, OverflowError):
        pass
    raise click.BadParameter(f"wanted a number of rows up to 1e12, such as 1e9, got {value!r}", context, option)


def show_capacity(rows: int | None, dim: int | None, machine: str | None, as_json: bool, **options: Any) -> None:
    """Print what rows that nobody has looked at take.

    Parameters
    ----------
    options : of `plan`, by name; those that need rows must be absent
    """
    from vqdistill.compiler.capacity import capacity
    from vqdistill.compiler.machine import Machine

    if rows is None or dim is None or machine is None:
        raise InvalidInput("plan must be given INPUT, or --rows, --dim and --machine")
    for name in ("ids", "out", "threads"):
        if options.pop(name) is not None:
            raise InvalidInput(f"--{name} needs INPUT, which --rows stands in for")
    if options.pop("teacher") != "exact" or options.pop("mix"):
        raise InvalidInput("--teacher and --mix need INPUT, which --rows stands in for")
    queries = options.pop("queries")
    if queries is not None and not queries.isdecimal():
        raise InvalidInput(f"--queries must be their number where --rows stands in for INPUT, got {queries!r}")
    known = {name: options[name] for name in ("ram", "recall", "codes", "dense", "metric", "build_ram")}
    found = capacity(
        rows,
        dim,
        Machine.parse(machine),
        distill=not options["no_distill"],
        queries=None if queries is None else int(queries),
        **known,
    )
    show(found.to_json(), as_json=True) if as_json else click.echo("\n".join(found.lines()))
