"""Log-probs and gradients of tiny random models of many architectures equal those of transformers.

The table of supported models in docs/train.md is generated from the cases here:

    python -m tests.train.test_architectures
    python -m tests.train.test_architectures --all      tries every causal model of transformers
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from curate.errors import UsageError
from curate.train.config import ModelConfig
from curate.train.model import attention
from curate.train.model.layout import PromptCompletion
from curate.train.model.policy import Policy

DOCS = Path(__file__).parents[2] / "docs/train.md"
VOCABULARY = 97
WINDOW = 16  # tokens; the sequences below are longer
TREE, PADDED, EAGER = "tree", "padded rows (sdpa attention)", "padded rows (eager attention)"
OWN_HEAD = f"{PADDED}, the head by transformers"
# A tree for sequences inside the window, and beyond it rows.
WINDOWED = f"tree, sequences beyond {WINDOW} tokens as {PADDED}"

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,  # large enough that attention and head matter
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}
LOCAL_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED: dict[str, Any] = {
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
}
MLA: dict[str, Any] = {"num_key_value_heads": 4}
GRANITE: dict[str, Any] = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
}
GATED_DELTA: dict[str, Any] = {
    "head_dim": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@dataclass
class Case:
    """A tiny model: its type, the options that make it small or tricky, and how it is computed."""

    kind: str  # model_type in transformers
    layout: str  # what `Policy.describe` says, or the beginning of a refusal
    options: dict[str, Any] = field(default_factory=dict)
    name: str = ""  # as the table shows it
    drop: tuple[str, ...] = ()  # common options that the config does not have
    text: bool = False  # whether the options belong to the config's text_config
    outer: dict[str, Any] = field(default_factory=dict)  # options next to text_config
    shrink: bool = False  # whether `tiny` makes up the options, from the config's own
    refused: bool = False
    tolerance: float = 1e-4  # nats

    def __str__(self) -> str:
        return self.name or self.kind


# Sizes of a tiny model, by the names that configs give them.
SIZES: dict[str, Any] = {
    r"vocab_size|vocab_size_per_layer_input": VOCABULARY,
    r"hidden_size|d_model|n_embd|embedding_size|embedding_dim": 32,
    r"intermediate_size|intermediate_size_mlp|ffn_dim|n_inner|feed_forward_size": 48,
    r"moe_intermediate_size|shared_expert_intermediate_size": 24,
    r"num_hidden_layers|n_layers?|num_layers|num_blocks": 4,
    r"num_attention_heads|n_heads?|num_heads|mamba_n_heads|linear_num_value_heads|index_n_heads": 4,
    r"num_key_value_heads|num_kv_heads|linear_num_key_heads": 2,
    r"head_dim|swa_head_dim|global_head_dim|v_head_dim|swa_v_head_dim|mamba_d_head": 16,
    r"sliding_window|attention_chunk_size|attention_window_size": WINDOW,
    r"num_experts|num_local_experts|n_routed_experts|moe_num_experts": 8,
    r"num_experts_per_tok|moe_k|moe_topk|top_k_experts": 2,
    r"n_group|topk_group|n_groups|mamba_n_groups": 1,
    r"q_lora_rank|kv_lora_rank|o_lora_rank": 16,
    r"qk_rope_head_dim|qk_nope_head_dim|linear_(key|value)_head_dim|index_head_dim": 8,
    r"mamba_d_state|mamba_d_conv|state_size|hidden_size_per_layer_input": 8,
    r"conv_kernel|linear_conv_kernel_dim|laurel_rank": 4,
    r"index_topk": 64,
    r"max_position_embeddings|n_positions|n_ctx": 512,
    r"initializer_range|init_std": 0.3,
    r"pad_token_id": 0,
    r"bos_token_id": 1,
    r"eos_token_id": 2,
}


def tiny(config: Any) -> dict[str, Any]:
    """Options that make a model of a config's type tiny, for the names that the config has."""
    options: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            for names, size in SIZES.items():
                if re.fullmatch(names, name):
                    options[name] = size
    return options


