"""The codes of a model as torch parameters, with their loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vqdistill.distill.losses import Lists, Loss
from vqdistill.distill.samplers import Batch, Corpus
from vqdistill.kernels import jit
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.types import Metric

F32 = npt.NDArray[np.float32]


class _CodeScores(torch.autograd.Function):
    """Sums of look-up table entries over codes; the backward pass scatters into the same entries."""

    @staticmethod
    def forward(ctx: Any, lut: Tensor, codes: npt.NDArray[np.uint8], docs: npt.NDArray[np.int32]) -> Tensor:
        ctx.codes, ctx.docs, ctx.ksub = codes, docs, lut.shape[2]
        return torch.from_numpy(jit.gather_scores(lut.detach().contiguous().numpy(), codes, docs))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad = grads[0].contiguous().numpy()
        return torch.from_numpy(jit.scatter_grads(grad, ctx.codes, ctx.docs, ctx.ksub)), None, None


@dataclass(frozen=True)
class Objective:
    """How a student's list is held against the teacher's."""

    loss: Loss
    temperature: float | F32
    """Divides student scores: a number, or (q,) one for each training query."""
    teacher_temperature: float | F32
    """Divides teacher scores; the same where both are similarities of vectors."""

    def lists(self, batch: Batch, student: Tensor) -> Lists:
        """What the loss compares, given the student's scores (b, l) of a batch."""
        return Lists(
            torch.from_numpy(batch.teacher),
            student,
            torch.from_numpy(batch.real),
            _of_batch(self.teacher_temperature, batch),
            _of_batch(self.temperature, batch),
            None if batch.weight is None else torch.from_numpy(batch.weight),
        )


class Student:
    """Trains rotation and codewords of a model; lists of documents stay as they are."""

    def __init__(self, model: IvfPqModel, corpus: Corpus, lists: npt.NDArray[np.int32]) -> None:
        self._start = model
        self._corpus = corpus
        self._lists = lists
        self._parameters = {
            name: torch.from_numpy(getattr(model, name).copy()).requires_grad_() for name in ("rotation", "codewords")
        }
        self._mean, self._coarse = torch.from_numpy(model.mean), torch.from_numpy(model.coarse)

    @property
    def additive(self) -> bool:
        """Whether the model has additive codes."""
        return self._start.additive

    def model(self) -> IvfPqModel:
        """The model as trained so far, sharing no memory with the student."""
        rotation, words = (p.detach().numpy().copy() for p in self._parameters.values())
        doc_codewords = self._start.doc_codewords if self._start.additive else words
        return replace(self._start, rotation=rotation, codewords=words, doc_codewords=doc_codewords)

    def groups(self, rates: dict[str, float]) -> Sequence[dict[str, Any]]:
        """Parameter groups for an optimiser, each with a learning rate of `rate` x its root mean square."""
        named = ((self._parameters[name], rate) for name, rate in rates.items())
        return [{"params": [p], "lr": rate * float(p.detach().square().mean().sqrt())} for p, rate in named]

    def codes_loss(self, batch: Batch, objective: Objective, codes: npt.NDArray[np.uint8] | None = None) -> Tensor:
        """Loss of the full quantized score over all documents of the batch.

        Parameters
        ----------
        codes : (n, m) frozen codes of the corpus, which make the loss convex in the codewords; None = recompute those
            of the batch from the current parameters. Then there is no mismatch between what is trained and what is
            deployed, and the gradient reaches the codewords that were chosen (straight-through, as in Distill-VQ,
            section 3.2).
        """
        docs = batch.docs
        if codes is None:
            rows, places = np.unique(docs, return_inverse=True)
            docs = places.reshape(docs.shape).astype(np.int32)
            codes = self.model().quantize(self._corpus.x[rows], self._lists[rows])
        queries = torch.from_numpy(batch.queries)
        scores: Tensor = _CodeScores.apply(self._lut(queries), codes, docs)  # type: ignore[no-untyped-call]
        if self._start.residual:
            scores = scores + (queries @ self._coarse.T).gather(1, self._lists_of(batch))
        # Constants of a query (the mean's product, the query's norm) are left out, as losses do not depend on them.
        return objective.loss(objective.lists(batch, scores))

    def _lists_of(self, batch: Batch) -> Tensor:
        return torch.from_numpy(self._lists[batch.docs].astype(np.int64))

    def _lut(self, queries: Tensor) -> Tensor:
        model, words = self._start, self._parameters["codewords"]
        if model.additive:
            return torch.einsum("qd,mkd->qmk", queries, words)
        l2 = model.metric is Metric.L2
        z = (queries - self._mean if l2 else queries) @ self._parameters["rotation"].T
        lut = torch.einsum("qmd,mkd->qmk", z.reshape(len(queries), model.m, model.dsub), words)
        return 2 * lut - words.square().sum(dim=2) if l2 else lut


def _of_batch(temperature: float | F32, batch: Batch) -> float | Tensor:
    """A number as it is, or (b, 1) those of the queries of the batch."""
    return torch.from_numpy(temperature[batch.picked, None]) if isinstance(temperature, np.ndarray) else temperature
