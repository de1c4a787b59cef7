"""`vqdistill bench` and `vqdistill report`."""

from __future__ import annotations

import importlib
import json
import os
import re
from pathlib import Path
from typing import Any

import click

from vqdistill.bench.budgets import parse_budgets
from vqdistill.errors import InvalidInput, MissingDependency

_TIME = {"": 1, "s": 1, "m": 60, "h": 3600}


def _late(name: str) -> Any:
    """Load a part of the benchmark; the other commands need none of it."""
    try:
        return importlib.import_module(f"vqdistill.bench.{name}")
    except ModuleNotFoundError as error:
        raise MissingDependency(f"the benchmark needs {error.name}: pip install 'vqdistill[bench]'") from None


@click.command("bench")
@click.argument("dataset", metavar="DATASET")
@click.option("--budgets", default="16,32B/vec", show_default=True, metavar="SIZES")
@click.option("--systems", metavar="NAMES", help='Comma-separated; "list" shows them. Default: all that are installed.')
@click.option("--targets", default="0.90,0.95,0.98", show_default=True, metavar="RECALLS")
@click.option("--time-limit", default="30m", show_default=True, metavar="TIME", help="Of each build: 90s, 30m, 2h.")
@click.option("-o", "--out", default="runs", show_default=True, metavar="FOLDER")
@click.option("--cores", metavar="LIST", help='"0,2-3": builds use all of them, searches the first. Default: all.')
@click.option("--queries", metavar="F", help="Test queries, if they are in a file of their own.")
@click.option("--learn", metavar="F", help="Learn queries, likewise.")
@click.option("--neighbors", metavar="F", help="Exact neighbours of the test queries, likewise.")
@click.option("--metric", type=click.Choice(["ip", "cosine", "l2"]), help="Default: that of the file.")
@click.option(
    "--repetitions", type=click.IntRange(min=1), default=3, show_default=True, help="Timed passes of a round."
)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Over all systems, in turn.")
@click.option("--repeats", type=click.IntRange(min=1), default=1, show_default=True, help="Whole measurements.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--no-memory", is_flag=True, help="Leave out memories and the cold page cache.")
@click.option("--retry", is_flag=True, help="Try again what failed before.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def bench_command(dataset: str, as_json: bool, **given: Any) -> None:
    """Measure recall, speed and memory of systems on DATASET, side by side; a killed run resumes where it stopped.

    DATASET is an embedding file, an ann-benchmarks or VIBE HDF5 file, a BEIR-style folder, or the name of a public set.
    """
    if given["systems"] == "list":
        _list_systems(as_json)
        return
    runner, datasets = _late("runner"), _late("datasets")
    options = _options(given, runner)
    prepared = datasets.prepare(
        _source(dataset),
        Path(given["out"]),
        queries=given["queries"],
        learn=given["learn"],
        neighbors=given["neighbors"],
        metric=given["metric"],
        seed=given["seed"],
        threads=len(options.cores),
    )
    for entry in _late("systems").SYSTEMS:
        if entry.name in options.systems and not entry.available:
            click.echo(f"{entry.name}: not installed ({entry.install})", err=as_json)
    counts = runner.run_all(prepared, options, lambda text: click.echo(text, err=as_json))
    if as_json:
        click.echo(json.dumps(counts | {"folder": str(prepared.folder)}, sort_keys=True))
    else:
        click.echo(f"{counts['done']} done, {counts['kept']} kept, {counts['failed']} failed: {prepared.folder}")


@click.command("report")
@click.argument("runs", metavar="RUNS")
@click.option("-o", "--out", required=True, metavar="OUT", help="OUT.html, OUT.md or OUT.json.")
@click.option("--import", "imported", multiple=True, metavar="NAME=F", help="TREC run or HDF5 of any other engine.")
@click.option("--targets", default="0.90,0.95,0.98", show_default=True, metavar="RECALLS")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def report_command(runs: str, out: str, imported: tuple[str, ...], targets: str, as_json: bool) -> None:
    """Judge the runs below the folder RUNS, and write one self-contained page (or Markdown, or JSON)."""
    if not Path(runs).is_dir():
        raise InvalidInput(f"{runs} must be a folder that vqdistill bench wrote")
    written = _late("report").write_report(Path(runs), Path(out), _recalls(targets), imported)
    click.echo(json.dumps(written, sort_keys=True) if as_json else f"{written['bytes']:,} bytes: {out}")


def _options(given: dict[str, Any], runner: Any) -> Any:
    systems = _late("systems")
    names = [entry.name for entry in systems.SYSTEMS]
    if given["systems"] is not None:
        # What is asked for by name must be there.
        names = [systems.require(name.strip()).name for name in given["systems"].split(",")]
    cores = _late("machine").cores(given["cores"])
    if not cores:
        raise InvalidInput(
            f'cores must be among {sorted(os.sched_getaffinity(0))}, such as "0,2-3", got {given["cores"]!r}'
        )
    return runner.Options(
        budgets=tuple(parse_budgets(given["budgets"])),
        systems=tuple(names),
        targets=tuple(_recalls(given["targets"])),
        time_limit_s=_seconds(given["time_limit"]),
        cores=tuple(cores),
        repetitions=given["repetitions"],
        rounds=given["rounds"],
        repeats=given["repeats"],
        seed=given["seed"],
        memory=not given["no_memory"],
        retry=given["retry"],
    )


def _source(dataset: str) -> str:
    """Return the file of a named public set, or what was given."""
    if os.path.exists(dataset.partition(":")[0]) or re.search(r"[/.]", dataset):
        return dataset
    fetching = _late("fetch")
    if dataset not in fetching.KNOWN:
        raise InvalidInput(f"DATASET must be a file, a folder or one of {', '.join(fetching.KNOWN)}, got {dataset!r}")
    return str(fetching.fetch(dataset))


def _list_systems(as_json: bool) -> None:
    entries = _late("systems").SYSTEMS
    if as_json:
        click.echo(json.dumps({e.name: {"version": e.version, "install": e.install, "note": e.note} for e in entries}))
        return
    for entry in entries:
        state = entry.version if entry.available else f"not installed ({entry.install})"
        click.echo(f"{entry.name}: {entry.note + '; ' if entry.note else ''}{state}")


def _recalls(text: str) -> list[float]:
    try:
        values = sorted({float(part) for part in text.split(",")})
    except ValueError:
        values = []
    if not values or not all(0 < value <= 1 for value in values):
        raise InvalidInput(f'targets must be recalls such as "0.90,0.95", got {text!r}')
    return values


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if found is None or not float(found[1]):
        raise InvalidInput(f"time-limit must be a time such as 90s, 30m or 2h, got {text!r}")
    return float(found[1]) * _TIME[found[2]]
