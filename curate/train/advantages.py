"""From rewards to advantages: each completion against the others of its group.

Pure functions. A reward that is NaN was not to be had (the problem is unverifiable): its row is out of the group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Scale = Literal["group", "batch", "none"]

TINY = 1e-30  # so that a group without variance divides 0 by something even where epsilon is 0


def group_advantages(
    rewards: Tensor, group: Tensor, *, scale: Scale = "group", ddof: int = 1, epsilon: float = 1e-6
) -> Tensor:
    """`[B]` advantages from `[B]` rewards and `[B]` group numbers (int64, 0 … G-1).

    scale="group": (r - mean) / (std + epsilon) of the group        (DeepSeekMath, section 4.1.2)
    scale="batch": (r - group mean) / (std of these differences over the batch + epsilon)
    scale="none":  r - mean, without the bias towards groups of low variance (Dr. GRPO, section 3.1)

    The paper does not say which standard deviation: `ddof=1` (the sample's, what the common implementations divide by)
    or 0 (the population's). A group whose rewards are all equal gives exactly 0, and so does a group with fewer than
    two rewards, and a row whose reward is NaN.
    """
    import torch

    rewards = rewards.to(torch.float64)
    known = ~rewards.isnan()
    groups = int(group.max()) + 1 if group.numel() else 0
    values = torch.where(known, rewards, torch.zeros_like(rewards))

    def total(x: Tensor) -> Tensor:
        return torch.zeros(groups, dtype=torch.float64, device=x.device).index_add(0, group, x)

    count = total(known.to(torch.float64))
    difference = values - (total(values) / count.clamp(min=1))[group]
    # Rounding would leave 1e-17 in a group of equal rewards, and dividing by the deviation would blow it up.
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
    """`[G]` bool: groups that teach nothing, because their known rewards are all equal or fewer than two."""
    import torch

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
