from __future__ import annotations

import resource

import pytest

from curate.records import Problem
from curate.verify import VerifierPool
from tests.verify.hostile import hostile


def test_there_are_enough_of_them() -> None:
    assert len(set(hostile())) >= 200


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["7", "x^2+1"])
def test_none_is_lost_none_is_right_few_reach_a_limit_and_memory_is_bounded(reference: str) -> None:
    texts = hostile()
    with VerifierPool(workers=2, cache=0) as pool:
        pool.warm()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        verdicts = pool.verify_batch([Problem("", reference, "math")] * len(texts), texts)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
        after = pool.verify_answers(["1/2"], [r"\boxed{0.5}"])[0]
    assert len(verdicts) == len(texts)
    assert all(v.verdict in ("wrong", "unverifiable") and v.detail is not None for v in verdicts)
    assert [t[:80] for t, v in zip(texts, verdicts, strict=True) if v.verdict == "correct"] == []
    # The pool stops what runs away; few inputs get that far.
    stopped = [text[:80] for text, v in zip(texts, verdicts, strict=True) if "limit:" in v.detail]
    assert len(stopped) < len(texts) / 10
    assert grown < 300_000
    assert after.verdict == "correct"
    print(f"{len(stopped)} of {len(texts)} hostile inputs over a limit")


@pytest.mark.parametrize("verifier", ["text", "exact", "choice", "procedural", "code"])
def test_the_other_verifiers_do_not_fall_for_them(pool: VerifierPool, verifier: str) -> None:
    texts = [text for text in hostile() if len(text) < 100_000]
    problem = Problem(
        "",
        "B",
        verifier,
        choices=["dogs", "cats"],
        metadata='{"dataset": "chain_sum", "entry": {"answer": "7"}}',
    )
    if verifier == "code":
        texts, problem = texts[:0], Problem("", None, "code", tests="{")
    verdicts = pool.verify_batch([problem] * len(texts), texts)
    assert not [t[:80] for t, v in zip(texts, verdicts, strict=True) if v.verdict == "correct"]
