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

from vqdistill.compiler.given import digest_of, require_match, shape_of
from vqdistill.compiler.memory import LARGEST, Sizes
from vqdistill.compiler.plan import CompilePlan
from vqdistill.compiler.proof import Proof
from vqdistill.compiler.provenance import made_with
from vqdistill.compiler.recipe import asked_for, draw_up
from vqdistill.compiler.train import search_policy, train, units
from vqdistill.compiler.trained import Trained
from vqdistill.compiler.work import WorkDir, require_free, work_path
from vqdistill.config import Budget, RecallTarget
from vqdistill.data.sources import EmbeddingSource, open_source, row_bytes
from vqdistill.data.teacher import Judge
from vqdistill.distill.warm import WarmStart
from vqdistill.errors import CorruptIndex, FormatTooNew, FormatTooOld, InvalidInput
from vqdistill.index.files import FileOps
from vqdistill.index.manifest import Manifest
from vqdistill.index.opening import open_index
from vqdistill.index.policy import SearchPolicy
from vqdistill.index.remote import Destination
from vqdistill.index.runs import RunLog
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
    ram: str | Budget | None = None,
    recall: str | float | RecallTarget | None = None,
    dense: str | None = None,
    codes: str | None = None,
    distill: bool = True,
    loss: str = "listnet",
    sampler: str = "topk",
    debias: bool = False,
    false_negatives: float | None = None,
    seed: int = 0,
    threads: int | None = None,
    warm_start: str | Path | None = None,
    start: IvfPqModel | None = None,
    build_ram: str | int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compile embeddings into an index directory.

    Parameters
    ----------
    input : path, `FILE:key`, folder or glob of shards, list of paths, NumPy array or torch tensor of shape (n, d)
    out : directory to make; must not exist. Teacher lists are cached in `<out>.cache` beside it; what else is finished
        waits in `<out>.work` until the index is there. Or a URL: then the index is made in the working directory, as
        `<name>.upload`, and uploaded.
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
    ram : "32B/vec" bounds what each vector adds to memory, "64MiB" the whole resident set; None = 32B/vec, or with
        `recall` the fewest bytes that reach it
    recall : such as "0.95@10": trials on a sample choose the index that reaches it within `ram` at the least work (not
        without distillation), and its default search becomes the cheapest that is proven to; None = the best index
        within `ram`, and defaults that give up little of what its codes can do
    dense : rows on disk that verify candidates: "f16", "f32", "bf16", "i8" or "none"; None = f16, or with `recall` what
        trials choose
    codes : "additive" (most recall per byte) or "pq" (what other engines load); None = additive where distillation
        and the metric allow it, otherwise pq; with `recall` what trials choose
    distill : False stops after the undistilled start
    loss : what holds the codes' ranking against the teacher's, one of `config.LOSSES`
    sampler : what each step trains on, one of `config.SAMPLERS`: random queries ("topk"), with hard negatives of the
        present codes ("mined"), or queries that share documents ("walk", "snowball")
    debias, false_negatives : see `DistillConfig`; the latter needs such judgments alone, mix 1
    seed : of every random choice; same input, options and seed give the same bytes
    threads : None = all cores that this process may use
    warm_start : an index of additive codes with the same metric, dimensions and m to go on from, such as one of fewer
        rows of the kind; its model saves most of the training. None = from nothing
    start : an undistilled model of product codes that is distilled in place of one trained here, such as
        `interchange.from_faiss.model_from_faiss` gives; lists, bytes and codes are those that it has, so that `ram` and
        `recall` are None. None = train one
    build_ram : hard cap on the resident memory of this process, such as "1GiB": how many rows and queries are trained
        on, and at a time encoded, follows from it. None = what serves quality and speed, about 2 GiB.
    resume : go on with the `<out>.work` of a compile that was interrupted, to the same bytes; without one, start.
        What is finished is the trained model, and every few blocks of rows that are encoded. False refuses to start
        beside one.

    Returns
    -------
    dict
        JSON-ready: `plan`, `prediction` (with `recall`: what was expected of index and compile, to be held against what
        came out), `report` (what each training stage brought), `search` (calibrated defaults), `certificate` (recall of
        a ladder of searches on reserved queries, or None) and its `timings`, `seconds`.

    Raises
    ------
    InvalidInput
        If an option, file or row is not usable, `out` exists, or work to resume was made with other data or options.
    BudgetInfeasible
        If nothing fits `ram` or `build_ram`, or the finished index does not reach `recall`.
    VqdistillError
        If the disk refuses; nothing is left at `out`, and `resume` may go on once it takes more.
    """
    wishes, config = asked_for(
        ram=ram,
        recall=recall,
        codes=codes,
        dense=dense,
        distill=distill,
        teacher=teacher,
        mix=mix,
        queries=queries,
        seed=seed,
        threads=threads,
        shape=None if start is None else shape_of(start),
        loss=loss,
        sampler=sampler,
        debias=debias,
        false_negatives=false_negatives,
    )
    wanted = wishes.target
    progress = progress or Progress()
    begin = time.perf_counter()
    place = Destination(out)
    require_free(place, resume)
    src = open_source(input, metric=metric, ids=ids)
    if start is not None:
        if warm_start is not None:
            raise InvalidInput("start and warm_start must not be given both: one is distilled from the beginning")
        require_match(start, src)
    recipe, prediction = draw_up(src, wishes, config, build_ram, progress)
    warm, began = (None, None) if warm_start is None else _warm_model(warm_start, recipe.plan, distill)
    options = recipe.to_json() | {
        "warm": began,
        "start": None if start is None else digest_of(start),
        "recall": None if wanted is None else str(wanted),
    }
    made = made_with(src, input, queries, teacher, options)
    dense_teacher = recipe.dense_teacher(src, Path(f"{place.local}.cache"), progress)
    with WorkDir(work_path(place.local), made, resume=resume) as work, training_threads(wishes.cores):
        if work.trained is None:
            work.keep_trained(train(recipe, dense_teacher, warm, start))
        done = work.trained
        assert done is not None
        done, proof = recipe.reported(done), recipe.proof(done, dense_teacher)
        manifest = encode(done, src, place, progress, recipe.sizes, work.log, proof)
    certificate = manifest.certificate
    return {
        "plan": done.plan.to_json(),
        "prediction": None if prediction is None else prediction.to_json(),
        "report": done.report,
        "search": manifest.search.to_json(),
        "certificate": None if certificate is None else certificate.to_json(),
        "timings": [] if proof is None else proof.timings,
        "seconds": time.perf_counter() - begin,
    }


def build(
    plan: CompilePlan,
    model: IvfPqModel,
    src: EmbeddingSource,
    path: str | Path,
    *,
    search: SearchPolicy | Mapping[str, Any] | None = None,
    report: dict[str, Any] | None = None,
    proof: Proof | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Encode every row of `src` and publish the index at `path`.

    Parameters
    ----------
    plan, model : as `plan(...)` and `Distiller.fit` gave them
    path : directory to make, or URL, as for `compile`; must not exist
    search : defaults stored in the index, whole or as `Distiller.calibrated` has them; what is not calibrated: a
        quarter of the lists, 100 candidates verified
    report : JSON object stored in the manifest
    proof : measures the index before it is published, and may change its defaults; None = no certificate

    Returns
    -------
    Manifest
        What was published.

    Raises
    ------
    InvalidInput
        If `path` exists, or plan, model and source do not belong together.
    VqdistillError
        If the disk refuses; nothing is left behind.
    """
    _require_match(plan, model, src)
    if not isinstance(search, SearchPolicy):
        search = search_policy(model, plan.dense, search or {})
    done = Trained(plan=plan, model=model, report=report or {}, search=search)
    return encode(done, src, Destination(path), progress or Progress(), proof=proof)


