"""Temperatures that give lists the wanted effective length, all together or each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqdistill.data.temperature import calibrate_temperature, calibrate_temperatures, effective_lengths


def lists(q: int = 40, length: int = 100, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((q, length)).astype(np.float32)


def mean_length(scores: Any, temperature: float) -> float:
    return float(effective_lengths(scores, temperature).mean())


@pytest.mark.parametrize("length", [1, 2, 7])
def test_effective_length_of_ties_is_their_number(length: int) -> None:
    scores = np.full((3, 9), -np.inf, np.float32)
    scores[:, :length] = 0.5
    assert effective_lengths(scores, 0.1) == pytest.approx(length)


def test_effective_length_lies_between_one_and_all() -> None:
    values = [mean_length(lists(), temperature) for temperature in (1e-6, 0.1, 1, 10, 1e6)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(1) and values[-1] == pytest.approx(100)


def test_each_list_has_its_own_temperature() -> None:
    scores, temperatures = lists(3, 10), np.array([[0.1], [1.0], [10.0]])
    alone = [effective_lengths(scores[[i]], temperatures[i, 0])[0] for i in range(3)]
    assert effective_lengths(scores, temperatures) == pytest.approx(alone)


@pytest.mark.parametrize("wanted", [1.5, 5, 40, 99])
def test_calibration_hits_the_wanted_length(wanted: float) -> None:
    assert mean_length(lists(), calibrate_temperature(lists(), wanted)) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("wanted", [1.5, 5, 40])
def test_calibration_of_each_list_hits_the_wanted_length(wanted: float) -> None:
    """Lists that are spread a thousand times wider than others get the same length, which one temperature cannot do."""
    scores = lists() * np.logspace(-1, 2, 40, dtype=np.float32)[:, None]
    temperatures = calibrate_temperatures(scores, wanted)
    assert temperatures.dtype == np.float32 and temperatures.shape == (40,)
    assert effective_lengths(scores, temperatures[:, None]) == pytest.approx(wanted, rel=1e-3)
    assert not np.allclose(effective_lengths(scores, calibrate_temperature(scores, wanted)), wanted, rtol=0.5)


def test_short_lists_are_half_as_long_as_they_could_be() -> None:
    scores = lists(4, 9)
    scores[0, 3:] = scores[1, 1:] = -np.inf
    lengths = effective_lengths(scores, calibrate_temperatures(scores, 40)[:, None])
    assert lengths == pytest.approx([2, 1, 5, 5], rel=1e-3)


@given(st.floats(1e-3, 1e3), st.integers(0, 9))
@settings(max_examples=30)
def test_calibration_moves_with_the_scale_and_not_with_an_offset(scale: float, seed: int) -> None:
    scores = lists(8, 30, seed)
    for calibrate in (calibrate_temperature, calibrate_temperatures):
        plain = calibrate(scores, 10)
        assert calibrate(np.float32(scale) * scores, 10) == pytest.approx(scale * plain, rel=1e-3)
        assert calibrate(scores + 3, 10) == pytest.approx(plain, rel=1e-3)


def test_padding_does_not_move_the_calibration() -> None:
    padded = np.hstack([lists(), np.full((40, 30), -np.inf, np.float32)])
    for calibrate in (calibrate_temperature, calibrate_temperatures):
        assert calibrate(padded, 20) == pytest.approx(calibrate(lists(), 20))


@pytest.mark.parametrize("scores", [np.ones((3, 5)), np.zeros((1, 1)), [[2, -np.inf], [1, -np.inf]]])
def test_lists_of_ties_have_a_finite_temperature(scores: Any) -> None:
    assert calibrate_temperature(np.asarray(scores, np.float32), 2) == 1.0
    assert (calibrate_temperatures(np.asarray(scores, np.float32), 2) == 1.0).all()


def test_short_lists_come_as_near_as_they_can() -> None:
    temperature = calibrate_temperature(lists(20, 3), 40)
    assert np.isfinite(temperature)
    assert mean_length(lists(20, 3), temperature) == pytest.approx(3, rel=1e-3)


def test_some_lists_of_ties_among_others() -> None:
    scores = np.vstack([lists(20, 50), np.ones((5, 50), np.float32)])
    assert mean_length(scores, calibrate_temperature(scores, 30)) == pytest.approx(30, rel=1e-3)
    assert effective_lengths(scores, calibrate_temperatures(scores, 20)[:, None]) == pytest.approx([20] * 20 + [50] * 5)
