"""AdamW, its schedule, and one step with clipping that refuses what is not finite."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from curate.train.config import OptimConfig
from curate.train.model.slabs import give_back

if TYPE_CHECKING:
    from curate.train.model.policy import Policy


def learning_rate(step: int, total: int, config: OptimConfig) -> float:
    """The rate of step `step` (0 …) of `total`: linear warm-up, then cosine or linear to `floor * lr`, or constant."""
    warmup = config.warmup * total if config.warmup < 1 else config.warmup
    warmup = math.ceil(warmup)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    done = (step - warmup) / max(1, total - warmup - 1)
    share = (
        0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        if config.schedule == "cosine"
        else 1 - min(1.0, done)
    )
    return config.lr * (config.floor + (1 - config.floor) * share)


def make_optimizer(policy: Policy, config: OptimConfig) -> Any:
    """AdamW over what is trained; vectors (norms, biases) get no weight decay."""
    import torch

    parameters = policy.parameters()
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=config.betas, eps=config.epsilon, fused=True
    )


def optimizer_step(policy: Policy, optimizer: Any, lr: float, max_norm: float) -> float:
    """Clip, step and clear; returns the gradient's norm before clipping. A norm that is not finite takes no step."""
    import torch

    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), max_norm)
    if hasattr(norm, "full_tensor"):
        norm = norm.full_tensor()
    value = float(norm)
    if math.isfinite(value):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    give_back(policy.device)
    return value
