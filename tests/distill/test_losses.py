"""Each loss against its formula and finite differences; what losses must not depend on, and what they must prefer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqdistill import config
from vqdistill.distill import losses
from vqdistill.distill.losses import COMPARING, FLOOR, LOSSES, Lists, cross_entropy

NAMES = list(LOSSES)
AGREE = ["kl", "reverse_kl", "mse", "margin_mse", "wasserstein"]
"""Losses that are 0 where the student scores as the teacher does."""


@pytest.fixture(autouse=True)
def short_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists here have some ten documents."""
    monkeypatch.setattr(losses, "HEAD", 3)
    monkeypatch.setattr(losses, "RANK", 4)


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def softmax(x: Any) -> Any:
    p = np.exp(x - x.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def double(x: Any, requires_grad: bool = False) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64, requires_grad=requires_grad)


def make(q: int = 4, length: int = 9, seed: int = 0, **fields: Any) -> Lists:
    """All documents real and scored."""
    made = Lists(
        double(normal(q, length, seed=seed)),
        double(normal(q, length, seed=seed + 1)),
        torch.ones(q, length, dtype=torch.bool),
        0.5,
        0.7,
    )
    return replace(made, **fields)


def ragged(seed: int = 0) -> Lists:
    """Padding in some lists, documents without a teacher score in some, a temperature for each query."""
    lists = make(seed=seed)
    real, teacher = lists.real.clone(), lists.teacher.clone()
    real[0, 6:] = real[1, 2] = False
    teacher[1, 5:] = teacher[2, 1:] = -torch.inf
    return replace(
        lists,
        real=real,
        teacher=teacher.masked_fill(~real, -torch.inf),
        temperature=double([[0.5], [0.6], [0.7], [0.8]]),
        teacher_temperature=double([[0.4], [0.3], [0.2], [0.1]]),
    )


def student_of(lists: Lists) -> torch.Tensor:
    """Student scores that agree with the teacher's, up to a constant."""
    return lists.teacher / lists.teacher_temperature * lists.temperature + 3


def value_and_gradient(name: str, lists: Lists) -> tuple[float, Any]:
    student = lists.student.detach().clone().requires_grad_()
    value = LOSSES[name](replace(lists, student=student))
    (gradient,) = torch.autograd.grad(value, student)
    return value.item(), gradient.numpy()


def test_the_names_are_those_of_the_options() -> None:
    assert tuple(LOSSES) == config.LOSSES
    assert set(LOSSES) >= COMPARING


# One definition each, query by query, in terms of the real documents: target t, ranking r, scores over temperature z.


def listnet(t: Any, r: Any, z: Any, teacher: Any) -> float:
    return float(-(t * np.log(softmax(z[None])[0])).sum())


def kl(t: Any, r: Any, z: Any, teacher: Any) -> float:
    return listnet(t, r, z, teacher) + float((t[t > 0] * np.log(t[t > 0])).sum())


def reverse_kl(t: Any, r: Any, z: Any, teacher: Any) -> float:
    none = np.isneginf(teacher)
    if none.any():
        t = np.where(none, FLOOR / max(1, none.sum()), (1 - FLOOR) * t)
    p = softmax(z[None])[0]
    return float((p * np.log(p / t)).sum())


def mse(t: Any, r: Any, z: Any, teacher: Any) -> float:
    gap = (z - teacher)[np.isfinite(teacher)]
    return float(((gap - gap.mean()) ** 2).mean())


def margin_mse(t: Any, r: Any, z: Any, teacher: Any) -> float:
    scored = np.isfinite(teacher)
    first, gap = np.argmax(teacher), (z - teacher)
    others = [(gap[first] - gap[j]) ** 2 for j in np.flatnonzero(scored) if j != first]
    return float(np.mean(others)) if others else 0.0


def ranknet(t: Any, r: Any, z: Any, teacher: Any) -> float:
    top = total = 0.0
    for i in [i for i in np.argsort(-r)[:3] if np.isfinite(teacher[i])]:
        for j in range(len(r)):
            if r[i] > r[j]:
                top += (r[i] - r[j]) * np.log1p(np.exp(z[j] - z[i]))
                total += r[i] - r[j]
    return float(top / total)


def infonce(t: Any, r: Any, z: Any, teacher: Any) -> float:
    positive = r == r.max()
    others = np.exp(z[~positive]).sum()
    return float(np.mean([-np.log(np.exp(p) / (np.exp(p) + others)) for p in z[positive]]))


def wasserstein(t: Any, r: Any, z: Any, teacher: Any) -> float:
    """Carries mass from the first place that has too much to the first that lacks some, which is best on a line."""
    position = np.log2(1 + np.array([(r > own).sum() for own in r]))
    line, cost = np.argsort(position), 0.0
    have, want = softmax(z[None])[0][line], t[line].copy()
    i = j = 0
    while i < len(line) and j < len(line):
        moved = min(have[i], want[j])
        cost += moved * abs(position[line[i]] - position[line[j]])
        have[i] -= moved
        want[j] -= moved
        i, j = (i + 1, j) if have[i] <= want[j] else (i, j + 1)
    return cost


