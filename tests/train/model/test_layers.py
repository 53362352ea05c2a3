"""Lean layers give the same values and gradients as plain ones, bit for bit, and keep less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from curate.train.config import ModelConfig
from curate.train.model.layers import (
    LeanGatedMLP,
    LeanLayers,
    LeanLinear,
    LeanNorm,
    is_gated,
    is_norm,
    use_lean_layers,
)
from curate.train.model.layout import PromptCompletion
from curate.train.model.loading import load_policy
from curate.train.model.policy import Policy
from curate.train.model.slabs import Slabs


def outcome(
    path: Path, sequences: list[PromptCompletion], lean: bool, monkeypatch: Any, **compute: Any
) -> Any:
    """Return log-probs, gradients, and bytes kept for the backward pass (without weights)."""
    from curate.train.model import policy as model

    with monkeypatch.context() as patch:
        if not lean:
            patch.setattr(model, "use_lean_layers", lambda *_: None)
        policy, _ = load_policy(path, ModelConfig(device="cpu", **compute))
    own = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    kept: dict[int, int] = {}

    def record(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.nbytes  # in a slab (slabs.py), the part of this tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda x: x):
        values = policy.logprobs(policy.layout(sequences))[0]
    (values * torch.linspace(-1, 1, values.numel())).sum().backward()
    return (
        values.detach(),
        {n: p.grad for n, p in policy.model.named_parameters()},
        sum(kept.values()),
    )


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_values_are_the_same_and_less_is_kept(
    tiny_dir: Path,
    sequences: list[PromptCompletion],
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
) -> None:
    plain = outcome(tiny_dir, sequences, False, monkeypatch, precision=precision)
    lean = outcome(tiny_dir, sequences, True, monkeypatch, precision=precision)
    assert torch.equal(plain[0], lean[0])
    assert plain[1].keys() == lean[1].keys()
    tolerance = 2e-2 if precision == "bf16" else 1e-5
    for name, gradient in plain[1].items():
        assert (gradient - lean[1][name]).norm() <= tolerance * gradient.norm(), name
    assert lean[2] < (0.55 if precision == "bf16" else 0.65) * plain[2]


def test_a_norm_in_one_kernel_as_on_a_gpu(
    tiny_dir: Path, sequences: list[PromptCompletion], monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate.train.model import layers as lean

    written = outcome(tiny_dir, sequences, True, monkeypatch, precision="fp32")
    monkeypatch.setattr(lean, "_one_kernel", lambda x: True)
    fused = outcome(tiny_dir, sequences, True, monkeypatch, precision="fp32")
    assert torch.allclose(written[0], fused[0], atol=1e-5)
    for name, gradient in written[1].items():
        assert (gradient - fused[1][name]).norm() <= 1e-5 * gradient.norm(), name


def test_states_of_a_norm_are_normalised_again_once_for_all_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After two calls of one norm, each layer gets the output of its own call."""
    from curate.train.model import layers as lean

    class Two(torch.nn.Module):
        class LlamaRMSNorm(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight, self.variance_epsilon = (
                    torch.nn.Parameter(torch.linspace(0.5, 2, 6)),
                    1e-6,
                )

            def forward(self, x: Any) -> Any:
                return self.weight * (
                    x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
                )

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.one, self.two = (
                self.LlamaRMSNorm(),
                torch.nn.Linear(6, 3),
                torch.nn.Linear(6, 3),
            )

        def forward(self, x: Any) -> Any:
            y, z = self.norm(x), self.norm(x.square())
            return (self.one(y) * self.two(z) + self.two(y)).sum()

        def get_output_embeddings(self) -> None:
            return None

    torch.manual_seed(0)
    plain, x = Two(), torch.randn(4, 6)
    plain(x).backward()
    expected = {name: p.grad.clone() for name, p in plain.named_parameters()}
    plain.zero_grad()
    use_lean_layers(plain, None)
    calls = []
    normalise = lean._normalise
    monkeypatch.setattr(lean, "_normalise", lambda *a: calls.append(1) or normalise(*a))
    plain(x).backward()
    for name, parameter in plain.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], atol=1e-5), name
    assert 2 <= len(calls) <= 3  # three products, two norms


def test_adapters_and_checkpointing_work_with_lean_layers(
    tiny_dir: Path, sequences: list[PromptCompletion], monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate.train.config import LoraConfig

    outcomes = []
    for lean in (False, True):
        torch.manual_seed(0)
        options: dict[str, Any] = {
            "lora": LoraConfig(rank=2),
            "gradient_checkpointing": True,
            "precision": "bf16",
        }
        outcomes.append(outcome(tiny_dir, sequences, lean, monkeypatch, **options))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    trained = {name for name, gradient in outcomes[1][1].items() if gradient is not None}
    assert trained == {name for name, gradient in outcomes[0][1].items() if gradient is not None}
    assert all("lora_" in name for name in trained)
    for name in trained:
        assert (outcomes[0][1][name] - outcomes[1][1][name]).norm() <= 2e-2 * outcomes[0][1][
            name
        ].norm() + 1e-6, name


@pytest.mark.parametrize("index", range(3))
def test_gradients_of_each_function_by_finite_differences(index: int) -> None:
    g = torch.Generator().manual_seed(index)

    def draw(*shape: int) -> Any:
        return torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=True)

    function = (LeanLinear, LeanGatedMLP, LeanNorm)[index]
    inputs: list[tuple[Any, ...]] = [
        (draw(3, 2, 5), draw(4, 5), draw(4), torch.float64, LeanLayers(None, Slabs())),
        (draw(3, 2, 5), draw(3, 2, 5), draw(4, 5), Slabs()),
        (draw(3, 2, 5), draw(5), 1e-6),
    ]
    assert torch.autograd.gradcheck(function.apply, inputs[index])


