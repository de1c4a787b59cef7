"""`fetch`: an index out of an object store, to this machine."""

from __future__ import annotations

import click

from vqdistill.cli.options import json_option
from vqdistill.cli.show import show
from vqdistill.index.remote import fetch_index
from vqdistill.progress import ConsoleProgress


@click.command("fetch")
@click.argument("url", metavar="URL")
@click.option("-o", "--out", required=True, metavar="DIR", help="Index directory to make; must not exist.")
@json_option
def fetch_command(url: str, out: str, as_json: bool) -> None:
    """Bring the index at URL to DIR, which appears when all of it is there and every byte has been checked."""
    manifest = fetch_index(url, out, progress=ConsoleProgress())
    size = sum(segment.file_bytes for segment in manifest.all_segments)
    show({"index": out, "rows": manifest.live, "bytes": size}, as_json)
