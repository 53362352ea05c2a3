"""Detecting a run that gets worse, by hand-worked slopes and simulated runs."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.train.trend import MIN_ROUNDS, falling, round_level, slope, trend


def test_slope_and_its_z_by_hand() -> None:
    # t - mean t = -1.5 -0.5 0.5 1.5, sum of squares 5; slope = (-0.75 - 0.2 + 0.15 + 0.3) / 5
    rate, z = slope([(0.5, 0.1), (0.4, 0.1), (0.3, 0.1), (0.2, 0.1)])
    assert rate == pytest.approx(-0.1)
    assert z == pytest.approx(-0.1 / (0.1 / math.sqrt(5)))


def test_a_round_that_is_all_wrong_does_not_count_as_exact() -> None:
    levels = [(0.5, 0.2), (0.4, 0.2), (0.3, 0.0), (0.2, 0.0)]
    error = math.sqrt((0.2**2 + 0.2**2) / 4 / 5)
    assert slope(levels)[1] == pytest.approx(-0.1 / error)


def test_the_level_of_a_round_counts_problems_not_completions() -> None:
    # problems of 1, 0 and a half, one of them sampled more often; the unverifiable one is left out
    frame = pl.DataFrame(
        {
            "group": [0, 1, 1, 1, 1, 2, 2, 3],
            "reward_accuracy": [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, None],
        }
    )
    level = round_level(frame, "reward_accuracy")
    assert level == pytest.approx((0.5, 0.5 / math.sqrt(3)))
    assert round_level(frame.filter(pl.col("group") == 0), "reward_accuracy") is None


@given(st.lists(st.floats(0, 1), max_size=30))
def test_nothing_is_reported_before_enough_rounds_or_for_a_rise(means: list[float]) -> None:
    levels = [(mean, 0.05) for mean in means]
    assert trend(levels[: MIN_ROUNDS - 1]) is None
    assert falling(sorted(levels), "accuracy") is None


def simulated(rng: np.random.Generator, rounds: int, drift: float) -> list[tuple[float, float]]:
    """Simulate levels of rounds of 16 problems x 8 samples; each problem's rate moves by
    `drift`.
    """
    levels = []
    for t in range(rounds):
        chance = np.clip(rng.beta(0.6, 0.8, 16) + drift * t, 0, 1)
        means = rng.binomial(8, chance) / 8
        levels.append((float(means.mean()), float(means.std(ddof=1)) / 4))
    return levels


def warned(levels: list[tuple[float, float]]) -> bool:
    return any(falling(levels[:t], "accuracy") for t in range(1, len(levels) + 1))


def test_warnings_are_rare_for_runs_that_rise_or_stay_and_usual_for_runs_that_fall() -> None:
    rng = np.random.default_rng(0)
    assert np.mean([warned(simulated(rng, 14, 0.01)) for _ in range(300)]) <= 0.01
    assert np.mean([warned(simulated(rng, 14, 0.0)) for _ in range(300)]) <= 0.03
    assert np.mean([warned(simulated(rng, 8, -0.06)) for _ in range(300)]) >= 0.6


def test_the_warning_says_what_fell_from_where_to_where() -> None:
    text = falling([(0.41, 0.05), (0.27, 0.05), (0.14, 0.05), (0.07, 0.05)], "accuracy")
    assert text is not None
    assert "accuracy" in text
    assert "0.41 to 0.07" in text
    assert "optim.lr" in text