def margin_at_rank(t: Any, r: Any, z: Any, teacher: Any) -> float:
    head = [i for i in np.argsort(-r)[:3] if np.isfinite(teacher[i])]
    bar = np.sort(z)[::-1][3] if len(z) >= 4 else -np.inf
    return float(np.mean([max(0.0, 1 + bar - z[i]) for i in head]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lists", [make(), make(1, 1), make(2, 3), ragged(), ragged(7)])
def test_formula(name: str, lists: Lists) -> None:
    teacher = (lists.teacher / lists.teacher_temperature).numpy()
    student = (lists.student / lists.temperature).numpy()
    values = []
    for row, z, real in zip(teacher, student, lists.real.numpy(), strict=True):
        row, z = row[real], z[real]
        scored = np.isfinite(row)
        ranking = np.where(scored, row, row[scored].min() - 1)
        values.append(globals()[name](softmax(row[None])[0], ranking, z, row) if len(row) > 1 else None)
    if None in values:  # a single document: nothing to learn
        value, gradient = value_and_gradient(name, lists)
        assert value == pytest.approx(0) and not gradient.any()
    else:
        assert LOSSES[name](lists).item() == pytest.approx(np.mean(values))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_gradient(name: str, seed: int) -> None:
    """Finite differences, with padding, documents without a score, temperatures of each query, and weights."""
    lists = ragged(seed)
    weight = 1 + double(normal(*lists.student.shape, seed=9)).abs()
    for made in (lists, replace(lists, weight=weight)):
        student = made.student.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda z, made=made: LOSSES[name](replace(made, student=z)), (student,))


@pytest.mark.parametrize("name", NAMES)
def test_constants_of_a_query_change_nothing(name: str) -> None:
    lists, offset = ragged(), double(10 * normal(4, 1, seed=5))
    value, gradient = value_and_gradient(name, lists)
    for moved in (replace(lists, student=lists.student + offset), replace(lists, teacher=lists.teacher + offset)):
        other, slope = value_and_gradient(name, moved)
        assert other == pytest.approx(value)
        np.testing.assert_allclose(slope, gradient, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_scales_change_nothing(name: str) -> None:
    """Scores and temperature in other units: each side has its own."""
    lists = ragged()
    other = replace(
        lists,
        teacher=1000 * lists.teacher,
        teacher_temperature=1000 * lists.teacher_temperature,
        student=lists.student / 8,
        temperature=lists.temperature / 8,
    )
    assert LOSSES[name](other).item() == pytest.approx(LOSSES[name](lists).item())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("junk", [0.0, 1e30])
def test_padding_takes_no_part(name: str, junk: float) -> None:
    """Whatever the student scores there: same value and gradient as without, and no gradient for the padding."""
    lists = make(3, 6)
    padded = replace(
        lists,
        teacher=torch.cat([lists.teacher, torch.full((3, 2), -torch.inf)], dim=1),
        student=torch.cat([lists.student, torch.full((3, 2), junk)], dim=1),
        real=torch.cat([lists.real, torch.zeros(3, 2, dtype=torch.bool)], dim=1),
    )
    (value, gradient), (other, slope) = value_and_gradient(name, lists), value_and_gradient(name, padded)
    assert other == pytest.approx(value)
    np.testing.assert_allclose(slope[:, :6], gradient, atol=1e-12)
    assert not slope[:, 6:].any()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_real_has_no_target_even_with_a_score(name: str) -> None:
    """A false negative keeps its place in the batch, and a listed document may be left out as well."""
    lists = make()
    real = lists.real.clone()
    real[:, 4] = False
    left_out = replace(lists, real=real)
    without = replace(lists, real=real, teacher=lists.teacher.masked_fill(~real, -torch.inf))
    assert LOSSES[name](left_out).item() == pytest.approx(LOSSES[name](without).item())


@pytest.mark.parametrize("name", NAMES)
def test_order_of_documents_does_not_matter(name: str) -> None:
    lists, order = ragged(), torch.from_numpy(np.random.default_rng(0).permutation(9))
    moved = replace(lists, teacher=lists.teacher[:, order], student=lists.student[:, order], real=lists.real[:, order])
    assert LOSSES[name](moved).item() == pytest.approx(LOSSES[name](lists).item())


@pytest.mark.parametrize("name", AGREE)
def test_zero_where_student_and_teacher_agree(name: str) -> None:
    lists = make()
    value, _ = value_and_gradient(name, replace(lists, student=student_of(lists)))
    assert value == pytest.approx(0, abs=1e-9)
    assert LOSSES[name](lists).item() > 0.01


@pytest.mark.parametrize("name", ["listnet", "kl", "reverse_kl", "mse", "margin_mse"])
def test_stationary_where_student_and_teacher_agree(name: str) -> None:
    lists = make()
    _, gradient = value_and_gradient(name, replace(lists, student=student_of(lists)))
    np.testing.assert_allclose(gradient, 0, atol=1e-9)


def test_kl_teaches_as_listnet_does() -> None:
    np.testing.assert_allclose(value_and_gradient("kl", ragged())[1], value_and_gradient("listnet", ragged())[1])


@pytest.mark.parametrize("name", NAMES)
@given(st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_the_teachers_order_is_better_than_its_reverse(name: str, seed: int) -> None:
    lists = make(seed=seed)
    right = LOSSES[name](replace(lists, student=student_of(lists)))
    wrong = LOSSES[name](replace(lists, student=-student_of(lists)))
    assert right < wrong


@pytest.mark.parametrize("name", [name for name in NAMES if name not in COMPARING])
def test_a_label_is_to_be_ranked_first(name: str) -> None:
    """One relevant document a query: its gradient says up, and the loss is smaller where it stands first."""
    teacher = torch.full((2, 6), -torch.inf, dtype=torch.float64)
    teacher[:, 2] = 1.0
    lists = make(2, 6, teacher=teacher, student=torch.zeros(2, 6, dtype=torch.float64))
    _, gradient = value_and_gradient(name, lists)
    assert (gradient[:, 2] < 0).all()
    first = replace(lists, student=lists.student.index_fill(1, torch.tensor([2]), 5.0))
    assert LOSSES[name](first) < LOSSES[name](lists)


@pytest.mark.parametrize("name", ["listnet", "ranknet", "wasserstein", "infonce"])
def test_a_better_grade_is_to_be_ranked_higher(name: str) -> None:
    grades = torch.tensor([[3.0, 2, 1, 1, -torch.inf, -torch.inf]], dtype=torch.float64)
    sorted_, swapped = torch.tensor([[5.0, 4, 3, 3, 0, 0]]), torch.tensor([[4.0, 5, 3, 3, 0, 0]])
    lists = [make(1, 6, teacher=grades, student=student.double()) for student in (sorted_, swapped)]
    assert LOSSES[name](lists[0]) < LOSSES[name](lists[1])


def test_transport_inside_a_grade_is_free() -> None:
    grades = torch.tensor([[2.0, 2, 1, 1]], dtype=torch.float64)
    masses = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.3, 0.5, 0.05, 0.15]], dtype=torch.float64)
    values = [LOSSES["wasserstein"](make(1, 4, teacher=grades, student=0.7 * m.log()[None])) for m in masses]
    assert values[0].item() == pytest.approx(values[1].item())


