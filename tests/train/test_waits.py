"""A micro-batch reads no number from the device: each reading makes the CPU wait for a GPU.

Counted on a CPU by the operators that would wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode

from curate.train.config import GRPOConfig
from curate.train.grpo import RolloutRow, grpo_step
from curate.train.ranks import Ranks
from curate.train.sft import TrainingExample, likelihood, sft_step
from tests.train.conftest import policy_of, ragged

WAITING = {
    "aten::_local_scalar_dense",  # .item(), float(), bool()
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_consecutive",
    "aten::equal",
    "aten::is_nonzero",
}


class Waits(TorchDispatchMode):
    """Counts operators that make the CPU wait."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = operator._schema.name
        if name in WAITING:
            self.counts[name] += 1
        if name in ("aten::index", "aten::index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        ):
            self.counts[f"{name} by a mask"] += 1
        return operator(*args, **(kwargs or {}))


@contextmanager
def readings() -> Iterator[list[int]]:
    """Counts calls of `tolist`, which passes the dispatcher by."""
    plain, calls = torch.Tensor.tolist, [0]

    def counted(self: Any) -> Any:
        calls[0] += self.requires_grad or self.grad_fn is not None or self.dtype == torch.float64
        return plain(self)

    torch.Tensor.tolist = counted
    try:
        yield calls
    finally:
        torch.Tensor.tolist = plain


def rows() -> list[RolloutRow]:
    return [
        RolloutRow(
            tokens,
            f"t{i}",
            i // 4,
            (-1.0) ** i,
            i != 5,
            [-1.0] * len(tokens.completion),
            old=torch.full((len(tokens.completion),), -1.0),
            ref=torch.full((len(tokens.completion),), -1.1),
        )
        for i, tokens in enumerate(ragged())
    ]


@pytest.mark.parametrize("micro", [1, 5000])
@pytest.mark.parametrize(
    "loss",
    [
        {"beta": 0.01},
        {"ratio": "sequence", "sampler_mask": (0.5, 2.0), "mask_level": "sequence"},
        {"beta": 0.1, "correct_kl": True, "entropy_bonus": 0.01},
    ],
)
def test_a_step_of_grpo_reads_once(tiny_dir: Path, loss: dict[str, Any], micro: int) -> None:
    policy = policy_of(tiny_dir, double=False, micro_batch_tokens=micro)
    config = GRPOConfig.model_validate({"model": "x", "loss": loss})
    with Waits() as waits, readings() as calls:
        sums = grpo_step(policy, rows(), config, Ranks(), 1)
    assert sums["computed"] == 7
    assert sums["tokens"] > 0
    assert not waits.counts
    assert calls[0] <= 2, "weights of the rows, and all sums"


@pytest.mark.parametrize("micro", [1, 5000])
def test_a_step_of_sft_reads_once(tiny_dir: Path, micro: int) -> None:
    policy = policy_of(tiny_dir, double=False, micro_batch_tokens=micro)
    examples = [TrainingExample(tokens, 1.0, "t", 0.5) for tokens in ragged()]
    with Waits() as waits:
        loss, _ = sft_step(policy, examples, Ranks(), likelihood)
    assert loss > 0
    assert not waits.counts


def test_the_counter_sees_what_waits() -> None:
    with Waits() as waits:
        x = torch.arange(4.0)
        float(x.sum())
        x[x > 1].sum()
    assert set(waits.counts) >= {"aten::_local_scalar_dense", "aten::index by a mask"}
