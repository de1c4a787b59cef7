"""Runs a plan: relevance, model, then one streamed pass over the rows into a published index."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from vqdistill.compiler.passes import default_codes
from vqdistill.compiler.passes import plan as make_plan
from vqdistill.compiler.plan import CompilePlan
from vqdistill.compiler.supervision import DenseTeacher, teacher_kind
from vqdistill.compiler.train import search_policy, train, units
from vqdistill.config import Budget, DistillConfig
from vqdistill.data.sources import EmbeddingSource, open_source
from vqdistill.data.teacher import Judge
from vqdistill.errors import InvalidInput
from vqdistill.index.policy import SearchPolicy
from vqdistill.index.spec import ID_BYTES
from vqdistill.index.writer import IndexWriter
from vqdistill.kernels.threads import training_threads
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.progress import Progress


def compile(
    input: Any,
    out: str | Path,
    *,
    queries: Any = None,
    teacher: str | Judge = "exact",
    mix: float = 0.0,
    ids: Any = None,
    metric: str | None = None,
    ram: str | Budget = "32B/vec",
    dense: str = "f16",
    codes: str | None = None,
    distill: bool = True,
    loss: str = "listnet",
    sampler: str = "topk",
    debias: bool = False,
    false_negatives: float | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compile embeddings into an index directory.

    Parameters
    ----------
    input : path, `FILE:key`, folder or glob of shards, NumPy array or torch tensor of shape (n, d)
    out : directory to make; must not exist. Teacher lists are cached in `<out>.cache` beside it.
    queries : learn queries in any of these forms; None = `learn_queries` or `learn` of the input file, if it has them;
        "none" = pseudo-queries made from the corpus
    teacher : "exact" (dense scores), "scores:FILE" (pair scores) or "labels:FILE" (relevant documents or their grades),
        of the queries; or a function, such as a cross-encoder, that scores the documents which dense scores rank first:
        given row numbers of queries (b,) and of documents (b, l), it returns (b, l) scores. Where exact search is too
        dear (`supervision.AFFORDABLE`), dense lists are from an undistilled index, and the report has their recall.
        Scores, labels and functions train adapters of queries; the dense neighbours of adapted queries teach the rest.
    mix : share of such judgments in what teaches the codes, beside those neighbours
    ids : external ids, see `open_source`; None = row numbers
    metric : "ip", "cosine" or "l2"; None = what the file says, otherwise cosine
    ram : "32B/vec" bounds what each vector adds to memory, "64MiB" the whole resident set
    dense : rows on disk that verify candidates: "f16", "f32", "bf16", "i8" or "none"
    codes : "additive" (most recall per byte) or "pq" (what other engines load); None = additive where distillation
        and the metric allow it, otherwise pq
    distill : False stops after the undistilled start
    loss : what holds the codes' ranking against the teacher's, one of `config.LOSSES`
    sampler : what each step trains on, one of `config.SAMPLERS`: random queries ("topk"), with hard negatives of the
        present codes ("mined"), or queries that share documents ("walk", "snowball")
    debias, false_negatives : see `DistillConfig`; the latter needs such judgments alone, mix 1
    seed : of every random choice; same input, options and seed give the same bytes
    threads : None = all cores that this process may use

    Returns
    -------
    dict
        JSON-ready: `plan`, `report` (what each training stage brought), `search` (calibrated defaults), `seconds`.

    Raises
    ------
    InvalidInput
        If an option, file or row is not usable, or `out` exists.
    BudgetInfeasible
        If nothing fits `ram`.
    VqdistillError
        If the disk refuses; nothing is left at `out`.
    """
    config = DistillConfig(
        seed=seed, enabled=distill, loss=loss, sampler=sampler, debias=debias, false_negatives=false_negatives
    )
    kind = teacher_kind(teacher, mix)
    if false_negatives is not None and (kind == "exact" or mix < 1):
        raise InvalidInput("false_negatives needs scores, labels or a function as teacher, and mix 1 of it")
    progress = progress or Progress()
    threads = threads or len(os.sched_getaffinity(0))
    begin = time.perf_counter()
    _require_free(out)
    src = open_source(input, metric=metric, ids=ids)
    ids_kind = src.ids.kind if src.ids else "rows"
    plan = make_plan(
        src.facts,
        ram,
        codes=codes or default_codes(src.metric, distill),
        dense=dense,
        seed=seed,
        ids_kind=ids_kind,
        adapter_units=config.adapter_units(src.dim) if distill and kind != "exact" else 0,
    )
    progress.note(plan.explain())
    with training_threads(threads):
        dense_teacher = DenseTeacher(src, Path(f"{out}.cache"), seed, threads, progress)
        done = train(plan, config, queries, teacher, mix, dense_teacher)
        build(done.plan, done.model, src, out, search=done.search, report=done.report, progress=progress)
    seconds = time.perf_counter() - begin
    return {"plan": done.plan.to_json(), "report": done.report, "search": done.search.to_json(), "seconds": seconds}


