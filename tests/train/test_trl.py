"""Our policy loss against TRL's own code, by value and gradient.

With `trl` installed its loss function is executed; else its stored results are compared.

    python -m tests.train.test_trl        stores them again (needs `pip install trl==1.16.0`)
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from curate.train.losses import PolicyTokens, policy_loss, row_weights

STORED = Path(__file__).parent / "trl_losses.json"
LENGTHS = [11, 3, 7, 1, 9, 5]  # tokens of the completions
ROWS, WIDTH, LIMIT = len(LENGTHS), max(LENGTHS), 16


@dataclass(frozen=True)
class Case:
    """Options of one loss, in our words."""

    normalisation: str = "grpo"
    ratio: str = "token"
    objective: str = "clip"
    clip_high: float = 0.2
    beta: float = 0.0
    correct_kl: bool = False
    sampler_cap: float | None = None
    on_policy: bool = False
    masked: bool = False  # two of the six rows were cut off
    entropy_bonus: float = 0.0

    def __str__(self) -> str:
        default = asdict(Case())
        return "-".join(f"{k}={v}" for k, v in asdict(self).items() if v != default[k]) or "plain"


VARIANTS: list[dict[str, Any]] = [
    {"on_policy": True},
    {"clip_high": 0.28},
    {"beta": 0.04},
    {"beta": 0.04, "sampler_cap": 2.0},
    {"masked": True, "sampler_cap": 2.0},
]
CASES = [
    Case(normalisation, ratio, **variant)
    for normalisation, ratio, variant in product(
        ("grpo", "dapo", "dr_grpo"), ("token", "sequence"), VARIANTS
    )
]
CASES += [
    Case("dapo", objective="cispo", clip_high=4.0),
    Case("dapo", objective="cispo", clip_high=4.0, masked=True, beta=0.04, sampler_cap=2.0),
    Case("grpo", beta=0.04, correct_kl=True),
    Case("dapo", beta=0.04, correct_kl=True, on_policy=True),
    Case("dapo", entropy_bonus=0.01),
    Case("dapo", entropy_bonus=0.01, masked=True),
]


@dataclass
class Inputs:
    """Random log-probs `[ROWS, WIDTH]` in float64, the same on every machine."""

    new: Any
    old: Any
    ref: Any
    sampler: Any
    entropy: Any
    advantage: Any  # [ROWS]
    kept: Any  # [ROWS]


def inputs(case: Case) -> Inputs:
    dice = random.Random(str(case))

    def near(center: Any, spread: float) -> Any:
        noise = [[dice.gauss(0, spread) for _ in range(WIDTH)] for _ in range(ROWS)]
        return center + torch.tensor(noise, dtype=torch.float64)

    old = -near(torch.zeros(ROWS, WIDTH, dtype=torch.float64), 1.5).abs()
    return Inputs(
        new=near(old, 0.3).requires_grad_(),
        old=old,
        ref=near(old, 0.2),
        sampler=near(old, 0.4),
        entropy=near(old, 0.5).abs().requires_grad_(),
        advantage=torch.tensor([dice.gauss(0, 1) for _ in range(ROWS)], dtype=torch.float64),
        kept=torch.tensor([not case.masked or i not in (3, 5) for i in range(ROWS)]),
    )


MASK = torch.arange(WIDTH)[None] < torch.tensor(LENGTHS)[:, None]


def ours(case: Case, given: Inputs) -> Any:
    flat = MASK
    weight = row_weights(torch.tensor(LENGTHS), given.kept, case.normalisation, LIMIT)  # type: ignore[arg-type]
    tokens = PolicyTokens(
        new=given.new[flat],
        row=torch.arange(ROWS)[:, None].expand(ROWS, WIDTH)[flat],
        advantage=given.advantage,
        weight=weight,
        old=None if case.on_policy else given.old[flat],
        ref=given.ref[flat] if case.beta else None,
        sampler=given.sampler[flat],
        entropy=given.entropy[flat],
    )
    return policy_loss(
        tokens,
        clip_low=1.0 if case.objective == "cispo" else 0.2,
        clip_high=case.clip_high,
        ratio=case.ratio,  # type: ignore[arg-type]
        beta=case.beta,
        kl="k3",
        sampler_cap=case.sampler_cap,
        objective=case.objective,  # type: ignore[arg-type]
        correct_kl=case.correct_kl,
        entropy_bonus=case.entropy_bonus,
    ).loss


def trls(case: Case, given: Inputs) -> Any:
    """`GRPOTrainer._compute_loss` as it is, on an object with the attributes that it reads."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    trainer = GRPOTrainer.__new__(GRPOTrainer)
    cispo = case.objective == "cispo"
    correction = case.sampler_cap is not None
    attributes = {
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": case.ratio,
        "beta": case.beta,
        "loss_type": "cispo" if cispo else case.normalisation,
        "epsilon_low": 0.2,
        "epsilon_high": 1 + case.clip_high if cispo else case.clip_high,
        "use_vllm": correction,
        "vllm_importance_sampling_correction": correction,
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": LIMIT,
        "_entropy_bonus_enabled": case.entropy_bonus > 0,
        "use_adaptive_entropy": False,
        "entropy_coef": case.entropy_bonus,
        "aux_loss_enabled": False,
        "model": SimpleNamespace(training=True),
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "args": SimpleNamespace(
            use_bias_correction_kl=case.correct_kl, delta=None, steps_per_generation=1
        ),
        "accelerator": SimpleNamespace(
            num_processes=1,
            sync_gradients=True,
            gather=lambda x: x.reshape(-1),
            gather_for_metrics=lambda x: x,
            reduce=lambda x, reduction=None: x,
        ),
        "_get_per_token_logps_and_entropies": lambda *_, **__: (given.new, given.entropy, None),
    }
    for name, value in attributes.items():
        setattr(trainer, name, value)
    mask = (MASK & given.kept[:, None]).double()
    batch = {
        "prompt_ids": torch.zeros(ROWS, 1),
        "prompt_mask": torch.ones(ROWS, 1),
        "completion_ids": torch.zeros(ROWS, WIDTH),
        "completion_mask": mask,
        "advantages": given.advantage,
        "ref_per_token_logps": given.ref,
        "num_items_in_batch": mask.sum(),
    }
    if not case.on_policy:
        batch["old_per_token_logps"] = given.old
    if correction:
        old = given.new.detach() if case.on_policy else given.old
        batch["importance_sampling_ratio"] = (old - given.sampler).exp().clamp(max=case.sampler_cap)
    return GRPOTrainer._compute_loss(trainer, None, batch)


