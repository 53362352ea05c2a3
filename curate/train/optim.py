"""AdamW, its schedule, and one clipped step that refuses a gradient that is not finite."""

from __future__ import annotations

import math
from typing import Any

import torch

from curate.train.config import OptimConfig
from curate.train.model.policy import Policy


def learning_rate(step: int, total: int, config: OptimConfig) -> float:
    """Return the rate of step `step` (0 …) of `total`.

    Linear warm-up, then cosine or linear down to `floor * lr`, or constant.
    """
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
    """Return AdamW over the trainable parameters; norms and biases get no weight decay."""
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
    """Clip, step and clear; returns the norm of the gradient before clipping.

    Takes no step if the norm is not finite.
    """
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), max_norm)
    if hasattr(norm, "full_tensor"):
        norm = norm.full_tensor()
    value = float(norm)
    if math.isfinite(value):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    policy.release_memory()
    return value
