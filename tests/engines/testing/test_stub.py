"""Fault tests rely on the stub: it is deterministic, and faulty exactly as configured."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.engines import EngineConfig, open_engine
from curate.engines.testing.stub import stub_text
from curate.errors import UsageError
from curate.records import Request, Sampling

ROOT = Path(__file__).parents[2]


def ask(prompt: str, seed: int = 0, **sampling: Any) -> Request:
    return Request(f"{prompt}/{seed}", prompt, seed, Sampling(**sampling))


def stub(**args: Any) -> Any:
    return open_engine(EngineConfig(name="stub", args=args), "stub")


@given(st.lists(st.integers(-99, 99), min_size=2, max_size=6), st.integers(0, 2**40))
def test_a_sum_is_answered_in_the_form_and_correctly_on_demand(terms: list[int], seed: int) -> None:
    question = str(terms[0]) + "".join(f" {'-' if t < 0 else '+'} {abs(t)}" for t in terms[1:])
    text = stub_text(f"Example: 1 + 1 = 2. What is {question}?", seed, right=1.0)
    match = re.fullmatch(r"<think> .+ </think> <answer> (-?\d+) </answer>", text)
    assert match
    assert int(match[1]) == sum(terms)
    wrong = re.fullmatch(r".*<answer> (-?\d+) </answer>", stub_text(question, seed, right=0.0))
    assert wrong
    assert int(wrong[1]) != sum(terms)


def test_the_share_of_correct_answers_follows_the_setting() -> None:
    right = sum(
        stub_text("2 + 3", seed, right=0.3).endswith("<answer> 5 </answer>") for seed in range(3000)
    )
    assert 0.26 < right / 3000 < 0.34


@given(st.randoms(use_true_random=False), st.integers(1, 8))
def test_text_is_a_function_of_prompt_and_seed_in_any_order(
    rng: random.Random, shuffle: int
) -> None:
    requests = [ask(f"{i} + 1", seed) for i in range(5) for seed in range(4)]
    plain = {c.request_id: c.text for c in stub().generate(requests)}
    rng.shuffle(requests)
    shuffled = {c.request_id: c.text for c in stub(shuffle=shuffle).generate(requests)}
    assert shuffled == plain
    assert len(plain) == 20


def test_shuffle_changes_the_order() -> None:
    requests = [ask("1 + 1", seed) for seed in range(30)]
    order = [c.request_id for c in stub(shuffle=8).generate(requests)]
    assert order != [r.request_id for r in requests]
    assert order == [c.request_id for c in stub(shuffle=8).generate(requests)]


def test_limits_cut_the_same_text() -> None:
    (whole,) = stub().generate([ask("1 + 2")])
    (cut,) = stub().generate([ask("1 + 2", max_tokens=10)])
    assert (whole.finish_reason, cut.finish_reason) == ("stop", "length")
    assert whole.text.startswith(cut.text)
    assert cut.completion_tokens == len(cut.token_ids or []) == len(cut.logprobs or []) == 10
    assert whole.completion_tokens == len(whole.text.encode()) + 1


def test_failures_are_a_share_and_flaky_ones_pass_the_second_time() -> None:
    requests = [ask("1 + 1", seed) for seed in range(300)]
    failed = [c.request_id for c in stub(fail=3).generate(requests) if c.finish_reason == "error"]
    assert 70 < len(failed) < 130
    engine = stub(fail=3, flaky=True)
    assert [c.request_id for c in engine.generate(requests) if c.finish_reason == "error"] == failed
    assert all(c.finish_reason == "stop" for c in engine.generate(requests))


def test_slow_and_stalled_completions_take_their_time() -> None:
    start = time.monotonic()
    list(stub(slow=0.05).generate([ask("a"), ask("b")]))
    assert time.monotonic() - start >= 0.1
    start = time.monotonic()
    stream = stub(stall=0.2, stall_at=1).generate([ask("a"), ask("b")])
    next(stream)
    first = time.monotonic() - start
    next(stream)
    assert time.monotonic() - start - first >= 0.2


def test_die_at_kills_the_process() -> None:
    script = (
        "from curate.engines import *; from curate.records import *\n"
        "engine = open_engine(EngineConfig(name='stub', args={'die_at': 3}), 'stub')\n"
        "for c in engine.generate(Request(str(i), 'a', i, Sampling()) for i in range(9)):\n"
        "    print(c.request_id, flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (-9, ["0", "1", "2"])


def test_patterns_and_bad_requests() -> None:
    (c,) = stub(style="{answer} of {prompt} by {seed}", right=1.0).generate([ask("4 + 4", 9)])
    assert c.text == "8 of 4 + 4 by 9"
    faults = list(stub().generate([ask(" "), ask("a", max_tokens=0)]))
    assert [f.finish_reason for f in faults] == ["error", "error"]


def test_unknown_arguments_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="speed"):
        stub(speed=1)
