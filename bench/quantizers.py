"""4-bit quantizers of faiss against our codes of as many bytes: recall of the codes alone, and what they cost.

    python bench/quantizers.py ../shared/data/pypi200k-int8.h5 --ram 16
    python bench/quantizers.py ../shared/data/debian.h5 --variant mean --only opq lsq --work work

Theirs are trained on a sample of the rows and searched exhaustively over what their codes stand for, in float32; those
of a bit a dimension (RaBitQ, TurboQuant) after a projection on as many principal axes as the bytes have bits for, and
they and ScaNN's anisotropic codes by their own scans. Ours, distilled and not, are those of bench/quality.py, in an
index with all lists visited. `--variant` gives all of them the rows of a harder encoder, see bench/variants.py, written
to the folder `--work` unless the file is there. Each run is stored, theirs as
bench/results/quantizers/<dataset>-<bytes>-<quantizer>.json, and not repeated while that file exists. Times of theirs
are CPU seconds of all threads, which other work on the machine moves little.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import h5py
import numpy as np
import numpy.typing as npt
from measuring import CANDIDATES, RESULTS, K, line, markdown, stored
from quality import result_of
from variants import VARIANTS, read_parts, write_variant

from vqdistill.bench.systems import projection
from vqdistill.data.exact import exact_top
from vqdistill.evaluate import metrics
from vqdistill.types import Block

F32 = npt.NDArray[np.float32]
NBITS = 4
LEAD = {None: 10.0} | dict.fromkeys(VARIANTS, 3.0)
"""Points of R10@100 that ours are to be ahead of the best of theirs, by variant."""
_BLOCK = 16_384
"""Rows encoded or decoded at a time."""


@dataclass(frozen=True)
class Rotated:
    """A product quantizer of rotated rows: OPQ."""

    rotation: Any
    """OPQMatrix"""
    learned_for: Any
    """ProductQuantizer of the rotation's training, which only points to it"""
    quantizer: Any
    """ProductQuantizer that codes rotated rows"""

    def train(self, x: F32) -> None:
        """Learn the rotation, then codebooks of the rotated rows."""
        self.rotation.pq = self.learned_for
        self.rotation.train(x)
        self.quantizer.train(self.rotation.apply_py(x))

    def compute_codes(self, x: F32) -> npt.NDArray[np.uint8]:
        """Encode rows."""
        return np.asarray(self.quantizer.compute_codes(self.rotation.apply_py(x)))

    def decode(self, codes: npt.NDArray[np.uint8]) -> F32:
        """Return what codes stand for, in the coordinates of the rows."""
        return np.asarray(self.rotation.reverse_transform(self.quantizer.decode(codes)))


def product(d: int, m: int) -> Any:
    """PQ, trained on all rows that it is given: by default faiss takes 256 a codeword."""
    quantizer = faiss.ProductQuantizer(d, m, NBITS)
    quantizer.cp.max_points_per_centroid = 1 << 24
    return quantizer


def rotated(d: int, m: int) -> Rotated:
    """OPQ: the rotation is learned for 4-bit codes, where faiss would take 8 bits."""
    rotation = faiss.OPQMatrix(d, m)
    rotation.max_train_points = 1 << 24
    return Rotated(rotation, product(d, m), product(d, m))


