"""`add`, `upsert`, `delete`, `compact`, `merge` and `gc`: an index that changes."""

from __future__ import annotations

from typing import Any

import click
import numpy as np

from vqdistill.cli.options import json_option
from vqdistill.cli.show import show
from vqdistill.errors import InvalidInput
from vqdistill.progress import ConsoleProgress


def _add(index: str, source: str, ids: str | None, replace: bool) -> dict[str, Any]:
    from vqdistill.data.sources import open_source
    from vqdistill.index.update import IndexUpdater

    progress = ConsoleProgress()
    with IndexUpdater(index) as updater:
        manifest = updater.manifest
        src = open_source(source, metric=manifest.metric.value, ids=ids)
        if src.dim != manifest.d:
            raise InvalidInput(
                f"vectors of {source} must have {manifest.d} dimensions, as those of {index}, got {src.dim}"
            )
        if manifest.ids == "rows" and (replace or ids is not None):
            raise InvalidInput(
                f"ids of {index} are row numbers, of which added rows get the next ones: rows cannot be replaced, got"
                f" {'--ids' if ids is not None else 'replace'}"
            )
        kind = "rows" if src.ids is None else src.ids.kind
        # Ids that a file has anyway are no matter to an index that numbers its rows.
        if manifest.ids not in ("rows", kind):
            raise InvalidInput(f"ids of {source} must be {manifest.ids}, as those of {index}, got {kind}")
        with progress.stage("add", src.n) as stage:
            for block in src.blocks():
                end = block.start + len(block.rows)
                known = None if src.ids is None or manifest.ids == "rows" else src.ids.slice(block.start, end)
                updater.add(known, block.rows, replace=replace)
                stage.advance(len(block.rows))
        published = updater.publish()
    return {"index": index, "added": src.n, "rows": published.live, "generation": published.generation}


_ids = click.option("--ids", metavar="F", help="External ids: a column, a dataset or a sidecar file.")


@click.command("add")
@click.argument("index", metavar="INDEX")
@click.argument("source", metavar="INPUT")
@_ids
@click.option(
    "--on-duplicate",
    type=click.Choice(["refuse", "replace"]),
    default="refuse",
    show_default=True,
    help="What to do with ids that INDEX has.",
)
@json_option
def add_command(index: str, source: str, ids: str | None, on_duplicate: str, as_json: bool) -> None:
    """Add the rows of INPUT to INDEX, coded with its own model."""
    show(_add(index, source, ids, on_duplicate == "replace"), as_json)


@click.command("upsert")
@click.argument("index", metavar="INDEX")
@click.argument("source", metavar="INPUT")
@_ids
@json_option
def upsert_command(index: str, source: str, ids: str | None, as_json: bool) -> None:
    """Add the rows of INPUT to INDEX, replacing those with the same ids."""
    show(_add(index, source, ids, True), as_json)


@click.command("delete")
@click.argument("index", metavar="INDEX")
@click.argument("ids", metavar="ID...", nargs=-1)
@click.option("--from", "file", type=click.File(encoding="utf-8"), metavar="F", help="Ids, one a line; - = input.")
@json_option
def delete_command(index: str, ids: tuple[str, ...], file: Any, as_json: bool) -> None:
    """Delete the rows of INDEX with these external ids; others are passed over."""
    from vqdistill.index.update import IndexUpdater

    given = [*ids, *([] if file is None else (line.rstrip("\n") for line in file if line.strip()))]
    if not given:
        raise InvalidInput("ids to delete must be given, or a file of them with --from, got none")
    with IndexUpdater(index) as updater:
        keys: Any = given if updater.manifest.ids == "str" else _integers(given)
        deleted = updater.delete(keys)
        published = updater.publish()
    show({"index": index, "deleted": deleted, "rows": published.live, "generation": published.generation}, as_json)


def _integers(texts: list[str]) -> Any:
    try:
        return np.array([int(text) for text in texts], np.int64)
    except (ValueError, OverflowError):
        raise InvalidInput("ids to delete must be integers of 64 bits, as those of the index, got others") from None


@click.command("compact")
@click.argument("index", metavar="INDEX")
@json_option
def compact_command(index: str, as_json: bool) -> None:
    """Merge all that was added to INDEX into one list order, without deleted rows; goes on where a killed one ended."""
    from vqdistill.index.update import IndexUpdater

    with IndexUpdater(index) as updater:
        updater.compact()
        published = updater.publish()
    show({"index": index, "rows": published.live, "generation": published.generation}, as_json)


@click.command("merge")
@click.argument("indexes", metavar="INDEX...", nargs=-1)
@click.option("-o", "--out", required=True, metavar="OUT", help="Index directory to make; must not exist.")
@json_option
def merge_command(indexes: tuple[str, ...], out: str, as_json: bool) -> None:
    """Write the rows of two or more indexes with the same model as one."""
    from vqdistill.index.join import merge_indexes

    show({"index": out, "rows": merge_indexes(indexes, out).n}, as_json)


@click.command("gc")
@click.argument("index", metavar="INDEX")
@json_option
def gc_command(index: str, as_json: bool) -> None:
    """Remove the generations of INDEX that nobody has open, and what killed writers left."""
    from vqdistill.index.gc import gc

    show({"index": index} | gc(index), as_json)
