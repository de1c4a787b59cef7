"""`export`: an index for another engine."""

from __future__ import annotations

from typing import Any

import click

from vqdistill.cli.options import json_option
from vqdistill.cli.show import show


@click.command("export")
@click.argument("index", metavar="INDEX")
@click.option("--to", required=True, metavar="faiss|lance|scann|numpy|safetensors", help="What to make of it.")
@click.option("-o", "--out", required=True, metavar="OUT", help="File or directory to make; must not exist.")
@click.option(
    "--layout",
    metavar="file|pyserini|langchain|haystack",
    help="faiss: one file, or a directory as a framework loads it. Default: file.",
)
@click.option(
    "--refine/--no-refine",
    default=None,
    help="faiss: with dense vectors, which verify candidates. Default: if INDEX has them.",
)
@click.option(
    "--fast-scan/--no-fast-scan",
    default=None,
    help="faiss: lay codes out for SIMD look-ups. Default: unless --nbits is 8.",
)
@click.option("--nbits", type=int, metavar="4|8", help="faiss: 8 = product codes of pairs of subspaces. Default: 4.")
@click.option(
    "--numbered", is_flag=True, default=None, help="faiss: number rows from 0 on instead of giving their ids."
)
@click.option(
    "--without-adapters",
    "adapters",
    flag_value=False,
    type=bool,
    default=None,
    help="faiss: leave adapters of queries out, which faiss cannot express if they have hidden units.",
)
@click.option(
    "--documents", metavar="F", help="faiss, langchain and haystack: JSON lines with id and text, or a document store."
)
@click.option("--rows/--no-rows", default=None, help="numpy, safetensors: with codes and ids of rows. Default: with.")
@json_option
def export_command(index: str, to: str, out: str, as_json: bool, **options: Any) -> None:
    """Write INDEX in the form of another engine: the same lists, codebooks, codes, vectors and ids."""
    from vqdistill.interchange.exporting import export_index

    show(export_index(index, out, to=to, **options), as_json)
