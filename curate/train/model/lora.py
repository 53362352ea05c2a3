"""Low-rank adapters (peft): added to a model, and merged into its weights when it is written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from curate.errors import UsageError
from curate.extras import need
from curate.train.config import LoraConfig


def base(model: Any) -> Any:
    """Return the transformers model inside adapters, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def add_lora(model: Any, lora: LoraConfig) -> Any:
    """Return the model with adapters; everything else is frozen.

    Raises UsageError without peft, and for adapters that an export could not represent.
    """
    need("lora", "train", "peft")
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    embeddings = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    shared = {n.rpartition(".")[2] for n, m in model.named_modules() if id(m) in embeddings}
    if tied and lora.targets != "all-linear" and shared & set(lora.targets):
        raise UsageError(
            f"lora.targets names {', '.join(sorted(shared & set(lora.targets)))}, but input and "
            "output embeddings of this model share one matrix, which an adapter on one of them "
            "would break: leave them out, or train all weights"
        )
    targets = linear_names(model) if lora.targets == "all-linear" else lora.targets
    adapted = get_peft_model(
        model,
        PeftConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
        ),
    )
    for name, layer in adapted.named_modules():
        if (
            hasattr(layer, "lora_A")
            and not isinstance(layer.get_base_layer(), torch.nn.Linear | torch.nn.Embedding)
            and type(layer.get_base_layer()).__name__ != "Conv1D"
        ):
            raise UsageError(
                f"lora cannot adapt {name.removeprefix('base_model.model.')}, which is not a "
                "linear layer: name others in lora.targets"
            )
    return adapted


def linear_names(model: Any) -> list[str]:
    """Return the names of all linear layers except the head.

    peft's own "all-linear" also adapts fused experts and routers, which an export cannot merge.
    The output projection of a Mamba layer is left out: its fused kernel would bypass the adapter.
    """
    head = model.get_output_embeddings()
    modules = dict(model.named_modules())

    def in_mamba(name: str) -> bool:
        parent, _, last = name.rpartition(".")
        return last == "out_proj" and hasattr(modules[parent], "conv1d")

    return [
        name
        for name, module in modules.items()
        if module is not head
        and not in_mamba(name)
        and (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D")
    ]


def merged(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a peft model with each adapter merged: W + scale B A.

    `state` is the model's state dict; the model does not change.
    """
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".lora_" not in name:
            plain[name.removeprefix("base_model.model.").replace(".base_layer.", ".")] = value
    for name, layer in model.named_modules():
        key = name.removeprefix("base_model.model.") + ".weight"
        if f"{name}.lora_A.default.weight" in state:
            a = state[f"{name}.lora_A.default.weight"].detach()
            b = state[f"{name}.lora_B.default.weight"].detach()
            change = b @ a
            change = change.t() if layer.fan_in_fan_out else change
        elif f"{name}.lora_embedding_A.default" in state:
            a = state[f"{name}.lora_embedding_A.default"].detach()
            b = state[f"{name}.lora_embedding_B.default"].detach()
            change = (b @ a).t()
        else:
            continue
        change = change * layer.scaling["default"]
        plain[key] = plain[key] + change.to(plain[key].device, plain[key].dtype)
    return plain
