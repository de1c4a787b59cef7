"""Command line: `vqdistill compile | plan | search | eval | inspect | verify`."""

from __future__ import annotations

import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import click
import numpy as np

import vqdistill as vqd
from vqdistill.compiler.passes import default_codes
from vqdistill.config import LOSSES, SAMPLERS
from vqdistill.errors import CorruptIndex, InvalidInput, VqdistillError
from vqdistill.index.reader import verify
from vqdistill.progress import ConsoleProgress
from vqdistill.types import Hits

Command = Callable[..., Any]

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")


def build_options(command: Command) -> Command:
    """Add what `compile` and `plan` have in common."""
    options = (
        click.argument("source", metavar="INPUT"),
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
        click.option("--ram", default="32B/vec", show_default=True, help='"32B/vec" or, for everything, "64MiB".'),
        click.option(
            "--codes", type=click.Choice(["additive", "pq"]), help="Default: additive if distilled, pq for l2."
        ),
        click.option("--dense", type=click.Choice(["f16", "f32", "i8", "none"]), default="f16", show_default=True),
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
        click.option("--threads", type=click.IntRange(1, 1024), help="Default: all cores."),
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
        click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True),
        json_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(invoke_without_command=True)
@click.version_option(vqd.__version__)
@click.pass_context
def cli(context: click.Context) -> None:
    """Compile embeddings into a compact index whose codes are distilled from their own rankings, and search it."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command("compile")
@click.option("-o", "--out", required=True, metavar="OUT", help="Index directory to make; must not exist.")
@click.option("--build-ram", metavar="SIZE", help='Hard cap on the memory of the compiler itself, such as "1GiB".')
@click.option("--resume", is_flag=True, help="Go on where a compile of the same stopped, from what is in OUT.work.")
@build_options
def compile_command(
    source: str, out: str, no_distill: bool, as_json: bool, queries: str | None, **options: Any
) -> None:
    """Train codebooks for INPUT within the budget and write an index."""
    report = vqd.compile(source, out, queries=queries, distill=not no_distill, progress=ConsoleProgress(), **options)
    if not as_json:  # the plan has been shown before the work began
        del report["plan"]
    _show({"index": out} | report, as_json)


@cli.command("plan")
@click.option("-o", "--out", metavar="OUT", help="Checked not to exist; nothing is written.")
@build_options
def plan_command(
    source: str, out: str | None, queries: str | None, teacher: str, as_json: bool, **options: Any
) -> None:
    """Show what `compile` with the same options would build; trains nothing, writes nothing."""
    from vqdistill.data.sources import open_queries

    if out is not None and os.path.lexists(out):
        raise InvalidInput(f"{out} exists already")
    kind, _, given = teacher.partition(":")
    if teacher != "exact" and (kind not in ("scores", "labels") or not os.path.exists(given)):
        raise InvalidInput(f"teacher must be exact, or scores: or labels: and a file that exists, got {teacher!r}")
    src = vqd.open_source(source, metric=options["metric"], ids=options["ids"])
    if queries not in (None, "none"):
        open_queries(queries, src)
    ids_kind = "rows" if src.ids is None else src.ids.kind
    codes = options["codes"] or default_codes(src.metric, not options["no_distill"])
    adapted = teacher != "exact" and not options["no_distill"]
    plan = vqd.plan(
        src.facts,
        options["ram"],
        codes=codes,
        dense=options["dense"],
        seed=options["seed"],
        ids_kind=ids_kind,
        adapter_units=vqd.DistillConfig().adapter_units(src.dim) if adapted else 0,
    )
    if not as_json:
        click.echo(plan.explain())
        return
    sizes = {
        name: getattr(plan, name) for name in ("ram_bytes_per_vector", "ram_bytes_fixed", "ram_bytes", "disk_bytes")
    }
    _show(plan.to_json() | sizes, as_json=True)


@cli.command("search")
@click.argument("index", metavar="INDEX")
@click.argument("queries", metavar="QUERIES")
@click.option(
    "-o", "--out", metavar="OUT", help="OUT.npz, OUT.trec or OUT.jsonl. Default: a TREC run on standard output."
)
@click.option(
    "--io", default="auto", metavar="auto|map|pread|uring", help="How dense rows are read.", show_default=True
)
@click.option("--timeout", "timeout_s", type=float, metavar="SECONDS", help="Give up after so long. Default: never.")
@search_options
def search_command(
    index: str,
    queries: str,
    out: str | None,
    io: str,
    timeout_s: float | None,
    k: int,
    nprobe: Any,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the k best rows of INDEX for each row of QUERIES."""
    writer = _writer(out)
    searcher = vqd.open(index, io=io)
    rows = np.concatenate([block.rows for block in vqd.open_source(queries, metric="ip").blocks()])
    probes = searcher.reader.manifest.nlist if nprobe == "all" else nprobe
    start = time.perf_counter()
    hits = searcher.search(rows, k, nprobe=probes, timeout_s=timeout_s, **options)
    seconds = time.perf_counter() - start
    summary = {
        "queries": len(rows),
        "k": k,
        "seconds": seconds,
        "queries_per_s": len(rows) / seconds,
        "stats": hits.stats,
    }
    if out is not None:
        _write_whole(Path(out), lambda file: writer(hits, file))
        _show(summary | {"out": out}, as_json)
    elif as_json:
        _show(summary | {"results": list(_results(hits))}, as_json)
    else:
        write_trec(hits, sys.stdout.buffer)


