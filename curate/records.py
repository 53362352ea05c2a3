"""The records that cross a boundary between parts: problem, request, completion, verdict.

Tables are columns (`schemas/`); these are the few places where one row is handed from one part to another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

VerdictName = Literal["correct", "wrong", "unverifiable"]
FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with what is needed to judge an answer. The fields are the columns of `schemas/problems.sql`."""

    question: str
    reference: str | None = None
    verifier: str | None = None
    problem_id: str = ""
    source: str = ""
    domain: str = ""
    solution: str | None = None
    choices: list[str] | None = None
    tests: str | None = None  # JSON
    target_language: str | None = None
    difficulty: float | None = None
    split: str = "train"
    metadata: str | None = None  # JSON: what a procedural verifier needs to score an answer


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one completion. `extracted` is the answer it looked at, `detail` why it decided so."""

    verdict: VerdictName
    extracted: str | None = None
    detail: str = ""
    seconds: float = 0.0
    verifier: str = ""
    verifier_version: str = ""
    kind: Literal["rule", "judge", "consensus"] = "rule"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a completion is sampled. `top_k = 0` and `top_p = 1` mean no truncation.

    A completion ends with the first of the `stop` strings, which stays in its text (`</answer>` closes a form).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    logprobs: bool = True


@dataclass(frozen=True, slots=True)
class Request:
    """One completion asked of an engine. Engines take `prompt_token_ids` where given, else tokenise `prompt`."""

    request_id: str
    prompt: str
    seed: int
    sampling: Sampling
    prompt_token_ids: list[int] | None = None


@dataclass(slots=True)
class Completion:
    """What came back. A request that failed is a completion with `finish_reason = 'error'` and its reason in `error`.

    `token_ids` and `logprobs` have one entry a sampled token (the end token included, where one was sampled);
    log-probs are those of the distribution that was sampled from. Both are None where the backend has none.
    """

    request_id: str
    text: str
    finish_reason: FinishReason
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