def test_a_norm_that_computes_something_else_is_left_alone() -> None:
    class OddRMSNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = torch.nn.Parameter(torch.ones(4)), 1e-6

        def forward(self, x: Any) -> Any:
            return (1 + self.weight) * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    class LateRMSNorm(OddRMSNorm):
        """OLMo 2's norm, which rounds after the weight: in fp32 it is the same as Llama's."""

        def forward(self, x: Any) -> Any:
            wide = x.float()
            wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.variance_epsilon)
            return (self.weight * wide).to(x.dtype)

    class LlamaRMSNorm(OddRMSNorm):
        def forward(self, x: Any) -> Any:
            wide = x.float()
            wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
            return self.weight * wide.to(x.dtype)

    assert not is_norm(OddRMSNorm())
    assert not is_norm(LateRMSNorm())
    assert is_norm(LlamaRMSNorm())


def test_a_gated_layer_that_computes_something_else_is_left_alone() -> None:
    class Gated(torch.nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.gate_proj, self.up_proj = (
                torch.nn.Linear(4, 6, bias=False),
                torch.nn.Linear(4, 6, bias=False),
            )
            self.down_proj, self.act_fn, self.scale = (
                torch.nn.Linear(6, 4, bias=False),
                torch.nn.SiLU(),
                scale,
            )

        def forward(self, x: Any) -> Any:
            return self.down_proj(self.act_fn(self.gate_proj(x) * self.scale) * self.up_proj(x))

    assert is_gated(Gated(1.0))
    assert not is_gated(Gated(0.5))


def test_class_and_weight_names_stay_and_a_frozen_layer_keeps_no_input(tiny_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tiny_dir)
    policy: Policy = load_policy(tiny_dir, ModelConfig(precision="bf16", device="cpu"))[0]
    assert [(n, type(m)) for n, m in plain.named_modules()] == [
        (n, type(m)) for n, m in policy.model.named_modules()
    ]
    assert list(plain.state_dict()) == list(policy.model.state_dict())
    layer = policy.model.model.layers[0].self_attn.q_proj
    layer.weight.requires_grad_(False)
    kept: list[Any] = []

    def record(tensor: Any) -> Any:
        kept.append(tensor)
        return tensor

    x = torch.ones(2, layer.in_features, requires_grad=True)
    with (
        torch.autograd.graph.saved_tensors_hooks(record, lambda t: t),
        torch.autocast("cpu", torch.bfloat16),
    ):
        out = layer(x)
    out.sum().backward()
    assert [t.shape for t in kept] == [layer.weight.shape]
    assert x.grad is not None


def test_the_same_input_changed_in_place_is_cast_again() -> None:
    layer = torch.nn.Linear(4, 4)
    model = torch.nn.Module()
    model.layer, model.get_output_embeddings = layer, lambda: None
    use_lean_layers(model, torch.bfloat16)
    x = torch.ones(1, 4)
    with torch.autocast("cpu", torch.bfloat16):
        first = layer(x)  # its graph keeps the cast alive
        x.mul_(3)
        second = layer(x)
    assert not torch.equal(first, second)


def test_summing_into_the_gradient_in_place_equals_autograd(
    tiny_dir: Path, sequences: list[PromptCompletion]
) -> None:
    gradients = []
    for own in (True, False):
        policy: Policy = load_policy(tiny_dir, ModelConfig(precision="fp32", device="cpu"))[0]
        policy.module.sharded = not own
        for part in (sequences[:3], sequences[3:]):  # two micro-batches: gradients add up
            policy.logprobs(policy.layout(part))[0].sum().backward()
        gradients.append({n: p.grad for n, p in policy.model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize(
    ("name", "fp32"), [("DeepSeek-V3, Kimi K2", True), ("GLM-4.5", True), ("Qwen 3 MoE", False)]
)
def test_routers_that_cast_to_fp32_do_so_under_autocast(name: str, fp32: bool) -> None:
    from tests.train.test_architectures import CASES, build

    model = build(next(case for case in CASES if str(case) == name)).float().eval()
    routers = [m for m in model.modules() if "Router" in type(m).__name__]
    states = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    plain = [router(states) for router in routers]
    use_lean_layers(model, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        lean = [router(states) for router in routers]
    assert routers
    for one, other in zip(plain, lean, strict=True):
        assert torch.equal(one[0], other[0]) == fp32, "router logits"
