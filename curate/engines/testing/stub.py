"""An engine without a model: deterministic and instant, or as slow and faulty as a test needs.

The text is a function of (prompt, seed) alone, so any order, batching, restart or second process
gives the same. `EngineConfig.args` are the fields of `StubArgs`.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from curate.config import Config, validate
from curate.engines.base import EngineConfig, check_sampling, cut_at_stop, failed
from curate.prompts.forms import Form
from curate.records import Completion, Request

SUM = re.compile(r"-?\d+(?:\s*[+-]\s*\d+)+")
WORDS = "the sum of terms is so wait let me check that again first then we get".split()
MAX_MODEL_LEN = 1 << 20
FORM = Form.of("r1-zero")


class StubArgs(Config):
    """Behaviour of the stub."""

    style: str = "sums"
    """sums: `<think>…</think> <answer>N</answer>` for a sum in the prompt. words: random words.
    echo: the prompt. Any other text is a pattern with {prompt}, {seed} and {answer}."""
    right: float = Field(0.5, ge=0, le=1)
    """Share of the sums that are right, decided by (prompt, seed)."""
    slow: float = Field(0.0, ge=0)
    """Seconds that each completion takes."""
    at_once: int = Field(1, ge=1)
    """Completions that run at the same time, if they are slow."""
    shuffle: int = Field(1, ge=1)
    """Above 1, completions within a window of this size leave in another order."""
    fail: int = Field(0, ge=0)
    """Every n-th distinct (prompt, seed) fails; 0: none."""
    flaky: bool = False
    """Failing requests fail only the first time."""
    stall: float = Field(0.0, ge=0)
    """Seconds to hang before completion number `stall_at`."""
    stall_at: int = 0
    """Counted from 0."""
    die_at: int | None = None
    """The process is killed (SIGKILL) instead of giving the completion of this number."""


class StubEngine:
    name = "stub"
    tokenizer: Any = None

    def __init__(self, config: EngineConfig, model_dir: str | Path = "stub") -> None:
        self.args = validate(StubArgs, config.args, "engine.args")
        self.config = config
        self.max_model_len = config.max_model_len or MAX_MODEL_LEN
        self.end_token_ids: set[int] = {0}
        self._adopt(model_dir)
        self._given = 0
        self._seen: set[bytes] = set()

    def _adopt(self, model_dir: str | Path) -> None:
        self.model_path = Path(model_dir)
        self.model_hash = hashlib.sha256(str(model_dir).encode()).hexdigest()[:16]

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """Yield one completion per request; `shuffle` changes the order within a window, always
        in the same way.
        """
        waiting: list[Request] = []
        source = iter(requests)
        exhausted = False
        while waiting or not exhausted:
            while not exhausted and len(waiting) < max(self.args.shuffle, self.args.at_once):
                try:
                    request = next(source)
                except StopIteration:
                    exhausted = True
                    break
                if request is None:
                    break
                waiting.append(request)
            if not waiting:
                time.sleep(0 if exhausted else 0.001)
                continue
            self._wait()
            request = waiting.pop(
                _number(waiting[0].request_id) % min(self.args.shuffle, len(waiting))
            )
            yield self._complete(request)

    def _wait(self) -> None:
        """Wait, stall or die, as the arguments say."""
        number, self._given = self._given, self._given + 1
        if self.args.die_at == number:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.args.stall and number == self.args.stall_at:
            time.sleep(self.args.stall)
        if self.args.slow:
            time.sleep(self.args.slow / self.args.at_once)

    def _complete(self, request: Request) -> Completion:
        reason = check_sampling(request) or (
            None if request.prompt.strip() else "the prompt is empty"
        )
        prompt_ids = request.prompt_token_ids or list(request.prompt.encode())
        if not reason and len(prompt_ids) >= self.max_model_len:
            length = self.max_model_len
            reason = f"the prompt has {len(prompt_ids)} tokens; the model takes {length} in all"
        reason = reason or self._fault(request)
        if reason:
            return failed(request, reason)
        text = stub_text(request.prompt, request.seed, self.args.style, self.args.right)
        text, stopped = cut_at_stop(text, request.sampling.stop)
        # One token per byte; 0 ends the text.
        tokens = [byte + 1 for byte in text.encode()] + ([] if stopped else [0])
        limit = min(request.sampling.max_tokens, self.max_model_len - len(prompt_ids))
        finished = len(tokens) <= limit
        tokens = tokens[:limit]
        kept = bytes(token - 1 for token in tokens if token)
        return Completion(
            request.request_id,
            kept.decode(errors="ignore"),
            "stop" if finished else "length",
            prompt_token_ids=prompt_ids,
            token_ids=tokens,
            logprobs=[-0.5] * len(tokens) if request.sampling.logprobs else None,
            prompt_tokens=len(prompt_ids),
            completion_tokens=len(tokens),
        )

    def _fault(self, request: Request) -> str | None:
        if not self.args.fail or _number(f"fail|{request.seed}|{request.prompt}") % self.args.fail:
            return None
        key = hashlib.sha256(f"{request.seed}|{request.prompt}".encode()).digest()
        if self.args.flaky and key in self._seen:
            return None
        self._seen.add(key)
        return "the stub engine fails as configured"

    def render_chat(
        self, messages: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        turns = "".join(f"<{message['role']}>{message['content']}\n" for message in messages)
        return turns + ("<assistant>" if add_generation_prompt else "")

    def update_weights(self, directory: str | Path) -> str:
        self._adopt(directory)
        return self.model_hash

    def sleep(self) -> None:
        return None

    def wake(self) -> None:
        return None

    def close(self) -> None:
        return None


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def stub_text(prompt: str, seed: int, style: str = "sums", right: float = 0.5) -> str:
    """The stub's reply to (prompt, seed). The last sum of the prompt is the question."""
    rng = random.Random(_number(f"{seed}|{prompt}"))
    if style == "echo":
        return prompt
    if style == "words":
        return " ".join(rng.choices(WORDS, k=rng.randint(5, 40)))
    sums = SUM.findall(prompt)
    terms = (
        [int(term.replace(" ", "")) for term in re.findall(r"[+-]?\s*\d+", sums[-1])]
        if sums
        else [rng.randint(0, 99)]
    )
    wrong = rng.random() >= right
    answer = sum(terms) + (rng.choice([-2, -1, 1, 2, 10]) if wrong else 0)
    if style != "sums":
        return (
            style.replace("{prompt}", prompt)
            .replace("{seed}", str(seed))
            .replace("{answer}", str(answer))
        )
    steps, total = [], terms[0]
    for term in terms[1:]:
        steps.append(f"{total} {'-' if term < 0 else '+'} {abs(term)} = {total + term}.")
        total += term
    opening = rng.choice(
        [
            "We add from left to right.",
            "Let me add the terms one by one.",
            "Start with the first term.",
        ]
    )
    return FORM.compose(f"{' '.join([opening, *steps])} So it is {answer}.", str(answer))
