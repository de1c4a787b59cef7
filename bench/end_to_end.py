"""Search end to end against the best that a faiss user can have: queries a second at recall@10 >= 0.95, one thread.

    python bench/end_to_end.py ../shared/data/pypi200k-int8.h5 --index24 p24.vqd --index32 p32.vqd --work build/rivals

Both sides answer from codes in memory and verify candidates from float16 rows on disk, in the page cache. Every faiss
index of `faiss_rivals` is tuned on learn queries that compile did not train on, and so are we. Test queries then give
recall and the medians of interleaved repetitions. A faiss index takes part

- within the budget: codes, ids and centroids take at most 24 (32) bytes a vector, codebooks and rotation are free;
- within our bytes: all that it keeps takes at most what our index keeps; its codes may be longer than ours.

Prints a line for each budget and way of calling, with the faster of the two; raw figures go to a JSON file. Building
the indexes of faiss takes up to an hour the first time, `--work` keeps them; tuning takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numba
import numpy as np
import numpy.typing as npt
from faiss_rivals import F32, I64, K, OverTime, Rival, load_or_build, recipes, verification_ways
from measuring import circumstances
from unseen import unseen_learn_queries

import vqdistill
from vqdistill.bench.systems.faiss_recipes import SCANS
from vqdistill.data.sources import open_source
from vqdistill.kernels import cpu_level

TARGET, MARGIN, RATIO = 0.95, 0.003, 3.0
"""Recall that counts; what tuning asks beyond it, so that it holds on the test queries; ratio that is wanted."""
TIE = 1e-6
"""Similarities that differ by less are equal: the rounding of float32."""
MODES = {"batches of 256": 256, "one at a time": 1}
TIMED = {256: 11 * 256, 1: 256}
"""Queries of a timed pass at most, by queries of a call."""
LISTS_VISITED = (1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8, 3 / 32, 1 / 16)
"""Shares of the lists tried as nprobe of faiss; most first."""
COVERAGES = (0.995, 0.99, 0.985, 0.98, 0.975, 0.97, 0.96)
CONFIDENCES = (0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 0.999)
"""What we are tuned over."""
REFINE = sorted({round(10 * 1.13**i) for i in range(40)})
"""Numbers of candidates verified that both sides are tuned over, 10..1,176."""
FINALISTS = 6
"""Settings that come out best in tuning and are timed again: ours on learn queries, those of faiss on test queries."""
SIMD: dict[str, dict[str, str]] = {
    "avx2": {
        "FAISS_SIMD_LEVEL": "AVX2",
        "VQDISTILL_CPU": "avx2",
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "best": {},
}
"""Variables that fix the CPU level of everything that runs; they are read when a library is loaded."""

Search = Callable[[F32], I64]


@dataclass(frozen=True)
class Questions:
    """Queries and the documents that are right for them."""

    queries: F32
    right: I64
    """(q, a) documents at least as similar as the K-th nearest, ties included; -1 padding"""

    @classmethod
    def ask(cls, queries: F32, docs: F32) -> Questions:
        """Compare each query with each document."""
        right = []
        for first in range(0, len(queries), 200):
            similarities = queries[first : first + 200] @ docs.T
            least = np.partition(similarities, -K, axis=1)[:, -K] - TIE
            right += [np.flatnonzero(row >= bound) for row, bound in zip(similarities, least, strict=True)]
        padded = np.full((len(queries), max(map(len, right))), -1)
        for row, few in zip(padded, right, strict=True):
            row[: len(few)] = few
        return cls(queries, padded)

    def recall_by_depth(self, ids: I64) -> npt.NDArray[np.float64]:
        """Return recall@K (r,) for each depth, were the best K kept of the first 1..r of `ids` (q, r)."""
        depth = ids.shape[1]
        ranks = np.full(self.right.shape, depth)
        for rank, wanted in zip(ranks.T, self.right.T[:, :, None], strict=True):
            hit = (ids == wanted) & (wanted >= 0)
            rank[:] = np.where(hit.any(axis=1), hit.argmax(axis=1), depth)
        first = np.sort(ranks, axis=1)[:, :K]  # of tied documents beyond K, those found first count
        return np.cumsum(np.bincount(first.ravel(), minlength=depth + 1)[:depth]) / first.size

    def recall(self, search: Search, size: int) -> float:
        """Return recall@K of a search that is called with `size` queries at a time."""
        found = np.concatenate([search(batch) for batch in batches(self.queries, size)])
        return float(self.recall_by_depth(found)[-1])


@dataclass(frozen=True)
class Contender:
    """An index with the settings that it is searched with."""

    name: str
    settings: dict[str, Any]
    bytes: dict[str, int]
    """resident bytes by kind"""
    search: Search
    queries_per_s: dict[str, float]
    """on learn queries, by mode; what tuning goes by"""
    recall: float
    """on learn queries"""

    @property
    def total(self) -> int:
        """Resident bytes."""
        return sum(self.bytes.values())

    def facts(self) -> dict[str, Any]:
        """Return all but the search, JSON-ready."""
        return {name: value for name, value in vars(self).items() if name != "search"} | {"total_bytes": self.total}


def batches(queries: F32, size: int) -> list[F32]:
    return [queries[first : first + size] for first in range(0, len(queries), size)]


def seconds(search: Search, calls: list[F32]) -> float:
    """Time one pass over the calls."""
    start = time.perf_counter()
    for call in calls:
        search(call)
    return time.perf_counter() - start


def quick_rates(search: Search, queries: F32) -> dict[str, float]:
    """Return queries a second by mode, the best of three short passes."""
    rates = {}
    for mode, size in MODES.items():
        calls = batches(queries[: 256 if size > 1 else 64], size)
        rates[mode] = sum(map(len, calls)) / min(seconds(search, calls) for _ in range(3))
    return rates


def our_ladders() -> list[list[dict[str, Any]]]:
    """List keywords of `Searcher.search` to tune over, in ladders of growing recall and work."""
    probes = [{"coverage": share} for share in COVERAGES]
    verifications = [[{"refine": r} for r in REFINE]]
    verifications += [[{"refine": 200, "confidence": share} for share in CONFIDENCES]]
    return [[probe | rung for rung in ladder] for probe in probes for ladder in verifications]


def ours(index: vqdistill.Searcher, learn: Questions) -> list[Contender]:
    """Return our operating points: of each ladder the first that reaches the target on learn queries."""
    resident = {kind: segment.bytes for kind, segment in index.reader.manifest.segments.items() if segment.resident}
    points = []
    for ladder in our_ladders():
        searches = [our_search(index, settings) for settings in ladder]
        rung = bisect_left(searches, TARGET + MARGIN, key=lambda search: learn.recall(search, 256))
        if rung < len(ladder):
            search = searches[rung]
            rates, recall = quick_rates(search, learn.queries), learn.recall(search, 256)
            points.append(Contender("vqdistill", ladder[rung], resident, search, rates, recall))
    return points


def our_search(index: vqdistill.Searcher, settings: dict[str, Any]) -> Search:
    return lambda queries: index.search(queries, K, **settings).rows


def theirs(rival: Rival, learn: Questions) -> list[Contender]:
    """Return the operating points of one faiss index: for each nprobe the fewest candidates that reach the target."""
    points = []
    nlist = rival.recipe.nlist
    for probes in [{"nprobe": int(share * nlist)} for share in LISTS_VISITED] if nlist else [{}]:
        found = [rival.candidates(few, REFINE[-1], **probes) for few in batches(learn.queries, 256)]
        recall = learn.recall_by_depth(np.concatenate(found))
        refine = next((r for r in REFINE if recall[r - 1] >= TARGET + MARGIN), None)
        if refine is None:  # nor will fewer lists do
            break
        for scan in SCANS["ivf" if nlist else "flat"]:
            settings = {"refine": refine} | probes | scan

            def search(queries: F32, settings: dict[str, int] = settings) -> I64:
                return rival.search(queries, K, **settings)

            rates = quick_rates(search, learn.queries)
            reached = float(recall[refine - 1])
            points.append(Contender(rival.recipe.name, settings, rival.bytes, search, rates, reached))
    return points


def comparisons(rivals: list[Contender], budget_bytes: int, our_bytes: int) -> dict[str, list[Contender]]:
    """Return the faiss indexes that take part in each comparison; the module explains them."""
    kept = ("codes", "ids", "centroids")
    return {
        "within the budget": [r for r in rivals if sum(r.bytes[kind] for kind in kept) <= budget_bytes],
        "within our bytes": [r for r in rivals if r.total <= our_bytes],
    }


def finalists(points: list[Contender], mode: str) -> list[Contender]:
    """Return the fastest points."""
    return sorted(points, key=lambda point: -point.queries_per_s[mode])[:FINALISTS]


def best_of_each(points: list[Contender], mode: str) -> list[Contender]:
    """Return the fastest point of each index."""
    slowest_first = sorted(points, key=lambda point: point.queries_per_s[mode])
    return list({point.name: point for point in slowest_first}.values())


def measure(contenders: list[Contender], questions: Questions, size: int, repetitions: int) -> list[dict[str, Any]]:
    """Measure recall and interleaved passes; one more pass warms up."""
    calls = batches(questions.queries[: TIMED[size]], size)
    count = sum(map(len, calls))
    passes: list[list[float]] = [[] for _ in contenders]
    for _ in range(repetitions + 1):
        for contender, times in zip(contenders, passes, strict=True):
            times.append(seconds(contender.search, calls))
    return [
        {
            "name": contender.name,
            "settings": contender.settings,
            "bytes": contender.total,
            "recall": questions.recall(contender.search, size),
            "queries_per_s": count / statistics.median(times[1:]),
            "seconds": times[1:],
        }
        for contender, times in zip(contenders, passes, strict=True)
    ]


def described(result: dict[str, Any]) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
    speed = f"{result['queries_per_s']:,.0f} q/s at recall {result['recall']:.4f}"
    return f"{result['name']} {speed} ({settings}; {result['bytes']:,} B)"


def fastest(results: list[dict[str, Any]]) -> dict[str, Any] | None:
    return max(results, key=lambda result: result["queries_per_s"], default=None)


def settled(mine: list[Contender], learn: Questions, mode: str, repetitions: int) -> Contender:
    """Time our finalists again on learn queries, and return the fastest: the one that is measured on test queries."""
    few = finalists(mine, mode)
    speeds = [result["queries_per_s"] for result in measure(few, learn, MODES[mode], repetitions)]
    return few[int(np.argmax(speeds))]


def compare(
    mode: str, mine: Contender, sides: dict[str, list[Contender]], test: Questions, repetitions: int
) -> dict[str, Any]:
    """Measure one way of calling on the test queries; return all results, and the best of faiss in each comparison.

    We enter with one setting, faiss with several, the fastest of which that reaches the target counts.
    """
    chosen = {name: finalists(side, mode) for name, side in sides.items()}
    rivals = list({id(rival): rival for few in chosen.values() for rival in few}.values())
    own, *results = measure([mine, *rivals], test, MODES[mode], repetitions)
    best = {}
    for name, few in chosen.items():
        pairs = zip(rivals, results, strict=True)
        best[name] = fastest([result for rival, result in pairs if rival in few and result["recall"] >= TARGET])
    return {"mode": mode, "ours": own, "faiss": results, "best": best}


def line(budget: int, outcome: dict[str, Any]) -> str:
    """Say how one budget and way of calling came out."""
    mine = outcome["ours"]
    best = fastest([result for result in outcome["best"].values() if result])
    text = f"{budget} B/vec, {outcome['mode']}: {described(mine)}"
    if mine["recall"] < TARGET:
        text += f" BELOW {TARGET}"
    if best is None:
        return f"{text}, faiss reaches {TARGET} in no way"
    ratio = mine["queries_per_s"] / best["queries_per_s"]
    return f"{text}, faiss {described(best)}, ratio {ratio:.2f} (target {RATIO:g})"


def fix_levels(simd: str) -> None:
    """Start again with one OpenMP thread and the CPU level fixed, unless this process was."""
    wanted = {"OMP_NUM_THREADS": "1"} | SIMD[simd]
    others = {name for variables in SIMD.values() for name in variables} - wanted.keys()
    environment = {name: value for name, value in os.environ.items() if name not in others} | wanted
    if environment != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def levels() -> dict[str, str]:
    return {
        "vqdistill": cpu_level(),
        "faiss": faiss.SIMDConfig.get_level_name(),
        "numba": numba.config.CPU_NAME or "host",
    }


def float16_rows(docs: F32, folder: Path) -> npt.NDArray[np.float16]:
    """Map the rows, in the order of the file, from a .npy that is written once; all pages are in the cache then."""
    path = folder / "rows-f16.npy"
    if not path.exists():
        np.save(path, docs.astype(np.float16))
    rows = np.load(path, mmap_mode="r")
    rows.max()
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--index24", type=Path, help="index compiled with --ram 24B/vec")
    parser.add_argument("--index32", type=Path, help="index compiled with --ram 32B/vec")
    parser.add_argument("--work", type=Path, help="folder that keeps what faiss built; default: one that is removed")
    parser.add_argument("--simd", choices=SIMD, default="avx2", help="CPU level of both sides")
    parser.add_argument("--nlist", type=int, nargs="+", default=[512, 1024], help="inverted lists of faiss")
    parser.add_argument("--build-threads", type=int, default=2)
    parser.add_argument("--time-limit", type=float, default=1800, help="seconds that faiss may take to build an index")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "end_to_end.json")
    return parser.parse_args()


def rivals_of(options: argparse.Namespace, docs: F32, our_bytes: list[int], work: Path) -> Iterator[Rival]:
    """Build or load every faiss index that fits; say which were skipped."""
    rows = float16_rows(docs, work)
    for recipe in recipes(*docs.shape, our_bytes, options.nlist):
        try:
            index = load_or_build(recipe, docs, work, options.build_threads, options.time_limit)
        except OverTime as error:
            print(error, flush=True)
        else:
            yield Rival(recipe, index, rows)


def run(options: argparse.Namespace, indexes: dict[int, vqdistill.Searcher], work: Path) -> dict[str, Any]:
    """Tune and measure both sides for each budget; print the lines."""
    src = open_source(options.dataset, metric="cosine")
    docs = src.take(np.arange(src.n))
    rivals = list(rivals_of(options, docs, [index.reader.resident_bytes for index in indexes.values()], work))
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    learn_queries, test_queries = src.companion("learn_queries"), src.companion("test")
    assert learn_queries is not None and test_queries is not None
    test = Questions.ask(test_queries.take(np.arange(test_queries.n)), docs)
    known = src.companion("neighbors")
    if known is not None:
        print(f"the exact neighbours of the file have recall {test.recall_by_depth(known[:, :K])[-1]:.5f}")
    learn = {}
    for budget, index in indexes.items():
        unseen = unseen_learn_queries(learn_queries, index.reader.manifest)
        learn[budget] = Questions.ask(learn_queries.take(unseen), docs)
    # A model of another budget was trained on the same queries; those of faiss were on none.
    theirs_learn = next(iter(learn.values()))
    points = [point for rival in rivals for point in theirs(rival, theirs_learn)]
    ways = verification_ways(rivals[0], docs, theirs_learn.queries[:256], 200)
    print("q/s of the first index with 200 verified:", ", ".join(f"{way} {rate:,.0f}" for way, rate in ways.items()))
    outcomes = []
    for budget, index in indexes.items():
        mine = ours(index, learn[budget])
        if not mine:
            raise SystemExit(f"no settings of the {budget} B/vec index reach recall {TARGET + MARGIN} on learn queries")
        sides = comparisons(points, budget * src.n, index.reader.resident_bytes)
        for mode in MODES:
            own = settled(mine, learn[budget], mode, options.repetitions)
            outcome = compare(mode, own, sides, test, options.repetitions)
            print(line(budget, outcome), flush=True)
            tuned = [point.facts() for point in finalists(mine, mode)]
            outcomes.append({"budget": budget, "our_points": tuned} | outcome)
    best_points = {id(point): point for mode in MODES for point in best_of_each(points, mode)}
    return {
        "outcomes": outcomes,
        "faiss_tuned": [point.facts() for point in best_points.values()],
        "verification_queries_per_s": ways,
    }


def main() -> None:
    options = arguments()
    fix_levels(options.simd)
    faiss.omp_set_num_threads(1)
    paths = {24: options.index24, 32: options.index32}
    indexes = {budget: vqdistill.open(path) for budget, path in paths.items() if path}
    if not indexes:
        raise SystemExit("end_to_end.py needs --index24 or --index32")
    print("CPU levels:", ", ".join(f"{library} {level}" for library, level in levels().items()), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)) / options.dataset.stem
        work.mkdir(parents=True, exist_ok=True)
        measured = run(options, indexes, work)
    measured["machine"] = circumstances()["machine"] | {"levels": levels()}
    measured["versions"] = {
        "vqdistill": vqdistill.__version__,
        "faiss": faiss.__version__,
        "numba": numba.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    measured["dataset"] = options.dataset.stem
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
