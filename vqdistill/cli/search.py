"""`search`: queries in, results out, in several formats."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import click
import numpy as np

import vqdistill as vqd
from vqdistill.cli.options import search_options
from vqdistill.cli.show import show
from vqdistill.errors import InvalidInput, VqdistillError
from vqdistill.types import Hits


@click.command("search")
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
        show(summary | {"out": out}, as_json)
    elif as_json:
        show(summary | {"results": list(_results(hits))}, as_json)
    else:
        write_trec(hits, sys.stdout.buffer)


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
