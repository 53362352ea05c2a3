"""On-policy distillation as a GRPO config: the student samples, the teacher scores tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curate.config import invalid, merge
from curate.errors import UsageError

KINDS = ("sequences", "forward", "reverse", "on-policy")

# Defaults of the GRPOConfig: the only signal is the KL to the teacher. k1 uses the score-function
# gradient, which is that of KL(student || teacher): each token is weighted by the teacher's rating.
ON_POLICY: dict[str, Any] = {
    "name": "distill",
    "rewards": {"accuracy": 0.0},
    "loss": {"beta": 1.0, "kl": "k1"},
}


def is_on_policy(data: Mapping[str, Any], where: str) -> bool:
    """Whether a distillation takes the keys of GRPO. Raises UsageError for an unknown kind."""
    kind = data.get("kind", "forward")
    if kind not in KINDS:
        raise UsageError(invalid(where, [f"kind: '{kind}'; choose from {', '.join(KINDS)}"]))
    return bool(kind == "on-policy")


def on_policy(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the GRPO config of a student `model`, a `teacher`, and any keys of GRPO."""
    own = {key: value for key, value in data.items() if key not in ("kind", "teacher")}
    if not data.get("teacher"):
        raise UsageError(
            invalid(where, ["teacher: missing; on-policy distillation needs a model that scores"])
        )
    return merge(merge(ON_POLICY, own), {"loss": {"reference": data["teacher"]}})
