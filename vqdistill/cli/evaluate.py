"""`eval`: what an index is worth on a data set."""

from __future__ import annotations

from typing import Any

import click

import vqdistill as vqd
from vqdistill.cli.options import search_options
from vqdistill.cli.show import show


@click.command("eval")
@click.argument("index", metavar="INDEX")
@click.argument("dataset", metavar="DATASET.h5")
@search_options
def eval_command(index: str, dataset: str, k: int, nprobe: Any, as_json: bool, **options: Any) -> None:
    """Measure INDEX on the test queries, exact neighbours and labels of DATASET."""
    from vqdistill.evaluate.run import evaluate

    with vqd.open_index(index) as reader:
        probes = reader.manifest.nlist if nprobe == "all" else nprobe
    show(evaluate(index, dataset, k=k, nprobe=probes, **options), as_json)
