"""Low-rank adapters (peft): added to a model, merged into its weights wherever it is written."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from curate.errors import UsageError
from curate.train.config import LoraConfig


def base(model: Any) -> Any:
    """Return the transformers model inside adapters, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def add_lora(model: Any, lora: LoraConfig) -> Any:
    """Return the model with adapters; everything else is frozen. UsageError without peft."""
    try:
        from peft import LoraConfig as PeftConfig
        from peft import get_peft_model
    except ImportError as error:
        raise UsageError("lora needs peft: pip install 'curate[train]'") from error
    return get_peft_model(
        model,
        PeftConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.targets,
            task_type="CAUSAL_LM",
        ),
    )


def merged(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a peft model with each adapter merged: W + scale B A.

    `state` is the model's state dict; the model does not change.
    """
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".lora_" not in name:
            plain[name.removeprefix("base_model.model.").replace(".base_layer.", ".")] = value
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A") and f"{name}.lora_A.default.weight" in state:
            a, b = (
                state[f"{name}.{part}.default.weight"].detach() for part in ("lora_A", "lora_B")
            )
            key = name.removeprefix("base_model.model.") + ".weight"
            change = (b @ a) * layer.scaling["default"]
            change = change.t() if layer.fan_in_fan_out else change
            plain[key] = plain[key] + change.to(plain[key].device)
    return plain
