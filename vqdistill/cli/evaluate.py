"""`eval` and `explain`: what an index is worth on a data set, and what it loses there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

import vqdistill as vqd
from vqdistill.cli.options import search_options
from vqdistill.cli.show import show
from vqdistill.cli.tables import checked_lines, explained_lines


@click.command("eval")
@click.argument("index", metavar="INDEX")
@click.argument("dataset", metavar="DATASET.h5")
@click.option("--certificate", is_flag=True, help="Measure each rung of the certificate, and say whether it holds.")
@search_options
@click.pass_context
def eval_command(
    context: click.Context,
    /,
    index: str,
    dataset: str,
    certificate: bool,
    k: int,
    nprobe: Any,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure INDEX on the test queries, exact neighbours and labels of DATASET."""
    from vqdistill.evaluate.certificate import check_certificate
    from vqdistill.evaluate.run import evaluate

    if certificate:
        _refuse_given(context, ("k", "nprobe", "coverage", "refine", "confidence", "recall"))
        checked = {"index": index} | check_certificate(index, dataset, options["threads"])
        show(checked, as_json=True) if as_json else click.echo("\n".join(checked_lines(checked)))
        return
    show(evaluate(index, dataset, k=k, nprobe=_lists(index, nprobe), **options), as_json)


@click.command("explain")
@click.argument("index", metavar="INDEX")
@click.argument("dataset", metavar="DATASET.h5")
@search_options
def explain_command(index: str, dataset: str, k: int, nprobe: Any, as_json: bool, **options: Any) -> None:
    """Tell where searches of INDEX lose neighbours of the test queries of DATASET, and what would win them back."""
    from vqdistill.evaluate.explain import explain

    explained = {"index": index} | explain(index, dataset, k=k, nprobe=_lists(index, nprobe), **options)
    show(explained, as_json=True) if as_json else click.echo("\n".join(explained_lines(explained)))


def _lists(index: str, nprobe: Any) -> int | None:
    """Lists to visit, where "all" may stand for a number."""
    with vqd.open_index(index) as reader:
        return reader.manifest.nlist if nprobe == "all" else nprobe


def _refuse_given(context: click.Context, names: Sequence[str]) -> None:
    """Refuse options of a search, which the rungs of a certificate bring along."""
    for name in names:
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"--certificate has settings of its own, got {name} besides")
