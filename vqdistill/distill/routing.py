"""Routing: lists that suit the queries, a router that ranks them, and the rule that says which to visit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vqdistill.config import DistillConfig
from vqdistill.distill.held_out import TOP, HeldOut, route_scores, surely_better
from vqdistill.distill.losses import cross_entropy
from vqdistill.distill.samplers import TeacherLists
from vqdistill.model.additive import RowTerms
from vqdistill.model.codebooks import Coarse, train_query_coarse
from vqdistill.types import F64, F32Rows, Metric

COVERAGES = (0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995)
"""Shares of the teacher's first TOP documents that the stopping rule is calibrated for."""
DEPTH = 50
"""Teacher ranks that the router is taught; those beyond TOP only steady it, and deeper ones blur what it is for."""
_RANK_SCALE = 10
"""A document's weight halves at this rank."""
RIDGE = 0.01
"""Weight, over all training queries together, of the squared distance from the start in units of its mean square. It
decides where queries are few, and is not felt where they are many: 0.03 already costs at 15,000."""
_LEAST_LIFT = 1e-30
"""Thresholds stay above 0, so that one can be chosen between two of them geometrically."""
_SCALE_QUERIES = 1024
_QUERIES_AT_ONCE = 256


def choose_lists(
    plain: Coarse, terms: RowTerms, judge: HeldOut, seed: int, start: F32Rows | None = None
) -> tuple[Coarse, F64, F64]:
    """Cluster the rows anew, drawn together by their queries, and let the held-out queries choose.

    Parameters
    ----------
    plain : lists of the judge's corpus by its rows alone
    terms : training queries of these rows
    start : (nlist, d) centroids to start from

    Returns
    -------
    The lists that route held-out queries better by their centroids, and `route_recalls` of the plain and the new ones.
    """
    shaped = train_query_coarse(judge.corpus.x, terms, len(plain.centroids), seed, start)
    before, after = (judge.route_recalls(coarse.centroids, coarse.lists) for coarse in (plain, shaped))
    return shaped if surely_better(before, after) else plain, before, after


def temperature_of(router: F32Rows, metric: Metric, queries: F32Rows) -> float:
    """Temperature of the softmax over lists: mean standard deviation of a query's list scores, 1 if there is none.

    Training finds a scale of its own for the router; this sets how far its start is from it, whatever the encoder.
    """
    spread = float(route_scores(router, metric, queries[:_SCALE_QUERIES]).std(axis=1).mean())
    return spread if spread > 0 else 1.0


@dataclass(frozen=True)
class RouteTargets:
    """Which lists hold the teacher's documents of each query."""

    queries: F32Rows
    """(q, d)"""
    lists: npt.NDArray[np.int64]
    """(q, r) list of each document, best first; any where the weight is 0"""
    weights: F32Rows
    """(q, r) target mass, rows sum to 1"""

    @classmethod
    def from_teacher(cls, teacher: TeacherLists, row_lists: npt.NDArray[np.int32]) -> RouteTargets:
        """Weigh the first DEPTH documents of each query by rank; scores do not matter, so any teacher will do.

        Parameters
        ----------
        teacher : each query has at least one document
        row_lists : (n,) list of each document
        """
        docs = teacher.docs[:, :DEPTH]
        weights = (docs >= 0) / (1 + np.arange(docs.shape[1]) / _RANK_SCALE)
        weights /= weights.sum(axis=1, keepdims=True)
        lists = row_lists[np.maximum(docs, 0)].astype(np.int64)
        return cls(teacher.queries, lists, weights.astype(np.float32))

    def loss(self, picked: npt.NDArray[np.int64], router: Tensor, metric: Metric, temperature: float) -> Tensor:
        """Cross-entropy over all lists for some of the queries: a soft multi-label target.

        References
        ----------
        Vecchiato et al.: A learning-to-rank formulation of clustering-based approximate nearest neighbor search,
        SIGIR 2024, section 3.
        """
        target = torch.zeros(len(picked), len(router))
        target.scatter_add_(1, torch.from_numpy(self.lists[picked]), torch.from_numpy(self.weights[picked]))
        scores = torch.from_numpy(self.queries[picked]) @ router.T
        if metric is Metric.L2:
            scores = 2 * scores - router.square().sum(dim=1)
        return cross_entropy(target, scores / temperature)


def train_router(
    start: F32Rows,
    targets: RouteTargets,
    metric: Metric,
    temperature: float,
    config: DistillConfig,
    rng: np.random.Generator,
) -> Iterator[F32Rows]:
    """Yield the router (nlist, d) after every `config.router_eval_every` steps of Adam from `start`."""
    centroids, router = torch.from_numpy(start), torch.from_numpy(start.copy()).requires_grad_()
    mean_square = max(float(centroids.square().mean()), float(np.finfo(np.float32).tiny))
    ridge = RIDGE / (len(targets.queries) * mean_square)
    optimiser = torch.optim.Adam([router], config.router_rate * math.sqrt(mean_square), betas=(0.9, 0.99))
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.router_steps)
    batches = _batches(len(targets.queries), config.router_batch, rng)
    for step in range(1, config.router_steps + 1):
        optimiser.zero_grad()
        loss = targets.loss(next(batches), router, metric, temperature)
        (loss + ridge * (router - centroids).square().sum()).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        decay.step()
        if step % config.router_eval_every == 0 or step == config.router_steps:
            yield router.detach().numpy().copy()


