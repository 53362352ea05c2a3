"""Facts about a model that decide its costs, and the config of a tiny model of its architecture."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from curate.engines.models import SMOLLM2, default_cache, is_hub_id
from curate.errors import UsageError
from curate.rehearsal.known_models import KNOWN

# Sizes of a tiny model, by the names that configs give them. Kinds of layers stay as they are.
TINY: dict[str, int] = {
    r"hidden_size|d_model|n_embd|embedding_size|lru_width|word_embed_proj_dim": 64,
    r"intermediate_size|intermediate_size_mlp|ffn_dim|n_inner|feed_forward_size|block_ff_dim": 96,
    r"moe_intermediate_size|shared_expert_intermediate_size|shared_intermediate_size": 48,
    r"num_attention_heads|n_heads?|num_heads|mamba_n_heads|linear_num_value_heads": 4,
    r"linear_num_key_heads": 2,
    r"head_dim|swa_head_dim|global_head_dim|v_head_dim|mamba_d_head": 16,
    r"num_experts|num_local_experts|n_routed_experts|moe_num_experts": 4,
    r"num_experts_per_tok|moe_k|moe_topk|top_k_experts": 2,
    r"n_group|topk_group|n_groups|mamba_n_groups": 1,
    r"q_lora_rank|kv_lora_rank|o_lora_rank": 16,
    r"qk_rope_head_dim|qk_nope_head_dim|linear_(key|value)_head_dim|index_head_dim": 8,
    r"mamba_d_state|state_size|hidden_size_per_layer_input": 8,
    r"first_k_dense_replace": 1,
}
LAYERS = r"num_hidden_layers|n_layers?|num_layers|num_blocks"
KV_HEADS = r"num_key_value_heads|num_kv_heads"
HEADS = r"num_attention_heads|n_heads?|num_heads"


@dataclass(frozen=True)
class Model:
    """A model as its costs need it.

    parameters, active: all, and those that one token passes through (fewer if there are experts).
    kv_bytes: of the key-value cache, per token, in 16 bits. inner: width of the MLP that a token
    passes through. max_len: longest context in tokens. tied: whether the head is the embedding.
    """

    name: str
    source: str
    parameters: int
    active: int
    layers: int
    hidden: int
    inner: int
    kv_width: int
    kv_bytes: int
    vocabulary: int
    max_len: int
    tied: bool


def local_files(spec: str) -> Path | None:
    """The directory with the config of a model on this machine: a path, or a snapshot in the Hub's
    cache, with or without weights. Downloads nothing.
    """
    if spec == SMOLLM2:
        converted = default_cache() / "smollm2-135m-instruct-bfloat16"
        return converted if (converted / "config.json").is_file() else None
    path = Path(spec).expanduser()
    if (path / "config.json").is_file():
        return path
    if not is_hub_id(spec):
        return None
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    name, _, revision = spec.partition("@")
    found = try_to_load_from_cache(name, "config.json", revision=revision or None)
    return Path(found).parent if isinstance(found, str) else None


def config_of(spec: str) -> tuple[dict[str, Any], str]:
    """The config of a model, and where it is from. UsageError if nothing is known of the model."""
    from curate.engines.base import read_config

    if (folder := local_files(spec)) is not None:
        return read_config(folder), str(folder)
    if spec == SMOLLM2:
        return dict(_SMOLLM2), "its package"
    name = spec.partition("@")[0]
    if name in KNOWN:
        return dict(KNOWN[name]), "the table of known models"
    raise UsageError(
        f"the model '{spec}' is not on this machine, and its size is not known: download its "
        f"config and tokenizer (hf download {name} config.json tokenizer.json "
        "tokenizer_config.json), or name a directory"
    )


_SMOLLM2: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


@cache
def model_of(spec: str) -> Model:
    """The facts about a model, counted on a copy without memory. UsageError if it is unknown."""
    config, source = config_of(spec)
    parameters, active = _count(json.dumps(config))
    layers = _first(config, LAYERS, 1)
    heads = _first(config, HEADS, 1)
    hidden = _first(config, r"hidden_size|d_model|n_embd", 1)
    width = _kv_width(config, heads, hidden)
    with_cache = _layers_with_cache(config, layers)
    inner = _first(config, r"intermediate_size|ffn_dim|n_inner", 4 * hidden)
    if "moe_intermediate_size" in config or "num_experts_per_tok" in config:
        own = config.get("moe_intermediate_size") or inner
        inner = own * (
            (config.get("num_experts_per_tok") or 1) + (config.get("n_shared_experts") or 0)
        )
    return Model(
        spec,
        source,
        parameters,
        active,
        layers,
        hidden,
        inner,
        width,
        2 * width * with_cache,
        int(config.get("vocab_size") or 0),
        _first(config, r"max_position_embeddings|n_positions|n_ctx|max_seq_len", 2048),
        bool(config.get("tie_word_embeddings")),
    )


def _first(config: Mapping[str, Any], names: str, default: int) -> int:
    values = [v for k, v in config.items() if re.fullmatch(names, k) and isinstance(v, int)]
    return values[0] if values else default


def _kv_width(config: Mapping[str, Any], heads: int, hidden: int) -> int:
    """Numbers per token and layer in the key-value cache. Latent attention (DeepSeek-V2 report,
    section 2.1) stores one compressed vector and one rotary key.
    """
    if config.get("kv_lora_rank"):
        return int(config["kv_lora_rank"]) + int(config.get("qk_rope_head_dim") or 0)
    kv_heads = _first(config, KV_HEADS, heads)
    return 2 * kv_heads * int(config.get("head_dim") or hidden // heads)


def _layers_with_cache(config: Mapping[str, Any], layers: int) -> int:
    """Layers that keep keys and values; state-space and linear layers keep a constant state."""
    kinds = config.get("layer_types")
    if not isinstance(kinds, list):
        return layers
    return sum("attention" in kind and "linear" not in kind for kind in kinds)


@cache
def _count(config: str) -> tuple[int, int]:
    """All parameters of a config, and the active ones: of routed experts, the share that a token
    is sent to.
    """
    import torch

    data = json.loads(config)
    with torch.device("meta"):
        model = from_config(data)
    everything = sum(p.numel() for p in model.parameters())  # tied ones are counted once
    routed = sum(
        p.numel()
        for name, p in model.named_parameters()
        if re.search(r"\bexperts\b", name) and "shared" not in name
    )
    experts = _first(data, r"num_experts|num_local_experts|n_routed_experts|moe_num_experts", 1)
    chosen = _first(data, r"num_experts_per_tok|moe_k|moe_topk|top_k_experts", experts)
    return everything, everything - routed + routed * chosen // experts


def from_config(data: Mapping[str, Any]) -> Any:
    """A model with random weights. UsageError if this version of transformers does not know it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {k: v for k, v in data.items() if k not in ("model_type", "quantization_config")}
    try:
        config = AutoConfig.for_model(data["model_type"], **options)
        return AutoModelForCausalLM.from_config(config)
    except (KeyError, ValueError, ImportError) as error:
        raise UsageError(
            f"transformers cannot build a model of type '{data.get('model_type')}': {error}"
        ) from error


