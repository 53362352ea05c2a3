"""Tensors in slabs keep their values, in separate memory that is freed when no longer needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from curate.train.config import ModelConfig
from curate.train.model import slabs as module
from curate.train.model.layout import PromptCompletion
from curate.train.model.loading import load_policy
from curate.train.model.slabs import Slabs, trim_heap


def test_copies_are_equal_contiguous_aligned_and_apart() -> None:
    slabs = Slabs()
    given = [torch.randn(n, 7)[:, ::2] for n in (1, 5, 300)] + [
        torch.randn(3, 3, dtype=torch.float64)
    ]
    copies = [slabs.copy_to_slab(x) for x in given] + [slabs.copy_to_slab(given[0], torch.bfloat16)]
    for x, copy in zip([*given, given[0].bfloat16()], copies, strict=True):
        assert torch.equal(x, copy)
        assert copy.dtype == x.dtype
        assert copy.is_contiguous()
        assert copy.data_ptr() % 64 == 0
        assert not copy.requires_grad
        assert not copy._is_view()
    before = [copy.clone() for copy in copies]
    copies[1].zero_()
    assert all(
        torch.equal(a, b) for i, (a, b) in enumerate(zip(before, copies, strict=True)) if i != 1
    )


def test_a_full_slab_is_followed_by_another_and_larger_tensors_are_not_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SLAB", 1 << 12)
    slabs = Slabs()
    held = [slabs.copy_to_slab(torch.full((300,), float(i))) for i in range(30)]
    assert len({x.untyped_storage().data_ptr() for x in held}) == 10  # three of 1,216 bytes in each
    assert all(bool((x == i).all()) for i, x in enumerate(held))
    large = torch.ones(3000, requires_grad=True)
    assert slabs.copy_to_slab(large).data_ptr() == large.data_ptr()


def test_slabs_go_back_to_the_system() -> None:
    slabs = Slabs()

    def resident() -> int:
        slabs.start_new()
        trim_heap(torch.device("cpu"))
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    held = [slabs.copy_to_slab(torch.ones(1 << 20)) for _ in range(60)]
    assert resident() - before > 200 << 20
    del held
    assert resident() - before < 60 << 20


def test_only_the_first_gradient_of_a_step_is_in_a_slab() -> None:
    weight, product = torch.nn.Parameter(torch.ones(4, 4)), torch.ones(4, 4)
    slabs = Slabs()
    first = slabs.gradient(product, weight)
    assert first.data_ptr() != product.data_ptr()
    weight.grad = first
    assert slabs.gradient(product, weight) is product


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_slabs_change_no_bit(
    tiny_dir: Path,
    sequences: list[PromptCompletion],
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
) -> None:
    def gradients() -> dict[str, Any]:
        policy, _ = load_policy(tiny_dir, ModelConfig(device="cpu", precision=precision))
        for part in (sequences[:3], sequences[3:]):
            values = policy.logprobs(policy.layout(part))[0]
            (values * torch.linspace(-1, 1, values.numel())).sum().backward()
        return {name: parameter.grad for name, parameter in policy.model.named_parameters()}

    apart = gradients()
    monkeypatch.setattr(Slabs, "copy_to_slab", lambda _, x: x.detach())
    monkeypatch.setattr(Slabs, "gradient", lambda _, product, weight: product.to(weight.dtype))
    together = gradients()
    assert apart.keys() == together.keys()
    assert all(torch.equal(apart[name], together[name]) for name in apart)
