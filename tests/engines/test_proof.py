"""The proof that weights arrived sees every tensor: renamed, fused, split, padded or reordered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from curate.engines import proof
from curate.engines.proof import (
    SentFiles,
    SentHashes,
    checksum,
    compare_model,
    describe,
    expected_hashes,
    prove,
)

H, F, E = 8, 6, 4  # width, width of an expert, experts


def checkpoint() -> dict[str, Any]:
    """A layer with fused attention, experts in bf16 and an expert bias in fp32."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, dtype: Any = torch.bfloat16) -> Any:
        return torch.randn(*shape, generator=generator).to(dtype)

    layer = "model.layers.0"
    tensors = {"model.embed_tokens.weight": draw(10, H), f"{layer}.norm.weight": draw(H)}
    tensors |= {f"{layer}.self_attn.{n}_proj.weight": draw(H, H) for n in "qkv"}
    tensors[f"{layer}.mlp.gate.e_score_correction_bias"] = draw(E, dtype=torch.float32)
    for e in range(E):
        for name, shape in (("gate_proj", (F, H)), ("up_proj", (F, H)), ("down_proj", (H, F))):
            tensors[f"{layer}.mlp.experts.{e}.{name}.weight"] = draw(*shape)
    return tensors


def engine_of(tensors: dict[str, Any]) -> dict[str, Any]:
    """The same weights in vLLM's layout."""
    layer = "model.layers.0"
    experts = [f"{layer}.mlp.experts.{e}" for e in range(E)]

    def rows(*names: str) -> Any:
        return torch.cat([tensors[name] for name in names])

    return {
        # the vocabulary is padded
        "model.embed_tokens.weight": torch.cat(
            [tensors["model.embed_tokens.weight"], torch.zeros(6, H, dtype=torch.bfloat16)]
        ),
        f"{layer}.norm.weight": tensors[f"{layer}.norm.weight"].clone(),
        f"{layer}.self_attn.qkv_proj.weight": rows(
            *(f"{layer}.self_attn.{n}_proj.weight" for n in "qkv")
        ),
        f"{layer}.mlp.gate.e_score_correction_bias": tensors[
            f"{layer}.mlp.gate.e_score_correction_bias"
        ].clone(),
        f"{layer}.mlp.experts.routed_experts.w13_weight": torch.stack(
            [rows(f"{e}.gate_proj.weight", f"{e}.up_proj.weight") for e in experts]
        ),
        f"{layer}.mlp.experts.routed_experts.w2_weight": torch.stack(
            [tensors[f"{e}.down_proj.weight"] for e in experts]
        ),
    }


class Model:
    """The parts of a vLLM model that the proof uses."""

    def __init__(self, tensors: dict[str, Any], **attributes: Any) -> None:
        self.tensors = tensors
        vars(self).update(attributes)

    def named_parameters(self) -> list[tuple[str, Any]]:
        return list(self.tensors.items())


@pytest.fixture(params=["files", "hashes"])
def sent(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Any]:
    """The tensors sent by the trainer, as files or as hashes."""
    from safetensors.torch import save_file

    def make(tensors: dict[str, Any], ranks: int = 1) -> Any:
        if request.param == "hashes":
            return SentHashes(expected_hashes(tensors, ranks, torch.bfloat16))
        save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "m.safetensors")
        return SentFiles(str(tmp_path), ranks)

    return make


def test_a_checksum_is_the_same_in_any_order_and_ignores_zeros() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        y = x.to(dtype)
        padded = torch.cat([y.flip(0), torch.zeros(24, dtype=dtype)]).view(32, 32)
        assert checksum(padded.t()) == checksum(y)
        changed = y.clone()
        changed[7] *= 1.5
        assert checksum(changed) != checksum(y)
        changed = y.clone()
        changed[3] = y[4]
        assert checksum(changed) != checksum(y)
    assert checksum(torch.zeros(5)) == 0


