"""The student's loss against a plain definition, its gradient, and what becomes a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from vqdistill.config import KSUB
from vqdistill.distill.losses import listnet
from vqdistill.distill.samplers import Batch, Corpus
from vqdistill.distill.student import Objective, Student
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.types import Metric

N, D, NLIST, M, DSUB = 30, 6, 5, 4, 2
OBJECTIVE = Objective(listnet, 0.7, 0.4)
KINDS = [
    (Metric.IP, "pq", False),
    (Metric.IP, "pq", True),
    (Metric.COSINE, "additive", False),
    (Metric.IP, "additive", True),
    (Metric.L2, "pq", False),
]


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def make(metric: Metric, codes: str, residual: bool) -> tuple[IvfPqModel, Student]:
    additive = codes == "additive"
    words = normal(M, KSUB, D if additive else DSUB)
    model = IvfPqModel(
        metric=metric,
        residual=residual,
        mean=normal(D),
        coarse=normal(NLIST, D),
        router=normal(NLIST, D, seed=1),
        rotation=np.empty((0, D), np.float32) if additive else np.linalg.qr(normal(M * DSUB, D))[0],
        codewords=words,
        doc_codewords=words,
    )
    corpus = Corpus(normal(N, D), metric)
    return model, Student(model, corpus, model.assign(corpus.x))


def batch() -> Batch:
    """Three queries with seven documents; some places are padding, some have no target."""
    rng = np.random.default_rng(2)
    docs = np.stack([rng.permutation(N)[:7] for _ in range(3)]).astype(np.int32)
    teacher, real = rng.standard_normal((3, 7), np.float32), np.ones((3, 7), bool)
    real[0, 5:] = real[2, 1] = False
    teacher[~real] = -np.inf
    teacher[1, 3] = -np.inf  # real, but without target mass
    return Batch(normal(3, D, seed=3), docs, teacher, real, np.array([4, 0, 2]))


def softmax(x: Any) -> Any:
    p = np.exp(x - x.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def coded_scores(model: IvfPqModel, b: Batch, codes: Any) -> Any:
    """Score of every document of the batch by the model's definition, up to a constant of the query."""
    out = np.empty(b.docs.shape)
    lists = model.assign(normal(N, D))
    for i, query in enumerate(b.queries.astype(np.float64)):
        seen = query - model.mean if model.metric is Metric.L2 else query
        parts = np.tile(seen, (M, 1)) if model.additive else (model.rotation @ seen).reshape(M, DSUB)
        for t, doc in enumerate(b.docs[i]):
            words = model.codewords[np.arange(M), codes[doc]]
            dot = (parts * words).sum()
            if model.metric is Metric.L2:
                dot = 2 * dot - (words**2).sum()
            out[i, t] = dot + (query @ model.coarse[lists[doc]] if model.residual else 0)
    return out


def expected_loss(scores: Any, b: Batch) -> float:
    total = 0.0
    for row, teacher, real in zip(scores, b.teacher, b.real, strict=True):
        student = softmax(row[real] / OBJECTIVE.temperature)
        total -= (softmax(teacher[real] / OBJECTIVE.teacher_temperature) * np.log(student)).sum()
    return total / len(scores)


@pytest.mark.parametrize(("metric", "codes", "residual"), KINDS)
@pytest.mark.parametrize("frozen", [False, True])
def test_codes_loss_is_that_of_the_quantized_scores(metric: Metric, codes: str, residual: bool, frozen: bool) -> None:
    model, student = make(metric, codes, residual)
    given = np.random.default_rng(4).integers(0, KSUB, (N, M), dtype=np.uint8) if frozen else None
    used = model.encode(normal(N, D)).codes if given is None else given
    got = student.codes_loss(batch(), OBJECTIVE, given)
    assert got.item() == pytest.approx(expected_loss(coded_scores(model, batch(), used), batch()), rel=1e-4)