def build(
    plan: CompilePlan,
    model: IvfPqModel,
    src: EmbeddingSource,
    path: str | Path,
    *,
    search: SearchPolicy | Mapping[str, Any] | None = None,
    report: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> None:
    """Encode every row of `src` and publish the index at `path`.

    Parameters
    ----------
    plan, model : as `plan(...)` and `Distiller.fit` gave them
    path : directory to make; must not exist
    search : defaults stored in the index, whole or as `Distiller.calibrated` has them; what is not calibrated: a
        quarter of the lists, 100 candidates verified
    report : JSON object stored in the manifest

    Raises
    ------
    InvalidInput
        If `path` exists, or plan, model and source do not belong together.
    VqdistillError
        If the disk refuses; nothing is left behind.
    """
    progress = progress or Progress()
    _require_match(plan, model, src)
    if not isinstance(search, SearchPolicy):
        search = search_policy(model, plan.dense, search or {})
    index_id = _index_id(plan, model, src)
    tables = plan.model.tables
    with IndexWriter(path, model, dense=plan.dense, ids=plan.ids, index_id=index_id, tables=tables) as writer:
        with progress.stage("encode", src.n) as stage:
            for block in src.blocks():
                ids = src.ids.slice(block.start, block.start + len(block.rows)) if src.ids else None
                rows = np.arange(block.start, block.start + len(block.rows))
                terms, list_terms = (
                    None if known is None else known.take(rows) for known in (model.terms, model.list_terms)
                )
                codes = model.encode(block.rows, terms, list_terms)
                writer.add(ids, codes, block.rows)
                stage.advance(len(block.rows))
        with progress.stage("write index"):
            writer.publish(plan.to_json(), search, report or {})


def _require_free(out: str | Path) -> None:
    if os.path.lexists(out):
        raise InvalidInput(f"{out} exists already; remove it or choose another name")
    if not Path(out).absolute().parent.is_dir():
        raise InvalidInput(f"{out} must be in a folder that exists, got {Path(out).absolute().parent}")


def _require_match(plan: CompilePlan, model: IvfPqModel, src: EmbeddingSource) -> None:
    asked = (plan.model.query_units, plan.model.verify_units)
    planned = (plan.facts.n, plan.facts.dim, plan.metric.value, plan.model.nlist, plan.model.m, *asked)
    got = (src.n, model.d, model.metric.value, model.nlist, model.m, *units(model))
    if planned != got or src.dim != model.d or src.metric is not model.metric:
        raise InvalidInput(
            f"plan, model and source must agree in n, d, metric, nlist, m and units: planned {planned}, got {got}"
        )


def _index_id(plan: CompilePlan, model: IvfPqModel, src: EmbeddingSource) -> bytes:
    digest = hashlib.blake2b(json.dumps(plan.to_json(), sort_keys=True).encode(), digest_size=ID_BYTES)
    digest.update(src.fingerprint().encode())
    digest.update(f"{model.metric.value} {model.residual}".encode())
    for part in (model, model.query_adapter, model.verify_adapter):
        for name in () if part is None else sorted(field.name for field in fields(part)):
            value = getattr(part, name)
            if isinstance(value, np.ndarray):
                digest.update(value.tobytes())
    return digest.digest()
