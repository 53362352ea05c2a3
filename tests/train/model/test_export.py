"""An export holds the trained model: adapters, dtypes, tied weights, processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from curate.errors import UsageError
from curate.train.config import LoraConfig, ModelConfig
from curate.train.model.layout import PromptCompletion
from curate.train.model.loading import load_policy, stored_dtype, weights, write_model

SMALL: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}


def saved(folder: Path, tiny_dir: Path, kind: str, dtype: Any = None, **options: Any) -> Path:
    """A directory with a random model of an architecture and the tiny model's tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SMALL | options)))
    model.config.dtype = dtype or torch.float32
    model.to(model.config.dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_dir).save_pretrained(folder)
    return folder


def compute(**options: Any) -> ModelConfig:
    return ModelConfig.model_validate({"precision": "fp32", "device": "cpu"} | options)


def dtypes(path: Path) -> dict[str, str]:
    with safe_open(path / "model.safetensors", "pt") as file:
        return {name: file.get_slice(name).get_dtype() for name in list(file.keys())}


def train_a_little(policy: Any, sequences: list[PromptCompletion]) -> None:
    """Move every trained weight, so that an adapter is not the identity."""
    for _ in range(2):
        policy.logprobs(policy.layout(sequences))[0].sum().backward()
        assert all(p.grad is not None for p in policy.parameters())
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter += 0.5 * torch.sign(parameter.grad) * 0.1
                parameter.grad = None


@pytest.mark.parametrize(
    ("kind", "targets", "options"),
    [
        ("llama", "all-linear", {}),
        ("llama", ["embed_tokens", "lm_head", "q_proj"], {"tie_word_embeddings": False}),
        ("gpt2", "all-linear", {"n_embd": 16, "n_layer": 2, "n_head": 2}),
        ("qwen3_moe", "all-linear", {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
                                     "moe_intermediate_size": 8}),
        ("falcon_h1", "all-linear", {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8,
                                     "mamba_n_groups": 1, "mamba_d_state": 8,
                                     "lm_head_multiplier": 0.5}),
    ],
    ids=["llama", "embeddings-and-head", "gpt2", "experts", "hybrid"],
)  # fmt: skip
def test_adapters_train_and_the_exported_model_is_the_trained_one(
    tiny_dir: Path,
    tmp_path: Path,
    sequences: list[PromptCompletion],
    kind: str,
    targets: Any,
    options: dict[str, Any],
) -> None:
    path = saved(tmp_path / "base", tiny_dir, kind, **options)
    lora = LoraConfig(rank=2, targets=targets)
    policy, tokenizer = load_policy(path, compute(lora=lora))
    before = torch.cat(policy.all_logprobs(sequences))
    train_a_little(policy, sequences)
    trained = torch.cat(policy.all_logprobs(sequences))
    assert (trained - before).abs().max() > 0.05
    write_model(policy, tokenizer, tmp_path / "out", "float32")
    exported, _ = load_policy(tmp_path / "out", compute())
    assert torch.allclose(torch.cat(exported.all_logprobs(sequences)), trained, atol=1e-4)


def test_adapters_on_tied_embeddings_are_refused(tiny_dir: Path, tmp_path: Path) -> None:
    path = saved(tmp_path, tiny_dir, "llama", tie_word_embeddings=True)
    with pytest.raises(UsageError, match=r"lora\.targets names embed_tokens"):
        load_policy(path, compute(lora=LoraConfig(targets=["embed_tokens"])))


def test_what_the_architecture_keeps_in_fp32_stays_in_fp32(tiny_dir: Path, tmp_path: Path) -> None:
    options = {
        "moe_intermediate_size": 8,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 6,
    }
    policy, tokenizer = load_policy(
        saved(tmp_path / "base", tiny_dir, "deepseek_v3", **options), compute()
    )
    write_model(policy, tokenizer, tmp_path / "out", "bfloat16")
    written = dtypes(tmp_path / "out")
    bias = {d for name, d in written.items() if name.endswith("e_score_correction_bias")}
    assert bias == {"F32"}
    assert {d for name, d in written.items() if not name.endswith("_bias")} == {"BF16"}
    pushed = weights(policy, torch.bfloat16)
    assert {v.dtype for k, v in pushed.items() if "correction_bias" in k} == {torch.float32}


def test_a_base_in_float16_is_exported_in_float16(tiny_dir: Path, tmp_path: Path) -> None:
    path = saved(tmp_path / "base", tiny_dir, "llama", torch.float16)
    assert stored_dtype(path) == "float16"
    policy, tokenizer = load_policy(path, compute())
    write_model(policy, tokenizer, tmp_path / "out", stored_dtype(path))
    assert set(dtypes(tmp_path / "out").values()) == {"F16"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tied_weights_are_written_once(tiny_dir: Path, tmp_path: Path, dtype: str) -> None:
    path = saved(tmp_path / "base", tiny_dir, "llama", tie_word_embeddings=True)
    policy, tokenizer = load_policy(path, compute())
    write_model(policy, tokenizer, tmp_path / "out", dtype)
    assert "lm_head.weight" not in dtypes(tmp_path / "out")
    again, _ = load_policy(tmp_path / "out", compute())
    assert torch.equal(
        again.model.lm_head.weight,
        policy.model.lm_head.weight.to(getattr(torch, dtype)).float(),
    )


def test_processors_travel_with_the_model(tiny_dir: Path, tmp_path: Path) -> None:
    path = saved(tmp_path / "base", tiny_dir, "llama")
    (path / "preprocessor_config.json").write_text('{"size": 28}')
    policy, tokenizer = load_policy(path, compute())
    write_model(policy, tokenizer, tmp_path / "out", "float32")
    assert (tmp_path / "out" / "preprocessor_config.json").read_text() == '{"size": 28}'
    assert (tmp_path / "out" / "generation_config.json").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
        # Contradictory, as many models on the Hub are; transformers refuses to save that.
        {"do_sample": False, "temperature": 0.9, "top_p": 0.6},
    ],
)
def test_generation_configs_travel_with_the_model(
    tiny_dir: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    path = saved(tmp_path / "base", tiny_dir, "llama")
    written = {"eos_token_id": [2, 7], "bos_token_id": 1} | settings
    (path / "generation_config.json").write_text(json.dumps(written))
    policy, tokenizer = load_policy(path, compute())
    write_model(policy, tokenizer, tmp_path / "out", "float32")
    exported = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written.items() <= exported.items()


def test_log_probs_that_are_compared_have_no_dropout(
    tiny_dir: Path, tmp_path: Path, sequences: list[PromptCompletion]
) -> None:
    small = {"n_embd": 16, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.3, "embd_pdrop": 0.3}
    path = saved(tmp_path, tiny_dir, "gpt2", **small)

    def spread(policy: Any, values: Any) -> float:
        first, second = values(), values()
        return float((first - second).abs().max())

    for options in ({}, {"gradient_checkpointing": True}):
        policy, _ = load_policy(path, compute(**options))
        values = lambda p=policy: p.logprobs(p.layout(sequences))[0]  # noqa: E731
        assert spread(policy, values) == 0
        values().sum().backward()
    policy, _ = load_policy(path, compute(), dropout=True)
    assert spread(policy, lambda: policy.logprobs(policy.layout(sequences))[0]) > 0.01
    assert spread(policy, lambda: torch.cat(policy.all_logprobs(sequences))) == 0
    assert any(module.training for module in policy.model.modules())