@pytest.mark.parametrize(("metric", "codes", "residual"), KINDS)
def test_codes_gradient_is_that_of_the_chosen_codewords(metric: Metric, codes: str, residual: bool) -> None:
    """Finite differences of the loss with frozen codes, which is what a straight-through gradient follows."""
    model, student = make(metric, codes, residual)
    used = model.encode(normal(N, D)).codes
    student.codes_loss(batch(), OBJECTIVE).backward()
    rng, step = np.random.default_rng(5), 1e-3
    for name in ("codewords",) if model.additive else ("codewords", "rotation"):
        grad = student._parameters[name].grad
        assert grad is not None
        direction = rng.standard_normal(grad.shape)
        sides = []
        for sign in (1, -1):
            moved = make(metric, codes, residual)[0]
            array = getattr(moved, name).astype(np.float64) + sign * step * direction
            object.__setattr__(moved, name, array)
            sides.append(expected_loss(coded_scores(moved, batch(), used), batch()))
        slope = float((grad.numpy() * direction).sum())
        assert slope == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=0.02, abs=1e-3), name


def test_documents_that_repeat_share_one_code() -> None:
    model, student = make(Metric.IP, "pq", False)
    b = batch()
    docs = np.tile(b.docs[:1], (3, 1))
    repeated = replace(b, docs=docs)
    used = model.encode(normal(N, D)).codes
    assert student.codes_loss(repeated, OBJECTIVE).item() == pytest.approx(
        expected_loss(coded_scores(model, repeated, used), repeated), rel=1e-4
    )


def test_lists_hold_the_temperatures_of_the_queries_of_the_batch() -> None:
    b, student = replace(batch(), weight=np.full((3, 7), 2, np.float32)), torch.zeros(3, 7)
    each = np.arange(5, dtype=np.float32)
    lists = Objective(listnet, 10 + each, each).lists(b, student)
    assert torch.equal(torch.as_tensor(lists.temperature), torch.tensor([[14.0], [10], [12]]))
    assert torch.equal(torch.as_tensor(lists.teacher_temperature), torch.tensor([[4.0], [0], [2]]))
    assert lists.student is student and torch.equal(lists.teacher, torch.from_numpy(b.teacher))
    assert torch.equal(lists.real, torch.from_numpy(b.real)) and (lists.weights == 2).all()
    plain = Objective(listnet, 0.7, 0.4).lists(batch(), student)
    assert (plain.temperature, plain.teacher_temperature, plain.weight) == (0.7, 0.4, None)


@pytest.mark.parametrize("codes", ["pq", "additive"])
def test_model_shares_no_memory(codes: str) -> None:
    start, student = make(Metric.IP, codes, False)
    before = student.model()
    for name in ("rotation", "codewords"):
        assert np.array_equal(getattr(before, name), getattr(start, name))
    with torch.no_grad():
        for parameter in student._parameters.values():
            parameter += 1
    after = student.model()
    assert np.array_equal(before.codewords, start.codewords)
    assert np.array_equal(after.codewords, start.codewords + 1)
    assert np.array_equal(after.coarse, start.coarse) and np.array_equal(after.mean, start.mean)


def test_rows_are_coded_by_what_was_trained_for_product_codes_only() -> None:
    for codes in ("pq", "additive"):
        start, student = make(Metric.IP, codes, False)
        with torch.no_grad():
            student._parameters["codewords"] += 1
        after = student.model()
        assert np.array_equal(after.doc_codewords, after.codewords) == (codes == "pq")
        assert np.array_equal(after.doc_codewords, start.doc_codewords) == (codes == "additive")


def test_steps_are_shares_of_the_root_mean_square() -> None:
    model, student = make(Metric.IP, "pq", False)
    groups = student.groups({"rotation": 0.5, "codewords": 0.1})
    assert groups[0]["params"][0] is student._parameters["rotation"]
    assert groups[1]["params"][0] is student._parameters["codewords"]
    assert groups[0]["lr"] == pytest.approx(0.5 * np.sqrt((model.rotation**2).mean()))
    assert groups[1]["lr"] == pytest.approx(0.1 * np.sqrt((model.codewords**2).mean()))
