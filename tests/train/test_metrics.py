"""Shares of the advantage mass, by hand."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

torch = pytest.importorskip("torch")

from curate.train.advantages import group_advantages
from curate.train.metrics import advantage_mass

WEIGHTS = {"accuracy": 1.0, "format": 0.2}


def round_of(accuracy: list[Any], form: list[float], group: list[int], scale: Any) -> pl.DataFrame:
    reward = [None if a is None else a + 0.2 * f for a, f in zip(accuracy, form, strict=True)]
    rewards = torch.tensor([float("nan") if r is None else r for r in reward], dtype=torch.float64)
    advantage = group_advantages(rewards, torch.tensor(group), scale=scale, ddof=0, epsilon=0)
    return pl.DataFrame(
        {
            "group": group,
            "reward": reward,
            "reward_accuracy": accuracy,
            "reward_format": form,
            "advantage": advantage.tolist(),
        },
        schema_overrides={"reward_accuracy": pl.Float64, "reward": pl.Float64},
    )


# Two wrong answers of which one misses a tag, and a right and a wrong one, both well-formed.
ACCURACY, FORM, GROUP = [0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 1.0], [0, 0, 1, 1]


def test_without_a_scale_the_mass_is_that_of_the_rewards() -> None:
    # |advantage| 0.1 0.1 0.5 0.5
    got = advantage_mass(round_of(ACCURACY, FORM, GROUP, "none"), WEIGHTS)
    assert got == pytest.approx(
        {"mass_accuracy": 1 / 1.2, "mass_format": 0.2 / 1.2, "mass_equal": 0.2 / 1.2}
    )


def test_division_by_the_group_deviation_gives_a_missing_tag_the_mass_of_a_right_answer() -> None:
    got = advantage_mass(round_of(ACCURACY, FORM, GROUP, "group"), WEIGHTS)
    assert got == pytest.approx({"mass_accuracy": 0.5, "mass_format": 0.5, "mass_equal": 0.5})


def test_opposing_components_are_counted_separately() -> None:
    # right without its form 1, wrong with it 0.2: differences of 1 and 0.2 in opposite directions
    got = advantage_mass(round_of([1.0, 0.0], [0.0, 1.0], [0, 0], "group"), WEIGHTS)
    assert got == pytest.approx(
        {"mass_accuracy": 1 / 1.2, "mass_format": 0.2 / 1.2, "mass_equal": 0.0}
    )


def test_groups_without_a_verdict_or_without_spread_contribute_nothing() -> None:
    got = advantage_mass(
        round_of([None, None, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0], GROUP, "group"), WEIGHTS
    )
    assert got == {"mass_accuracy": 0.0, "mass_format": 0.0, "mass_equal": 0.0}


def test_without_an_accuracy_component_there_are_no_verdicts_to_compare() -> None:
    frame = round_of(ACCURACY, FORM, GROUP, "none").drop("reward_accuracy")
    assert advantage_mass(frame, {"format": 0.2}) == pytest.approx({"mass_format": 1.0})
