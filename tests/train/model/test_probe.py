"""The probe uses the fastest way that agrees with transformers, and refuses if none does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from curate.errors import UsageError
from curate.train.config import ModelConfig
from curate.train.model import attention, probe
from curate.train.model.loading import load_policy
from curate.train.model.policy import Policy
from curate.train.model.trunk import Trunk
from tests.train.test_architectures import CASES, build, sequences

COMPUTE = ModelConfig(precision="fp32", device="cpu")


def test_a_tree_that_is_wrong_falls_back_to_padded_rows(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_policy(tiny_dir, COMPUTE)[0].describe() == "tree"

    def without_ancestors(q: Any, k: Any, v: Any, tree: Any, scale: float) -> Any:
        """Completions that do not see their prompts."""
        for family in tree.families:
            family.ancestors = family.ancestors[:0]
        return attention.TreeAttention.apply(q, k, v, tree, scale, torch.is_grad_enabled())

    monkeypatch.setattr(attention, "matmul_attention", without_ancestors)
    policy, _ = load_policy(tiny_dir, COMPUTE)
    assert policy.describe() == "padded rows (sdpa attention)"


def test_a_model_that_no_way_computes_is_refused_with_the_difference(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = Trunk.states

    def off(self: Any, layout: Any, **extra: Any) -> Any:
        result = states(self, layout, **extra)
        # One sequence per call is what the head is compared by; several are what trains.
        return result if layout.input_ids.shape[0] == 1 and not layout.families else 1.1 * result

    monkeypatch.setattr(Trunk, "states", off)
    with pytest.raises(UsageError) as refused:
        load_policy(tiny_dir, COMPUTE)
    text = str(refused.value)
    assert "this model (llama) cannot be trained" in text
    assert "tree: log-probs differ by up to" in text
    assert "padded rows (sdpa attention): log-probs differ by up to" in text
    assert "nats" in text


def test_the_probe_leaves_the_model_as_it_was(tiny_dir: Path) -> None:
    policy, _ = load_policy(tiny_dir, COMPUTE, dropout=True)
    assert all(p.grad is None and p.requires_grad for p in policy.model.parameters())
    frozen, _ = load_policy(tiny_dir, COMPUTE, frozen=True)
    assert not frozen.model.training
    assert not frozen.parameters()


def test_the_probe_crosses_the_switch_of_longrope(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phi-3 switches after 4,096 tokens. Sequences on both sides of it in one call disagree."""
    name = "Phi-3 and Phi-4-mini with longrope"
    case = next(case for case in CASES if str(case) == name)
    rope = case.options["rope_parameters"] | {"original_max_position_embeddings": 4096}
    options = {"rope_parameters": rope, "max_position_embeddings": 131072}
    options["original_max_position_embeddings"] = 4096
    long = replace(case, options=case.options | options)
    policy = Policy(build(long), COMPUTE)
    assert policy.describe() == "tree"
    assert policy.trunk.limits.rope_switch == 4096
    assert policy.trunk.text.rope_parameters["original_max_position_embeddings"] == 4096
    monkeypatch.setattr(probe, "SHORT_WINDOW", 14)  # sequences have 12 to 15 tokens
    with pytest.raises(UsageError, match="beyond the switch of longrope"):
        Policy(build(long), COMPUTE)


def test_sequences_on_both_sides_of_the_switch_share_no_call() -> None:
    """Neither in a layout of their own, nor as a teacher's, whose student has no switch."""
    by_name = {str(case): case for case in CASES}
    phi = Policy(build(by_name["Phi-3 and Phi-4-mini with longrope"]).float(), COMPUTE)
    llama = Policy(build(by_name["Llama, SmolLM2, DeepSeek-R1-Distill-Llama"]).float(), COMPUTE)
    rows = sequences()
    assert {len(row) > 32 for row in rows} == {True, False}
    with pytest.raises(ValueError, match="must not share a call"):
        phi.layout(rows)
    with torch.no_grad():
        layout = llama.layout(rows)
        together = llama.divergences(layout, phi)[1]
        for i, row in enumerate(rows):
            alone = llama.divergences(llama.layout([row]), phi)[1]
            assert torch.allclose(together[layout.row == i], alone, atol=1e-4)
