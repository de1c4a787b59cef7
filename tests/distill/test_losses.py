"""ListNet against its formula and finite differences; temperatures that hit the wanted length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqdistill.distill.losses import LOSSES, calibrate_temperature, effective_length, listnet


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def softmax(x: Any) -> Any:
    p = np.exp(x - x.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def double(x: Any, requires_grad: bool = False) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64, requires_grad=requires_grad)


def test_losses_by_name() -> None:
    assert LOSSES["listnet"] is listnet


@pytest.mark.parametrize(("q", "length"), [(1, 1), (1, 9), (4, 5)])
def test_listnet_formula(q: int, length: int) -> None:
    target, logits = softmax(normal(q, length)), 3 * normal(q, length, seed=1)
    want = -(target * np.log(softmax(logits))).sum(axis=1).mean()
    assert listnet(double(target), double(logits)).item() == pytest.approx(want)


def test_listnet_gradient() -> None:
    target = double(softmax(normal(3, 6)))
    assert torch.autograd.gradcheck(lambda z: listnet(target, z), (double(normal(3, 6, seed=1), True),))


def test_listnet_gradient_is_the_difference_of_distributions() -> None:
    target, logits = softmax(normal(3, 6)), double(normal(3, 6, seed=1), True)
    listnet(double(target), logits).backward()
    want = (softmax(logits.detach().numpy()) - target) / 3
    np.testing.assert_allclose(logits.grad, want, atol=1e-12)


def test_padding_takes_no_part() -> None:
    """Places with target 0 and logit -inf: same value and gradient as without them, and no NaN."""
    target, logits = softmax(normal(3, 4)), normal(3, 4, seed=1)
    short, long = double(logits, True), double(np.hstack([logits, np.full((3, 2), -np.inf)]), True)
    value = listnet(double(target), short)
    padded = listnet(double(np.hstack([target, np.zeros((3, 2))])), long)
    value.backward()
    padded.backward()
    assert padded.item() == pytest.approx(value.item())
    assert long.grad is not None and short.grad is not None
    np.testing.assert_allclose(long.grad[:, :4], short.grad, atol=1e-12)
    assert not long.grad[:, 4:].any()


def test_gradient_through_a_mask_is_finite() -> None:
    """As the student does it: real scores at padded places are overwritten, so their gradient must be 0, not NaN."""
    scores, mask = double(normal(2, 5), True), torch.tensor([[False, False, True, True, True], [False] * 4 + [True]])
    target = torch.softmax(double(normal(2, 5, seed=1)).masked_fill(mask, -torch.inf), dim=1)
    listnet(target, (scores / 0.01).masked_fill(mask, -torch.inf)).backward()
    assert scores.grad is not None and torch.isfinite(scores.grad).all()
    assert not scores.grad[mask].any()


def test_far_apart_scores_stay_finite() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    value = listnet(torch.tensor([[0.5, 0.5, 0.0]]), logits)
    value.backward()
    assert value.isfinite() and logits.grad is not None and logits.grad.isfinite().all()


@given(st.integers(0, 2**32))
@settings(max_examples=30)
def test_minimum_is_at_the_target(seed: int) -> None:
    target, other = softmax(2 * normal(3, 7, seed=seed)), normal(3, 7, seed=seed + 1)
    entropy = -(target * np.log(target)).sum(axis=1).mean()
    at_target = double(np.log(target) + 5, True)  # the softmax ignores a constant
    value = listnet(double(target), at_target)
    value.backward()
    assert value.item() == pytest.approx(entropy)
    assert at_target.grad is not None
    np.testing.assert_allclose(at_target.grad, 0, atol=1e-12)
    assert listnet(double(target), double(other)).item() > value.item()


def lists(q: int = 40, length: int = 100, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((q, length)).astype(np.float32)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_effective_length_of_ties_is_their_number(length: int) -> None:
    scores = np.full((3, 9), -np.inf, np.float32)
    scores[:, :length] = 0.5
    assert effective_length(scores, 0.1) == pytest.approx(length)


def test_effective_length_lies_between_one_and_all() -> None:
    values = [effective_length(lists(), temperature) for temperature in (1e-6, 0.1, 1, 10, 1e6)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(1) and values[-1] == pytest.approx(100)


@pytest.mark.parametrize("wanted", [1.5, 5, 40, 99])
def test_calibration_hits_the_wanted_length(wanted: float) -> None:
    assert effective_length(lists(), calibrate_temperature(lists(), wanted)) == pytest.approx(wanted, rel=1e-3)


@given(st.floats(1e-3, 1e3), st.integers(0, 9))
@settings(max_examples=30)
def test_calibration_moves_with_the_scale_and_not_with_an_offset(scale: float, seed: int) -> None:
    scores = lists(8, 30, seed)
    plain = calibrate_temperature(scores, 10)
    assert calibrate_temperature(np.float32(scale) * scores, 10) == pytest.approx(scale * plain, rel=1e-3)
    assert calibrate_temperature(scores + 3, 10) == pytest.approx(plain, rel=1e-3)


def test_padding_does_not_move_the_calibration() -> None:
    padded = np.hstack([lists(), np.full((40, 30), -np.inf, np.float32)])
    assert calibrate_temperature(padded, 20) == pytest.approx(calibrate_temperature(lists(), 20))


@pytest.mark.parametrize("scores", [np.ones((3, 5)), np.zeros((1, 1)), [[2, -np.inf], [1, -np.inf]]])
def test_lists_of_ties_have_a_finite_temperature(scores: Any) -> None:
    assert calibrate_temperature(np.asarray(scores, np.float32), 2) == 1.0


def test_short_lists_come_as_near_as_they_can() -> None:
    temperature = calibrate_temperature(lists(20, 3), 40)
    assert np.isfinite(temperature)
    assert effective_length(lists(20, 3), temperature) == pytest.approx(3, rel=1e-3)


def test_some_lists_of_ties_among_others() -> None:
    scores = np.vstack([lists(20, 50), np.ones((5, 50), np.float32)])
    assert effective_length(scores, calibrate_temperature(scores, 30)) == pytest.approx(30, rel=1e-3)
