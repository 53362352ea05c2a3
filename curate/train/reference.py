"""The reference of the KL term: the start, another model, or an earlier state of the policy."""

from __future__ import annotations

import shutil

from curate.train.checkpoints import Checkpoints, write_directory
from curate.train.config import GRPOConfig
from curate.train.distill import check_same_tokens
from curate.train.model.loading import load_policy, weights, write_model
from curate.train.model.policy import Policy
from curate.train.runs import TrainingRun


def load_reference(config: GRPOConfig, checkpoints: Checkpoints, step: int) -> Policy | None:
    """Return the frozen policy of the KL term; `step` is the round it was saved after, or 0.

    None without a KL term, or if the reference is the policy with its adapters disabled.
    """
    named = config.loss.reference
    if not config.loss.beta or (config.compute.lora and not named and not step):
        return None
    path = checkpoints.path / f"reference-{step}" if step else named or config.model
    reference, _ = load_policy(path, config.compute, frozen=True)
    if named:
        check_same_tokens(named, config.model)
    return reference


def new_reference(run: TrainingRun, config: GRPOConfig, step: int) -> Policy | None:
    """Make the current policy the reference (the report: every 400 steps).

    Every rank must call this.
    """
    state = weights(run.policy)
    if run.ranks.first:
        write_directory(
            run.checkpoints.path / f"reference-{step}",
            lambda path: write_model(run.policy, run.tokenizer, path, "float32", state),
        )
    run.ranks.barrier()
    return load_reference(config, run.checkpoints, step)


def drop_references(checkpoints: Checkpoints, step: int) -> None:
    """Remove references that no checkpoint resumes with."""
    for path in checkpoints.path.glob("reference-*"):
        if path.name != f"reference-{step}":
            shutil.rmtree(path, ignore_errors=True)
