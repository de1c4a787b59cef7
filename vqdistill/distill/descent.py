"""Training by gradients: the list-wise loss moves codewords, and the held-out queries say when to stop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vqdistill.config import DistillConfig
from vqdistill.data.temperature import calibrate_temperature, calibrate_temperatures
from vqdistill.distill.lesson import Lesson
from vqdistill.distill.losses import LOSSES
from vqdistill.distill.samplers import SAMPLERS, Batch, BatchMaker, Miner, Sampler, Search
from vqdistill.distill.student import Objective, Student
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.progress import Progress
from vqdistill.types import F64, Codes

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Learned:
    """What training brought."""

    stage: str
    """Its name in the report."""
    start: IvfPqModel
    best: IvfPqModel
    """The best model seen; the start if none was better."""
    before: F64
    after: F64
    """Held-out values of both, (h,)"""
    temperature: float
    """The student's, the mean over queries."""


@dataclass(frozen=True)
class _Stage:
    """One thing to train: which loss moves which parameters, judged how."""

    name: str
    rates: dict[str, float]
    loss: Callable[[Batch, Objective], Tensor]
    measure: Callable[[IvfPqModel], F64]


@dataclass(frozen=True)
class Descent:
    """Trains tables of additive codes, or rotation and codewords of product codes.

    Parameters
    ----------
    config : loss, sampler, rates, steps and patience
    lesson : rows, queries and judge
    progress : told of every step
    """

    config: DistillConfig
    lesson: Lesson
    progress: Progress

    def run(self, model: IvfPqModel, codes: Codes, rng: np.random.Generator) -> Learned:
        """Train from a model and its codes of the training rows until the held-out queries stop gaining."""
        student = Student(model, self.lesson.corpus, self.lesson.coarse.lists)
        maker = self._batches()
        objective = self._objective(maker)
        sampler = self._sampler(maker, student, codes)
        return self._descend(self._stage(student, codes), student, sampler, objective, rng)

    def _batches(self) -> BatchMaker:
        config, lesson = self.config, self.lesson
        return BatchMaker(
            lesson.corpus, lesson.train, config.random_docs, lesson.dense, config.debias, config.false_negatives
        )

    def _sampler(self, maker: BatchMaker, student: Student, codes: Codes) -> Sampler:
        def snapshot() -> Search:
            model = student.model()
            return self.lesson.judge.searching(model, codes if model.additive else self.lesson.encode(model))

        return SAMPLERS[self.config.sampler](maker, Miner(snapshot, self.config.mine_every))

    def _objective(self, maker: BatchMaker) -> Objective:
        """Calibrate the temperatures to the wanted effective length of a list."""
        lesson, loss, wanted = self.lesson, LOSSES[self.config.loss], self.config.list_length
        teacher = self._teacher_temperature()
        if lesson.dense:
            return Objective(loss, teacher, teacher)
        # Pair scores and labels have a scale of their own: what divides the student must fit similarities of vectors.
        rng = np.random.default_rng(self.config.seed)
        batch = maker.make(rng.permutation(len(lesson.train.queries))[: self.config.batch], rng)
        similar = lesson.corpus.own_scores(batch.queries, np.where(batch.real, batch.docs, -1))
        return Objective(loss, calibrate_temperature(similar, min(wanted, batch.real.sum(axis=1).mean() / 2)), teacher)

    def _teacher_temperature(self) -> float | npt.NDArray[np.float32]:
        if self.lesson.teacher_temperature is not None:
            return self.lesson.teacher_temperature
        scores, wanted = self.lesson.train.scores, self.config.list_length
        if self.config.temperature == "query":
            return calibrate_temperatures(scores, wanted)
        return calibrate_temperature(scores, min(wanted, (1 + np.isfinite(scores).sum(axis=1).mean()) / 2))

    def _stage(self, student: Student, codes: Codes) -> _Stage:
        """Additive codes are frozen and only the tables learned; product codes follow their codewords."""
        config, lesson = self.config, self.lesson
        if not student.additive:
            rates = {"rotation": config.rotation_rate, "codewords": config.codewords_rate}
            return _Stage("codes", rates, student.codes_loss, lesson.own_recalls)
        return _Stage(
            "tables",
            {"codewords": config.tables_rate},
            lambda batch, objective: student.codes_loss(batch, objective, codes.codes),
            lambda model: lesson.judge.code_recalls(model, codes),
        )

    def _descend(
        self, stage: _Stage, student: Student, sampler: Sampler, objective: Objective, rng: np.random.Generator
    ) -> Learned:
        config = self.config
        optimiser = torch.optim.Adam(list(student.groups(stage.rates)))
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
        start = best = student.model()
        before = after = stage.measure(best)
        misses = 0
        with self.progress.stage(f"distil {stage.name}", config.steps, "steps") as bar:
            for step in range(1, config.steps + 1):
                optimiser.zero_grad()
                stage.loss(sampler.draw(rng, config.batch), objective).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                decay.step()
                bar.advance(1)
                if step % config.eval_every:
                    continue
                model = student.model()
                values = stage.measure(model)
                _log.info(
                    "distil %s: step %d, held-out %.4f (start %.4f)", stage.name, step, values.mean(), before.mean()
                )
                gained = values.mean() > after.mean()
                misses = 0 if gained else misses + 1
                if gained:
                    best, after = model, values
                if misses == config.patience:
                    break
        return Learned(stage.name, start, best, before, after, float(np.mean(objective.temperature)))
