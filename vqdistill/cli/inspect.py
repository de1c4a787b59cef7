"""`inspect` and `verify`: what an index is, and whether it is whole."""

from __future__ import annotations

import json

import click

import vqdistill as vqd
from vqdistill.cli.options import json_option
from vqdistill.cli.show import show
from vqdistill.cli.tables import certificate_lines
from vqdistill.errors import CorruptIndex
from vqdistill.index.reader import verify


@click.command("inspect")
@click.argument("index", metavar="INDEX")
@json_option
def inspect_command(index: str, as_json: bool) -> None:
    """Show what INDEX is: its model, segments, bytes, plan and training report."""
    with vqd.open_index(index) as reader:
        sizes = {"resident_bytes": reader.resident_bytes, "disk_bytes": reader.disk_bytes}
        shown = json.loads(reader.manifest.to_bytes())
        for segment in shown["segments"].values():
            del segment["crc32"]
        if not as_json:  # as a table, below
            del shown["certificate"]
        show({"index": index} | shown | sizes, as_json)
        if not as_json:
            click.echo("\n".join(certificate_lines(reader.manifest.certificate)))


@click.command("verify")
@click.argument("index", metavar="INDEX")
@json_option
def verify_command(index: str, as_json: bool) -> None:
    """Check every byte of every file of INDEX."""
    problems = verify(index)
    if as_json or not problems:
        show({"index": index, "clean": not problems, "problems": problems}, as_json)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise CorruptIndex(f"{index} is damaged: {problems[0]}{more}")
