"""Rates that capacity is planned with, measured on this machine: CPU time of one core, for each kind of work.

    python bench/rates.py ../shared/data/pypi200k-int8.h5 [--store]

`--store` writes vqdistill/compiler/rates.json. CPU time is counted, so that other work on the machine shows little.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measuring import RESULTS, Seconds
from scipy.optimize import nnls

import vqdistill as vqd
from vqdistill.bench.machine import machine
from vqdistill.compiler.capacity import run_bytes
from vqdistill.compiler.cost import encode_work
from vqdistill.config import IvfPqConfig
from vqdistill.data.exact import exact_top
from vqdistill.kernels.threads import training_threads
from vqdistill.model.additive import RowTerms, fit_metric, own_directions, row_metric
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.model.kmeans import nearest
from vqdistill.model.space import sphering
from vqdistill.shards.job import open_job
from vqdistill.shards.model import read_model
from vqdistill.shards.parts import encode_shard
from vqdistill.shards.planning import plan_job
from vqdistill.shards.training import train_job
from vqdistill.types import Block, F32Rows, Metric

RATES = Path(vqd.__file__).parent / "compiler" / "rates.json"
SHAPES = [  # d, codes a row, lists, queries that rank a row
    (384, 32, 512, 0),
    (384, 32, 512, 16),
    (384, 64, 512, 0),
    (384, 48, 2048, 4),
    (192, 32, 512, 0),
    (192, 16, 2048, 8),
    (768, 48, 512, 0),
    (384, 32, 512, 4),
    (384, 96, 512, 0),
    (128, 32, 256, 0),
    (128, 64, 256, 8),
    (768, 32, 1024, 4),
    (1024, 64, 512, 0),
]
FITTED, ENCODED = 2100, 1000
"""Rows that a model is fitted to, and that are encoded."""
FIT_ROUNDS = 2
"""Of codes, then codewords."""
CALLS = 5


def cpu_s(act: Callable[[], Any]) -> float:
    """CPU seconds of a call, the median of several: what it takes among other work, for minutes."""
    spent = []
    for _ in range(CALLS):
        begin = time.process_time()
        act()
        spent.append(time.process_time() - begin)
    return statistics.median(spent)


def shaped(x: F32Rows, d: int) -> F32Rows:
    """Rows of `d` dimensions: parts of the given ones, or two of them side by side."""
    wide = x if d <= x.shape[1] else np.concatenate([x, x[::-1]], axis=1)
    return np.ascontiguousarray(wide[:, :d] / np.linalg.norm(wide[:, :d], axis=1, keepdims=True))


def model_of(x: F32Rows, m: int, nlist: int, codes: str) -> IvfPqModel:
    """A model whose lists are rows; product codes are parts of others, additive ones fitted a little."""
    d, rng = x.shape[1], np.random.default_rng(0)
    dsub = d if codes == "additive" else -(-d // m)
    coarse, near = x[:nlist], x[rng.integers(0, nlist, (m, 16))]
    far = x[rng.integers(0, FITTED, (m, 16))] - near
    rotation = np.linalg.qr(rng.standard_normal((m * dsub, d)))[0].astype(np.float32)
    words = np.ascontiguousarray(far[:, :, :dsub] / np.sqrt(m), dtype=np.float32)
    model = IvfPqModel(
        metric=Metric.COSINE,
        residual=codes == "pq",
        mean=x.mean(axis=0),
        coarse=coarse,
        router=coarse,
        rotation=rotation[:0] if codes == "additive" else rotation,
        codewords=words,
        doc_codewords=words,
    )
    return fitted(model, x[:FITTED]) if codes == "additive" else model


def fitted(model: IvfPqModel, x: F32Rows) -> IvfPqModel:
    """The same with coordinates, anchors and codebooks fitted to rows: bad codes would settle sooner."""
    space = sphering(x, 0.5)
    mean, coarse, docs = (space.docs(part) for part in (model.mean[None], model.coarse, x))
    own = own_directions(docs, mean[0])
    words = space.docs(model.codewords.reshape(-1, model.d)).reshape(model.codewords.shape)
    words = fit_metric(docs - mean, row_metric(own, None), words, FIT_ROUNDS)
    return replace(model, space=space, anchors=own_directions(coarse, mean[0]), doc_codewords=words)


def encoding(rows: F32Rows, codes: str) -> dict[str, Any]:
    """Fit the ns of each kind of work of a row, see `encode_work`."""
    points = []
    for d, m, nlist, ranked in SHAPES if codes == "additive" else SHAPES[1::2]:
        x = shaped(rows[: FITTED + ENCODED], d)
        model = model_of(x, m, nlist, codes)
        rng = np.random.default_rng(0)
        weights = np.full((ENCODED, ranked), 0.1, np.float32)
        terms = RowTerms(rng.integers(0, FITTED, (ENCODED, ranked), dtype=np.int32), weights, x[:FITTED])
        own = None if ranked == 0 or codes == "pq" else terms
        spent = cpu_s(lambda model=model, x=x, own=own: model.encode(x[FITTED : FITTED + ENCODED].copy(), own, own))
        shared = len(np.unique(terms.lists)) / ENCODED
        points.append({"d": d, "m": m, "nlist": nlist, "terms": ranked, "shared": shared, "ns": 1e9 * spent / ENCODED})
        print(points[-1], flush=True)
    return {"points": points} | fit(points, codes, lists(rows))


def fit(points: list[dict[str, Any]], codes: str, lists_ns: float) -> dict[str, Any]:
    """Fit ns of each kind of work to measured rows; those of lists are measured by themselves."""
    work = [
        encode_work(p["d"], IvfPqConfig(nlist=p["nlist"], m=p["m"], codes=codes), terms=p["terms"], shared=p["shared"])
        for p in points
    ]
    names = sorted(work[0].keys() - {"lists"})
    measured = np.array([p["ns"] for p in points])
    left = measured - lists_ns * np.array([each["lists"] for each in work])
    design = np.array([[each[name] for name in names] for each in work])
    found = nnls(design / measured[:, None], left / measured)[0]
    error = float(np.abs((design @ found - left) / measured).max())
    return {"ns": dict(zip(names, map(float, found), strict=True)) | {"lists": lists_ns}, "largest_error": error}


def exact(rows: F32Rows) -> float:
    """Ns of a multiplication of exact search, its best 200 kept."""
    x, q = rows[:40_000], rows[-1000:].copy()
    return 1e9 * cpu_s(lambda: exact_top(q, [Block(0, x)], len(x), 200)) / (len(q) * x.size)


def lists(rows: F32Rows) -> float:
    """Ns of a multiplication while rows are clustered."""
    x = rows[:20_000]
    return 1e9 * cpu_s(lambda: nearest(x, x[:2048])) / (x.size * 2048)


def reading(rows: F32Rows) -> float:
    """Ns of a byte of float32 rows that are read from the page cache, checked and scaled."""
    with tempfile.TemporaryDirectory() as place:
        np.save(Path(place) / "rows.npy", rows[:40_000])
        src = vqd.open_source(f"{place}/rows.npy", metric="cosine")
        return 1e9 * cpu_s(lambda: [len(block.rows) for block in src.blocks()]) / (4 * src.n * src.dim)


def publishing(rows: F32Rows) -> dict[str, Any]:
    """Ns of a byte of encoded rows that are put into list order, and published."""
    src, said = vqd.open_source(rows, metric="cosine"), Seconds()
    plan = vqd.plan(src.facts, "16B/vec", codes="pq")
    with tempfile.TemporaryDirectory() as place, training_threads(1):
        vqd.build(plan, model_of(rows, plan.model.m, plan.model.nlist, "pq"), src, f"{place}/x", progress=said)
    return {"publish_ns_per_byte": 1e9 * said.spent["write index"] / (src.n * run_bytes(src.dim, plan))}


def shard_rows(rows: F32Rows, n: int = 20_000) -> dict[str, Any]:
    """Ns of a byte of float32 rows that a shard is encoded from, besides what their codes take: read, sort, write."""
    with tempfile.TemporaryDirectory() as place, training_threads(1):
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows[:n].ravel()), rows.shape[1])
        pq.write_table(pa.table({"embedding": column}), f"{place}/rows.parquet")
        options = {"queries": "none", "ram": "16B/vec", "codes": "pq", "distill": False, "threads": 1}
        plan_job([f"{place}/rows.parquet"], f"{place}/job", **options)
        train_job(f"{place}/job", threads=1)
        trained, name = read_model(f"{place}/job", open_job(f"{place}/job")[1])
        coded = replace(trained, codes=trained.model.encode(rows[:n]))

        def anew() -> None:
            shutil.rmtree(f"{place}/job/part-0", ignore_errors=True)
            encode_shard(f"{place}/job", 0, threads=1, model=(coded, name))

        return {"shard_ns_per_byte": 1e9 * cpu_s(anew) / rows[:n].nbytes}


def compiles(rows: F32Rows, queries: F32Rows) -> dict[str, Any]:
    """CPU seconds of training that do not grow with rows, codes and dimensions, and ns for each of their products."""
    points = []
    for n, d, m in ((4000, 192, 16), (10_000, 384, 32)):
        with tempfile.TemporaryDirectory() as place:
            said = Seconds()
            options = {"ram": f"{m // 2}B/vec", "metric": "cosine", "threads": 1, "progress": said}
            vqd.compile(shaped(rows[:n], d), f"{place}/x", queries=shaped(queries, d), **options)
        spent = said.spent
        fitted = {k: v for k, v in spent.items() if k.startswith(("coordinates", "codebooks", "additive"))}
        fixed = {k: v for k, v in spent.items() if k.startswith(("distil", "calibrate", "lists"))}
        points.append(
            {"n": n, "d": d, "m": m, "fitted_s": sum(fitted.values()), "fixed_s": sum(fixed.values())}
            | {"certificate_s": spent["certificate"]}
        )
        print(points[-1], flush=True)
    work = [p["n"] * p["d"] * p["m"] for p in points]
    slope = (points[1]["fitted_s"] - points[0]["fitted_s"]) / (work[1] - work[0])
    fixed_s = max(0.0, points[0]["fitted_s"] - slope * work[0]) + points[1]["fixed_s"]
    return {
        "training": {"ns_per_code": 1e9 * slope, "fixed_s": fixed_s},
        "certificate_s": points[1]["certificate_s"],
        "compiles": points,
    }


def routing(dataset: str) -> dict[str, Any]:
    """What searches of recall 0.95 scanned and read, by the stored certificate of an index of the dataset."""
    stored = json.loads((RESULTS / f"certificate-{Path(dataset).stem}.json").read_text())
    (rung,) = (each for each in stored["certificate"]["rungs"] if each["target"] == 0.95)
    n = vqd.open_source(dataset).n
    return {"share": rung["codes"] / n, "reads": rung["rows"], "recall": "0.95@10"}


def kernels(rows: F32Rows) -> dict[str, Any]:
    """Search, clustering and reading, in ns."""
    with training_threads(1):
        return {"exact_ns": exact(rows), "lists_ns": lists(rows), "read_ns_per_byte": reading(rows)}


def encodings(rows: F32Rows) -> dict[str, Any]:
    """Both kinds of codes."""
    with training_threads(1):
        return {codes: encoding(rows, codes) for codes in ("additive", "pq")}


def measure(dataset: str, parts: list[str]) -> dict[str, Any]:
    """Measure some of PARTS."""
    src = vqd.open_source(dataset, metric="cosine")
    learn = src.companion("learn_queries")
    assert learn is not None
    rows, queries = src.take(np.arange(min(src.n, 120_000))), learn.take(np.arange(min(learn.n, 3000)))
    found: dict[str, Any] = {"machine": machine(), "dataset": f"{Path(dataset).stem}, {src.n} x {src.dim}"}
    for part in parts:
        found |= PARTS[part](rows, queries, dataset)
    return found


PARTS: dict[str, Callable[[F32Rows, F32Rows, str], dict[str, Any]]] = {
    "kernels": lambda rows, *_: kernels(rows),
    "encodings": lambda rows, *_: encodings(rows),
    "shards": lambda rows, *_: shard_rows(rows),
    "publishing": lambda rows, *_: publishing(rows),
    "compiles": lambda rows, queries, _: compiles(rows, queries),
    "routing": lambda _, __, dataset: {"routing": routing(dataset)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="file with rows and learn_queries")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--store", action="store_true", help=f"keep them in {RATES.name}, beside what is not measured now"
    )
    given = parser.parse_args()
    found = measure(given.dataset, given.only)
    print(json.dumps(found, indent=1))
    if given.store:
        kept = json.loads(RATES.read_text(encoding="utf-8")) if RATES.exists() else {}
        RATES.write_text(json.dumps(kept | found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