CASES = [
    Case("llama", TREE, {}, "Llama, SmolLM2, DeepSeek-R1-Distill-Llama"),
    Case("llama", TREE, {"attention_bias": True, "mlp_bias": True}, "Llama with biases"),
    Case(
        "llama",
        TREE,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        "Llama 3 rotary embedding",
    ),
    Case(
        "llama",
        "a sequence of 37 tokens is longer than the 32 positions",
        {
            "max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        },
        "Llama with dynamic NTK",
        refused=True,
    ),
    Case("qwen2", TREE, {}, "Qwen 2, Qwen 2.5, DeepSeek-R1-Distill-Qwen"),
    Case(
        "qwen2",
        WINDOWED,
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
        "Qwen 2 with a sliding window",
    ),
    Case("qwen3", TREE, {"head_dim": 16}, "Qwen 3"),
    Case(
        "qwen3_moe",
        TREE,
        EXPERTS | {"head_dim": 16, "moe_intermediate_size": 24, "decoder_sparse_step": 1},
        "Qwen 3 MoE",
    ),
    Case("mistral", TREE, {"head_dim": 16, "sliding_window": None}, "Mistral"),
    Case(
        "mistral", WINDOWED, {"head_dim": 16, "sliding_window": 16}, "Mistral with a sliding window"
    ),
    Case("ministral", WINDOWED, {"head_dim": 16, "sliding_window": 16}, "Ministral"),
    Case("mixtral", TREE, {"num_local_experts": 4, "sliding_window": None}, "Mixtral"),
    Case("gemma", TREE, {"head_dim": 16, "hidden_activation": "gelu_pytorch_tanh"}, "Gemma"),
    Case(
        "gemma2",
        EAGER,
        {
            "head_dim": 16,
            "sliding_window": 16,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 16,
        },
        "Gemma 2",
    ),
    Case(
        "gemma2",
        EAGER,
        {
            "head_dim": 16,
            "layer_types": ["full_attention", "full_attention", "full_attention", "full_attention"],
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 16,
        },
        "Gemma 2 without a sliding window",
    ),
    Case(
        "gemma3_text",
        WINDOWED,
        {"head_dim": 16, "sliding_window": 16, "sliding_window_pattern": 2},
        "Gemma 3 1B",
    ),
    Case(
        "gemma3",
        WINDOWED,
        {"head_dim": 16, "sliding_window": 16, "sliding_window_pattern": 2},
        "Gemma 3 with vision (4B and up)",
        text=True,
        outer={"vision_config": VISION}
        | {
            "mm_tokens_per_image": 4,
            "image_token_index": 90,
            "boi_token_index": 91,
            "eoi_token_index": 92,
        },
    ),
    Case("phi", TREE, {"partial_rotary_factor": 0.5}, "Phi"),
    Case("phi3", TREE, {"sliding_window": None}, "Phi-3, Phi-4"),
    Case("phi3", WINDOWED, {"sliding_window": 16}, "Phi-3 with a sliding window"),
    Case(
        "phi3",
        TREE,
        {
            "sliding_window": None,
            "max_position_embeddings": 512,
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 32,
                "short_factor": [1.0, 1.0, 1.0, 1.0],
                "long_factor": [4.0, 4.0, 4.0, 4.0],
                "partial_rotary_factor": 1.0,
            },
        },
        "Phi-3 and Phi-4-mini with longrope",
    ),
    Case("olmo", TREE, {}, "OLMo"),
    Case("olmo2", TREE, {}, "OLMo 2"),
    Case("olmo3", WINDOWED, {"sliding_window": 16}, "OLMo 3"),
    Case("smollm3", TREE, {"no_rope_layer_interval": 2}, "SmolLM3"),
    Case("granite", TREE, GRANITE, "Granite"),
    Case("granitemoe", TREE, LOCAL_EXPERTS | GRANITE, "Granite MoE"),
    Case("cohere", TREE, {"logit_scale": 0.25}, "Cohere Command R"),
    Case(
        "cohere2", WINDOWED, {"logit_scale": 0.25, "sliding_window": 16, "head_dim": 16}, "Cohere 2"
    ),
    Case("gpt_neox", TREE, {"rotary_pct": 0.5}, "GPT-NeoX, Pythia"),
    Case(
        "gpt2",
        TREE,
        {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 512},
        "GPT-2",
        drop=("hidden_size",),
    ),
    Case("starcoder2", TREE, {"sliding_window": None}, "StarCoder2"),
    Case("stablelm", PADDED, {}, "StableLM"),
    Case(
        "opt", TREE, {"ffn_dim": 48, "word_embed_proj_dim": 32, "do_layer_norm_before": True}, "OPT"
    ),
    Case(
        "deepseek_v3",
        TREE,
        ROUTED | LATENT | {"routed_scaling_factor": 2.5},
        "DeepSeek-V3, Kimi K2",
    ),
    Case("deepseek_v2", TREE, ROUTED | LATENT, "DeepSeek-V2"),
    Case("glm", TREE, {"head_dim": 16}, "GLM"),
    Case("glm4", TREE, {"head_dim": 16}, "GLM-4"),
    Case("glm4_moe", TREE, ROUTED | {"head_dim": 16, "n_group": 1}, "GLM-4.5"),
    Case(
        "qwen3_next",
        PADDED,
        EXPERTS
        | GATED_DELTA
        | {
            "shared_expert_intermediate_size": 24,
            "moe_intermediate_size": 24,
            "decoder_sparse_step": 1,
        },
        "Qwen 3 Next",
    ),
    Case("qwen3_5_text", PADDED, GATED_DELTA, "Qwen 3.5"),
    Case("gpt_oss", EAGER, LOCAL_EXPERTS | {"head_dim": 16, "sliding_window": 16}, "GPT-OSS"),
    Case(
        "llama4_text",
        WINDOWED,
        {
            "head_dim": 16,
            "intermediate_size_mlp": 48,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "attention_chunk_size": 16,
            "no_rope_layer_interval": 4,
            "use_qk_norm": True,
        },
        "Llama 4",
    ),
    Case(
        "llama4_text",
        "tree, sequences beyond 64 tokens as padded rows (sdpa attention)",
        {
            "head_dim": 16,
            "intermediate_size_mlp": 48,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "attention_chunk_size": 64,
            "no_rope_layer_interval": 4,
            "use_qk_norm": True,
        },
        "Llama 4, long chunks",
    ),
    Case("exaone4", WINDOWED, {"sliding_window": 16, "sliding_window_pattern": 4}, "EXAONE 4"),
    Case(
        "lfm2",
        PADDED,
        {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "block_ff_dim": 48},
        "LFM2",
    ),
    Case(
        "falcon_h1",
        OWN_HEAD,
        {
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 16,
            "lm_head_multiplier": 0.5,
        },
        "Falcon-H1",
    ),
    Case("bamba", PADDED, MAMBA | {"attn_layer_indices": [1, 3]}, "Bamba"),
    Case(
        "jamba",
        PADDED,
        EXPERTS
        | {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
        "Jamba",
    ),
    Case(
        "granitemoehybrid",
        PADDED,
        MAMBA
        | {
            "layer_types": ["mamba", "attention", "mamba", "attention"],
            "num_local_experts": 0,
            "shared_intermediate_size": 48,
            "logits_scaling": 2.0,
        },
        "Granite 4 (hybrid)",
    ),
    Case("nemotron", PADDED, {}, "Nemotron (dense)"),
    Case("minimax", PADDED, LOCAL_EXPERTS | {"head_dim": 16, "block_size": 16}, "MiniMax-Text"),
    Case(
        "bloom",
        EAGER,
        {"n_layer": 4, "n_head": 4},
        "BLOOM",
        drop=("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    ),
    Case(
        "falcon",
        PADDED,
        {"alibi": False, "new_decoder_architecture": False, "multi_query": True},
        "Falcon",
    ),
    Case(
        "falcon",
        PADDED,
        {"alibi": True, "new_decoder_architecture": False, "multi_query": False},
        "Falcon with ALiBi",
    ),
    Case(
        "mpt",
        EAGER,
        {"d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": 512, "expansion_ratio": 2},
        "MPT",
        drop=("hidden_size", "num_hidden_layers", "num_attention_heads"),
    ),
    Case("ernie4_5", TREE, {"head_dim": 16}, "ERNIE 4.5"),
    Case(
        "ernie4_5_moe",
        TREE,
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 24,
            "moe_layer_start_index": 1,
            "moe_num_shared_experts": 1,
        },
        "ERNIE 4.5 MoE",
    ),
    Case("hunyuan_v1_dense", TREE, {"head_dim": 16}, "Hunyuan"),
    Case("seed_oss", TREE, {"head_dim": 16}, "Seed-OSS"),
    Case("arcee", TREE, {}, "Arcee"),
    Case("dots1", TREE, ROUTED | {"n_group": 1}, "dots.llm1"),
    Case("olmoe", TREE, EXPERTS, "OLMoE"),
    Case("flex_olmo", TREE, EXPERTS, "FlexOlmo"),
    Case("bitnet", TREE, {}, "BitNet"),
    Case("helium", TREE, {"head_dim": 8}, "Helium"),
    Case("diffllama", TREE, {}, "DiffLlama"),
    Case("nanochat", TREE, {}, "NanoChat"),
    Case("apertus", TREE, {}, "Apertus"),
    Case(
        "mamba2",
        EAGER,
        {
            "num_heads": 8,
            "head_dim": 8,
            "state_size": 8,
            "n_groups": 1,
            "chunk_size": 16,
            "expand": 2,
        },
        "Mamba 2",
    ),
    Case("mamba", EAGER, {"state_size": 8, "expand": 2}, "Mamba"),
    Case(
        "recurrent_gemma",
        OWN_HEAD,
        {"attention_window_size": 16, "lru_width": 32, "head_dim": 8},
        "RecurrentGemma",
    ),
    Case("vaultgemma", EAGER, {"head_dim": 16, "sliding_window": 16}, "VaultGemma"),
    Case(
        "gemma3n_text",
        WINDOWED,
        {
            "head_dim": 16,
            "sliding_window": 16,
            "layer_types": [
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
            ],
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 97,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.0, 0.0, 0.0, 0.0],
            "altup_num_inputs": 2,
        },
        "Gemma 3n (text)",
    ),
    Case("persimmon", TREE, {}, "Persimmon"),
    Case("codegen", EAGER, {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, "CodeGen"),
    Case("gptj", EAGER, {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, "GPT-J"),
    Case("minimax_m2", TREE, LOCAL_EXPERTS | {"head_dim": 16}, "MiniMax-M2"),
    Case(
        "qwen2_moe",
        TREE,
        EXPERTS | {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
        "Qwen 2 MoE",
    ),
    Case("cohere", TREE, {"attention_bias": True}, "Cohere with biases"),
    Case(
        "granite",
        TREE,
        {"tie_word_embeddings": True, "logits_scaling": 4.0},
        "Granite with tied embeddings",
    ),
    Case("hunyuan_v1_moe", TREE, {"head_dim": 16, "num_experts": 4, "moe_topk": 2}, "Hunyuan MoE"),
    Case("jais2", TREE, {"head_dim": 16}, "Jais 2"),
    Case(
        "gpt_bigcode",
        TREE,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
        "StarCoder",
    ),
    Case("afmoe", WINDOWED, name="Arcee AFM (Trinity)", shrink=True),
    Case("aria_text", TREE, name="Aria", shrink=True),
    Case("cohere2_moe", WINDOWED, name="Cohere 2 MoE", shrink=True),
    Case("cwm", WINDOWED, name="Code World Model", shrink=True),
    Case("deepseek_v32", PADDED, MLA, "DeepSeek-V3.2", ("head_dim",), shrink=True),
    Case("deepseek_v4", EAGER, name="DeepSeek-V4", shrink=True),
    Case("glm4_moe_lite", TREE, MLA, "GLM-4.7 Flash", ("head_dim",), shrink=True),
    Case("glm_moe_dsa", PADDED, MLA, "GLM-5", ("head_dim",), shrink=True),
    Case("minicpm3", TREE, MLA, "MiniCPM 3", ("head_dim",), shrink=True),
    Case("youtu", TREE, MLA, "Youtu", ("head_dim",), shrink=True),
    Case("doge", PADDED, name="Doge", shrink=True),
    Case("emu3", TREE, name="Emu 3", shrink=True),
    Case("exaone_moe", WINDOWED, name="EXAONE MoE", shrink=True),
    Case("gemma4", WINDOWED, name="Gemma 4 with vision", shrink=True),
    Case("gemma4_text", WINDOWED, name="Gemma 4 (text)", shrink=True),
    Case("granitemoeshared", TREE, name="Granite MoE with shared experts", shrink=True),
    Case("granite_swa", EAGER, name="Granite with a sliding window", shrink=True),
    Case("hy_v3", TREE, name="Hunyuan 3", shrink=True),
    Case("hyperclovax", TREE, name="HyperCLOVA X", shrink=True),
    Case("jetmoe", TREE, name="JetMoE", shrink=True),
    Case(
        "lfm2_moe",
        PADDED,
        {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
        "LFM2 MoE",
        shrink=True,
    ),
    Case("llama4", WINDOWED, name="Llama 4 with vision", shrink=True),
    Case("mimo_v2_flash", EAGER, name="MiMo-V2 Flash", shrink=True),
    Case("ministral3", TREE, name="Ministral 3", shrink=True),
    Case("olmo_hybrid", PADDED, name="OLMo Hybrid", shrink=True),
    Case("phimoe", TREE, name="Phi-3.5 MoE", shrink=True),
    Case("phi4_multimodal", TREE, name="Phi-4 multimodal", shrink=True),
    Case("qwen3_5", PADDED, name="Qwen 3.5 with vision", shrink=True),
    Case("qwen3_5_moe_text", PADDED, name="Qwen 3.5 MoE", shrink=True),
    Case("solar_open", TREE, name="Solar Open", shrink=True),
    Case("gpt_neo", EAGER, {"attention_types": [[["global", "local"], 2]]}, "GPT-Neo", shrink=True),
    Case("biogpt", PADDED, name="BioGPT", shrink=True),
    Case(
        "bert",
        f"{TREE}, the head by transformers",
        {"is_decoder": True},
        "BERT as a decoder",
        shrink=True,
    ),
    Case(
        "bert",
        "its log-probs depend on the tokens after it",
        name="BERT",
        shrink=True,
        refused=True,
    ),
    Case(
        "xlnet",
        "its log-probs depend on the tokens after it",
        name="XLNet",
        shrink=True,
        refused=True,
    ),
]


def build(case: Case) -> Any:
    """A model of random weights with norms and biases away from 1 and 0, in float64."""
    from transformers import AutoConfig, AutoModelForCausalLM

    start: dict[str, Any] = COMMON
    if case.shrink:
        default = AutoConfig.for_model(case.kind)
        start = tiny(default)
        for name in default.sub_configs:
            if (part := getattr(default, name, None)) is not None:
                start[name] = tiny(part) | {"model_type": part.model_type}
    options = {k: v for k, v in (start | case.options).items() if k not in case.drop}
    if case.text:
        config = AutoConfig.for_model(case.kind, text_config=options, **case.outer)
    else:
        config = AutoConfig.for_model(case.kind, **options)
    for part in (config, config.get_text_config()):
        for name, value in list(vars(part).items()):
            if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
                setattr(part, name, 0.0)
    config._experts_implementation = "eager"  # the default does not support float64
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif float(parameter.std()) < 1e-3:  # zeros at first: routers would only see ties
                parameter.add_(torch.randn_like(parameter) * 0.2)
        for name, buffer in model.named_buffers():
            if "correction_bias" in name:
                buffer.copy_(torch.rand_like(buffer))
    return model.double()


def sequences() -> list[PromptCompletion]:
    """Seven sequences of 21 to 52 tokens, two of three prompts with a common beginning."""
    generator = torch.Generator().manual_seed(1)

    def draw(count: int) -> list[int]:
        return torch.randint(3, 89, (count,), generator=generator).tolist()

    head = draw(12)
    prompts = (head + draw(5), (7, 20, 31)), (head + draw(14), (25, 1, 12)), (draw(9), (40,))
    return [PromptCompletion(prompt, draw(n)) for prompt, lengths in prompts for n in lengths]


def plain(model: Any, temperature: float) -> Any:
    """Log-probs by `model(input_ids).logits`, one sequence per call, with eager attention."""
    if model.config._attn_implementation != "eager":
        model.set_attn_implementation("eager")
    values = []
    for sequence in sequences():
        ids = torch.tensor([[*sequence.prompt, *sequence.completion]])
        logits = model(input_ids=ids, use_cache=False).logits[0].double()
        start = len(sequence.prompt)
        logs = torch.log_softmax(logits / temperature, -1)[start - 1 : -1]
        values.append(logs.gather(1, ids[0, start:, None])[:, 0])
    return torch.cat(values)


def ours(policy: Policy, temperature: float) -> Any:
    """Log-probs by a policy, cut into micro-batches as a trainer does it."""
    rows: dict[int, Any] = {}
    every = sequences()
    for cut in policy.micro_batches(every):
        layout = policy.layout([every[i] for i in cut])
        values, _ = policy.logprobs(layout, temperature=temperature, entropy=True)
        rows |= {i: values[layout.row == k] for k, i in enumerate(cut)}
    return torch.cat([rows[i] for i in sorted(rows)])


def gradients(model: Any) -> dict[str, Any]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def compute(**options: Any) -> ModelConfig:
    return ModelConfig(precision="fp32", device="cpu", **options)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logprobs_and_gradients_equal_transformers(case: Case) -> None:
    compare(case)


# Latent attention has values of another width than keys, which a GPU's kernels do not take.
ON_GPU = {"DeepSeek-V3, Kimi K2", "DeepSeek-V2", "Qwen 3 MoE", "Gemma", "Gemma 3 1B", "SmolLM3"}


@pytest.mark.parametrize("case", [c for c in CASES if str(c) in ON_GPU], ids=str)
def test_the_attention_of_gpus_equals_transformers(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computed on a CPU, by the function that GPUs use."""
    calls = []

    def fused(*args: Any) -> Any:
        calls.append(args)
        return attention.sdpa_attention(*args)

    monkeypatch.setattr(attention, "matmul_attention", fused)
    compare(case)
    assert calls


def compare(case: Case) -> None:
    """Log-probs and gradients of a case, ours and those of transformers; or its refusal."""
    model = build(case)
    if case.refused:
        with pytest.raises(UsageError, match=re.escape(case.layout)):
            ours(Policy(model, compute()), 0.8)
        return
    reference = build(case).eval()
    expected = plain(reference, 0.8)
    weights = torch.linspace(-1, 1, len(expected), dtype=torch.float64)
    (expected * weights).sum().backward()
    policy = Policy(model.train(), compute())
    assert policy.describe() == case.layout
    values = ours(policy, 0.8)
    (values.double() * weights).sum().backward()
    assert (values - expected).abs().max() < case.tolerance
    assert expected.std() > 0.1, "equal log-probs would prove little"
    wanted, actual = gradients(reference), gradients(policy.model)
    assert actual.keys() == wanted.keys()
    largest = max(float(g.abs().max()) for g in wanted.values())
    for name, gradient in wanted.items():
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        assert (actual[name] - gradient).abs().max() < 1e-3 * scale, name


NOT_CAUSAL = "refused: log-probs depend on later tokens"


def table() -> str:
    """The table of supported models, in Markdown."""
    lines = ["| model | `model_type` | computed as |", "|---|---|---|"]
    for case in CASES:
        layout = case.layout.replace(f" {WINDOW} tokens", " the window")
        text = layout
        if case.refused:
            causal = "depend on the tokens after it" not in layout
            text = "tree, sequences longer than its positions are refused" if causal else NOT_CAUSAL
        lines.append(f"| {case} | `{case.kind}` | {text} |")
    return "\n".join(lines)


BEGIN, END = "<!-- architectures: begin -->", "<!-- architectures: end -->"


def test_the_documented_table_is_that_of_the_cases() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == table()


def test_at_least_sixty_architectures_are_covered() -> None:
    assert len(CASES) >= 60
    assert len({str(case) for case in CASES}) == len(CASES)


def try_everything() -> None:
    """Print how each model type of AutoModelForCausalLM is computed, refused, or not built."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        case = Case(kind, "", shrink=True)
        try:
            model, reference = build(case), build(case).eval()
            if sum(p.numel() for p in model.parameters()) > 8_000_000:
                raise ValueError("the tiny model is not tiny")
        except Exception as error:
            print(f"{kind}: not built: {str(error).strip().splitlines()[0][:120]}", flush=True)
            continue
        try:
            policy = Policy(model.train(), compute())
            difference = float((ours(policy, 0.8) - plain(reference, 0.8)).abs().max().detach())
        except UsageError as error:
            print(f"{kind}: refused: {error}", flush=True)
            continue
        print(f"{kind}: {policy.describe()}, {difference:.1e} nats", flush=True)


if __name__ == "__main__":
    if "--all" in sys.argv:
        try_everything()
        raise SystemExit
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
    DOCS.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
