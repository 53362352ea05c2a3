"""Optimizer state as the ranks hold it: each writes and reads its own shards, and no rank ever holds all of them.

PyTorch's distributed checkpoints reshard while they load, so that a run may go on with another number of ranks.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from curate.train.model.policy import Policy


def save_shards(policy: Policy, optimizer: Any, path: Path) -> None:
    """Moments and step counts by parameter, and adapters where there are some. Every rank must call."""
    import torch.distributed.checkpoint as dcp

    tensors: dict[str, Tensor] = {}
    for name, parameter in policy.model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}:{key}"] = value
        if policy.compute.lora and parameter.requires_grad:
            tensors[f"{name}:weight"] = parameter.detach()
    dcp.save(tensors, checkpoint_id=path)


def load_shards(policy: Policy, optimizer: Any, path: Path) -> None:
    """Put back what `save_shards` took, however many ranks there were. Every rank must call."""
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    tensors: dict[str, Tensor] = {}
    parameters = dict(policy.model.named_parameters())
    for full in stored:
        name, _, key = full.rpartition(":")
        like = parameters[name].detach()
        # step counts are single numbers, everything else is as its parameter
        tensors[full] = (
            like
            if key == "weight"
            else torch.zeros(())
            if key == "step"
            else torch.zeros_like(like)
        )
    dcp.load(tensors, checkpoint_id=path, no_dist=not dist.is_initialized())
    for full, value in tensors.items():
        name, _, key = full.rpartition(":")
        if key != "weight":
            optimizer.state[parameters[name]][key] = value.to(parameters[name].device)
