"""Distillation on logits: the student learns the teacher's whole next-token distribution on the texts of a corpus.

Three ways from a teacher to a student, from cheap to close:
- on sequences: SFT on a corpus that the teacher sampled, the report's way (`curate train sft`); any two tokenizers;
- on logits, here: the exact divergence at every completion token, forward (covers all the teacher does) or reverse
  (keeps to what the teacher holds likely); one tokenizer;
- on-policy: GRPO whose reference is the teacher (`loss: {beta: 1, kl: k1, reference: TEACHER}` and
  `rewards: {accuracy: 0}`): the student samples, and the teacher scores each token it sampled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curate.errors import UsageError
from curate.train.checkpoints import TrainResult
from curate.train.config import DistillConfig
from curate.train.layout import Layout
from curate.train.losses import sft_loss
from curate.train.model import Policy, load_policy
from curate.train.sft import Progress, train_sft

if TYPE_CHECKING:
    from torch import Tensor

    from curate.warehouse import Warehouse


def train_distill(config: DistillConfig, wh: Warehouse, progress: Progress | None = None) -> TrainResult:
    """Train the student `config.model` on `config.corpus` towards `config.teacher`.

    loss = (1 - mix) T^2 KL + mix NLL, each the mean over completion tokens; T is the temperature of both
    distributions, and T^2 keeps the size of the gradient (Hinton et al. 2015, arXiv 1503.02531, section 2).
    Raises UsageError where the two models do not share a tokenizer.
    """
    from curate.engines.models import weights_hash

    check_same_tokens(config.teacher, config.model)
    teacher: list[Policy] = []  # loaded when the first batch asks for it: a finished run needs none

    def objective(policy: Policy, layout: Layout, weight: Tensor) -> Tensor:
        if not teacher:
            frozen = config.compute.model_copy(update={"lora": None, "gradient_checkpointing": False})
            loaded, _ = load_policy(config.teacher, frozen)
            loaded.model.requires_grad_(False)
            teacher.append(loaded)
        new, apart = policy.divergences(layout, teacher[0], kind=config.kind, temperature=config.temperature)
        distance = (weight * apart).sum() * config.temperature**2
        return (1 - config.mix) * distance + config.mix * sft_loss(new, weight)

    inputs = {"teacher": weights_hash(config.teacher)}
    return train_sft(config, wh, progress, objective=objective, kind="distill", inputs=inputs)


def check_same_tokens(teacher: str, student: str) -> None:
    """Raises UsageError where a token id does not mean the same to both models."""
    from transformers import AutoTokenizer

    first, second = (
        vocabulary(AutoTokenizer.from_pretrained(path, local_files_only=True)) for path in (teacher, student)
    )
    if first != second:
        raise UsageError(
            f"teacher {teacher} and student {student} do not share a tokenizer, so their logits cannot be compared: "
            "let the teacher sample a corpus and train on that (`curate train sft`)"
        )


def vocabulary(tokenizer: Any) -> dict[str, int]:
    return dict(tokenizer.get_vocab())
