"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from vqdistill.config import LOSSES, SAMPLERS

Command = Callable[..., Any]

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")


cores_option = click.option("--threads", type=click.IntRange(1, 1024), help="Default: all cores.")
build_ram_option = click.option(
    "--build-ram", metavar="SIZE", help='Hard cap on the memory of the compiler itself, such as "1GiB".'
)


def build_options(command: Command) -> Command:
    """Add what `compile` and `plan` have in common."""
    return click.argument("source", metavar="INPUT")(model_options(command))


def model_options(command: Command) -> Command:
    """Add what says how an index is to be, and how its model is trained."""
    options = (
        click.option("--queries", metavar="F", help='Learn queries; "none": pseudo-queries from the corpus.'),
        click.option("--teacher", default="exact", show_default=True, metavar="exact|scores:F|labels:F"),
        click.option(
            "--mix",
            type=click.FloatRange(0, 1),
            default=0.0,
            show_default=True,
            help="Share of scores or labels in what teaches the codes, beside the dense neighbours of adapted queries.",
        ),
        click.option("--ids", metavar="F", help="External ids: a column, a dataset or a sidecar file."),
        click.option("--metric", type=click.Choice(["ip", "cosine", "l2"]), help="Default: that of the file."),
        click.option(
            "--ram",
            metavar="SIZE",
            help='"32B/vec" or, for everything, "64MiB". Default: 32B/vec, or with --recall the fewest bytes.',
        ),
        click.option(
            "--recall",
            metavar="0.95@10",
            help="Try what reaches it within --ram at the least work, and make the cheapest search that is proven to"
            " find so much the default.",
        ),
        click.option(
            "--codes", type=click.Choice(["additive", "pq"]), help="Default: additive if distilled, pq for l2."
        ),
        click.option(
            "--dense",
            type=click.Choice(["f16", "f32", "i8", "none"]),
            help="Default: f16, or with --recall what trials choose.",
        ),
        click.option("--no-distill", is_flag=True, help="Stop at the undistilled start."),
        click.option(
            "--loss",
            type=click.Choice(LOSSES),
            default="listnet",
            show_default=True,
            help="What holds the codes' ranking against the teacher's.",
        ),
        click.option(
            "--sampler",
            type=click.Choice(SAMPLERS),
            default="topk",
            show_default=True,
            help="Queries of a step: random (mined: with the codes' own hard negatives), or ones that share documents.",
        ),
        click.option(
            "--debias", is_flag=True, help="Weigh shared documents by the inverse of their chance to be drawn."
        ),
        click.option(
            "--false-negatives",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SHARE",
            help="With scores or labels: leave out unlisted documents that are nearer than this share of the way to the"
            " best listed one. Default: none.",
        ),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
        cores_option,
        json_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


def _probes(context: click.Context, option: click.Parameter, value: str | None) -> int | str | None:
    if value is None or value == "all":
        return value
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f'wanted a positive number of lists or "all", got {value!r}', context, option)
    return int(value)


def search_options(command: Command) -> Command:
    """Add what `search` and `eval` have in common."""
    options = (
        click.option("-k", "k", type=click.IntRange(min=1), default=10, show_default=True, help="Results per query."),
        click.option(
            "--nprobe",
            callback=_probes,
            metavar="N|all",
            help="Lists visited per query; with --coverage, at most.",
        ),
        click.option(
            "--coverage",
            type=float,
            metavar="SHARE",
            help="Share of the true neighbours that the visited lists should hold. Default: calibrated by compile.",
        ),
        click.option(
            "--refine",
            type=click.IntRange(min=0),
            metavar="R",
            help="Candidates verified; with --confidence, at most. 0 = codes only.",
        ),
        click.option(
            "--confidence",
            type=float,
            metavar="SHARE",
            help="Share of the results expected among the candidates read. Default: calibrated by compile.",
        ),
        click.option(
            "--recall",
            type=float,
            metavar="SHARE",
            help="Instead of these: the cheapest search that the index's certificate promises this recall of.",
        ),
        click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True),
        json_option,
    )
    for option in reversed(options):
        command = option(command)
    return command
