"""From rewards to advantages: each completion against the others of its group.

Pure functions. NaN marks an unknown reward (an unverifiable problem): its row is excluded from the
group.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Scale = Literal["group", "batch", "none"]

TINY = 1e-30  # avoids 0 / 0 in a group without variance if epsilon is 0


def group_advantages(
    rewards: Tensor, group: Tensor, *, scale: Scale = "group", ddof: int = 1, epsilon: float = 1e-6
) -> Tensor:
    """Return advantages `[B]` from rewards `[B]` and group numbers `[B]` (int64, 0 … G-1).

    scale="group": (r - mean) / (std + epsilon) of the group        (DeepSeekMath, section 4.1.2)
    scale="batch": (r - group mean) / (std of these differences over the batch + epsilon)
    scale="none":  r - mean, without the bias towards groups of low variance (Dr. GRPO, section 3.1)

    The paper does not state which standard deviation: `ddof=1` is that of the sample, which common
    implementations divide by, 0 that of the population. The advantage is exactly 0 in a group whose
    rewards are all equal, in a group with fewer than two rewards, and if the reward is NaN.
    """
    rewards = rewards.to(torch.float64)
    known = ~rewards.isnan()
    groups = int(group.max()) + 1 if group.numel() else 0
    values = torch.where(known, rewards, torch.zeros_like(rewards))

    def total(x: Tensor) -> Tensor:
        return torch.zeros(groups, dtype=torch.float64, device=x.device).index_add(0, group, x)

    count = total(known.to(torch.float64))
    difference = values - (total(values) / count.clamp(min=1))[group]
    # Rounding would leave 1e-17 in a group of equal rewards, which dividing by the deviation would
    # amplify.
    difference = torch.where(
        known & ~zero_variance(rewards, group)[group], difference, torch.zeros_like(difference)
    )
    if scale == "none":
        return difference
    if scale == "batch":
        size, square = known.sum(), difference.square().sum()
        return difference / ((square / (size - ddof).clamp(min=1)).sqrt() + epsilon).clamp(min=TINY)
    deviation = (total(difference.square()) / (count - ddof).clamp(min=1)).sqrt()
    return difference / (deviation + epsilon).clamp(min=TINY)[group]


def zero_variance(rewards: Tensor, group: Tensor) -> Tensor:
    """Return `[G]` bool: groups without a gradient, whose known rewards are equal or fewer than
    two.
    """
    groups = int(group.max()) + 1 if group.numel() else 0
    known = ~rewards.isnan()
    low = torch.full((groups,), torch.inf, dtype=rewards.dtype, device=rewards.device)
    low = low.scatter_reduce(
        0, group, torch.where(known, rewards, torch.full_like(rewards, torch.inf)), "amin"
    )
    high = torch.full((groups,), -torch.inf, dtype=rewards.dtype, device=rewards.device)
    high = high.scatter_reduce(
        0, group, torch.where(known, rewards, torch.full_like(rewards, -torch.inf)), "amax"
    )
    return high <= low