def measured(loss: Any, given: Inputs) -> list[float]:
    """The loss, and per row its gradients by log-probs and entropies, times a weight per token."""
    given.new.grad = given.entropy.grad = None
    loss.backward()
    weights = torch.linspace(1, 2, WIDTH, dtype=torch.float64) * MASK
    by_new = (given.new.grad * weights).sum(-1).tolist()
    by_entropy = [] if given.entropy.grad is None else (given.entropy.grad * weights).sum(-1)
    return [loss.item(), *by_new, *(float(x) for x in by_entropy)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_policy_loss_and_its_gradient_are_those_of_trl(case: Case) -> None:
    given = inputs(case)
    expected = json.loads(STORED.read_text(encoding="utf-8"))[str(case)]
    if find_spec("trl"):
        executed = measured(trls(case, given), given)
        assert executed == pytest.approx(expected, rel=1e-9, abs=1e-12), "stored by another version"
    value_and_gradient = measured(ours(case, given), given)
    if case.masked and case.normalisation == "grpo":
        # A decision (docs/train.md): rows that are cut off do not make the step of others smaller.
        # TRL divides by all rows, as we do for dr_grpo.
        value_and_gradient = [
            value * float(given.kept.sum()) / ROWS for value in value_and_gradient
        ]
    assert value_and_gradient == pytest.approx(expected, rel=1e-8, abs=1e-10)
    assert max(map(abs, expected[1:])) > 1e-3, "zeros would prove nothing"


def test_stored_values_are_those_of_the_cases() -> None:
    assert set(json.loads(STORED.read_text(encoding="utf-8"))) == set(map(str, CASES))


if __name__ == "__main__":
    values = {}
    for case in CASES:
        given = inputs(case)
        values[str(case)] = [float(f"{x:.13g}") for x in measured(trls(case, given), given)]
    lines = [f"{json.dumps(name)}: {json.dumps(row)}" for name, row in values.items()]
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
