"""The openai engine against a loopback server that limits, fails, hangs, drops and bills."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from curate.engines import EngineConfig, open_engine
from curate.engines.openai import Bucket, BudgetReached, OpenAIEngine, parse_messages
from curate.errors import CurateError, UsageError
from curate.records import Completion, Request, Sampling
from tests.engines.server import Fault, Loopback, chat_answer

FAST = {"max_wait": 0.05, "timeout": 5.0}


def ask(count: int, prompt: str = "p", **sampling: Any) -> list[Request]:
    return [Request(f"r{i}", f"{prompt}{i}", i, Sampling(**sampling)) for i in range(count)]


def engine_for(server: Loopback, **args: Any) -> OpenAIEngine:
    return open_engine(
        EngineConfig(name="openai", args={"base_url": server.url, "model": "m", **args}), "m"
    )  # type: ignore[return-value]


def run(
    requests: list[Request], fault: Fault | None = None, reply: Any = chat_answer, **args: Any
) -> list[Completion]:
    with Loopback(reply, fault=fault) as server:
        engine = engine_for(server, **{**FAST, **args})
        try:
            return list(engine.generate(requests))
        finally:
            engine.close()


def once(*faults: Any) -> Fault:
    """Spoil the first requests with `faults`, one each."""
    return lambda number, body: faults[number] if number < len(faults) else None


def test_each_request_is_answered_once_with_its_own_seed_and_settings() -> None:
    with Loopback(chat_answer) as server:
        engine = engine_for(server)
        sampling = {
            "temperature": 0.6,
            "top_p": 0.95,
            "top_k": 20,
            "max_tokens": 77,
            "stop": ("</answer>",),
        }
        back = {c.request_id: c for c in engine.generate(ask(50, **sampling))}
        engine.close()
    assert {c.text for c in back.values()} == {f"p{i}|{i}" for i in range(50)}
    assert all(
        (c.prompt_tokens, c.completion_tokens, c.finish_reason) == (10, 5, "stop")
        for c in back.values()
    )
    body = server.seen[0][2]
    wanted = {
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "max_tokens": 77,
        "stop": ["</answer>"],
        "model": "m",
    }
    assert wanted.items() <= body.items()


@pytest.mark.parametrize("owner", ["vllm", "sglang", "openai", None])
def test_a_server_cannot_add_sampling_settings(owner: str | None) -> None:
    """Qwen 3's generation config has top_k 20: a trace without top_k must not get it."""
    plain = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    with Loopback(chat_answer) as server:
        server.owner = owner
        for args, sampling, changes in (
            ({}, {}, {}),
            ({}, {"top_k": 5}, {"top_k": 5}),
            ({"extra_body": {"min_p": 0.1}}, {}, {"min_p": 0.1}),
        ):
            engine = engine_for(server, **args)
            list(engine.generate(ask(2, **sampling)))
            engine.close()
            body = server.seen[-1][2]
            filled = plain | changes if owner in ("vllm", "sglang") else changes
            assert {k: body[k] for k in plain if k in body} == filled


def test_concurrency_is_bounded_and_used() -> None:
    full = threading.Event()

    def hold_until_full(number: int, body: dict[str, Any]) -> None:
        if server.open >= 7:
            full.set()
        full.wait(10)

    with Loopback(chat_answer, fault=hold_until_full) as server:
        engine = engine_for(server, concurrency=7)
        assert len(list(engine.generate(ask(40)))) == 40
        engine.close()
    assert server.most_open == 7


@pytest.mark.parametrize(
    "fault",
    [("status", 429, {}), ("status", 500, {}), ("status", 503, {}), ("drop",), ("garbage",)],
    ids=["429", "500", "503", "drop", "garbage"],
)
def test_a_transient_fault_costs_a_retry_and_nothing_else(fault: Any) -> None:
    back = run(ask(20), once(*[fault] * 5), concurrency=4)
    assert sorted(c.text for c in back) == sorted(f"p{i}|{i}" for i in range(20))
    assert sum(c.extra["tries"] - 1 for c in back) == 5


