"""Records that cross a boundary between parts: problem, request, completion, verdict.

Tables are columns (`schemas/`); these are the few places where one part passes single rows to
another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

VerdictName = Literal["correct", "wrong", "unverifiable"]
FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, and what is needed to judge an answer: the columns of `schemas/problems.sql`."""

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
    """A verifier's judgement of one completion: `extracted` is the answer it read, `detail` its
    reason.
    """

    verdict: VerdictName
    extracted: str | None = None
    detail: str = ""
    seconds: float = 0.0
    verifier: str = ""
    verifier_version: str = ""
    kind: Literal["rule", "judge", "consensus"] = "rule"


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings of a completion. `top_k = 0` and `top_p = 1` mean no truncation.

    A completion ends with the first of the `stop` strings, which stays in the text: `</answer>`
    closes a form.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    logprobs: bool = True


@dataclass(frozen=True, slots=True)
class Request:
    """A request for one completion. Engines use `prompt_token_ids` if given, else tokenise
    `prompt`.
    """

    request_id: str
    prompt: str
    seed: int
    sampling: Sampling
    prompt_token_ids: list[int] | None = None
    group: str = ""  # requests of one group go into one batch, where an engine sends batches


@dataclass(slots=True)
class Completion:
    """The reply to a request. If the request failed, `finish_reason` is `error` and `error` gives
    the reason.

    `token_ids` and `logprobs` have one entry per sampled token, including the end token if one was
    sampled. Log-probs are those of the distribution that was sampled from. Both are None if the
    backend reports none.
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
