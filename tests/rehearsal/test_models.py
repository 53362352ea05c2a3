"""Tiny models keep the architecture, the context and the tokenizer of the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from curate.engines.base import encode, load_tokenizer
from curate.engines.testing.tiny import make_tiny_model
from curate.errors import UsageError
from curate.prompts.forms import Form
from curate.rehearsal.architectures import model_of, tiny_config
from curate.rehearsal.faults import _of_base
from curate.rehearsal.known_models import KNOWN
from curate.rehearsal.models import TinyModels


def test_latent_attention_and_experts_stay() -> None:
    tiny = tiny_config(KNOWN["deepseek-ai/DeepSeek-R1"], 100)
    assert tiny["model_type"] == "deepseek_v3"
    assert tiny["kv_lora_rank"] < tiny["hidden_size"] == 64
    assert tiny["n_routed_experts"] == 4
    assert tiny["max_position_embeddings"] == 163_840
    assert (tiny["vocab_size"], tiny["num_hidden_layers"]) == (100, 2)


@pytest.mark.parametrize(("kv_heads", "tiny_heads"), [(28, 4), (4, 2), (1, 1)])
def test_keys_are_shared_among_as_many_queries_as_in_the_model(
    kv_heads: int, tiny_heads: int
) -> None:
    config = KNOWN["Qwen/Qwen2.5-7B"] | {"num_key_value_heads": kv_heads}
    assert tiny_config(config, 100)["num_key_value_heads"] == tiny_heads


def test_every_kind_of_layer_stays() -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"] + ["sliding_attention"] * 6
    tiny = tiny_config({"num_hidden_layers": 12, "layer_types": kinds}, 100)
    assert tiny["num_hidden_layers"] == 6
    assert set(tiny["layer_types"]) == set(kinds)


def test_a_local_tokenizer_is_used_and_weights_are_not_needed(tmp_path: Path) -> None:
    real = make_tiny_model(tmp_path / "real", hidden=128, layers=4, max_len=333)
    (real / "model.safetensors").unlink()
    models = TinyModels(tmp_path / "tiny")
    tiny = models.of(str(real))
    assert models.has_tokenizer(str(real))
    text = "2 + 3 = 5 的"
    assert encode(load_tokenizer(tiny), text) == encode(load_tokenizer(real), text)
    assert json.loads((tiny / "config.json").read_text())["max_position_embeddings"] == 333
    assert model_of(str(real)).max_len == 333


def test_a_stand_in_tokenizer_gives_every_text_back(tmp_path: Path) -> None:
    models = TinyModels(tmp_path)
    tokenizer = load_tokenizer(models.of("Qwen/Qwen2.5-0.5B"))
    assert models.standins == {"Qwen/Qwen2.5-0.5B": "not on this machine"}
    text = "<think>\nx² 的值\n</think> 🙂"
    assert tokenizer.decode(encode(tokenizer, text)) == text


def test_an_unknown_model_says_what_to_download() -> None:
    with pytest.raises(UsageError, match=r"hf download some/model config\.json"):
        model_of("some/model")


def test_tags_that_are_special_tokens_are_lost(tmp_path: Path) -> None:
    directory = make_tiny_model(tmp_path / "m")
    name = str(directory)
    assert _of_base(name, "r1", Form.of("r1"), True, False, {name: directory}) is None
    tokenizer = load_tokenizer(directory)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    tokenizer.save_pretrained(directory)
    fault = _of_base(name, "r1", Form.of("r1"), True, False, {name: directory})
    assert fault is not None
    assert "special tokens" in fault


def test_a_base_model_must_be_asked_for_the_tags(tmp_path: Path) -> None:
    fault = _of_base("some/base", "plain", Form.of("r1-zero"), False, False, {})
    assert fault is not None
    assert "<think> and <answer>" in fault
    assert _of_base("some/base", "r1-zero", Form.of("r1-zero"), False, False, {}) is None
    assert _of_base("some/base", "plain", Form.of("r1-zero"), False, True, {}) is None
