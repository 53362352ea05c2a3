"""A tiny model and ragged sequences for tests of the trainers."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from curate.train.model.layout import PromptCompletion

# `CURATE_TEST_DEVICE=cuda pytest tests/train` runs the same tests on a GPU.
DEVICE = os.environ.get("CURATE_TEST_DEVICE", "cpu")


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights over characters, large enough in scale that attention matters."""
    pytest.importorskip("torch")
    from curate.engines.testing.tiny import make_tiny_model

    return make_tiny_model(
        tmp_path_factory.mktemp("tiny"),
        hidden=32,
        layers=2,
        heads=4,
        kv_heads=2,
        scale=0.3,
        max_len=256,
    )


@pytest.fixture(scope="session")
def sequences() -> list[PromptCompletion]:
    return ragged()


def ragged() -> list[PromptCompletion]:
    """Three prompts with a common prefix of 12 tokens; 3, 1 and 4 completions of 1 to 9 tokens."""
    dice = random.Random(0)

    def draw(n: int) -> list[int]:
        return [dice.randrange(4, 100) for _ in range(n)]

    head = draw(12)
    sequences = []
    for tail, lengths in ((5, (3, 1, 9)), (2, (6,)), (9, (2, 8, 8, 5))):
        prompt = head + draw(tail)
        sequences += [PromptCompletion(prompt, draw(n)) for n in lengths]
    return sequences


def policy_of(path: Path, double: bool = True, device: str = DEVICE, **compute: Any) -> Any:
    """A policy in float64 (the model's own arithmetic), or fp32."""
    from curate.train.config import ModelConfig
    from curate.train.model.loading import load_policy

    policy, _ = load_policy(path, ModelConfig(precision="fp32", device=device, **compute))
    if double:
        policy.model.double()
        _exact(policy.model)
    return policy


def _exact(model: Any) -> None:
    """Compute norms and rotary tables in float64, too; transformers uses fp32 for any weights."""
    import torch

    def norm(self: Any, x: Any) -> Any:
        return self.weight * (
            x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)
        )

    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = norm.__get__(module)
