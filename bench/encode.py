"""Rows a second of encoding: lists, codes, packing and writing of an index, from a trained model.

    python bench/encode.py ../shared/data/pypi200k-int8.h5 --rows 1000000 --bytes 16,32

The rows are those of the dataset, over and over, each time with the queries that rank them; the model is trained on a
sample. One line a setting; bench/results/encode.json keeps the figures when --store is given.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.compiler.build import build
from vqdistill.compiler.passes import plan as make_plan
from vqdistill.compiler.supervision import DenseTeacher, supervise
from vqdistill.config import IvfPqConfig
from vqdistill.data.sources import TableSource, open_source
from vqdistill.distill.terms import QueryTerms
from vqdistill.kernels import cpu_level
from vqdistill.kernels.threads import training_threads
from vqdistill.model.additive import RowTerms
from vqdistill.model.codebooks import serve_rows, train_additive_start, train_query_coarse
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.progress import Progress
from vqdistill.types import Block, Facts, Metric

RESULTS = Path(__file__).parent / "results" / "encode.json"
TARGET_S = {16: 90.0}
"""Most seconds for 1,000,000 rows of 384 dimensions on two threads, by bytes a row."""


@dataclass(frozen=True)
class Repeated:
    """A source whose rows are those of another, over and over: as much of one as `build` asks for."""

    source: TableSource
    n: int
    ids: None = None

    @property
    def name(self) -> str:
        """See EmbeddingSource."""
        return self.source.name

    @property
    def dim(self) -> int:
        """See EmbeddingSource."""
        return self.source.dim

    @property
    def dtype(self) -> str:
        """See EmbeddingSource."""
        return self.source.dtype

    @property
    def metric(self) -> Metric:
        """See EmbeddingSource."""
        return self.source.metric

    @property
    def facts(self) -> Facts:
        """See EmbeddingSource."""
        return replace(self.source.facts, n=self.n)

    @property
    def resident_bytes(self) -> int:
        """See EmbeddingSource."""
        return self.source.resident_bytes

    def fingerprint(self) -> str:
        """Of the source; `rows` stand in the plan, which an index id covers, too."""
        return self.source.fingerprint()

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """See EmbeddingSource."""
        return self.source.take(rows % self.source.n)

    def blocks(self, rows: int | None = None, start: int = 0) -> Iterator[Block]:
        """See EmbeddingSource."""
        for first in range(0, self.n, self.source.n):
            for block in self.source.blocks(rows):
                left = self.n - first - block.start
                if left > 0 and first + block.start >= start:
                    yield Block(first + block.start, block.rows[:left])


@dataclass(frozen=True)
class RepeatedTerms:
    """The terms of the rows of `Repeated`."""

    terms: QueryTerms
    n: int
    """Rows of the source."""

    def take(self, rows: npt.NDArray[np.int64]) -> RowTerms:
        """See TermsOfRows."""
        return self.terms.take(rows % self.n)


def train(src: TableSource, config: IvfPqConfig, terms: QueryTerms, sample: int, seed: int) -> IvfPqModel:
    """Train lists and codes on a sample, as distillation does, and give the model the terms of all rows."""
    rows = np.sort(np.random.default_rng(seed).permutation(src.n)[:sample])
    x, own = src.take(rows), terms.take(rows)
    coarse = train_query_coarse(x, own, config.nlist, seed)
    start = train_additive_start(x, coarse, config, src.metric, residual=True)
    repeated = RepeatedTerms(terms, src.n)
    return replace(serve_rows(start, x, coarse, own, seed), terms=repeated, list_terms=repeated)


def measure(src: TableSource, terms: QueryTerms, code_bytes: int, options: argparse.Namespace) -> dict[str, Any]:
    """Build an index from a model that is trained before the clock starts."""
    rows = Repeated(src, options.rows)
    plan = make_plan(rows.facts, f"{code_bytes}B/vec", codes="additive", dense=options.dense, seed=options.seed)
    model = train(src, plan.model, terms, options.sample, options.seed)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        start = time.perf_counter()
        build(plan, model, rows, Path(folder) / "index.vqd")
        seconds = time.perf_counter() - start
    return {
        "dataset": Path(options.dataset).stem,
        "rows": options.rows,
        "dim": src.dim,
        "bytes": code_bytes,
        "nlist": plan.model.nlist,
        "dense": options.dense,
        "threads": options.threads,
        "cpu": cpu_level(),
        "seconds": seconds,
        "rows_per_s": options.rows / seconds,
    }


def line(result: dict[str, Any]) -> str:
    """Return the figures of one setting and the target, if it has one."""
    target = TARGET_S.get(result["bytes"]) if (result["rows"], result["dim"]) == (1_000_000, 384) else None
    return (
        f"{result['dataset']}, {result['rows']:,} rows x {result['dim']}, {result['bytes']} B, nlist {result['nlist']},"
        f" {result['threads']} threads, {result['cpu']}: {result['seconds']:.1f} s, {result['rows_per_s']:,.0f} rows/s"
        f"{'' if target is None else f' (target {target:.0f} s)'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="file with rows and learn_queries")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--bytes", default="16", help="of a code; several with commas")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sample", type=int, default=40_000, help="rows that the model is trained on")
    parser.add_argument("--dense", default="f16", help='rows on disk, as compile has them; "none" = codes alone')
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "vqdistill-encode")
    parser.add_argument("--folder", type=Path, help="where the index is written and removed again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", action="store_true", help=f"write {RESULTS.name}; on a quiet machine only")
    options = parser.parse_args()
    if len(os.sched_getaffinity(0)) < options.threads:
        raise SystemExit(f"encode.py needs {options.threads} cores, got {len(os.sched_getaffinity(0))}")
    src = open_source(options.dataset, metric="cosine")
    results = []
    with training_threads(options.threads):
        dense = DenseTeacher(src, options.cache, options.seed, options.threads, Progress())
        lesson = supervise(src, None, "exact", dense)
        terms = QueryTerms.from_relevance(lesson.queries, lesson.relevance, src.n)
        for code_bytes in map(int, options.bytes.split(",")):
            results.append(measure(src, terms, code_bytes, options))
            print(line(results[-1]), flush=True)
    if options.store:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