def test_all_tensors_are_compared_bit_for_bit(sent: Callable[..., Any]) -> None:
    tensors = checkpoint()
    result = compare_model(Model(engine_of(tensors)), sent(tensors))
    assert set(result["exact"]) == set(engine_of(tensors))
    assert (result["sums"], result["unseen"]) == ({}, [])
    assert describe(prove([result], "it")) == (
        "weights in the engine: 6 tensors compared bit for bit"
    )


class PackedModel(Model):
    """A model whose attention is packed away: vLLM's CPU kernels keep a product, and no weight."""

    NAME = "model.layers.0.self_attn.qkv_proj.weight"

    def __init__(self, tensors: dict[str, Any]) -> None:
        packed = tensors[self.NAME].clone()
        empty = torch.empty(0, dtype=packed.dtype)
        super().__init__(tensors | {self.NAME: empty})
        self.layer = SimpleNamespace(
            weight=empty,
            cpu_linear=lambda x, weight, bias: torch.nn.functional.linear(x, packed, bias),
        )

    def get_submodule(self, name: str) -> Any:
        return self.layer if f"{name}.weight" == self.NAME else SimpleNamespace()


def test_columns_of_packed_matrices_are_compared(
    sent: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "COLUMNS", 3)
    tensors = checkpoint()
    result = compare_model(PackedModel(engine_of(tensors)), sent(tensors))
    assert result["columns"] == {PackedModel.NAME: True}
    assert describe(prove([result], "it")) == (
        "weights in the engine: 5 tensors compared bit for bit, 1 packed in 3 columns each"
    )
    stale = tensors | {k: v * 1.25 for k, v in tensors.items() if "v_proj" in k}
    changed = compare_model(PackedModel(engine_of(stale)), sent(tensors))
    assert changed["digest"] != result["digest"]
    with pytest.raises(RuntimeError, match=r"the engine differs from .* in 1 tensor, .*qkv"):
        prove([changed], "it")


def test_a_weight_that_is_empty_and_cannot_be_read_back_is_listed(
    sent: Callable[..., Any],
) -> None:
    tensors = checkpoint()
    model = PackedModel(engine_of(tensors))
    del model.layer.cpu_linear
    result = compare_model(model, sent(tensors))
    assert result["unseen"] == [PackedModel.NAME]
    assert "not compared: 1, such as model.layers.0" in describe(prove([result], "it"))


def test_experts_in_the_order_of_a_kernel_are_compared_by_checksum(
    sent: Callable[..., Any],
) -> None:
    tensors = checkpoint()
    for order in (
        lambda w: w.flip(1),  # up before gate
        lambda w: w.transpose(1, 2).contiguous(),
        lambda w: torch.nn.functional.pad(w, (0, 8)).view(E, -1),
    ):
        held = engine_of(tensors)
        name = "model.layers.0.mlp.experts.routed_experts.w13_weight"
        held[name] = order(held[name])
        result = compare_model(Model(held), sent(tensors))
        assert set(result["sums"]) == {name}
        assert "1 by checksums in any order" in describe(prove([result], "it"))
        held[name].view(-1)[13] += 1
        with pytest.raises(RuntimeError, match=r"the engine differs from it in 1 tensor, .*w13"):
            prove([compare_model(Model(held), sent(tensors))], "it")


@pytest.mark.parametrize("place", range(6))
def test_a_change_in_any_tensor_is_detected(sent: Callable[..., Any], place: int) -> None:
    tensors = checkpoint()
    held = engine_of(tensors)
    name = list(held)[place]
    held[name].view(-1)[1] *= -1
    with pytest.raises(RuntimeError, match=f"the first is {name}"):
        prove([compare_model(Model(held), sent(tensors))], "it")


