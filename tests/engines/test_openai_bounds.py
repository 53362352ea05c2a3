"""A hostile server fails the rows it answers, and neither the job nor the machine."""

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


HOSTILE = {
    "a long body": ("raw", b" " * 200_000, {}),
    "a compressed bomb": ("raw", gzip.compress(b" " * 50_000_000), {"content-encoding": "gzip"}),
    "deep nesting": ("raw", b"[" * 90_000, {}),
    "another coding": ("raw", b"x", {"content-encoding": "zstd"}),
    "no JSON": ("raw", b"<html>", {}),
    "a list": ("raw", b"[1]", {}),
    "a slow drip": ("drip", 0.05),
    "another host": ("status", 307, {"location": "http://127.0.0.2:1/v1"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_one_failed_row(name: str) -> None:
    rows = ask(HOSTILE[name])
    assert [row.finish_reason for row in rows] == ["stop", "error", "stop"]
    assert rows[1].error


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


def test_a_server_cannot_hold_a_job_for_years() -> None:
    rows = ask(("status", 429, {"retry-after": "9" * 400}), max_retry_after=0.2)
    assert rows[1].finish_reason == "error"  # and not: still waiting
