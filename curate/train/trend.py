"""Detect a run that gets worse: test the slope of accuracy over the last rounds.

Each round has different problems, so its accuracy varies even without learning. The spread of
accuracy between the problems of a round shows by how much: the standard error of a round's mean is
the standard deviation of its groups divided by the square root of their number. A slope many
standard errors below 0 is more than a series of hard problems.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import polars as pl

MIN_ROUNDS, MAX_ROUNDS = 4, 12  # rounds that the slope covers
# Standard errors. Of 600 simulated runs of 16 problems x 8 samples that learn nothing, 1 % fall
# below -3 within 14 rounds and 4 % within 40; of those that rise by 0.01 per round 0.3 %, and of
# those that fall by 0.06 per round 73 % within 8.
THRESHOLD = -3.0


def round_level(frame: pl.DataFrame, column: str) -> tuple[float, float] | None:
    """Return the mean of `column` over the problems of a round (`group`) and its standard error.

    None if fewer than two problems have a value.
    """
    means = frame.group_by("group").agg(pl.col(column).mean())[column].drop_nulls()
    if len(means) < 2:
        return None
    return float(means.mean()), float(means.std()) / math.sqrt(len(means))  # type: ignore[arg-type]


def slope(levels: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the least-squares slope per round of (mean, standard error) pairs, and its z: slope /
    error.

    All rounds use the same error, the root mean square s of the given ones, so that a round in
    which all is wrong (its own error is 0) does not dominate. The slope's error is then s /
    sqrt(sum_t (t - mean t)^2). z is 0 if all errors are 0.
    """
    count = len(levels)
    middle = (count - 1) / 2
    spread = sum((t - middle) ** 2 for t in range(count))
    rate = sum((t - middle) * mean for t, (mean, _) in enumerate(levels)) / spread
    error = math.sqrt(sum(error**2 for _, error in levels) / count / spread)
    return rate, rate / error if error else 0.0


def trend(levels: Sequence[tuple[float, float]]) -> float | None:
    """Return z of the slope over the last rounds; None before there are `MIN_ROUNDS`."""
    recent = levels[-MAX_ROUNDS:]
    return slope(recent)[1] if len(recent) >= MIN_ROUNDS else None


def falling(levels: Sequence[tuple[float, float]], name: str) -> str | None:
    """Return a warning if metric `name` falls over the last rounds by more than chance, else
    None.
    """
    z = trend(levels)
    if z is None or z > THRESHOLD:
        return None
    recent = levels[-MAX_ROUNDS:]
    return (
        f"warning: {name} of the rollouts falls, from {recent[0][0]:.2f} to {recent[-1][0]:.2f} "
        f"over the last {len(recent)} rounds. Differences between problems do not explain it: "
        "training makes the policy worse. Lower optim.lr or take more prompts per round; if the "
        "metric mass_equal is above 0.2, set loss.advantage: none. With evaluation.every and "
        "checkpoint.keep_best the result is the best policy, not the last"
    )
