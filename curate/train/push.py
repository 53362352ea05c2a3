"""Push new weights to the engine that samples next to the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curate.train.model.loading import untied, weights, write_model
from curate.train.rollouts import Rollouts
from curate.train.runs import TrainingRun


def push_directory(root: Path, run_id: str) -> Path:
    """Return the directory whose weights the engine reads."""
    return root / "checkpoints" / run_id / "rollout"


def push_weights(rollouts: Rollouts, run: TrainingRun) -> dict[str, Tensor]:
    """Push the policy's weights into the engine, and return them. Every rank must call this.

    The engine returns the fingerprint of the weights it then holds: the `model_hash` of the traces
    it samples next.
    """
    policy, dtype = run.policy, run.export_dtype
    state = weights(policy, getattr(torch, dtype))
    if not run.ranks.first:
        return state
    rollouts.rouse()
    if getattr(rollouts.engine, "transfers", False):  # from GPU to GPU, without files
        tensors = untied(policy, state)
        rollouts.model_hash = rollouts.engine.receive_weights(tensors, policy.device)
        return state
    path = push_directory(rollouts.wh.root, rollouts.run_id)
    path.mkdir(parents=True, exist_ok=True)
    write_model(policy, run.tokenizer, path, dtype, state)
    rollouts.model_hash = rollouts.engine.update_weights(path)
    return state


def proof_of(engine: Any) -> str:
    """Describe in one line what the engine's proof of the last weights compared; empty without
    one.
    """
    return str(engine.proven()) if hasattr(engine, "proven") else ""


def shares_gpu(device: torch.device, engine: Any) -> bool:
    """Whether the engine must free its memory while the trainer works on `device`."""
    devices = getattr(getattr(engine, "config", None), "devices", None)
    return device.type == "cuda" and devices is None