def test_a_request_to_a_hanging_server_times_out_and_is_retried() -> None:
    (back,) = run(ask(1), once(("hang", 1.0)), timeout=0.2)
    assert (back.text, back.extra["tries"]) == ("p0|0", 2)


def test_a_persistent_fault_becomes_a_row_with_its_reason() -> None:
    def fault(number: int, body: dict[str, Any]) -> Any:
        return (
            ("status", 502, {"message": "bad gateway"})
            if body["messages"][0]["content"] == "p3"
            else None
        )

    back = {c.request_id: c for c in run(ask(6), fault, retries=2)}
    assert len(back) == 6
    assert back["r3"].finish_reason == "error"
    assert "502" in str(back["r3"].error)
    assert "bad gateway" in str(back["r3"].error)
    assert "3 tries" in str(back["r3"].error)


def test_retry_after_delays_all_requests() -> None:
    with Loopback(chat_answer, fault=once(("status", 429, {"retry-after": "0.6"}))) as server:
        engine = engine_for(server, concurrency=1)
        list(engine.generate(ask(3)))
        engine.close()
    times = [at for at, *_ in server.seen]
    assert times[1] - times[0] >= 0.6


@pytest.mark.parametrize("status", [400, 422])
def test_a_refused_request_is_not_retried(status: int) -> None:
    (back,) = run(
        ask(1), lambda number, body: ("status", status, {"message": "context length exceeded"})
    )
    assert back.finish_reason == "error"
    assert "context length exceeded" in str(back.error)


@pytest.mark.parametrize(
    ("status", "why"), [(401, "key"), (402, "account"), (404, "no such model")]
)
def test_a_failure_that_every_request_would_share_ends_the_job(status: int, why: str) -> None:
    with pytest.raises(CurateError, match=why):
        run(
            ask(50),
            lambda number, body: ("status", status, {}) if number >= 5 else None,
            concurrency=2,
        )


def test_the_key_comes_from_the_environment_and_never_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret-123")
    with Loopback(
        chat_answer, fault=lambda n, b: ("status", 401, {"message": "bad key sk-secret-123"})
    ) as server:
        engine = engine_for(server, api_key_env="MY_KEY")
        with pytest.raises(CurateError) as caught:
            list(engine.generate(ask(1)))
        engine.close()
    assert server.seen[0][3]["authorization"] == "Bearer sk-secret-123"
    assert "sk-secret" not in str(caught.value)
    monkeypatch.delenv("MY_KEY")
    remote = {"base_url": "https://api.example.com/v1", "model": "m", "api_key_env": "MY_KEY"}
    with pytest.raises(UsageError, match="MY_KEY"):
        OpenAIEngine(EngineConfig(name="openai", args=remote))
    with pytest.raises(UsageError, match="environment"):
        OpenAIEngine(EngineConfig(name="openai", args={**remote, "api_key": "sk"}))


def test_reasoning_content_goes_between_the_delimiters() -> None:
    for name in ("reasoning_content", "reasoning"):
        (back,) = run(
            ask(1), reply=lambda b, n=name: chat_answer(b, message={n: "hm", "content": "42"})
        )
        assert back.text == "<think>hm</think>42"
    cut = {
        "message": {"reasoning_content": "hm", "content": None},
        "choice": {"finish_reason": "length"},
    }
    (back,) = run(ask(1), reply=lambda b: chat_answer(b, **cut))
    assert (back.text, back.finish_reason) == ("<think>hm", "length")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"message": {"content": ""}}, "empty"),
        ({"message": {"content": None, "refusal": "I will not"}}, "I will not"),
        ({"choice": {"finish_reason": "content_filter"}}, "content_filter"),
    ],
    ids=["empty", "refusal", "filter"],
)
def test_refused_and_empty_answers_are_errors(change: dict[str, Any], reason: str) -> None:
    (back,) = run(ask(1), reply=lambda b: chat_answer(b, **json.loads(json.dumps(change))))
    assert back.finish_reason == "error"
    assert reason in str(back.error)


