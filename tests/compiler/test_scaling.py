"""The law of misses: what it recovers, and how sure it is."""

from __future__ import annotations

import numpy as np
import pytest

from vqdistill.compiler.scaling import fit_law, from_odds, odds


def test_a_line_over_doublings_is_recovered() -> None:
    sizes = (1000, 2000, 4000, 8000)
    law = fit_law(sizes, [0.01, 0.012, 0.014, 0.016], [0.001] * 4)
    assert law.slope == pytest.approx(0.002) and law.level == pytest.approx(0.016)
    assert law.at(64_000) == pytest.approx(0.022)
    assert law.points == tuple(zip(sizes, (0.01, 0.012, 0.014, 0.016), strict=True))


def test_the_interval_covers_what_noise_moves() -> None:
    rng, sizes, inside = np.random.default_rng(0), (1000, 2000, 4000), 0
    for _ in range(400):
        noisy = 0.05 + 0.005 * np.log2(np.array(sizes) / 4000) + 0.002 * rng.standard_normal(3)
        low, high = fit_law(sizes, noisy.tolist(), [0.002] * 3).interval(64_000)
        inside += low <= 0.07 <= high
    assert inside >= 0.93 * 400


def test_points_off_the_line_widen_the_interval() -> None:
    straight, bent = (
        fit_law((1, 2, 4, 8), misses, [1e-3] * 4) for misses in ([0.1, 0.2, 0.3, 0.4], [0.1, 0.3, 0.2, 0.4])
    )
    widths = [high - low for low, high in (straight.interval(16), bent.interval(16))]
    assert widths[1] > 5 * widths[0]


def test_misses_do_not_fall_with_more_rows_nor_leave_their_range() -> None:
    falling = fit_law((1000, 2000), [0.02, 0.01], [0.001] * 2)
    assert falling.slope == 0 and falling.at(10**9) == pytest.approx(0.015)
    assert fit_law((1000, 2000), [0.1, 0.5], [0.001] * 2).at(10**9) == 1


def test_one_size_knows_no_slope() -> None:
    law = fit_law((500,), [0.03], [0.01])
    assert law.at(500) == law.at(10**6) == pytest.approx(0.03)
    assert law.interval(500) == pytest.approx((0.03 - 0.0196, 0.03 + 0.0196))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_odds_go_both_ways(share: float) -> None:
    assert from_odds(odds(share)) == pytest.approx(share, abs=1.1e-5)
