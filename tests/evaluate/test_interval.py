"""Intervals of a recall hold the truth as often as they say, at the ends too."""

from __future__ import annotations

import numpy as np
import pytest

from vqdistill.evaluate.interval import agree, bootstrap_interval, of_all, of_as_many


def recalls(rng: np.random.Generator, q: int, mean: float) -> np.ndarray:
    """Draw recalls@10 that vary between queries."""
    return rng.binomial(10, rng.beta(20 * mean, 20 * (1 - mean), q)) / 10


@pytest.mark.parametrize("mean", [0.8, 0.97])
def test_it_holds_the_mean_of_the_population(mean: float) -> None:
    rng = np.random.default_rng(0)
    held = [low <= mean <= high for low, high in (bootstrap_interval(recalls(rng, 300, mean)) for _ in range(60))]
    assert 0.88 <= np.mean(held) < 1


def test_it_is_that_of_queries_drawn_anew() -> None:
    rng = np.random.default_rng(1)
    values = recalls(rng, 150, 0.8)
    means = rng.choice(values, (20_000, 150)).mean(axis=1)
    assert bootstrap_interval(values) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=2e-3)
    assert bootstrap_interval(values) == bootstrap_interval(values[::-1])
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values)


def test_no_loss_in_a_sample_is_no_proof() -> None:
    low, high = bootstrap_interval(np.ones(40))
    assert (low, high) == (pytest.approx(0.025 ** (1 / 40)), 1.0)
    low, high = bootstrap_interval(np.zeros(40))
    assert (low, high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 40)))


def test_as_many_other_queries_fall_into_the_wider_interval() -> None:
    rng, inside, narrow = np.random.default_rng(4), [], []
    for _ in range(200):
        a, b = recalls(rng, 200, 0.9), recalls(rng, 200, 0.9)
        interval = bootstrap_interval(a)
        low, high = of_as_many(float(a.mean()), interval)
        inside.append(low <= b.mean() <= high)
        narrow.append(interval[0] <= b.mean() <= interval[1])
    assert 0.9 <= np.mean(inside) < 1 and np.mean(narrow) < 0.9


def test_the_wider_interval_leads_back() -> None:
    wide = of_as_many(0.9, (0.88, 0.91))
    assert wide == pytest.approx((0.9 - 2**0.5 * 0.02, 0.9 + 2**0.5 * 0.01))
    assert of_all(0.9, wide) == pytest.approx((0.88, 0.91))
    assert of_as_many(0.99, (0.9, 0.999))[1] == 1 and of_as_many(0.01, (0.001, 0.1))[0] == 0


def test_two_samples_agree_within_the_doubt_of_both() -> None:
    assert agree(0.9, (0.88, 0.92), 0.925, (0.905, 0.945))  # 0.025 apart, 0.02 of doubt in each
    assert not agree(0.9, (0.88, 0.92), 0.93, (0.91, 0.95))
    assert not agree(0.93, (0.91, 0.95), 0.9, (0.88, 0.92))
    assert agree(0.9, (0.88, 0.92), 0.915, (0.915, 0.915))


def test_samples_of_one_population_agree_as_often_as_the_level_says() -> None:
    rng, agreed = np.random.default_rng(2), []
    for _ in range(60):
        a, b = recalls(rng, 200, 0.9), recalls(rng, 700, 0.9)
        agreed.append(agree(a.mean(), bootstrap_interval(a), b.mean(), bootstrap_interval(b)))
    assert 0.88 <= np.mean(agreed) < 1