def tiny_config(config: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """The config of a tiny model of the same architecture: the same kinds of attention, of layers
    and of experts, and the same context; fewer and narrower ones.
    """
    tiny = {k: v for k, v in config.items() if k != "quantization_config"}
    for name, value in config.items():
        if type(value) is int:
            for names, size in TINY.items():
                if re.fullmatch(names, name):
                    tiny[name] = size
    heads = _first(config, HEADS, 1)
    kv = _first(config, KV_HEADS, heads)
    layers = _few_layers(config)
    for name in config:
        if re.fullmatch(KV_HEADS, name) and not config.get("kv_lora_rank"):
            # as many keys as queries, one for all, or one for a group, as in the model
            tiny[name] = 4 if kv == heads else 1 if kv == 1 else 2
        elif re.fullmatch(KV_HEADS, name):
            tiny[name] = 4
        elif re.fullmatch(LAYERS, name):
            tiny[name] = layers
    if isinstance(config.get("layer_types"), list):
        tiny["layer_types"] = list(config["layer_types"][:layers])
    tiny["vocab_size"] = vocabulary
    return tiny


def _few_layers(config: Mapping[str, Any]) -> int:
    """Number of layers that shows every kind: two, or as many as a pattern of kinds needs."""
    layers = _first(config, LAYERS, 2)
    kinds = config.get("layer_types")
    if not isinstance(kinds, list):
        period = int(config.get("decoder_sparse_step") or config.get("attn_layer_period") or 1)
        return min(layers, max(2, period + 1))
    needed = max(kinds.index(kind) for kind in set(kinds)) + 1
    return min(layers, max(2, needed))
