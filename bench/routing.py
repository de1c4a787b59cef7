"""Routing on real queries: share of the vectors scanned for 95 % of the true top 10, by centroids, router and rule.

    python bench/routing.py ../shared/data/debian.h5:256 ../shared/data/pypi200k-int8.h5:512,2048

Lists, router and rule are learned on `learn_queries` by the functions that `compile` uses; the figures are of `test`.
Each case prints its figures beside its targets; bench/results/routing.json keeps the whole curves.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from vqdistill.compiler.supervision import DenseTeacher, supervise
from vqdistill.config import DistillConfig
from vqdistill.data.sources import open_source
from vqdistill.data.teacher import query_rows
from vqdistill.distill.held_out import TOP, HeldOut, route_scores
from vqdistill.distill.routing import COVERAGES, calibrate_lift, choose_lists, learn_router, lifts, visited
from vqdistill.distill.samplers import Corpus, TeacherLists
from vqdistill.distill.terms import QueryTerms
from vqdistill.kernels.threads import training_threads
from vqdistill.model.codebooks import train_coarse
from vqdistill.progress import Progress

RESULTS = Path(__file__).parent / "results" / "routing.json"
COVERAGE = 0.95
TARGETS = {("pypi200k-int8", 512): 0.15, ("pypi200k-int8", 2048): 0.10, ("debian", 256): 0.11}
"""Largest share scanned at COVERAGE, by dataset and nlist."""
SAVING = 0.25
"""Smallest share of the vectors that the rule saves against a fixed nprobe at equal coverage."""

F32 = npt.NDArray[np.float32]
Curve = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Coverage and share scanned, both rising."""


@dataclass(frozen=True)
class Test:
    """Test queries seen from some lists."""

    scores: F32
    """(q, nlist) routing scores"""
    hits: npt.NDArray[np.float64]
    """(q, nlist) true neighbours in each list"""
    shares: npt.NDArray[np.float64]
    """(nlist,) of the rows"""

    def fixed(self) -> Curve:
        """The same number of lists for every query."""
        order = np.argsort(-self.scores, axis=1, kind="stable")
        found = np.cumsum(np.take_along_axis(self.hits, order, axis=1), axis=1).sum(axis=0)
        return found / self.hits.sum(), np.cumsum(self.shares[order], axis=1).mean(axis=0)

    def adaptive(self, temperature: float) -> Curve:
        """Every threshold of the rule."""
        order = np.argsort(-lifts(self.scores, temperature, self.shares), axis=None, kind="stable")
        scanned = np.broadcast_to(self.shares, self.hits.shape).ravel()[order]
        return np.cumsum(self.hits.ravel()[order]) / self.hits.sum(), np.cumsum(scanned) / len(self.hits)

    def calibrated(self, temperature: float, lift: float) -> tuple[float, float]:
        """Coverage and share scanned at one calibrated threshold."""
        chosen = visited(lifts(self.scores, temperature, self.shares), lift)
        return float(self.hits[chosen].sum() / self.hits.sum()), float((chosen @ self.shares).mean())


def scanned_at(curve: Curve) -> dict[float, float]:
    """Share scanned at each of COVERAGES, between the points of the curve by a line."""
    return {coverage: float(np.interp(coverage, *curve)) for coverage in COVERAGES}