def product_of_additive(d: int, m: int, parts: int) -> Any:
    """LSQ in each of some subspaces of d / parts dimensions."""
    return faiss.ProductLocalSearchQuantizer(d, parts, m // parts, NBITS)


QUANTIZERS: dict[str, Callable[[int, int], Any]] = {
    "pq": product,
    "opq": rotated,
    "lsq": lambda d, m: faiss.LocalSearchQuantizer(d, m, NBITS),
    "rq": lambda d, m: faiss.ResidualQuantizer(d, m, NBITS),
    "plsq2": partial(product_of_additive, parts=2),
    "plsq4": partial(product_of_additive, parts=4),
}
"""By name, from dimensions and 4-bit codes; "plsq2" is product LSQ of 2 parts."""


@dataclass(frozen=True)
class Ranked:
    """What the codes of a quantizer rank first."""

    ids: npt.NDArray[np.int64]
    """(q, CANDIDATES)"""
    code_bytes: int
    train_cpu_s: float
    encode_cpu_s: float


def by_decoding(name: str, x: F32, sample: F32, queries: F32, ram: int, threads: int) -> Ranked:
    """Compare queries with what the codes stand for."""
    quantizer = QUANTIZERS[name](x.shape[1], 8 * ram // NBITS)
    begin = time.process_time()
    quantizer.train(sample)
    trained = time.process_time()
    codes = np.concatenate([quantizer.compute_codes(x[i : i + _BLOCK]) for i in range(0, len(x), _BLOCK)])
    encoded = time.process_time()
    found = exact_top(queries, decoded(quantizer, codes), len(x), CANDIDATES, threads=threads)
    ids = found.docs.reshape(len(queries), CANDIDATES)
    return Ranked(ids, codes.shape[1], trained - begin, encoded - trained)


def _projected(x: F32, sample: F32, queries: F32, width: int, make: Callable[[int], Any]) -> Ranked:
    """Project on principal axes, encode with an index of faiss, and let it scan all codes."""
    if width < 8:
        raise SystemExit("too few bytes for codes of a bit a dimension")
    begin = time.process_time()
    axes = projection.train(sample, width)
    index = make(min(width, x.shape[1]))
    index.train(projection.apply(axes, sample))
    trained = time.process_time()
    index.add(projection.apply(axes, x))
    encoded = time.process_time()
    ids = index.search(projection.apply(axes, queries), CANDIDATES)[1]
    return Ranked(ids, inner_code_size(index), trained - begin, encoded - trained)


def inner_code_size(index: Any) -> int:
    """Return the bytes of a code, behind a rotation too."""
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    return int(inner.sa_code_size())


def rabitq(x: F32, sample: F32, queries: F32, ram: int) -> Ranked:
    """RaBitQ of 1 bit a dimension and its two factors; queries are not quantized."""

    def make(width: int) -> Any:
        index = faiss.IndexRaBitQ(width, faiss.METRIC_INNER_PRODUCT)
        index.qb = 0
        return index

    return _projected(x, sample, queries, 8 * (ram - 8), make)


def turboquant(x: F32, sample: F32, queries: F32, ram: int) -> Ranked:
    """TurboQuant of 1 bit a dimension, after a random rotation."""

    def make(width: int) -> Any:
        rotation = faiss.RandomRotationMatrix(width, width)
        rotation.init(0)
        quantizer, metric = faiss.ScalarQuantizer.QT_1bit_tqmse, faiss.METRIC_INNER_PRODUCT
        return faiss.IndexPreTransform(rotation, faiss.IndexScalarQuantizer(width, quantizer, metric))

    return _projected(x, sample, queries, 8 * ram, make)


def scann_ah(x: F32, sample: F32, queries: F32, ram: int) -> Ranked:
    """Anisotropic 4-bit codes of ScaNN, all scanned; it draws its own sample, and needs scann-core."""
    from scann import scann_ops_pybind as scann

    blocks = 8 * ram // NBITS
    dims = -(-x.shape[1] // blocks)
    begin = time.process_time()
    builder = scann.builder(x, CANDIDATES, "dot_product")
    searcher = builder.score_ah(dims, anisotropic_quantization_threshold=0.2).build()
    built = time.process_time() - begin
    ids = searcher.search_batched(queries)[0].astype(np.int64)
    return Ranked(ids, -(-x.shape[1] // dims) // 2, built, 0.0)


RANKERS: dict[str, Callable[[F32, F32, F32, int], Ranked]] = {
    "rabitq": rabitq,
    "turboquant": turboquant,
    "scann-ah": scann_ah,
}
"""Quantizers that are searched by their own scans."""


def measure(dataset: Path, ram: int, name: str, sample: int, threads: int) -> dict[str, Any]:
    """Train one quantizer, encode all rows, and search them exhaustively for the test queries."""
    faiss.omp_set_num_threads(threads)
    parts = read_parts(dataset)
    x, queries = parts["train"], parts["test"]
    rows = np.sort(np.random.default_rng(0).permutation(len(x))[:sample])
    if name in RANKERS:
        ranked = RANKERS[name](x, x[rows], queries, ram)
    else:
        ranked = by_decoding(name, x, x[rows], queries, ram, threads)
    if ranked.code_bytes > ram:
        raise SystemExit(f"codes of {name} must take {ram} bytes, got {ranked.code_bytes}")
    with h5py.File(dataset) as file:
        truth = file["neighbors"][:, :K]
    return {
        "dataset": dataset.stem,
        "ram_bytes_per_vector": ram,
        "quantizer": name,
        "faiss": faiss.__version__,
        "threads": threads,
        "training_rows": len(rows),
        "train_cpu_s": ranked.train_cpu_s,
        "encode_cpu_s": ranked.encode_cpu_s,
        "candidate_recall": float(metrics.candidate_recall(ranked.ids, truth, K).mean()),
        "recall_at_k_codes_only": float(metrics.recall_at_k(ranked.ids, truth, K).mean()),
    }


def decoded(quantizer: Any, codes: npt.NDArray[np.uint8]) -> Iterator[Block]:
    """Yield what the codes stand for, in blocks."""
    for start in range(0, len(codes), _BLOCK):
        rows = np.ascontiguousarray(quantizer.decode(codes[start : start + _BLOCK]), dtype=np.float32)
        yield Block(start, rows)


HEADER = ("codes", f"R{K}@{CANDIDATES}", f"R{K}@{K}", "train, CPU s", "encode, CPU s", "threads")


def row(result: dict[str, Any]) -> list[str]:
    """Return the line of one quantizer of faiss."""
    return [
        result["quantizer"],
        f"{result['candidate_recall']:.4f}",
        f"{result['recall_at_k_codes_only']:.4f}",
        f"{result['train_cpu_s']:.0f}",
        f"{result['encode_cpu_s']:.0f}",
        str(result["threads"]),
    ]


def our_row(result: dict[str, Any]) -> list[str]:
    """Return a line of ours; its seconds are those of the whole compile, the teacher included."""
    every = result["eval_all_lists"]["output"]
    return [
        "ours, undistilled" if result["queries"] == "start" else "ours",
        f"{every['candidate_recall']:.4f}",
        f"{every['recall_at_k_codes_only']:.4f}",
        f"{result['compile']['cpu_s']:.0f} in all",
        "",
        str(result["threads"]),
    ]


def guards(report: dict[str, Any]) -> Iterator[str]:
    """Yield what decided each stage: the score errors in each space, then held-out recall before and after."""
    errors: dict[str, float] = report.get("space", {})
    best = min(errors, key=lambda name: errors[name], default=None)
    for name, error in errors.items():
        yield f"space {name}: score error {error:.5f}{', kept' if name == best else ''}"
    for stage in report.get("stages", []):
        verdict = "kept" if stage["kept"] else "refused"
        yield f"{stage['stage']}: {stage['before']:.4f} -> {stage['after']:.4f}, {verdict}"


def variant_of(dataset: Path, variant: str | None, work: Path, threads: int) -> Path:
    """Return the file to measure on, made if it is a variant that is not there."""
    if variant is None:
        return dataset
    out = work / f"{dataset.stem}-{variant}.h5"
    if not out.exists():
        work.mkdir(parents=True, exist_ok=True)
        write_variant(dataset, variant, out, threads=threads)
    return out


def main() -> None:
    """Measure what has no stored result yet; print the table, the points of difference and the guards' log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--ram", type=int, default=16, help="bytes a vector")
    parser.add_argument("--variant", choices=VARIANTS)
    parser.add_argument(
        "--only", nargs="+", choices=[*QUANTIZERS, *RANKERS], help="quantizers; default: all, opq and lsq of variants"
    )
    parser.add_argument("--sample", type=int, default=65_536, help="rows that theirs are trained on")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, help="where variants are kept; default: a temporary folder")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    every = [name for name in (*QUANTIZERS, *RANKERS) if name != "scann-ah" or importlib.util.find_spec("scann")]
    names = options.only or (every if options.variant is None else ["opq", "lsq"])
    with tempfile.TemporaryDirectory() as temporary:
        dataset = variant_of(options.dataset, options.variant, options.work or Path(temporary), options.threads)
        print(f"{dataset.stem}, {options.ram} B\n\n{markdown(HEADER, [])}", flush=True)
        theirs = []
        for name in names:
            path = options.results / "quantizers" / f"{dataset.stem}-{options.ram}-{name}.json"
            run = partial(measure, dataset, options.ram, name, options.sample, options.threads)
            theirs.append(stored(path, run))
            print(line(row(theirs[-1])), flush=True)
        for queries in ("start", "learn"):
            ours = result_of(dataset, options.ram, queries, options.threads, options.results)
            print(line(our_row(ours)), flush=True)
        if "scann-ah" not in every:
            print("\nscann-ah is not installed: pip install scann-core")
    best = max(theirs, key=lambda result: result["candidate_recall"])
    lead = 100 * (ours["eval_all_lists"]["output"]["candidate_recall"] - best["candidate_recall"])
    print(f"\n{lead:+.2f} points of R{K}@{CANDIDATES} against {best['quantizer']} (wanted {LEAD[options.variant]:+})")
    print(*guards(ours["compile"]["output"]["report"]), sep="\n")


if __name__ == "__main__":
    main()