def test_cost_counts_cached_tokens_and_the_budget_stops_cleanly() -> None:
    usage = {
        "prompt_tokens": 1000,
        "completion_tokens": 200,
        "prompt_tokens_details": {"cached_tokens": 400},
    }
    # 600 x 2 + 400 x 1 + 200 x 10 = 3600 millionths per request
    prices = {"price_in": 2.0, "price_cached": 1.0, "price_out": 10.0}
    with Loopback(lambda b: chat_answer(b, usage=dict(usage))) as server:
        engine = engine_for(server, **prices, budget=0.0405, concurrency=4)
        back: list[Completion] = []
        with pytest.raises(BudgetReached, match=r"raise engine\.args\.budget"):
            back += engine.generate(ask(100, "x" * 2998, max_tokens=200))
        engine.close()
    assert all(c.extra["cost"] == pytest.approx(0.0036) for c in back)
    # sent only while the worst case (1000 prompt tokens uncached, 200 completion tokens: 0.004)
    # still fits
    assert len(back) == len(server.seen) == 11
    assert engine.usage.cost == pytest.approx(0.0396)


def test_requests_per_minute_are_bounded() -> None:
    """600 per minute: ten at once, then one every tenth of a second."""
    with Loopback(chat_answer) as server:
        engine = engine_for(server, rpm=600)
        # Measured from before the first request: a busy machine can only make it longer.
        began = time.monotonic()
        list(engine.generate(ask(20)))
        engine.close()
    assert len(server.seen) == 20
    assert max(at for at, *_ in server.seen) - began >= 0.9


def test_a_bucket_keeps_its_rate_and_settles_wrong_estimates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bucket = Bucket(60 * 100)  # 100 per second, at most 100 held
    assert bucket.wait(100) == 0
    bucket.level -= 100
    assert bucket.wait(50) == pytest.approx(0.5)
    bucket.settle(50)
    assert bucket.wait(50) == 0
    now[0] = 1000.0
    assert bucket.wait(1000) == 0  # a request larger than the bucket passes when it is full
    bucket.level -= 1000
    assert bucket.wait(1) == pytest.approx(9.01)


def test_closing_early_cancels_what_is_in_flight() -> None:
    with Loopback(
        chat_answer, fault=lambda number, body: ("slow", 0.05 if number == 0 else 10)
    ) as server:
        engine = engine_for(server, concurrency=5)
        start = time.monotonic()
        stream = engine.generate(ask(1000))
        next(stream)
        stream.close()
        engine.close()
        assert time.monotonic() - start < 8
    assert len(server.seen) <= 6


def test_none_means_read_again_later() -> None:
    answers: list[str] = []

    def source() -> Iterator[Request | None]:
        yield ask(1)[0]
        while not answers:
            yield None
        yield Request("second", answers[0], 1, Sampling())

    with Loopback(chat_answer) as server:
        engine = engine_for(server)
        for completion in engine.generate(source()):
            answers.append(completion.text)  # noqa: PERF401 (the source looks at it meanwhile)
        engine.close()
    assert answers == ["p0|0", "p0|0|1"]


def test_messages_survive_the_prompt() -> None:
    messages = [
        {"role": "system", "content": "Sei kurz."},
        {"role": "user", "content": '[{"role": 1}] 日本'},
    ]
    with Loopback(chat_answer) as server:
        engine = engine_for(server)
        list(engine.generate([Request("a", engine.render_chat(messages), 0, Sampling())]))
        engine.close()
    assert server.seen[0][2]["messages"] == messages
    assert parse_messages("[1, 2]") == [{"role": "user", "content": "[1, 2]"}]
