"""`shard plan`, `train`, `encode` and `commit`: a compile in steps, for make, Slurm or what else runs commands."""

from __future__ import annotations

from typing import Any

import click

from vqdistill.cli.options import build_ram_option, cores_option, json_option, model_options
from vqdistill.cli.show import show
from vqdistill.progress import ConsoleProgress


@click.group("shard")
def shard_group() -> None:
    """Compile many files by steps that may run on many machines which share a file system."""


@shard_group.command("plan")
@click.argument("sources", metavar="INPUT...", nargs=-1, required=True)
@click.option("-o", "--out", "job", required=True, metavar="JOB", help="Folder to make for the job; must not exist.")
@build_ram_option
@model_options
def plan_command(sources: tuple[str, ...], job: str, as_json: bool, **options: Any) -> None:
    """Look at every file of INPUT..., each of which is a shard, and write into JOB what they become."""
    from vqdistill.shards.planning import plan_job, summary

    options["distill"] = not options.pop("no_distill")
    planned = plan_job(sources, job, progress=ConsoleProgress(), **options)
    show({"job": job} | summary(planned), as_json)


@shard_group.command("train")
@click.argument("job", metavar="JOB")
@cores_option
@json_option
def train_command(job: str, threads: int | None, as_json: bool) -> None:
    """Train the one model of JOB on a sample of all shards; does nothing if it is there."""
    from vqdistill.shards.training import train_job

    show({"job": job, "trained": train_job(job, threads=threads, progress=ConsoleProgress())}, as_json)


@shard_group.command("encode")
@click.argument("job", metavar="JOB")
@click.option("--shard", "number", type=click.IntRange(min=0), required=True, metavar="I", help="From 0 on.")
@cores_option
@json_option
def encode_command(job: str, number: int, threads: int | None, as_json: bool) -> None:
    """Encode shard I of JOB with its model, and nothing else; does nothing if its part is there and sound."""
    from vqdistill.shards.parts import encode_shard

    done = encode_shard(job, number, threads=threads, progress=ConsoleProgress())
    show({"job": job, "shard": number, "encoded": done}, as_json)


@shard_group.command("commit")
@click.argument("job", metavar="JOB")
@click.option("-o", "--out", required=True, metavar="OUT", help="Index directory to make, or URL; must not exist.")
@click.option(
    "--shards",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Indexes under one manifest, of consecutive files each; searched and served as one.",
)
@cores_option
@json_option
def commit_command(job: str, out: str, shards: int, threads: int | None, as_json: bool) -> None:
    """Check all parts of JOB, and publish their rows as one index."""
    from vqdistill.shards.publishing import commit_job

    published = commit_job(job, out, threads=threads, shards=shards, progress=ConsoleProgress())
    show({"index": out, "rows": published.n, "shards": shards}, as_json)


@shard_group.command("publish")
@click.argument("index", metavar="INDEX")
@json_option
def publish_command(index: str, as_json: bool) -> None:
    """Make the present generations of the shards of INDEX, together, its next generation.

    Rows are added to the last shard, and deleted from any, as from other indexes.
    """
    from vqdistill.index.regather import publish_shards

    published = publish_shards(index)
    show({"index": index, "generation": published.generation, "rows": published.n}, as_json)
