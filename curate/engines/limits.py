"""Limits on a server's power over an engine: size of a body, redirects, waits, numbers.

A server is not trusted: its answer may be endless, expand a thousandfold, send us to another host,
or hold numbers that no table can. Each bound raises BadAnswer, which fails one request.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from curate.errors import UsageError

if TYPE_CHECKING:
    import httpx

COUNT_LIMIT = 2**31  # tokens of one answer; the columns hold 32 bits


class BadAnswer(ValueError):
    """An answer that is refused: too large, from elsewhere, or with impossible values."""


def check_server_url(url: str) -> str:
    """Return the URL. UsageError if it holds a user name or a password: configs are stored."""
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        host = parts.hostname or ""
        raise UsageError(
            f"base_url: the address of {host} holds a user name or password, and configs are "
            "stored in the warehouse: put the key into the environment variable that api_key_env "
            "names"
        )
    return url


def capped_client(limit: int, timeout: float) -> Any:
    """An httpx.AsyncClient whose bodies are at most `limit` bytes and whose redirects stay put."""
    import httpx

    class Capped(httpx.AsyncHTTPTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            request.headers["Accept-Encoding"] = "gzip"
            response = await super().handle_async_request(request)
            coding = response.headers.pop("content-encoding", "identity").lower()
            stream = response.stream
            headers = [(k, v) for k, v in response.headers.raw if k.lower() != b"content-length"]
            return httpx.Response(
                response.status_code,
                headers=headers,
                stream=_Bounded(stream, coding, limit),
                extensions=response.extensions,
            )

    class _Bounded(httpx.AsyncByteStream):
        def __init__(self, stream: Any, coding: str, limit: int) -> None:
            self.stream, self.coding, self.limit = stream, coding, limit

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for piece in bounded(self.stream, self.coding, self.limit):
                yield piece

        async def aclose(self) -> None:
            await self.stream.aclose()

    async def stay(response: httpx.Response) -> None:
        if response.has_redirect_location:
            check_redirect(str(response.request.url), response.headers["location"])

    return httpx.AsyncClient(
        transport=Capped(), timeout=timeout, follow_redirects=True, event_hooks={"response": [stay]}
    )


async def bounded(stream: AsyncIterator[bytes], coding: str, limit: int) -> AsyncIterator[bytes]:
    """Yield the decoded bytes of a body as they arrive. BadAnswer beyond `limit` bytes."""
    if coding not in ("identity", "", "gzip", "x-gzip"):
        raise BadAnswer(f"the answer is compressed by '{coding[:20]}', which was not requested")
    decoder = zlib.decompressobj(wbits=31) if "gzip" in coding else None
    total = 0
    async for piece in stream:
        # One byte more than allowed is enough to know, and bounds what one piece can expand to.
        try:
            data = decoder.decompress(piece, limit - total + 1) if decoder else piece
        except zlib.error as error:
            raise BadAnswer(f"the answer is not compressed as it says: {error}") from error
        total += len(data)
        if total > limit:
            raise BadAnswer(f"the answer has more than {limit / 1e6:g} MB (max_body)")
        yield data


def check_redirect(url: str, location: str) -> None:
    """BadAnswer if a redirect leads to another scheme, host or port."""
    here, there = urlsplit(url), urlsplit(urljoin(url, location))
    if (here.scheme, here.hostname, here.port) != (there.scheme, there.hostname, there.port):
        raise BadAnswer(f"the server redirects to another one, {there.hostname}: not followed")


def wait_limit(seconds: float | None, most: float) -> float | None:
    """Return the wait that a server asks for, capped at `most` seconds; None if it is not a
    number.
    """
    if seconds is None or math.isnan(seconds):
        return None
    return min(max(seconds, 0.0), most)


def count(value: object, name: str) -> int:
    """Return a token count that a server reports; None counts as 0. BadAnswer if it is not one."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < COUNT_LIMIT:
        raise BadAnswer(f"the server's {name} is not a count: {str(value)[:40]}")
    return value


def token_ids(value: object) -> list[int] | None:
    """Token ids as a server states them. BadAnswer unless they are non-negative 32-bit integers."""
    if value is None:
        return None
    if not isinstance(value, list):
        raise BadAnswer("the server's token ids are not a list")
    return [count(item, "token id") for item in value]


def logprobs(values: Sequence[object] | None, ids: Sequence[int] | None) -> list[float] | None:
    """Log-probs as a server states them. BadAnswer unless each is a number of at most zero.

    A rounding error above zero becomes zero. With token ids there is one log-prob per token.
    """
    if values is None:
        return None
    result = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadAnswer(f"the server's log-prob is not one: {str(value)[:40]}")
        if not math.isfinite(value) or value > 1e-3:
            raise BadAnswer(f"the server's log-prob is not one: {value:.4g}")
        result.append(min(float(value), 0.0))
    if ids is not None and len(result) != len(ids):
        raise BadAnswer(f"the server gives {len(result)} log-probs for {len(ids)} tokens")
    return result
