"""Hand-worked advantages."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from curate.train.advantages import group_advantages, zero_variance


def advantages(rewards: list[float], group: list[int], **options: object) -> list[float]:
    # float64, as rewards are stored: a float32 in float64 sums without rounding, and would hide it
    return group_advantages(
        torch.tensor(rewards, dtype=torch.float64), torch.tensor(group), **options
    ).tolist()  # type: ignore[arg-type]


def test_group_scaled_by_hand_with_both_deviations() -> None:
    # mean 0.5, squares 4 * 0.25 = 1: sample deviation sqrt(1/3), population deviation 0.5
    rewards, group = [1.0, 0.0, 1.0, 0.0], [0, 0, 0, 0]
    sample, population = 0.5 / math.sqrt(1 / 3), 1.0
    assert advantages(rewards, group, ddof=1, epsilon=0) == pytest.approx(
        [sample, -sample, sample, -sample]
    )
    assert advantages(rewards, group, ddof=0, epsilon=0) == pytest.approx(
        [population, -population] * 2
    )


def test_unscaled_is_the_difference_from_the_group_mean() -> None:
    assert advantages([1, 0, 0, 0, 3, 1], [0, 0, 0, 0, 1, 1], scale="none") == pytest.approx(
        [0.75, -0.25, -0.25, -0.25, 1.0, -1.0]
    )


def test_batch_scale_divides_all_groups_by_one_number() -> None:
    # differences 0.5 -0.5 1 -1: squares 2.5, ddof 0: sqrt(2.5 / 4)
    deviation = math.sqrt(2.5 / 4)
    got = advantages([1, 0, 3, 1], [0, 0, 1, 1], scale="batch", ddof=0, epsilon=0)
    assert got == pytest.approx([0.5 / deviation, -0.5 / deviation, 1 / deviation, -1 / deviation])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_give_exactly_zero(scale: str) -> None:
    # 0.1 * 3 is not 0.3 in binary: the mean is off by a rounding, the advantage must not be
    assert advantages([0.1] * 3 + [0.7] * 3, [0, 0, 0, 1, 1, 1], scale=scale) == [0.0] * 6


def test_an_unknown_reward_leaves_its_row_out_of_the_group() -> None:
    nan = float("nan")
    with_unknown = advantages([1.0, nan, 0.0, 0.0], [0, 0, 0, 0])
    without = advantages([1.0, 0.0, 0.0], [0, 0, 0])
    assert with_unknown[1] == 0.0
    assert [with_unknown[0], *with_unknown[2:]] == pytest.approx(without)
    assert advantages([nan, nan], [0, 0]) == [0.0, 0.0]
    assert advantages([1.0, nan], [0, 0]) == [0.0, 0.0]


def test_zero_variance_groups_are_named() -> None:
    nan = float("nan")
    rewards, group = (
        torch.tensor([1.0, 1.0, 0.0, 1.0, nan, 1.0, nan, nan]),
        torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]),
    )
    assert zero_variance(rewards, group).tolist() == [True, False, True, True]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=4, max_size=12),
    st.floats(-5, 5),
    st.floats(0.5, 4),
)
def test_a_group_sums_to_zero_and_ignores_shift_and_scale(
    rewards: list[float], shift: float, factor: float
) -> None:
    group = [0] * len(rewards)
    plain = advantages(rewards, group, epsilon=0)
    moved = advantages([r * factor + shift for r in rewards], group, epsilon=0)
    assert sum(plain) == pytest.approx(0, abs=1e-9)
    if len(set(rewards)) > 1:
        assert moved == pytest.approx(plain, abs=1e-4)
