"""Answers of a server stay within their bounds, and no impossible number is stored."""

from __future__ import annotations

import asyncio
import gzip
import math
from collections.abc import AsyncIterator

import pytest

from curate.engines import limits
from curate.engines.limits import BadAnswer
from curate.errors import UsageError


def read(pieces: list[bytes], coding: str = "identity", limit: int = 1000) -> bytes:
    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def collect() -> bytes:
        return b"".join([data async for data in limits.bounded(stream(), coding, limit)])

    return asyncio.run(collect())


def test_a_body_up_to_the_limit_passes_and_a_longer_one_does_not() -> None:
    assert read([b"x" * 400, b"y" * 600]) == b"x" * 400 + b"y" * 600
    with pytest.raises(BadAnswer, match=r"more than 0\.001 MB"):
        read([b"x" * 400, b"y" * 601])


def test_the_limit_counts_decompressed_bytes_and_a_bomb_is_not_expanded() -> None:
    assert read([gzip.compress(b"z" * 1000)], "gzip") == b"z" * 1000
    bomb = gzip.compress(b"\0" * 50_000_000)
    with pytest.raises(BadAnswer, match="more than"):
        read([bomb[:1000], bomb[1000:]], "gzip")
    with pytest.raises(BadAnswer, match="was not requested"):
        read([b""], "br")


@pytest.mark.parametrize(
    ("location", "followed"),
    [
        ("/v2/chat", True),
        ("http://host:80/v2", True),
        ("http://host:81/v2", False),
        ("https://host:80/v2", False),
        ("http://other:80/v2", False),
        ("//other/v2", False),
    ],
)
def test_a_redirect_stays_on_the_server(location: str, followed: bool) -> None:
    if followed:
        limits.check_redirect("http://host:80/v1", location)
    else:
        with pytest.raises(BadAnswer, match="another"):
            limits.check_redirect("http://host:80/v1", location)


@pytest.mark.parametrize(
    ("requested", "waited"),
    [(5.0, 5.0), (1e9, 600.0), (math.inf, 600.0), (-3.0, 0.0), (math.nan, None), (None, None)],
)
def test_a_server_cannot_make_us_wait_forever(requested: float, waited: float | None) -> None:
    assert limits.wait_limit(requested, 600.0) == waited


@pytest.mark.parametrize("value", [-1, 10**30, 1.5, "7", True, [], math.nan])
def test_an_impossible_count_fails_the_answer(value: object) -> None:
    with pytest.raises(BadAnswer, match="not a count"):
        limits.count(value, "usage")
    with pytest.raises(BadAnswer, match="not a count"):
        limits.token_ids([1, value])


@pytest.mark.parametrize("value", [math.nan, -math.inf, 0.5, "evil", None, True])
def test_an_impossible_log_prob_fails_the_answer(value: object) -> None:
    with pytest.raises(BadAnswer, match="log-prob"):
        limits.logprobs([-0.1, value], None)


def test_good_numbers_pass() -> None:
    assert limits.count(None, "x") == 0
    assert limits.count(12, "x") == 12
    assert limits.token_ids([0, 5]) == [0, 5]
    assert limits.logprobs([-1, 1e-6], [1, 2]) == [-1.0, 0.0]
    with pytest.raises(BadAnswer, match="2 log-probs for 3 tokens"):
        limits.logprobs([-1, -1], [1, 2, 3])


@pytest.mark.parametrize("url", ["http://user:secret@host/v1", "http://user@host/v1"])
def test_credentials_in_an_address_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError, match="api_key_env") as caught:
        limits.check_server_url(url)
    assert "secret" not in str(caught.value)
    assert limits.check_server_url("http://host:8000/v1") == "http://host:8000/v1"
