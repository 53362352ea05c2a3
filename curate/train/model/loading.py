"""Models in Hugging Face format: a directory becomes a policy, and a policy becomes a directory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curate.engines.precision import weights_dtype
from curate.errors import UsageError
from curate.train.config import ModelConfig
from curate.train.model.lora import base, merged
from curate.train.model.policy import Policy


def load_policy(
    path: str | Path, compute: ModelConfig, *, device: str | None = None
) -> tuple[Policy, Any]:
    """Load the model of a directory in Hugging Face format with fp32 weights, and its tokenizer.

    Raises UsageError if the model cannot be loaded or its tokenizer has no end token.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(path)
    if not (path / "config.json").exists():
        raise UsageError(
            f"no model at {path}: give a directory in Hugging Face format (with config.json and "
            "weights)"
        )
    try:
        with no_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32, local_files_only=True
            )
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot load the model at {path}: {error}") from error
    if tokenizer.eos_token_id is None:
        raise UsageError(
            f"the tokenizer at {path} has no end token, so no completion could end: set eos_token"
        )
    model.config.use_cache = False
    model.train()
    return Policy(model, compute, device=device), tokenizer


def stored_dtype(path: str | Path) -> str:
    """Return the dtype to export trained weights in: that of the model in `path`."""
    dtype = weights_dtype(path)
    return dtype if dtype == "float32" else "bfloat16"


def weights(policy: Policy, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return all weights on the CPU by their names in the model, adapters merged.

    With sharded weights every rank must call this.
    """
    model, config = policy.model, policy.compute
    state: dict[str, Any]
    if any(hasattr(p, "full_tensor") for p in model.parameters()):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = dict(get_model_state_dict(model, options=options))
    else:
        state = model.state_dict()
    if config.lora:
        state = merged(model, state)
    return {
        k: v.detach().to("cpu", dtype if v.is_floating_point() and dtype else v.dtype)
        for k, v in state.items()
    }


def untied(policy: Policy, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights as a checkpoint holds them: one name per tensor that several names share."""
    tied = set(getattr(base(policy.model), "all_tied_weights_keys", None) or ())
    return {name: value for name, value in state.items() if name not in tied}


def write_model(
    policy: Policy, tokenizer: Any, path: Path, dtype: str, state: dict[str, Tensor] | None = None
) -> None:
    """Write the model as `transformers` and vLLM load it: config, safetensors, tokenizer."""
    kind = getattr(torch, dtype)
    model = base(policy.model)
    state = weights(policy, kind) if state is None else {k: v.to(kind) for k, v in state.items()}
    before, cache = model.config.dtype, model.config.use_cache
    try:
        model.config.dtype, model.config.use_cache = kind, True
        with no_progress_bars():
            model.save_pretrained(path, state_dict=state)
            tokenizer.save_pretrained(path)
    finally:
        model.config.dtype, model.config.use_cache = before, cache


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Silence the progress bars of transformers, which would break ours."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
