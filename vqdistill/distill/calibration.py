"""What a search needs to know of a finished model: how far its codes err, and how much of a code a scan must read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from vqdistill.distill.held_out import CANDIDATES, HeldOut
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.types import Codes

ROUTE_LOSS = 0.005
"""Recall that the calibrated nprobe may give up against visiting every list."""
COVERAGE = 0.995
"""Default share of the true neighbours that the visited lists hold: as much as a fixed nprobe may give up."""
CONFIDENCE = 0.99
"""Default share of the results expected among the candidates read. On pypi200k at 24 bytes it costs 0.002 of the
recall of reading all of 100, and 0.98 costs 0.006."""
CUT_LOSS = 0.0005
"""Recall that dropping blocks early may cost against scanning every code whole."""
_DEVIATIONS = (3.0, 3.5, 4.0, 4.5, 5.0, 6.0)
"""Tried in this order: more drops fewer blocks."""


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
        "deviations": calibrate_cuts(judge, model, codes),
        "error": error or None,
        "confidence": CONFIDENCE if error else None,
    }
    if routing is None:
        return policy
    rungs = tuple((rung["coverage"], rung["lift"]) for rung in routing["ladder"])
    return policy | {"coverage": COVERAGE, "rungs": rungs, "temperature": routing["temperature"]}


def widest_codebooks_first(model: IvfPqModel, codes: Codes) -> tuple[IvfPqModel, Codes]:
    """Order codebooks by how much their codes tell of the rows, most first, so that scans can drop blocks early.

    The order of codebooks changes no score: a score is a sum over them. For product codes the subspaces of the rotation
    move along.

    Parameters
    ----------
    codes : of the training rows

    Returns
    -------
    The same model and codes, in the new order.
    """
    m, ksub, dsub = model.codewords.shape
    used = np.stack([np.bincount(codes.codes[:, j], minlength=ksub) for j in range(m)]) / max(1, len(codes.codes))
    words = model.codewords.astype(np.float64)
    centres = np.einsum("mk,mkd->md", used, words)
    spread = np.einsum("mk,mkd->m", used, (words - centres[:, None]) ** 2)
    order = np.argsort(-spread, kind="stable")
    rotation = model.rotation.reshape(m, dsub, model.d)[order].reshape(-1, model.d) if len(model.rotation) else None
    ordered = replace(
        model,
        codewords=np.ascontiguousarray(model.codewords[order]),
        doc_codewords=np.ascontiguousarray(model.doc_codewords[order]),
        rotation=model.rotation if rotation is None else np.ascontiguousarray(rotation),
    )
    return ordered, Codes(codes.lists, np.ascontiguousarray(codes.codes[:, order]))


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


def calibrate_cuts(judge: HeldOut, model: IvfPqModel, codes: Codes) -> float | None:
    """Fewest deviations (see `SearchPolicy.deviations`) that cost at most CUT_LOSS of the recall; None if all do."""
    engine, order = judge.engine(model, codes)
    options: dict[str, Any] = {"k": CANDIDATES, "nprobe": model.nlist, "refine": 0, "threads": judge.threads}

    def recall(deviations: float) -> float:
        positions = engine.search(judge.lists.queries, deviations=deviations, **options)[1]
        return judge.recall(np.where(positions >= 0, order[positions], -1).astype(np.int32))

    wanted = recall(np.inf) - CUT_LOSS
    return next((deviations for deviations in _DEVIATIONS if recall(deviations) >= wanted), None)
