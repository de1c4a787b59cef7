"""Adapters of queries, trained on judgments; kept only where held-out queries gain."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vqdistill.config import DistillConfig
from vqdistill.data.exact import exact_top
from vqdistill.data.temperature import calibrate_temperature
from vqdistill.distill.held_out import surely_better
from vqdistill.distill.judged import TOP, JudgedQueries
from vqdistill.distill.losses import cross_entropy
from vqdistill.distill.samplers import Batch, Corpus, Sampler
from vqdistill.model.adapter import QueryAdapter
from vqdistill.types import F64, Block, F32Rows, Metric

_log = logging.getLogger(__name__)

SURE = 3.0
"""Standard errors of the held-out gain that it must exceed: the best of several looks is above 0 by chance, and an
adapter that means nothing costs more than any other stage. Pair scores shuffled within lists reached 2 on debian."""
HARD_DEPTH = 100
"""Ranks from which hard negatives are drawn."""
_POOL = 32_768
"""Documents searched for hard negatives, at most."""
_BATCH_DOCS = 8_192
"""Documents that the queries of a batch bring along, at most; longer lists make smaller batches."""
_FEWEST_IN_BATCH = 32
_SCALE_QUERIES = 1024


@dataclass(frozen=True)
class LearnedAdapter:
    """An adapter, and what it brought on the held-out queries."""

    adapter: QueryAdapter | None
    """None if queries are best left alone."""
    before: float
    """Quality without it."""
    after: float
    """Quality with it; that without it if it is None."""

    def report(self, stage: str, measure: str) -> dict[str, Any]:
        """What the stage brought, JSON-ready."""
        kept = self.adapter is not None
        return {"stage": stage, "measure": measure, "before": self.before, "after": self.after, "kept": kept}


class Network:
    """q + matrix q + up max(0, down q + bias) as torch parameters: the matrix and `up` are 0 in the start.

    The matrix is learned whole and cut to its rank afterwards. That generalises better than learning factors: MRR@10 of
    held-out queries of debian is .671 whole or cut to rank 128, and .670 learned as factors of rank 128.
    """

    def __init__(self, queries: F32Rows, hidden: int, unit: bool, seed: int) -> None:
        self.d = d = queries.shape[1]
        self._unit = unit
        self._scale = float(np.sqrt(np.square(queries, dtype=np.float64).sum(axis=1).mean())) or 1.0
        generator = torch.Generator().manual_seed(seed)
        self._matrix, self._up = torch.zeros(d, d), torch.zeros(d, hidden)
        self._down = torch.randn(hidden, d, generator=generator) / math.sqrt(d)
        self._bias = torch.zeros(hidden)
        self.parameters = [self._matrix, self._up, self._down, self._bias]
        for parameter in self.parameters:
            parameter.requires_grad_()

    def __call__(self, queries: Tensor) -> Tensor:
        """Adapt queries (q, d)."""
        q = queries / self._scale
        adapted = q + q @ self._matrix.T + torch.relu(q @ self._down.T + self._bias) @ self._up.T
        return torch.nn.functional.normalize(adapted, dim=1) if self._unit else self._scale * adapted

    def value(self, rank: int) -> QueryAdapter:
        """The adapter as trained so far, its linear part cut to `rank`."""
        matrix, up, down, bias = (parameter.detach().numpy() for parameter in self.parameters)
        u, s, vt = np.linalg.svd(matrix.astype(np.float64))
        share = np.sqrt(s[:rank])
        return QueryAdapter(
            down=np.concatenate([share[:, None] * vt[:rank], down]).astype(np.float32),
            bias=np.concatenate([np.zeros(rank), self._scale * bias]).astype(np.float32),
            up=np.ascontiguousarray(np.concatenate([u[:, :rank] * share, up], axis=1), dtype=np.float32),
            rank=rank,
            unit=self._unit,
        )

    def loss(self, batch: Batch, corpus: Corpus, temperature: float) -> Tensor:
        """Cross-entropy of the softmax of the dense scores / temperature under that of the teacher."""
        rows, places = _distinct(batch.docs, len(corpus.x))
        x = torch.from_numpy(corpus.x[rows])
        scores = self(torch.from_numpy(batch.queries)) @ x.T
        if corpus.metric is Metric.L2:  # the norm of the query falls out of the softmax
            scores = 2 * scores - x.square().sum(dim=1)
        logits = scores.gather(1, torch.from_numpy(places)) / temperature
        logits = logits.masked_fill(torch.from_numpy(~batch.real), -torch.inf)
        return cross_entropy(torch.softmax(torch.from_numpy(batch.teacher), dim=1), logits)


def learn_adapter(
    train: JudgedQueries,
    corpus: Corpus,
    sampler: Callable[[QueryAdapter | None], Sampler],
    measure: Callable[[QueryAdapter | None], F64],
    temperature: float,
    config: DistillConfig,
) -> LearnedAdapter:
    """Train an adapter until the held-out queries stop gaining.

    Parameters
    ----------
    train : what is taught
    sampler : makes the batches of the next steps, given the adapter so far; None = none yet
    measure : (q,) quality of each held-out query with an adapter, or without
    temperature : divides dense scores

    Returns
    -------
    The best adapter seen; none if it is not better than none beyond doubt (see SURE).
    """
    d = train.queries.shape[1]
    network = Network(train.queries, config.adapter_hidden, corpus.metric is Metric.COSINE, config.seed)
    start = measure(None)
    before = float(start.mean())
    best, misses = LearnedAdapter(None, before, before), 0
    per_query = train.docs.shape[1] + config.adapter_negatives
    size = max(_FEWEST_IN_BATCH, min(config.adapter_batch, _BATCH_DOCS // per_query))
    for _ in _steps(network, corpus, sampler, temperature, size, config):
        adapter = network.value(min(config.adapter_rank, d))
        quality = measure(adapter)
        value = float(quality.mean())
        _log.info("adapter: held-out %.4f (without %.4f)", value, before)
        misses = 0 if value > best.after else misses + 1
        if value > best.after and surely_better(start, quality, SURE):
            best = replace(best, adapter=adapter, after=value)
        if misses == config.patience:
            break
    return best


def exact_quality(held: JudgedQueries, corpus: Corpus, adapter: QueryAdapter | None, threads: int) -> F64:
    """Quality (q,) of the exact search of a corpus for adapted queries."""
    queries = held.queries if adapter is None else adapter(held.queries)
    return held.quality(_search(queries, corpus.x, corpus.metric, TOP, threads))


def hard_negatives(
    train: JudgedQueries, corpus: Corpus, adapter: QueryAdapter | None, threads: int, seed: int
) -> npt.NDArray[np.int32]:
    """Documents (q, HARD_DEPTH) that the exact search finds among those that are right for any query, -1 padding.

    Others are left out: what nobody has judged is negative for all training queries, but right for some of the queries
    to come, whose documents would be pushed away (on debian .666 of MRR@10 with them, .670 without).
    """
    pool = np.unique(train.docs[train.docs >= 0])
    pool = np.sort(np.random.default_rng([seed, 7]).permutation(pool)[:_POOL])
    queries = train.queries if adapter is None else adapter(train.queries)
    found = _search(queries, corpus.x[pool], corpus.metric, HARD_DEPTH, threads)
    return np.where(found >= 0, pool[found], -1).astype(np.int32)


def hard_temperature(queries: F32Rows, corpus: Corpus, hard: npt.NDArray[np.int32], length: float) -> float:
    """Temperature at which the scores of the hard negatives of queries have an effective length."""
    scores = corpus.own_scores(queries[:_SCALE_QUERIES], hard[:_SCALE_QUERIES])
    return calibrate_temperature(scores, min(length, (1 + hard.shape[1]) / 2))


def candidate_quality(
    held: JudgedQueries, corpus: Corpus, candidates: npt.NDArray[np.int32], adapter: QueryAdapter | None
) -> F64:
    """Quality (q,) of candidates (q, r), -1 padding, in the order of their dense scores for adapted queries."""
    queries = held.queries if adapter is None else adapter(held.queries)
    order = np.argsort(-corpus.own_scores(queries, candidates), axis=1, kind="stable")
    return held.quality(np.take_along_axis(candidates, order, axis=1))


def _steps(
    network: Network,
    corpus: Corpus,
    sampler: Callable[[QueryAdapter | None], Sampler],
    temperature: float,
    size: int,
    config: DistillConfig,
) -> Iterator[int]:
    """Take the steps of Adam, yielding after every `config.adapter_eval_every` of them."""
    rng = np.random.default_rng([config.seed, 8])
    optimiser = torch.optim.Adam(network.parameters, config.adapter_rate / math.sqrt(network.d))
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.adapter_steps)
    batches = sampler(None)
    for step in range(1, config.adapter_steps + 1):
        optimiser.zero_grad()
        network.loss(batches.draw(rng, size), corpus, temperature).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        decay.step()
        if step % config.adapter_eval_every == 0 or step == config.adapter_steps:
            yield step
        if step % config.adapter_refresh == 0 and step < config.adapter_steps:
            batches = sampler(network.value(network.d))


def _search(queries: F32Rows, x: F32Rows, metric: Metric, depth: int, threads: int) -> npt.NDArray[np.int64]:
    """Exact nearest rows (q, depth) of each query, -1 padding."""
    found = exact_top(queries, [Block(0, x)], len(x), depth, l2=metric is Metric.L2, threads=threads)
    return found.padded(depth)[0]


def _distinct(docs: npt.NDArray[np.int32], n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Sorted distinct documents, and the place of each of `docs` among them; numbers are below n."""
    seen = np.zeros(n, np.bool_)
    seen[docs.ravel()] = True
    rows = np.flatnonzero(seen)
    places = np.empty(n, np.int64)
    places[rows] = np.arange(len(rows))
    return rows, places[docs]
