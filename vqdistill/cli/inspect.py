"""`inspect` and `verify`: what an index or embeddings are, and whether an index is whole."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import click

import vqdistill as vqd
from vqdistill.cli.options import json_option
from vqdistill.cli.show import show
from vqdistill.cli.tables import certificate_lines
from vqdistill.errors import CorruptIndex
from vqdistill.evaluate.drift_loss import estimate_loss
from vqdistill.index.files import CURRENT
from vqdistill.index.sharded import ShardedReader
from vqdistill.index.spec import SHARDS
from vqdistill.index.verify import verify
from vqdistill.searcher import Searcher


@click.command("inspect")
@click.argument("index", metavar="INDEX|EMBEDDINGS")
@click.option("--queries", metavar="F", help="Learn queries to hold against embeddings. Default: those of the file.")
@click.option("--metric", type=click.Choice(["ip", "cosine", "l2"]), help="Of embeddings. Default: that of the file.")
@json_option
def inspect_command(index: str, queries: str | None, metric: str | None, as_json: bool) -> None:
    """Show what an index is (model, segments, bytes, plan, report, certificate), or what embeddings are like."""
    if not _is_index(index):
        _diagnose(index, queries, metric, as_json)
        return
    if queries is not None or metric is not None:
        raise click.UsageError(f"--queries and --metric are for embeddings, but {index} is an index")
    with vqd.open_index(index) as reader:
        sizes = {"resident_bytes": reader.resident_bytes, "disk_bytes": reader.disk_bytes}
        shown = json.loads(reader.manifest.to_bytes())
        for segments in (shown["segments"], *(rows["segments"] for rows in shown.get("added", []))):
            for segment in segments.values():
                del segment["crc32"]
        if isinstance(reader, ShardedReader):
            shown["shards"] = [asdict(shard) for shard in reader.shards.shards]
        drift, loss = reader.manifest.drift, estimate_loss(Searcher(reader))
        shown["drift_loss"] = None if loss is None else loss.to_json()
        shown["warnings"] = [warning for each in (drift, loss) if each is not None for warning in each.warnings]
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


def _is_index(path: str) -> bool:
    """Whether something is meant to be an index, be it damaged or missing."""
    if path.rstrip("/").endswith(".vqd"):
        return True
    return os.path.isdir(path) and any(name in (CURRENT, SHARDS) or name.endswith(".seg") for name in os.listdir(path))


def _diagnose(source: str, queries: str | None, metric: str | None, as_json: bool) -> None:
    from vqdistill.evaluate.diagnose import diagnose

    found = diagnose(source, queries=queries, metric=metric)
    if as_json:
        show(found, as_json)
        return
    suggests = found.pop("suggests")
    show(found, as_json)
    click.echo("\n".join(["suggests:", *(f"  {sentence}" for sentence in suggests)]))
