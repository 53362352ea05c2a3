"""Configs of models that are often named, for machines that hold no copy of them.

The numbers are those of each model's `config.json` on the Hub. They serve the rehearsal only: a
copy of the model's own files, if there is one on this machine, is read instead. That the contexts
of Qwen2.5-Math are 4,096 tokens is confirmed by the library's own warning for these models
(github.com/QwenLM/Qwen2.5-Math/issues/59).
"""

from __future__ import annotations

from typing import Any

_QWEN: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "max_position_embeddings": 131072,
    "use_sliding_window": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
}
_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 131072,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": False,
}


def _size(hidden: int, inner: int, layers: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        **more,
    }


_Q05 = _QWEN | _size(896, 4864, 24, 14, 2, vocab_size=151936, tie_word_embeddings=True)
_Q15 = _QWEN | _size(1536, 8960, 28, 12, 2, vocab_size=151936, tie_word_embeddings=True)
_Q3 = _QWEN | _size(2048, 11008, 36, 16, 2, vocab_size=151936, tie_word_embeddings=True)
_Q7 = _QWEN | _size(3584, 18944, 28, 28, 4, vocab_size=152064, tie_word_embeddings=False)
_Q14 = _QWEN | _size(5120, 13824, 48, 40, 8, vocab_size=152064, tie_word_embeddings=False)
_Q32 = _QWEN | _size(5120, 27648, 64, 40, 8, vocab_size=152064, tie_word_embeddings=False)
_L8 = _LLAMA | _size(4096, 14336, 32, 32, 8)
_L70 = _LLAMA | _size(8192, 28672, 80, 64, 8)
_32K, _4K = {"max_position_embeddings": 32768}, {"max_position_embeddings": 4096}
# The heads of the distilled Qwen2.5-Math models are not tied.
_DISTILLED = {"tie_word_embeddings": False, "rope_theta": 10_000.0}
_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "max_position_embeddings": 163840,
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "first_k_dense_replace": 3,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}

KNOWN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-0.5B": _Q05 | _32K,
    "Qwen/Qwen2.5-0.5B-Instruct": _Q05 | _32K,
    "Qwen/Qwen2.5-1.5B": _Q15,
    "Qwen/Qwen2.5-1.5B-Instruct": _Q15 | _32K,
    "Qwen/Qwen2.5-3B": _Q3 | _32K,
    "Qwen/Qwen2.5-7B": _Q7,
    "Qwen/Qwen2.5-7B-Instruct": _Q7 | _32K,
    "Qwen/Qwen2.5-14B": _Q14,
    "Qwen/Qwen2.5-14B-Instruct": _Q14 | _32K,
    "Qwen/Qwen2.5-32B": _Q32,
    "Qwen/Qwen2.5-32B-Instruct": _Q32 | _32K,
    "Qwen/Qwen2.5-Math-1.5B": _Q15 | _4K,
    "Qwen/Qwen2.5-Math-7B": _Q7 | _4K,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": _Q15 | _DISTILLED,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": _Q7 | _DISTILLED,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": _Q14,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": _Q32,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": _L8,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": _L70,
    "meta-llama/Llama-3.1-8B": _L8,
    "meta-llama/Llama-3.3-70B-Instruct": _L70,
    "deepseek-ai/DeepSeek-V3": _V3,
    "deepseek-ai/DeepSeek-V3-Base": _V3,
    "deepseek-ai/DeepSeek-R1": _V3,
    "deepseek-ai/DeepSeek-R1-0528": _V3,
}
