"""Explains the recall that an index loses on a data set, and what would win it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.config import SearchParams
from vqdistill.evaluate.certificate import true_neighbors
from vqdistill.evaluate.ladder import QuerySet, Setting, attempt
from vqdistill.index.opening import open_index
from vqdistill.index.policy import DEFAULT_REFINE
from vqdistill.index.trace import CAUSES, FOUND, PRECISION, QUANTIZATION, ROUTING, STOPPING, lists_of_rows
from vqdistill.searcher import Searcher
from vqdistill.types import F64

DECILES = 10
_LOSSES = (ROUTING, QUANTIZATION, STOPPING, PRECISION)
_QUERIES_AT_ONCE = 1024
_ENOUGH = 0.8
"""Share of what the largest step of an option wins back that makes a smaller step the suggestion."""
_FACTORS = (2, 4, 8, 16)
"""Steps of numbers of lists and rows."""
_CONFIDENCES = (0.95, 0.98, 0.99, 0.995, 0.999)

Measure = Callable[[Setting], dict[str, float]]


def explain(
    index: str | Path,
    dataset: str | Path,
    *,
    k: int = 10,
    nprobe: int | None = None,
    coverage: float | None = None,
    refine: int | None = None,
    confidence: float | None = None,
    recall: float | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """Tell where a search of the test queries loses true neighbours, and which option would win most of them back.

    Parameters
    ----------
    index : directory of the index
    dataset : HDF5 file that it was compiled from, with `test` and, if it has them, `neighbors`
    k, nprobe, coverage, refine, confidence, recall, threads : as for `Searcher.search`

    Returns
    -------
    dict
        `recall` and `deficit`, 1 - recall; `causes`, for each of routing, quantization, stopping and precision (see
        `index.trace`) the neighbours `lost`, their part of the `deficit` and `share` of it; `deciles` of the queries,
        hardest first, by the score of the k-th candidate less that of the last, with `recall` and deficit by cause;
        `suggestions`, the one that wins most first: a `setting` of a search, or a `compile` option, the `recall` that
        it promises, measured on these queries, what it `gains` and its work a query.

    Raises
    ------
    InvalidInput
        If the data set does not belong to the index, or an option is out of range.
    """
    given = SearchParams(nprobe=nprobe, coverage=coverage, refine=refine, confidence=confidence, recall=recall)
    with open_index(index) as reader:
        searcher = Searcher(reader)
        asked = true_neighbors(reader, dataset, k, threads)
        if recall is not None:
            given = replace(given, recall=None, **searcher.rung(recall, k).options)
        filled = reader.manifest.search.fill(given, k)
        setting = Setting(**{name: getattr(filled, name) for name in ("nprobe", "coverage", "refine", "confidence")})
        fates, gaps = _trace(searcher, asked, setting, k, threads)

        def measure(tried: Setting) -> dict[str, float]:
            trial = attempt(searcher, asked, tried, k, threads)
            return {"recall": trial.recall} | trial.work

        wanted = int((fates >= 0).sum())
        now = measure(setting)
        suggestions = _suggestions(searcher, setting, fates, k, measure, now["recall"])
        suggestions += _at_compile(searcher, asked, setting, fates, k, threads)
    found = int((fates == FOUND).sum())
    return {
        "k": k,
        "queries": len(fates),
        "setting": asdict(setting),
        "recall": found / wanted,
        "lost": wanted - found,
        "deficit": (wanted - found) / wanted,
        "causes": _causes(fates, wanted),
        "deciles": _deciles(fates, gaps),
        "suggestions": sorted(suggestions, key=lambda suggestion: -suggestion["gains"]),
        "work": {name: value for name, value in now.items() if name != "recall"},
    }


def _trace(
    searcher: Searcher, asked: QuerySet, setting: Setting, k: int, threads: int
) -> tuple[npt.NDArray[np.int8], F64]:
    """Fates (q, k) of all true neighbours, and the gaps of the queries."""
    lists, parts = lists_of_rows(searcher.reader), []
    for begin in range(0, len(asked.queries), _QUERIES_AT_ONCE):
        part = slice(begin, begin + _QUERIES_AT_ONCE)
        rows = asked.neighbors[part, :k]
        parts.append(searcher.trace(asked.queries[part], rows, k, lists=lists, threads=threads, **setting.options))
    return np.concatenate([part.fates for part in parts]), np.concatenate([part.gaps for part in parts])


def _causes(fates: npt.NDArray[np.int8], wanted: int) -> dict[str, dict[str, float]]:
    lost = int((fates > FOUND).sum())
    counts = {cause: int((fates == cause).sum()) for cause in _LOSSES}
    return {
        CAUSES[cause]: {"lost": count, "deficit": count / wanted, "share": count / lost if lost else 0.0}
        for cause, count in counts.items()
    }


def _deciles(fates: npt.NDArray[np.int8], gaps: F64) -> list[dict[str, Any]]:
    """Tenths of the queries, hardest first."""
    tenths = np.array_split(np.argsort(gaps, kind="stable"), min(DECILES, len(gaps)))
    told = []
    for tenth in tenths:
        some, wanted = fates[tenth], max(1, int((fates[tenth] >= 0).sum()))
        deficits = {CAUSES[cause]: int((some == cause).sum()) / wanted for cause in _LOSSES}
        told.append({"queries": len(tenth), "recall": int((some == FOUND).sum()) / wanted} | deficits)
    return told


def _suggestions(
    searcher: Searcher, setting: Setting, fates: npt.NDArray[np.int8], k: int, measure: Measure, recall: float
) -> list[dict[str, Any]]:
    """For each cause the first step of its option that wins nearly as much as the largest, as measured."""
    steps = {
        ROUTING: _more_lists(searcher, setting),
        QUANTIZATION: _more_rows(searcher, setting, k),
        STOPPING: _more_confidence(setting),
    }
    suggestions: list[dict[str, Any]] = []
    for cause, settings in steps.items():
        if not (fates == cause).any():
            continue
        tried = [(step, measure(step)) for step in settings]
        most = max((done["recall"] for _, done in tried), default=recall) - recall
        if most <= 0:
            continue
        step, done = next(pair for pair in tried if pair[1]["recall"] - recall >= _ENOUGH * most)
        changed = {name: value for name, value in step.options.items() if value is not None}
        suggestions.append({"cause": CAUSES[cause], "setting": changed, "gains": done["recall"] - recall, **done})
    return suggestions


def _more_lists(searcher: Searcher, setting: Setting) -> Iterator[Setting]:
    manifest = searcher.reader.manifest
    if setting.coverage is not None:
        higher = [coverage for coverage, _ in manifest.search.rungs if coverage > setting.coverage]
        yield from (replace(setting, coverage=coverage) for coverage in higher)
    elif setting.nprobe is not None:
        more = [factor * setting.nprobe for factor in _FACTORS]
        yield from (replace(setting, nprobe=nprobe) for nprobe in more if nprobe < manifest.nlist)
    if setting.nprobe != manifest.nlist:
        yield replace(setting, coverage=None, nprobe=manifest.nlist)


def _more_rows(searcher: Searcher, setting: Setting, k: int) -> Iterator[Setting]:
    n = searcher.reader.manifest.n
    if searcher.reader.manifest.dense != "none":
        base = max(setting.refine, k)
        more = sorted({min(n, factor * base) for factor in _FACTORS})
        yield from (replace(setting, refine=refine) for refine in more if refine > setting.refine)


def _more_confidence(setting: Setting) -> Iterator[Setting]:
    if setting.confidence is not None:
        higher = [confidence for confidence in _CONFIDENCES if confidence > setting.confidence]
        yield from (replace(setting, confidence=confidence) for confidence in (*higher, None))


def _at_compile(
    searcher: Searcher, asked: QuerySet, setting: Setting, fates: npt.NDArray[np.int8], k: int, threads: int
) -> list[dict[str, Any]]:
    """What dense rows of another encoding would win, which needs another index."""
    manifest, wanted = searcher.reader.manifest, int((fates >= 0).sum())
    recall = int((fates == FOUND).sum()) / wanted
    if manifest.dense == "none" and (fates == QUANTIZATION).any():
        deep = min(manifest.n, max(k, DEFAULT_REFINE))
        found = searcher.search(asked.queries, deep, threads=threads, **setting.options).rows
        wins = int((np.array([np.isin(a, b) for a, b in zip(asked.neighbors[:, :k], found, strict=True)])).sum())
        promised, cause, dense = wins / wanted, QUANTIZATION, "f16"
    else:
        promised, cause, dense = recall + int((fates == PRECISION).sum()) / wanted, PRECISION, "f32"
    if promised <= recall or manifest.dense == "f32":
        return []
    return [
        {"cause": CAUSES[cause], "compile": {"dense": dense}, "recall": promised, "gains": promised - recall},
    ]