def encode(
    done: Trained,
    src: EmbeddingSource,
    out: Destination,
    progress: Progress,
    sizes: Sizes = LARGEST,
    log: RunLog | None = None,
    proof: Proof | None = None,
    ops: FileOps | None = None,
) -> Manifest:
    """Encode the rows that are in no run of the log yet, and publish the index, unless it is there already.

    Parameters
    ----------
    done : what was trained for `src`
    out : where the index is to appear
    sizes : of what may be in memory
    log : of runs; None = there are none yet, and none stay
    proof : as for `build`, as are result and errors
    ops : file operations; replaced in tests
    """
    index_id = index_id_of(done.plan, done.model, src)
    if log is not None and out.exists():
        found = _require_same_index(out, index_id)
        out.tidy()
        return found
    if log is None or not os.path.lexists(out.local):
        manifest = _write(done, src, out.local, index_id, progress, sizes, log, proof, ops)
    else:  # its upload was interrupted
        manifest = _require_same_index(Destination(out.local), index_id)
    out.upload(progress)
    return manifest


def _write(
    done: Trained,
    src: EmbeddingSource,
    path: Path,
    index_id: bytes,
    progress: Progress,
    sizes: Sizes,
    log: RunLog | None,
    proof: Proof | None,
    ops: FileOps | None,
) -> Manifest:
    plan = done.plan
    with IndexWriter(
        path,
        done.model,
        dense=plan.dense,
        ids=plan.ids,
        index_id=index_id,
        tables=plan.model.tables,
        memory_bytes=sizes.run_bytes,
        log=log,
        ops=ops,
    ) as writer:
        with progress.stage("encode", src.n, unit_bytes=row_bytes(src)) as stage:
            stage.skip(writer.n)
            for block in src.blocks(sizes.block_rows(src.dim), writer.n):
                ids = src.ids.slice(block.start, block.start + len(block.rows)) if src.ids else None
                writer.add(ids, done.codes_of(block), block.rows)
                stage.advance(len(block.rows))
        with progress.stage("write index", writer.payload_bytes, "B") as stage:
            return writer.publish(plan.to_json(), done.search, done.report, proof, stage.advance)


