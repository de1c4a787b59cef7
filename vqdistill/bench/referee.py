"""Checks of what a system returns, before anything counts: who cheats is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.bench.datasets import similarities
from vqdistill.types import F32Rows

TOLERANCE = 2e-3
"""Relative to the largest score: float16 rows and sums in other orders, far below what would change a ranking."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with the results of a search."""

    kind: str
    """"unasked", "duplicates", "scores", "order", "padding" or "shape" """
    count: int
    """queries that show it"""
    text: str
    """one sentence"""
    refused: bool = True
    """whether the run is thrown out; padding at the end only counts as missing"""


@dataclass(frozen=True)
class Checked:
    """Results with the scores that the vectors have, and what is wrong with them."""

    ids: npt.NDArray[np.int64]
    """(q, k), -1 where missing"""
    scores: npt.NDArray[np.float32]
    """(q, k) exact similarities of the ids by the float32 documents, -inf where missing"""
    findings: list[Finding]


def check(
    name: str,
    scores: npt.NDArray[np.float32],
    ids: npt.NDArray[np.int64],
    queries: F32Rows,
    docs: F32Rows,
    k: int,
    l2: bool,
) -> Checked:
    """Compare what a system returned for k results of each query with the vectors themselves.

    Parameters
    ----------
    name : of the system, for messages
    scores, ids : as returned
    queries, docs : (q, d) and (n, d) float32, prepared
    l2 : similarities are -|q - x|^2 instead of <q, x>
    """
    q, n = len(queries), len(docs)
    wanted = (q, k)
    if ids.ndim != 2 or len(ids) != q or scores.shape != ids.shape or ids.dtype.kind not in "iu" or ids.shape[1] < k:
        text = f"{name} must return scores and ids of shape {wanted}, got {scores.shape} and {ids.shape} {ids.dtype}"
        return Checked(np.full(wanted, -1), np.full(wanted, -np.inf, np.float32), [Finding("shape", q, text)])
    findings = []
    if ids.shape[1] > k:
        text = f"{name} returned {ids.shape[1]} neighbours of each query, it was asked for {k}"
        findings.append(Finding("unasked", q, text))
    ids, scores = ids[:, :k].astype(np.int64), scores[:, :k]
    findings += [*_unknown(name, ids, n), *_padding(name, ids, scores), *_duplicates(name, ids)]
    kept = np.where(ids < n, ids, -1)
    exact = similarities(queries, docs, kept, l2)
    findings += _false_scores(name, kept, scores, exact)
    return Checked(kept, exact, findings)


def _finding(name: str, kind: str, bad: Any, what: str, refused: bool = True) -> list[Finding]:
    """Name the first of the queries (q,) that are `bad`."""
    if not bad.any():
        return []
    text = f"{name} {what} for {int(bad.sum())} of {len(bad)} queries, first for query {int(bad.argmax())}"
    return [Finding(kind, int(bad.sum()), text, refused)]


def _unknown(name: str, ids: npt.NDArray[np.int64], n: int) -> list[Finding]:
    return _finding(name, "unasked", (ids >= n).any(axis=1), f"returned ids beyond the {n} documents")


def _padding(name: str, ids: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]) -> list[Finding]:
    missing = ids < 0
    inside = (missing[:, :-1] & ~missing[:, 1:]).any(axis=1)
    scored = (missing & np.isfinite(scores)).any(axis=1)
    found = _finding(name, "padding", inside | scored, "passed -1 off as a result, with a score or before others,")
    text = "padded results with -1, which counts as missing,"
    return found + _finding(name, "padding", missing.any(axis=1) & ~(inside | scored), text, refused=False)


def _duplicates(name: str, ids: npt.NDArray[np.int64]) -> list[Finding]:
    ordered = np.sort(ids, axis=1)
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    return _finding(name, "duplicates", twice, "returned a document twice")


def _false_scores(
    name: str, ids: npt.NDArray[np.int64], scores: npt.NDArray[np.float32], exact: npt.NDArray[np.float32]
) -> list[Finding]:
    found = ids >= 0
    if not found.any():
        return []
    allowed = TOLERANCE * max(1e-6, float(np.abs(exact[found]).max()))
    off = np.zeros(ids.shape)
    off[found] = np.abs(np.nan_to_num(scores[found], nan=np.inf) - exact[found])
    false = _finding(name, "scores", (off > allowed).any(axis=1), "returned scores that are not the vectors' scores")
    known = np.where(found, exact, -np.inf)
    with np.errstate(invalid="ignore"):
        rising = (known[:, 1:] - known[:, :-1] > 2 * allowed).any(axis=1)
    return false + _finding(name, "order", rising, "returned a worse document before a better one")