@dataclass(frozen=True)
class LearnedRouter:
    """A router, and what it brought on the held-out queries."""

    router: F32Rows
    """(nlist, d)"""
    temperature: float
    """That it was trained at, and `lifts` needs."""
    before: F64
    """`route_recalls` of the start"""
    after: F64
    """`route_recalls` of the best router seen; the start is kept if that is not surely better."""


def learn_router(
    start: F32Rows,
    train: TeacherLists,
    row_lists: npt.NDArray[np.int32],
    judge: HeldOut,
    config: DistillConfig,
    rng: np.random.Generator,
    advance: Callable[[int], None] = lambda _: None,
) -> LearnedRouter:
    """Train a router until the held-out queries stop gaining, and keep the best, the start included.

    Parameters
    ----------
    start : (nlist, d) centroids
    train : teacher's documents of the training queries, each at least one
    row_lists : (n,) list of each row of the judge's corpus
    advance : called with the steps between two looks at the held-out queries
    """
    metric = judge.corpus.metric
    temperature = temperature_of(start, metric, train.queries)
    before = judge.route_recalls(start, row_lists)
    best, misses = LearnedRouter(start, temperature, before, before), 0
    targets = RouteTargets.from_teacher(train, row_lists)
    for router in train_router(start, targets, metric, temperature, config, rng):
        advance(config.router_eval_every)
        value = judge.route_recalls(router, row_lists)
        gained = value.mean() > best.after.mean()
        misses = 0 if gained else misses + 1
        if gained:
            best = replace(best, router=router, after=value)
        if misses == config.patience:
            break
    return best if surely_better(before, best.after) else replace(best, router=start)


def lifts(scores: F32Rows, temperature: float, shares: F64) -> F64:
    """How much more likely each list is to hold a wanted document than as many random rows.

    Parameters
    ----------
    scores : (q, nlist) routing scores
    temperature : that the router was trained at
    shares : (nlist,) share of all rows in each list

    Returns
    -------
    (q, nlist) float64
        softmax(scores / temperature) / shares; 0 for empty lists.

    Notes
    -----
    Visiting the lists whose lift reaches a threshold, the same for all queries, scans fewest rows for a coverage on
    average if the softmax is right: each list visited finds more per row than each one left out, of any query.
    """
    p = np.exp((scores - scores.max(axis=1, keepdims=True)).astype(np.float64) / temperature)
    p /= p.sum(axis=1, keepdims=True)
    return np.asarray(p * np.divide(1, shares, out=np.zeros_like(shares), where=shares > 0))


def visited(lifts: F64, lift: float) -> npt.NDArray[np.bool_]:
    """Lists (q, nlist) that a query visits: those that reach `lift`, and always the best one."""
    return np.asarray(lifts >= np.minimum(lift, lifts.max(axis=1, keepdims=True)))


def calibrate_lift(
    router: F32Rows, temperature: float, row_lists: npt.NDArray[np.int32], judge: HeldOut
) -> list[dict[str, float]]:
    """Find the lift that lists must reach for the visited ones to hold each of COVERAGES.

    Parameters
    ----------
    router : (nlist, d), trained at `temperature`
    row_lists : (n,) list of each row of the judge's corpus

    Returns
    -------
    list of dict
        `coverage`, rising; `lift`, falling, above 0; and means over the held-out queries: share of the rows `scanned`,
        `lists` visited.
    """
    shares = np.bincount(row_lists, minlength=len(router)) / len(row_lists)
    queries, wanted = judge.lists.queries, judge.lists.docs[:, :TOP]

    def blocks() -> Iterator[tuple[slice, F64]]:
        for at in range(0, len(queries), _QUERIES_AT_ONCE):
            part = slice(at, at + _QUERIES_AT_ONCE)
            yield part, lifts(route_scores(router, judge.corpus.metric, queries[part]), temperature, shares)

    reached = [
        np.take_along_axis(block, row_lists[np.maximum(wanted[part], 0)], axis=1)[wanted[part] >= 0]
        for part, block in blocks()
    ]
    falling = np.sort(np.concatenate(reached))[::-1]
    needed = [max(_LEAST_LIFT, float(falling[math.ceil(coverage * len(falling)) - 1])) for coverage in COVERAGES]
    scanned, lists = np.zeros(len(needed)), np.zeros(len(needed))
    for _, block in blocks():
        for i, lift in enumerate(needed):
            chosen = visited(block, lift)
            scanned[i] += (chosen @ shares).sum() / len(queries)
            lists[i] += chosen.sum() / len(queries)
    rungs = zip(COVERAGES, needed, scanned.tolist(), lists.tolist(), strict=True)
    return [dict(zip(("coverage", "lift", "scanned", "lists"), rung, strict=True)) for rung in rungs]


def _batches(n: int, size: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Yield `size` of n numbers (all, if there are fewer) for ever; none comes twice within an order of all."""
    while True:
        order = rng.permutation(n)
        for at in range(0, max(1, n - size + 1), size):
            yield order[at : at + size]
