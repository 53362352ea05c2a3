"""Load a policy from a directory in Hugging Face format, and write one to a directory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curate.engines.precision import weights_dtype
from curate.errors import UsageError
from curate.train.config import ModelConfig
from curate.train.model.devices import is_out_of_memory
from curate.train.model.lora import base, merged
from curate.train.model.policy import Policy

# Files that an export copies as they are. Without the processor of a model with vision or audio an
# engine cannot open the directory.
COPIED_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)


def load_policy(
    path: str | Path,
    compute: ModelConfig,
    *,
    device: str | None = None,
    dropout: bool = False,
    frozen: bool = False,
) -> tuple[Policy, Any]:
    """Load the model of a directory in Hugging Face format with fp32 weights, and its tokenizer.

    A `frozen` model is not trained (a reference, a teacher). Without `dropout` the model computes
    the same in training as in inference, which GRPO needs to compare log-probs. Raises UsageError
    if the model cannot be loaded or computed exactly, or has no end token.
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
    except Exception as error:  # whatever the code of an architecture raises
        if is_out_of_memory(error):
            raise
        raise UsageError(f"cannot load the model at {path}: {error}") from error
    if tokenizer.eos_token_id is None:
        raise UsageError(
            f"the tokenizer at {path} has no end token, so no completion could end: set eos_token"
        )
    model.config.use_cache = False
    if frozen:
        compute = compute.model_copy(update={"lora": None, "gradient_checkpointing": False})
        model.requires_grad_(False)
    model.train(dropout and not frozen)
    policy = Policy(model, compute, device=device)
    # Read now: a run that resumes removes the checkpoint that it was loaded from.
    there = [file for file in COPIED_FILES if (path / file).exists()]
    policy.files = {file: (path / file).read_bytes() for file in there}
    if compute.gradient_checkpointing:
        _let_layers_checkpoint(policy.model)
    return policy, tokenizer


def _let_layers_checkpoint(model: Any) -> None:
    """Enable gradient checkpointing, which layers do in training mode only; leave dropout as it is.

    Modules inside a layer keep their mode; a layer may also apply dropout itself, at a rate of its
    own.
    """
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing") and not module.training:
            module.training = True
            for name, value in list(vars(module).items()):
                if "dropout" in name and isinstance(value, float):
                    setattr(module, name, 0.0)


def stored_dtype(path: str | Path) -> str:
    """Return the dtype to export trained weights in: that of the model in `path`."""
    return weights_dtype(path)


def weights(policy: Policy, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return all weights on the CPU by their names in the model, adapters merged.

    `dtype` applies to the parameters; buffers, and parameters that the architecture keeps in fp32
    (such as the expert bias of DeepSeek-V3), keep their own. With sharded weights every rank must
    call this.
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
    exact = exact_names(policy)
    return {k: v.detach().to("cpu", exported_dtype(k, v, dtype, exact)) for k, v in state.items()}


def exact_names(policy: Policy) -> set[str]:
    """Return the names of weights whose dtype an export must not change."""
    model = base(policy.model)
    names = {name for name, _ in model.named_buffers()}
    patterns = {
        pattern
        for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
        for pattern in getattr(model, attribute, None) or ()
    }
    names |= {
        name
        for name, _ in model.named_parameters()
        if any(pattern in name.split(".") for pattern in patterns)
    }
    # Adapters add a level to the names of the modules they adapt.
    return {name.replace(".base_layer.", ".") for name in names}


def exported_dtype(
    name: str, value: Tensor, dtype: torch.dtype | None, exact: set[str]
) -> torch.dtype:
    """Return the dtype of a weight in an export whose parameters have `dtype`."""
    cast = dtype is not None and value.is_floating_point() and name not in exact
    return dtype if cast and dtype is not None else value.dtype


def untied(policy: Policy, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights as a checkpoint holds them: one name per tensor that several names share."""
    tied = set(getattr(base(policy.model), "all_tied_weights_keys", None) or ())
    return {name: value for name, value in state.items() if name not in tied}


def write_model(
    policy: Policy, tokenizer: Any, path: Path, dtype: str, state: dict[str, Tensor] | None = None
) -> None:
    """Write the model as `transformers` and vLLM load it.

    That is config, safetensors and tokenizer, and the generation config and processor as they
    were. Weights that share a tensor are written once.
    """
    kind = getattr(torch, dtype)
    model = base(policy.model)
    exact = exact_names(policy)
    state = weights(policy) if state is None else state
    state = {k: v.to(exported_dtype(k, v, kind, exact)) for k, v in untied(policy, state).items()}
    before, cache = model.config.dtype, model.config.use_cache
    try:
        model.config.dtype, model.config.use_cache = kind, True
        with no_progress_bars():
            with _valid_generation_config(model):
                model.save_pretrained(path, state_dict=state)
            _state_dtype(path / "config.json", dtype)
            tokenizer.save_pretrained(path)
            for file in COPIED_FILES:
                if file in policy.files:
                    (path / file).write_bytes(policy.files[file])
    finally:
        model.config.dtype, model.config.use_cache = before, cache


@contextlib.contextmanager
def _valid_generation_config(model: Any) -> Iterator[None]:
    """Set the generation config aside: transformers saves no contradictory one, which many have."""
    before = getattr(model, "generation_config", None)
    if before is not None:
        model.generation_config = type(before).from_model_config(model.config)
    try:
        yield
    finally:
        if before is not None:
            model.generation_config = before


def _state_dtype(config: Path, dtype: str) -> None:
    """Write the dtype of the exported weights: transformers would write that of the model in
    memory.
    """
    data = json.loads(config.read_text(encoding="utf-8"))
    for part in (data, *(value for value in data.values() if isinstance(value, dict))):
        if "dtype" in part:
            part["dtype"] = dtype
    config.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
