"""Training that goes on from a model of nearly the same rows, in a fraction of the steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from vqdistill.config import DistillConfig, IvfPqConfig
from vqdistill.errors import InvalidInput
from vqdistill.model.codebooks import Coarse
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.types import F32Rows, Metric

ROUNDS = 1
"""Of `fit_metric`, where a start from nothing takes three."""
ROWS = 20_480
"""Rows that codebooks are fitted to at most, half of those of a start from nothing."""
_STEPS, _ROUTER_STEPS = 3, 4
"""What the steps of tables and router are divided by."""


@dataclass(frozen=True)
class WarmStart:
    """A trained model to start from: its coordinates, lists, codebooks, tables and router.

    Adapters of queries are trained anew.
    """

    model: IvfPqModel

    def require_match(self, config: IvfPqConfig, metric: Metric, d: int) -> None:
        """Require the shape of the codes that are to be trained; lists may be of another number.

        Raises
        ------
        InvalidInput
            If they have another shape or metric, or are product codes.
        """
        old = self.model
        wanted = (config.codes, metric.value, d, config.m)
        got = ("additive" if old.additive else "pq", old.metric.value, old.d, old.m)
        if config.codes != "additive" or got != wanted:
            raise InvalidInput(
                "warm_start must be an index of additive codes with the metric, dimensions and m of the plan,"
                f" {wanted}, got {got}"
            )

    def lists(self, nlist: int) -> IvfPqModel | None:
        """Return the model whose lists and router to start from, `moved`; None if it has another number of lists."""
        return self.moved if self.model.nlist == nlist else None

    def shorter(self, config: DistillConfig) -> DistillConfig:
        """Return training options for what is left to learn."""
        return replace(
            config,
            steps=max(config.eval_every, config.steps // _STEPS),
            router_steps=max(1, config.router_steps // _ROUTER_STEPS),
            router_eval_every=max(1, config.router_eval_every // 2),
        )

    @property
    def serves_queries(self) -> bool:
        """Whether the codes of the old index were found to be better with the queries that rank each row."""
        return self.model.learned is not None and self.model.learned.codes

    @cached_property
    def moved(self) -> IvfPqModel:
        """The model in the coordinates that it was trained in."""
        return self.model.in_trained_space()

    def start(self, coarse: Coarse, mean: F32Rows) -> IvfPqModel:
        """Return the undistilled model: its codebooks, on the lists and around the mean (d,) of the present rows."""
        return replace(
            self.moved,
            mean=mean,
            coarse=coarse.centroids,
            router=coarse.centroids,
            codewords=self.moved.doc_codewords,
            anchors=coarse.anchors,
            query_adapter=None,
            verify_adapter=None,
            learned=None,
        )

    def tables(self, served: IvfPqModel) -> IvfPqModel:
        """Return `served` with tables that are as far from its codebooks as those of the model were."""
        moved = self.moved
        return replace(served, codewords=served.doc_codewords + (moved.codewords - moved.doc_codewords))
