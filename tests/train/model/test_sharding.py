"""Layers that are sharded one by one, and those that ranks may exchange in bf16."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from curate.train.model.sharding import bears_bf16, layers_of
from tests.train.test_architectures import CASES, build


def model_of(name: str) -> Any:
    return build(next(case for case in CASES if str(case) == name))


@pytest.mark.parametrize(
    ("name", "low"),
    [
        ("Llama, SmolLM2, DeepSeek-R1-Distill-Llama", True),
        ("Llama with biases", True),
        ("Qwen 3 MoE", True),
        ("DeepSeek-V3, Kimi K2", True),
        ("GPT-2", False),  # LayerNorm takes no bf16 weight with fp32 states on a CPU
        ("Mamba 2", False),  # logarithms of decay rates
        ("Bamba", False),
    ],
)
def test_layers_are_sharded_whatever_their_model_calls_them(name: str, low: bool) -> None:
    layers = layers_of(model_of(name))
    assert len(layers) == 4
    assert all(bears_bf16(layer) for layer in layers) == low


def test_layers_below_a_language_model_with_vision() -> None:
    layers = layers_of(model_of("Gemma 3 with vision (4B and up)"))
    text = [layer for layer in layers if type(layer).__name__ == "Gemma3DecoderLayer"]
    assert len(text) == 4
    parameters = [id(p) for layer in layers for p in layer.parameters()]
    assert len(parameters) == len(set(parameters)), "no layer lies inside another"