def test_tensors_without_a_counterpart_are_named(sent: Callable[..., Any]) -> None:
    tensors = checkpoint()
    held = engine_of(tensors) | {"model.extra.scale": torch.ones(3)}
    result = compare_model(Model(held), sent(tensors))
    assert "not compared: 1, such as model.extra.scale" in describe(prove([result], "it"))
    with pytest.raises(RuntimeError, match="nothing proves the update"):
        prove([compare_model(Model({"other": torch.ones(2, 2)}), sent(tensors))], "it")


def test_names_and_fusions_are_those_of_the_model(sent: Callable[..., Any]) -> None:
    class Mapper:
        def map_name(self, name: str) -> str:
            return name.replace("model.", "language_model.model.", 1)

    tensors = {f"model.a.{n}.weight": torch.randn(3, 4).bfloat16() for n in ("x", "y")}
    held = {"language_model.model.a.xy.weight": torch.cat(list(tensors.values()))}
    model = Model(held, hf_to_vllm_mapper=Mapper(), packed_modules_mapping={"xy": ["x", "y"]})
    assert compare_model(model, sent(tensors))["exact"] == {
        "language_model.model.a.xy.weight": True
    }


@dataclass(frozen=True)
class StackingMapper:
    """vLLM's mapping of names, which gives parts that it stacks one name."""

    orig_to_new_stacked: dict[str, tuple[str, int]]

    def map_name(self, name: str) -> str:
        for part, (fused, _) in self.orig_to_new_stacked.items():
            name = name.replace(part, fused)
        return name


def test_parts_that_vllm_stacks_by_its_mapping_are_all_compared(
    sent: Callable[..., Any],
) -> None:
    mapper = StackingMapper({".x": (".xy", 0), ".y": (".xy", 1)})
    tensors = {f"model.a.{n}.weight": torch.randn(3, 4).bfloat16() for n in ("x", "y")}
    name = "model.a.xy.weight"
    held = {name: torch.cat(list(tensors.values()))}
    assert compare_model(Model(held, hf_to_vllm_mapper=mapper), sent(tensors))["exact"] == {
        name: True
    }
    held[name][0] += 1
    with pytest.raises(RuntimeError, match=r"the first is model\.a\.xy"):
        prove([compare_model(Model(held, hf_to_vllm_mapper=mapper), sent(tensors))], "it")


def test_ranks_are_judged_together(sent: Callable[..., Any]) -> None:
    """Tensor parallelism: fused and expert matrices are split, norms are whole on every rank."""
    tensors = checkpoint()
    whole = engine_of(tensors)

    def ranks() -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [{}, {}]
        for name, tensor in whole.items():
            for rank, part in enumerate(parts):
                if tensor.ndim < 2:
                    part[name] = tensor.clone()
                elif "qkv" in name:  # half the heads of each
                    part[name] = torch.cat([x.chunk(2)[rank] for x in tensor.chunk(3)])
                elif "w13" in name:
                    halves = [x.chunk(2, 1)[rank] for x in tensor.chunk(2, 1)]
                    part[name] = torch.cat(halves, 1)
                else:
                    part[name] = tensor.chunk(2, -1)[rank].clone()
        return parts

    held = ranks()
    results = [compare_model(Model(part), sent(tensors, 2), i, 2) for i, part in enumerate(held)]
    assert prove(results, "it")["unseen"] == []
    name = "model.layers.0.self_attn.qkv_proj.weight"
    assert name in results[0]["sums"]
    held[1][name][0, 0] += 1
    results = [compare_model(Model(part), sent(tensors, 2), i, 2) for i, part in enumerate(held)]
    with pytest.raises(RuntimeError, match=name):
        prove(results, "it")


def test_of_a_large_model_every_tensor_is_still_compared(
    sent: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "PROOF_BYTES", 300)
    tensors = checkpoint()
    held = engine_of(tensors)
    result = compare_model(Model(held), sent(tensors))
    assert result["sums"]
    assert result["exact"].keys() | result["sums"].keys() == held.keys()
