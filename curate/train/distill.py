"""Distillation: three ways from a teacher to a student, from cheap to close.

- `kind: sequences`: SFT on a corpus that the teacher sampled, the report's way; any two tokenizers;
- `kind: forward | reverse`: the exact divergence from the teacher's next-token distribution at every completion token
  of a corpus, forward (covers all the teacher does) or reverse (keeps to what the teacher holds likely); one tokenizer;
- `kind: on-policy`: GRPO whose reference is the teacher: the student samples, and the teacher scores each token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from curate.config import invalid, merge
from curate.errors import UsageError
from curate.train.checkpoints import TrainResult
from curate.train.config import DistillConfig
from curate.train.losses import sft_loss
from curate.train.model.layout import Layout
from curate.train.model.policy import Policy, load_policy
from curate.train.sft import Progress, train_sft

if TYPE_CHECKING:
    from torch import Tensor

    from curate.warehouse import Warehouse


def train_distill(
    config: DistillConfig,
    wh: Warehouse,
    progress: Progress | None = None,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> TrainResult:
    """Train the student `config.model` on `config.corpus` towards `config.teacher`.

    loss = (1 - mix) T^2 KL + mix NLL, each the mean over completion tokens; T is the temperature of both
    distributions, and T^2 keeps the size of the gradient (Hinton et al. 2015, arXiv 1503.02531, section 2).
    Raises UsageError where the two models do not share a tokenizer.
    """
    from curate.engines.models import weights_hash

    inputs = {"teacher": weights_hash(config.teacher)}
    if config.kind == "sequences":
        return train_sft(config, wh, progress, kind="distill", inputs=inputs, say=say)
    check_same_tokens(config.teacher, config.model)
    teacher: list[Policy] = []  # loaded when the first batch asks for it: a finished run needs none

    def objective(policy: Policy, layout: Layout, weight: Tensor) -> Tensor:
        if not teacher:
            frozen = config.compute.model_copy(
                update={"lora": None, "gradient_checkpointing": False}
            )
            loaded, _ = load_policy(config.teacher, frozen)
            loaded.model.requires_grad_(False)
            teacher.append(loaded)
        new, apart = policy.divergences(
            layout, teacher[0], kind=config.kind, temperature=config.temperature
        )
        distance = (weight * apart).sum() * config.temperature**2
        return (1 - config.mix) * distance + config.mix * sft_loss(new, weight)

    return train_sft(
        config, wh, progress, objective=objective, kind="distill", inputs=inputs, say=say
    )


KINDS = ("sequences", "forward", "reverse", "on-policy")

# What on-policy distillation lays under the keys of a GRPOConfig: nothing but the KL to the teacher teaches. k1 with
# the score-function gradient is that of KL(student || teacher), each token weighed by what the teacher makes of it.
ON_POLICY: dict[str, Any] = {
    "name": "distill",
    "rewards": {"accuracy": 0.0},
    "loss": {"beta": 1.0, "kl": "k1"},
}


def is_on_policy(data: Mapping[str, Any], where: str) -> bool:
    """Whether a distillation takes the keys of GRPO. UsageError for a kind that there is not."""
    kind = data.get("kind", "forward")
    if kind not in KINDS:
        raise UsageError(invalid(where, [f"kind: '{kind}'; there are {', '.join(KINDS)}"]))
    return bool(kind == "on-policy")


def on_policy(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The GRPO config of `kind: on-policy`, from a student `model`, a `teacher`, and any keys of GRPO."""
    own = {key: value for key, value in data.items() if key not in ("kind", "teacher")}
    if not data.get("teacher"):
        raise UsageError(
            invalid(where, ["teacher: missing; on-policy distillation needs a model that scores"])
        )
    return merge(merge(ON_POLICY, own), {"loss": {"reference": data["teacher"]}})


def check_same_tokens(teacher: str, student: str) -> None:
    """Raises UsageError where a token id does not mean the same to both models."""
    from transformers import AutoTokenizer

    first, second = (
        vocabulary(AutoTokenizer.from_pretrained(path, local_files_only=True))
        for path in (teacher, student)
    )
    if first != second:
        raise UsageError(
            f"teacher {teacher} and student {student} do not share a tokenizer, so their logits cannot be compared: "
            "let the teacher sample a corpus and train on that (kind: sequences)"
        )


def vocabulary(tokenizer: Any) -> dict[str, int]:
    return dict(tokenizer.get_vocab())