def measure(path: Path, nlists: list[int], cache: Path, seed: int) -> list[dict[str, Any]]:
    """Learn and measure one dataset at several numbers of lists."""
    src = open_source(str(path), metric="cosine")
    lesson = supervise(src, None, "exact", DenseTeacher(src, cache, seed, 1, Progress()))
    config = DistillConfig(seed=seed)
    order = np.random.default_rng([seed, 0]).permutation(len(lesson.queries))
    held, train = np.sort(order[: config.held_out]), np.sort(order[config.held_out :])
    corpus = Corpus(src.take(np.arange(src.n)), src.metric)
    taught, kept = (
        TeacherLists.from_relevance(lesson.queries[part], lesson.relevance.select(part), config.depth)
        for part in (train, held)
    )
    terms = QueryTerms.from_relevance(lesson.queries[train], lesson.relevance.select(train), src.n)
    judge = HeldOut(corpus, kept)
    with h5py.File(path) as file:
        queries = query_rows(file["test"][:].astype(np.float32), src)
        neighbours = file["neighbors"][:, :TOP]
    results = []
    for nlist in nlists:
        plain = train_coarse(corpus.x, nlist, seed)
        start = time.process_time()
        chosen, _, _ = choose_lists(plain, terms.take(np.arange(src.n)), judge, seed)
        clustered = time.process_time()
        result: dict[str, Any] = {"dataset": path.stem, "nlist": nlist, "seconds": {"lists": clustered - start}}
        for name, coarse in (("plain", plain), ("chosen", chosen)):
            start = time.process_time()
            learned = learn_router(
                coarse.centroids, taught, coarse.lists, judge, config, np.random.default_rng([seed, 1])
            )
            result["seconds"][f"router, {name} lists"] = time.process_time() - start
            ladder = calibrate_lift(learned.router, learned.temperature, coarse.lists, judge)
            shares = np.bincount(coarse.lists, minlength=nlist) / src.n
            hits = np.zeros((len(queries), nlist))
            np.add.at(hits, (np.arange(len(queries))[:, None], coarse.lists[neighbours]), 1)
            by_centroids = Test(route_scores(coarse.centroids, src.metric, queries), hits, shares)
            by_router = Test(route_scores(learned.router, src.metric, queries), hits, shares)
            result[name] = {
                "centroids": scanned_at(by_centroids.fixed()),
                "fixed": scanned_at(by_router.fixed()),
                "adaptive": scanned_at(by_router.adaptive(learned.temperature)),
                "calibrated": {
                    rung["coverage"]: by_router.calibrated(learned.temperature, rung["lift"]) for rung in ladder
                },
                "held_out": {"before": learned.before.mean(), "after": learned.after.mean(), "ladder": ladder},
            }
        results.append(result)
        print(line(result), flush=True)
    return results


def line(result: dict[str, Any]) -> str:
    """Return the figures of one case and its targets."""
    plain, chosen = (
        {k: part[k][COVERAGE] for k in ("centroids", "fixed", "adaptive")}
        for part in (result["plain"], result["chosen"])
    )
    coverage, scanned = result["chosen"]["calibrated"][COVERAGE]
    saved = 1 - chosen["adaptive"] / chosen["fixed"]
    target = TARGETS.get((result["dataset"], result["nlist"]))
    seconds = result["seconds"]["lists"] + result["seconds"]["router, chosen lists"]
    return (
        f"{result['dataset']} nlist {result['nlist']}, scanned at {COVERAGE:.0%} coverage: k-means centroids"
        f" {plain['centroids']:.1%}, router {plain['fixed']:.1%} fixed {plain['adaptive']:.1%} adaptive; query lists:"
        f" centroids {chosen['centroids']:.1%}, router {chosen['fixed']:.1%} fixed {chosen['adaptive']:.1%} adaptive"
        f"{'' if target is None else f' (target {target:.0%})'}; the rule saves {saved:.0%} (target {SAVING:.0%});"
        f" calibrated on learn queries: {coverage:.1%} coverage, {scanned:.1%} scanned; learned in {seconds:.0f} s"
    )


def main() -> None:
    """Measure every case and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", metavar="FILE:NLIST[,NLIST...]")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/vqdistill-routing"), help="for the teacher's lists")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results = []
    with training_threads(1):
        for case in options.cases:
            path, _, nlists = case.rpartition(":")
            results += measure(Path(path), [int(nlist) for nlist in nlists.split(",")], options.cache, options.seed)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
