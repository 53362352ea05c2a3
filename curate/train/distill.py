"""Distillation from a teacher to a student in three ways, from the cheapest to the closest.

- `kind: sequences`: SFT on a corpus that the teacher sampled, the report's way; any two tokenizers;
- `kind: forward | reverse`: the exact divergence from the teacher's next-token distribution at
  every completion token of a corpus, forward (covers everything the teacher does) or reverse (keeps
  to what the teacher finds likely); one tokenizer;
- `kind: on-policy`: GRPO with the teacher as the reference: the student samples, and the teacher
  scores each token (`on_policy.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from curate.engines.models import weights_hash
from curate.errors import UsageError
from curate.train.config import DistillConfig
from curate.train.losses import sft_loss
from curate.train.model.layout import Layout
from curate.train.model.loading import load_policy
from curate.train.model.policy import Policy
from curate.train.result import TrainResult
from curate.train.runs import ProgressCallback
from curate.train.sft import train_sft
from curate.warehouse import Warehouse


def train_distill(
    config: DistillConfig,
    wh: Warehouse,
    progress: ProgressCallback | None = None,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> TrainResult:
    """Train the student `config.model` on `config.corpus` towards `config.teacher`.

    loss = (1 - mix) T^2 KL + mix NLL, each a mean over completion tokens. T is the temperature of
    both distributions, and T^2 preserves the scale of the gradient (Hinton et al. 2015, arXiv
    1503.02531, section 2). Raises UsageError if the two models do not share a tokenizer.
    """
    inputs = {"teacher": weights_hash(config.teacher)}
    if config.kind == "sequences":
        return train_sft(config, wh, progress, kind="distill", inputs=inputs, say=say)
    check_same_tokens(config.teacher, config.model)
    kind = config.kind
    teacher: list[Policy] = []  # loaded by the first batch: a finished run needs none

    def objective(policy: Policy, layout: Layout, weight: Tensor) -> Tensor:
        if not teacher:
            teacher.append(load_policy(config.teacher, config.compute, frozen=True)[0])
        new, divergences = policy.divergences(
            layout, teacher[0], kind=kind, temperature=config.temperature
        )
        distance = (weight * divergences).sum() * config.temperature**2
        return (1 - config.mix) * distance + config.mix * sft_loss(new, weight)

    return train_sft(
        config, wh, progress, objective=objective, kind="distill", inputs=inputs, say=say
    )


def check_same_tokens(teacher: str, student: str) -> None:
    """Raise UsageError if token ids have different meanings for the two models."""
    from transformers import AutoTokenizer

    first, second = (
        vocabulary(AutoTokenizer.from_pretrained(path, local_files_only=True))
        for path in (teacher, student)
    )
    if first != second:
        raise UsageError(
            f"teacher {teacher} and student {student} do not share a tokenizer, so their logits "
            "cannot be compared: let the teacher sample a corpus and train on it (kind: sequences)"
        )


def vocabulary(tokenizer: Any) -> dict[str, int]:
    return dict(tokenizer.get_vocab())