def _warm_model(path: str | Path, plan: CompilePlan, distill: bool) -> tuple[IvfPqModel, str]:
    """The model to go on from, and what tells it from others."""
    if not distill:
        raise InvalidInput("warm_start needs distillation, which is all that it shortens")
    with open_index(path) as reader:
        model, manifest = reader.model, reader.manifest
    WarmStart(model).require_match(plan.model, plan.metric, plan.facts.dim)
    return model, f"{manifest.index_id.hex()} {manifest.generation}"


def _require_same_index(out: Destination, index_id: bytes) -> Manifest:
    try:
        manifest = out.published()
        if manifest.index_id == index_id:
            return manifest
    except (InvalidInput, CorruptIndex, FormatTooNew, FormatTooOld):
        pass
    raise InvalidInput(f"{out} exists already, and is not what this work leads to; remove it or choose another name")


def _require_match(plan: CompilePlan, model: IvfPqModel, src: EmbeddingSource) -> None:
    asked = (plan.model.query_units, plan.model.verify_units)
    planned = (plan.facts.n, plan.facts.dim, plan.metric.value, plan.model.nlist, plan.model.m, *asked)
    got = (src.n, model.d, model.metric.value, model.nlist, model.m, *units(model))
    if planned != got or src.dim != model.d or src.metric is not model.metric:
        raise InvalidInput(
            f"plan, model and source must agree in n, d, metric, nlist, m and units: planned {planned}, got {got}"
        )


def index_id_of(plan: CompilePlan, model: IvfPqModel, src: EmbeddingSource) -> bytes:
    """Return the hash of all that an index is made from."""
    digest = hashlib.blake2b(json.dumps(plan.to_json(), sort_keys=True).encode(), digest_size=ID_BYTES)
    digest.update(src.fingerprint().encode())
    digest.update(f"{model.metric.value} {model.residual}".encode())
    for part in (model, model.query_adapter, model.verify_adapter):
        for name in () if part is None else sorted(field.name for field in fields(part)):
            value = getattr(part, name)
            if isinstance(value, np.ndarray):
                digest.update(value.tobytes())
    return digest.digest()