def test_transport_knows_which_document_holds_a_score() -> None:
    """The same scores at other documents: a distance of sorted scores would see no difference."""
    lists = make()
    shuffled = replace(lists, student=student_of(lists).flip(1))
    assert LOSSES["wasserstein"](shuffled) > 0.1


def test_what_is_inside_the_rank_has_no_hinge() -> None:
    """The order of the first documents is nobody's concern, only that they clear the fourth by the margin."""
    lists = make(1, 6, teacher=double([[6.0, 5, 4, 3, 2, 1]]), temperature=1.0)
    assert LOSSES["margin_at_rank"](replace(lists, student=double([[2.0, 3, 4, 1, 0, 0]]))).item() == 0
    assert LOSSES["margin_at_rank"](replace(lists, student=double([[1.5, 3, 4, 1, 0, 0]]))).item() == pytest.approx(
        0.5 / 3
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_place_of_weight_two_teaches_as_two_places(name: str) -> None:
    lists = ragged()
    lists.teacher[:, :3] += 10  # the teacher's first documents, which are others than those that come twice
    twice = replace(
        lists,
        teacher=torch.cat([lists.teacher, lists.teacher[:, 5:]], dim=1),
        student=torch.cat([lists.student, lists.student[:, 5:]], dim=1),
        real=torch.cat([lists.real, lists.real[:, 5:]], dim=1),
    )
    weight = torch.ones(4, 9, dtype=torch.float64)
    weight[:, 5:] = 2
    _, gradient = value_and_gradient(name, replace(lists, weight=weight))
    _, slope = value_and_gradient(name, twice)
    slope[:, 5:9] += slope[:, 9:]
    np.testing.assert_allclose(slope[:, :9], gradient, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_far_apart_scores_stay_finite(name: str) -> None:
    lists = replace(make(1, 3), student=double([[1e4, 0.0, -1e4]]), teacher=double([[-1e4, 0.0, 1e4]]))
    value, gradient = value_and_gradient(name, lists)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@given(st.integers(0, 2**32))
@settings(max_examples=30)
def test_cross_entropy_is_least_at_the_target(seed: int) -> None:
    target, other = softmax(2 * normal(3, 7, seed=seed)), normal(3, 7, seed=seed + 1)
    entropy = -(target * np.log(target)).sum(axis=1).mean()
    at_target = cross_entropy(double(target), double(np.log(target) + 5))  # the softmax ignores a constant
    assert at_target.item() == pytest.approx(entropy)
    assert cross_entropy(double(target), double(other)).item() > at_target.item()


def test_cross_entropy_ignores_padding() -> None:
    target, logits = softmax(normal(3, 4)), normal(3, 4, seed=1)
    padded = cross_entropy(
        double(np.hstack([target, np.zeros((3, 2))])), double(np.hstack([logits, np.full((3, 2), -np.inf)]))
    )
    assert padded.item() == pytest.approx(cross_entropy(double(target), double(logits)).item())