@cli.command("eval")
@click.argument("index", metavar="INDEX")
@click.argument("dataset", metavar="DATASET.h5")
@search_options
def eval_command(index: str, dataset: str, k: int, nprobe: Any, as_json: bool, **options: Any) -> None:
    """Measure INDEX on the test queries, exact neighbours and labels of DATASET."""
    from vqdistill.evaluate.run import evaluate

    with vqd.open_index(index) as reader:
        probes = reader.manifest.nlist if nprobe == "all" else nprobe
    _show(evaluate(index, dataset, k=k, nprobe=probes, **options), as_json)


@cli.command("inspect")
@click.argument("index", metavar="INDEX")
@json_option
def inspect_command(index: str, as_json: bool) -> None:
    """Show what INDEX is: its model, segments, bytes, plan and training report."""
    with vqd.open_index(index) as reader:
        sizes = {"resident_bytes": reader.resident_bytes, "disk_bytes": reader.disk_bytes}
        shown = json.loads(reader.manifest.to_bytes())
        for segment in shown["segments"].values():
            del segment["crc32"]
        _show({"index": index} | shown | sizes, as_json)


@cli.command("verify")
@click.argument("index", metavar="INDEX")
@json_option
def verify_command(index: str, as_json: bool) -> None:
    """Check every byte of every file of INDEX."""
    problems = verify(index)
    if as_json or not problems:
        _show({"index": index, "clean": not problems, "problems": problems}, as_json)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise CorruptIndex(f"{index} is damaged: {problems[0]}{more}")


Results = Callable[[Hits, IO[bytes]], None]


def write_npz(hits: Hits, file: IO[bytes]) -> None:
    """Write arrays `scores` and `ids`, both (q, k)."""
    np.savez(file, scores=hits.scores, ids=hits.ids)


def write_trec(hits: Hits, file: IO[bytes]) -> None:
    """Write a TREC run: query number, Q0, id, rank from 1, score, tag."""
    for result in _results(hits):
        for rank, (doc, score) in enumerate(zip(result["ids"], result["scores"], strict=True), 1):
            file.write(f"{result['query']} Q0 {doc} {rank} {score:.9g} vqdistill\n".encode())


def write_jsonl(hits: Hits, file: IO[bytes]) -> None:
    """Write one JSON object a query: query, ids, scores."""
    for result in _results(hits):
        file.write(json.dumps(result).encode() + b"\n")


WRITERS: dict[str, Results] = {".npz": write_npz, ".trec": write_trec, ".jsonl": write_jsonl}


def _results(hits: Hits) -> Iterator[dict[str, Any]]:
    for query, (scores, ids) in enumerate(zip(*hits, strict=True)):
        found = scores > -np.inf
        yield {"query": query, "ids": ids[found].tolist(), "scores": scores[found].tolist()}


def _writer(out: str | None) -> Results:
    suffix = ".trec" if out is None else Path(out).suffix
    if suffix not in WRITERS:
        raise InvalidInput(f"the output must end in one of {', '.join(WRITERS)}, got {out!r}")
    if out is not None and not Path(out).parent.is_dir():
        raise InvalidInput(f"{Path(out).parent} is no directory, so {out} cannot be written")
    return WRITERS[suffix]


def _write_whole(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write all of `path` or leave it as it was."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            write(file)
        part.replace(path)
    except OSError as error:
        raise VqdistillError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _show(values: Mapping[str, Any], as_json: bool) -> None:
    click.echo(json.dumps(_plain(values), sort_keys=True) if as_json else "\n".join(_lines(_plain(values))))


def _plain(value: Any) -> Any:
    """Turn NumPy values and containers into what JSON has; NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(values: dict[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{key}: {f'{value:.6g}' if isinstance(value, float) else value}"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 2 bad input (one sentence says what), 70 a defect, 130 interrupted."""
    try:
        with cli.make_context("vqdistill", list(sys.argv[1:] if arguments is None else arguments)) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as done:  # --help and --version
        sys.exit(done.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except MemoryError:
        _fail("there is not enough memory for this", 2)
    except VqdistillError as error:
        _fail(str(error), 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        _fail(f"{where}{error.strerror or error}", 2)
    except Exception as error:
        if os.environ.get("VQDISTILL_DEBUG") == "1":
            traceback.print_exc()
        _fail(
            f"unexpected {type(error).__name__}: {error}; this is a defect, please report it with the output of"
            " VQDISTILL_DEBUG=1",
            70,
        )
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    print(f"vqdistill: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
