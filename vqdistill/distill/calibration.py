"""What a search needs to know of a finished model: how far its codes err, and how many lists it visits."""

from __future__ import annotations

from typing import Any

import numpy as np

from vqdistill.distill.held_out import HeldOut
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.types import Codes

ROUTE_LOSS = 0.005
"""Recall that the calibrated nprobe may give up against visiting every list."""
COVERAGE = 0.995
"""Default share of the true neighbours that the visited lists hold: as much as a fixed nprobe may give up."""
CONFIDENCE = 0.99
"""Default share of the results expected among the candidates read. On pypi200k at 24 bytes it costs 0.002 of the
recall of reading all of 100, and 0.98 costs 0.006."""


def calibrate_search(judge: HeldOut, model: IvfPqModel, codes: Codes, routing: dict[str, Any] | None) -> dict[str, Any]:
    """Find the defaults of a search on the held-out queries.

    Parameters
    ----------
    codes : of the training rows
    routing : `temperature` and `ladder` of a learned router; None = lists are chosen by number

    Returns
    -------
    dict
        Fields of `index.policy.SearchPolicy`, JSON-ready.
    """
    error = code_error(judge, model, codes)
    policy = {
        "nprobe": judge.calibrate_nprobe(model, codes, ROUTE_LOSS),
        "error": error or None,
        "confidence": CONFIDENCE if error else None,
    }
    if routing is None:
        return policy
    rungs = tuple((rung["coverage"], rung["lift"]) for rung in routing["ladder"])
    return policy | {"coverage": COVERAGE, "rungs": rungs, "temperature": routing["temperature"]}


def code_error(judge: HeldOut, model: IvfPqModel, codes: Codes) -> float:
    """Standard deviation of exact score - code score among the candidates of a held-out query, around their mean."""
    found, scores = judge.scored_candidates(model, codes)
    queries = judge.lists.queries if model.verify_adapter is None else model.verify_adapter(judge.lists.queries)
    spread, count = 0.0, 0
    for query, docs, by_code in zip(queries, found, scores, strict=True):
        real = docs >= 0
        if real.sum() < 2:
            continue
        errors = judge.corpus.scores(query[None], docs[real])[0] - by_code[real]
        spread += float(((errors - errors.mean()) ** 2).sum())
        count += int(real.sum()) - 1
    return float(np.sqrt(spread / max(1, count)))
