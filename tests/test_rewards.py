"""Rewards computed by hand, and hacks that they must not pay for."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from curate.errors import UsageError
from curate.rewards import reward_name, score

GOOD = "<think> 1 + 1 = 2 </think> <answer> 2 </answer>"


def frame(*completions: str, **columns: Any) -> pl.DataFrame:
    n = len(completions)
    data: dict[str, Any] = {
        "completion": list(completions),
        "reasoning": [
            c.partition("<think>")[2].partition("</think>")[0] or None for c in completions
        ],
        "form": ["r1-zero"] * n,
        "finish_reason": ["stop"] * n,
        "completion_tokens": [10] * n,
        "verdict": ["correct"] * n,
        "question": ["What is one plus one?"] * n,
        "target_language": ["en"] * n,
    }
    return pl.DataFrame(data | columns)


def test_accuracy_is_the_verdict_and_unverifiable_gives_no_reward() -> None:
    rows = frame(GOOD, GOOD, GOOD, verdict=["correct", "wrong", "unverifiable"])
    scored = score(rows, {"accuracy": 1.0, "format": 0.2})
    assert scored["reward_accuracy"].to_list() == [1.0, 0.0, None]
    assert scored["reward"].to_list() == pytest.approx([1.2, 0.2, None])


@pytest.mark.parametrize(
    "hack",
    [
        "<think> a </think> <answer> 2 </answer> <answer> 3 </answer>",  # several answers
        "<think> a </think> <answer> </answer>",  # an empty one
        "<think> a </think> <answer> 2 </answer> and so on",  # text after it
        "So: <think> a </think> <answer> 2 </answer>",  # text before
        "<think> a <think> b </think> <answer> 2 </answer>",  # reasoning opened twice
        "<answer> 2 </answer> <think> a </think>",  # out of order
        "<think> a </think> 2",  # no tags around the answer
        "<think> a <answer> 2 </answer> </think>",  # answer inside the reasoning
        "",
    ],
)
def test_format_pays_for_no_hack(hack: str) -> None:
    assert score(frame(GOOD, hack), {"format": 1.0})["reward"].to_list() == [1.0, 0.0]


def test_a_truncated_trace_is_not_well_formed() -> None:
    rows = frame(GOOD, "some text", form=["r1-zero", "plain"], finish_reason=["length", "length"])
    assert score(rows, {"format": 1.0})["reward"].to_list() == [0.0, 0.0]


def test_language_is_the_share_of_target_words_and_0_without_reasoning() -> None:
    words = "First we add the two numbers and then we look at the result."
    english = f"<think> {words} </think> <answer> 2 </answer>"
    words = "首先我们把这两个数字相加，然后我们检查一下结果是否正确。"
    chinese = f"<think> {words} </think> <answer> 2 </answer>"
    rows = frame(english, chinese, "<answer> 2 </answer>")
    first, second, third = score(rows, {"language": 0.5})["reward_language"].to_list()
    assert first > 0.9
    assert second < 0.1
    assert third == 0.0


def test_soft_overlong_by_hand() -> None:
    # max 100, buffer 20: free up to 80, half way at 90, -1 from 100 on
    rows = frame(
        *[GOOD] * 5,
        completion_tokens=[10, 80, 90, 100, 100],
        finish_reason=["stop"] * 4 + ["length"],
    )
    spec = {"length": {"weight": 2.0, "options": {"max_tokens": 100, "buffer": 20}}}
    scored = score(rows, spec)
    assert scored["reward_length"].to_list() == pytest.approx([0.0, 0.0, -0.5, -1.0, -1.0])
    assert scored["reward"].to_list() == pytest.approx([0.0, 0.0, -1.0, -2.0, -2.0])


def test_repetition_costs() -> None:
    loop = "<think> " + "we add one and one again " * 20 + "</think> <answer> 2 </answer>"
    fresh, again = score(frame(GOOD, loop), {"repetition": 1.0})["reward"].to_list()
    assert fresh == 0.0
    assert -1.0 <= again < -0.5


def test_a_failed_request_has_no_reward() -> None:
    scored = score(frame("", finish_reason=["error"], verdict=["wrong"]), {"accuracy": 1.0})
    assert scored["reward"].to_list() == [None]


def short(frame: pl.DataFrame, limit: int) -> pl.Expr:
    return (pl.col("completion").str.len_chars() < limit).cast(pl.Float64)


def test_a_users_own_function_by_dotted_path() -> None:
    spec = {"accuracy": 1.0, "tests.test_rewards:short": {"weight": 0.5, "options": {"limit": 20}}}
    assert score(frame(GOOD, "2"), spec)["reward"].to_list() == pytest.approx([1.0, 1.5])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "at least one"),
        ({"acuracy": 1.0}, "unknown reward"),
        ({"length": 1.0}, "max_tokens and buffer"),
        ({"tests.test_rewards:nothing": 1.0}, "cannot load the"),
        (
            {"tests.test_rewards:short": 1.0},
            "rewards: tests.test_rewards:short: missing a required argument: 'limit'",
        ),
        ({"repetition": {"options": {"ngram": 3}}}, "5 to 10"),
    ],
)
def test_errors_of_specs_name_the_fault(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        score(frame(GOOD), spec)


def brief(completion: str, limit: int = 10) -> float:
    """A reward of one text."""
    return float(len(completion) <= limit)


def ends_right(completions: list[str], reference: list[str], **kwargs: Any) -> list[float | None]:
    """A reward in TRL's signature; the other columns arrive as lists, too."""
    assert len(kwargs["question"]) == len(completions)
    return [None if r is None else float(r in c) for c, r in zip(completions, reference)]


HERE = "tests.test_rewards"


def test_a_reward_may_be_a_function_of_texts() -> None:
    rows = frame("12345", "1234567890123", GOOD).with_columns(
        reference=pl.Series(["5", None, "2"], dtype=pl.String)
    )
    spec = {f"{HERE}:brief": {"weight": 1.0, "options": {"limit": 6}}}
    assert score(rows, spec)["reward"].to_list() == [1.0, 0.0, 0.0]
    scored = score(rows, {f"{HERE}:ends_right": 0.5})
    assert scored["reward"].to_list() == [0.5, None, 0.5]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("brief", {"limits": 3}, "unexpected keyword argument 'limits'"),
        ("too_few", {}, "it gave 1 values for 2 traces"),
        ("unknown_column", {}, "no column 'answers' for its parameter 'answers'"),
    ],
)
def test_an_unsuitable_function_of_texts_gives_one_message(
    name: str, options: dict[str, Any], message: str
) -> None:
    spec = {f"{HERE}:{name}": {"weight": 1.0, "options": options}}
    with pytest.raises(UsageError, match=message):
        score(frame(GOOD, GOOD), spec)


def too_few(completions: list[str]) -> list[float]:
    return [1.0]


def unknown_column(completion: str, answers: str) -> float:
    return 1.0


def test_a_function_has_the_name_by_which_a_config_finds_it() -> None:
    assert reward_name(brief) == f"{HERE}:brief"
    assert reward_name("accuracy") == "accuracy"
    with pytest.raises(UsageError, match="not at the top of a module"):
        reward_name(lambda completion: 1.0)
