"""Makes the certificate of a finished index, and measures a stored one again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vqdistill.data.sources import open_source
from vqdistill.data.teacher import ExactTeacher
from vqdistill.errors import InvalidInput
from vqdistill.evaluate.interval import LEVEL, agree, of_all, of_as_many
from vqdistill.evaluate.ladder import QuerySet, Setting, Trial, attempt, tune
from vqdistill.evaluate.run import load_test_set
from vqdistill.index.certificate import Certificate, Rung
from vqdistill.index.opening import open_index
from vqdistill.index.reader import IndexReader
from vqdistill.searcher import Searcher
from vqdistill.types import F32Rows

_TIMED_QUERIES = 500
_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where queries and their true neighbours are from."""

    real_queries: bool
    """False for queries made from the corpus."""
    truth: str = "exact"
    """"exact" or "index"."""
    truth_recall: float | None = None
    """Of the lists of an index; None if exact."""


def as_verified(reader: IndexReader, queries: F32Rows) -> F32Rows:
    """Return queries (q, d) as dense rows are scored with: what the index's adapters make of them."""
    for stage in ("query", "verify"):
        adapter = reader.adapter(stage)
        queries = queries if adapter is None else adapter(queries)
    return queries


def certify(
    reader: IndexReader,
    tuning: QuerySet,
    reserved: QuerySet,
    k: int,
    provenance: Provenance,
    *,
    threads: int = 1,
    seed: int = 0,
    io: str = "auto",
) -> tuple[Certificate, list[dict[str, float]]]:
    """Choose a ladder of searches on some queries, and measure each once on others.

    Parameters
    ----------
    reader : the finished index
    tuning : queries that choose the settings
    reserved : queries that neither training nor tuning has seen
    k : true neighbours that count
    io : how rows are read, see `Searcher`; it changes the timings alone

    Returns
    -------
    certificate : the same for the same index, queries and seed
    timings : for each rung `target`, `p50_ms` and `p99_ms` of single queries; of this machine and moment
    """
    searcher = Searcher(reader, io)
    rungs, timings = [], []
    for target, chosen in tune(searcher, tuning, k, threads=threads, seed=seed):
        trial = attempt(searcher, reserved, chosen.setting, k, threads, seed)
        alone = _alone(searcher, reserved.queries, chosen.setting, k)
        rungs.append(_rung(target, trial, alone.pop("pages")))
        timings.append({"target": target} | alone)
    certificate = Certificate(
        k=k,
        queries=len(reserved.queries),
        tuned_on=len(tuning.queries),
        level=LEVEL,
        real_queries=provenance.real_queries,
        truth=provenance.truth,
        truth_recall=provenance.truth_recall,
        rungs=tuple(rungs),
    )
    return certificate, timings


def check_certificate(index: str | Path, dataset: str | Path, threads: int = 1) -> dict[str, Any]:
    """Measure every rung of an index's certificate on the test queries of a data set.

    Parameters
    ----------
    index : directory of the index
    dataset : HDF5 file that it was compiled from, with `test` and, if it has them, `neighbors`
    threads : of the batches; single queries have one

    Returns
    -------
    dict
        `k`, `queries`, `certified_on`, `rungs`, and of these how many `contained` and `hold`. For each rung what was
        certified (`target`, `recall`, `low`, `high`), `test_recall` with the interval of its mean `test_low`,
        `test_high`, its work a query and single-query `p50_ms` and `p99_ms`; `contained`: the test recall is inside
        low..high; `holds`: both recalls may be the same, with the doubt of both samples (`interval.agree`).

    Raises
    ------
    InvalidInput
        If the index has no certificate, or the data set does not belong to it.
    """
    with open_index(index) as reader:
        certificate = reader.manifest.certificate
        if certificate is None:
            raise InvalidInput(f"{index} must have a certificate to check, got none: it was compiled without one")
        k, searcher = certificate.k, Searcher(reader)
        asked = true_neighbors(reader, dataset, k, threads)
        rungs = [_checked(searcher, asked, rung, k, threads) for rung in certificate.rungs]
    return {
        "k": k,
        "queries": len(asked.queries),
        "certified_on": certificate.queries,
        "real_queries": certificate.real_queries,
        "level": certificate.level,
        "rungs": rungs,
        "contained": sum(rung["contained"] for rung in rungs),
        "hold": sum(rung["holds"] for rung in rungs),
        "of": len(rungs),
    }


def true_neighbors(reader: IndexReader, dataset: str | Path, k: int, threads: int) -> QuerySet:
    """Test queries of a data set, and the rows that an exhaustive search ranks first for them as the index scores rows.

    Raises
    ------
    InvalidInput
        As `load_test_set`.
    """
    test = load_test_set(dataset, reader, k, threads)
    if not reader.manifest.adapters:
        return test
    src = open_source(dataset, metric=reader.manifest.metric)
    lists = ExactTeacher(src, threads).relevance(as_verified(reader, test.queries), k)
    return QuerySet(test.queries, lists.padded(k)[0])


def _checked(searcher: Searcher, asked: QuerySet, rung: Rung, k: int, threads: int) -> dict[str, Any]:
    trial = attempt(searcher, asked, Setting(**rung.options), k, threads)
    certified, (low, high) = of_all(rung.recall, (rung.low, rung.high)), trial.interval
    return (
        {name: getattr(rung, name) for name in ("target", "recall", "low", "high")}
        | {"test_recall": trial.recall, "test_low": low, "test_high": high}
        | {
            "contained": rung.low <= trial.recall <= rung.high,
            "holds": agree(rung.recall, certified, trial.recall, trial.interval),
        }
        | trial.work
        | _alone(searcher, asked.queries[:_TIMED_QUERIES], Setting(**rung.options), k)
    )


def _alone(searcher: Searcher, queries: F32Rows, setting: Setting, k: int) -> dict[str, float]:
    """Ask one query at a time: `pages` read a query, `p50_ms` and `p99_ms`."""
    pages, seconds = 0, []
    for query in queries:
        begin = time.perf_counter()
        hits = searcher.search(query, k, **setting.options)
        seconds.append(time.perf_counter() - begin)
        pages += hits.stats["dense_pages"]
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return {"pages": pages / len(queries), "p50_ms": float(p50), "p99_ms": float(p99)}


def _rung(target: float, trial: Trial, pages: float) -> Rung:
    """Round outwards, so that the stored interval is never the narrower one."""
    scale = 10**_DIGITS
    low, high = of_as_many(trial.recall, trial.interval)
    numbers: dict[str, Any] = {name: round(value, 3) for name, value in trial.work.items()} | {
        "target": target,
        "recall": round(trial.recall, _DIGITS),
        "low": float(np.floor(min(low, trial.recall) * scale) / scale),
        "high": float(np.ceil(max(high, trial.recall) * scale) / scale),
        "pages": round(pages, 3),
    }
    return Rung(**trial.setting.options, **numbers)
