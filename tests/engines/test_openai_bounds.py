"""A hostile server makes its rows fail, but harms neither the job nor the machine."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from curate.engines import EngineConfig, open_engine
from curate.records import Completion, Request, Sampling
from tests.engines.server import Loopback, chat_answer


def ask(fault: Any = None, reply: Any = chat_answer, **args: Any) -> list[Completion]:
    """Three requests; the fault spoils every try of the second one."""

    def spoil(_: int, body: dict[str, Any]) -> Any:
        return fault if body["messages"][-1]["content"] == "p1" else None

    limits = {"max_wait": 0.01, "retries": 1, "timeout": 2.0, "max_body": 100_000, **args}
    requests = [Request(f"r{i}", f"p{i}", i, Sampling(logprobs=True)) for i in range(3)]
    with Loopback(reply, fault=spoil if fault else None) as server:
        config = {"base_url": server.url, "model": "m", **limits}
        engine = open_engine(EngineConfig(name="openai", args=config), "m")
        try:
            return sorted(engine.generate(requests), key=lambda c: c.request_id)
        finally:
            engine.close()


def answer(**changes: Any) -> tuple[str, bytes, dict[str, str]]:
    """Return a fault: the usual answer with other values."""
    body = {"messages": [{"content": "x"}], "model": "m"}
    return "raw", json.dumps(chat_answer(body) | changes).encode(), {}


def choice(**changes: Any) -> tuple[str, bytes, dict[str, str]]:
    body = {"messages": [{"content": "x"}], "model": "m"}
    return answer(choices=[chat_answer(body)["choices"][0] | changes])


HOSTILE = {
    "a long body": ("raw", b" " * 200_000, {}),
    "a compressed bomb": ("raw", gzip.compress(b" " * 50_000_000), {"content-encoding": "gzip"}),
    "deep nesting": ("raw", b"[" * 90_000, {}),
    "another coding": ("raw", b"x", {"content-encoding": "zstd"}),
    "no JSON": ("raw", b"<html>", {}),
    "a list": ("raw", b"[1]", {}),
    "a slow drip": ("drip", 0.05),
    "another host": ("status", 307, {"location": "http://127.0.0.2:1/v1"}),
    "a redirect to itself without end": ("status", 307, {"location": "/v1/chat/completions"}),
    "no gzip": ("raw", b"\x1f\x8b\x08 no gzip", {"content-encoding": "gzip"}),
    "half of a gzip": ("raw", gzip.compress(b"{}")[:-12], {"content-encoding": "gzip"}),
    "null": ("raw", b"null", {}),
    "a number of 5,000 digits": ("raw", b'{"created": ' + b"9" * 5000 + b"}", {}),
    "choices by name": answer(choices={"a": 1}),
    "choices as text": answer(choices="abc"),
    "no choice": answer(choices=[]),
    "null as choice": answer(choices=[None]),
    "a list as message": choice(message=["x"]),
    "a number as content": choice(message={"content": 5}),
    "a mapping as content": choice(message={"content": {"a": 1}}),
    "a list as finish reason": choice(finish_reason=["stop"]),
    "a mapping as token ids": choice(token_ids={"a": 1}),
    "a date of which no clock knows": (
        "status", 503, {"retry-after": "Mon, 01 Jan 2026 00:00:00 +99999999999999999999"}
    ),
    "a wait in other digits": ("status", 503, {"retry-after": "²"}),
    "a refusal of 50 KB": choice(message={"content": None, "refusal": "no" * 25_000}),
    "a finish reason of 50 KB": choice(finish_reason="x" * 50_000),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_fails_one_row(name: str) -> None:
    rows = ask(HOSTILE[name])
    assert [row.finish_reason for row in rows] == ["stop", "error", "stop"]
    assert rows[1].error
    assert len(rows[1].error) < 500


NUMBERS: dict[str, dict[str, Any]] = {
    "huge usage": {"usage": {"prompt_tokens": 10**30}},
    "negative usage": {"usage": {"completion_tokens": -2_000_000}},
    "a fraction": {"usage": {"prompt_tokens": 1.5}},
    "no number as log-prob": {
        "choice": {"logprobs": {"content": [{"token": "a", "logprob": "x"}]}}
    },
    "a positive log-prob": {"choice": {"logprobs": {"content": [{"token": "a", "logprob": 5}]}}},
    "text as token ids": {"choice": {"token_ids": "12"}},
}


@pytest.mark.parametrize("name", NUMBERS)
def test_impossible_numbers_fail_the_row_and_are_not_stored(name: str) -> None:
    rows = ask(reply=lambda body: chat_answer(body, **json.loads(json.dumps(NUMBERS[name]))))
    assert {row.finish_reason for row in rows} == {"error"}
    assert all(row.prompt_tokens == row.completion_tokens == 0 for row in rows)
    assert all(row.logprobs is None and row.token_ids is None for row in rows)


def test_a_server_cannot_stall_a_job_for_years() -> None:
    rows = ask(("status", 429, {"retry-after": "9" * 400}), max_retry_after=0.2)
    assert rows[1].finish_reason == "error"  # and not: still waiting
