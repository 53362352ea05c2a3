"""S3 servers of the tests in this folder, each started at its first use."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.store.servers import environment, has, localbucket, make_bucket, moto


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Return a function from a kind of server to its endpoint."""
    running: dict[str, Any] = {}

    def start(kind: str) -> str:
        if not has("obstore") or not has(kind):
            pytest.skip(f"the package {kind} or obstore is not installed")
        if kind not in running:
            server = moto() if kind == "moto" else localbucket(tmp_path_factory.mktemp("buckets"))
            running[kind] = server, server.__enter__()
            make_bucket(running[kind][1], "curate")
        return str(running[kind][1])

    yield start
    for server, _ in running.values():
        server.__exit__(None, None, None)


@pytest.fixture
def bucket(
    servers: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> str:
    """An empty place in a bucket, which this process and its children reach."""
    reach(monkeypatch, servers(getattr(request, "param", "moto")))
    return f"s3://curate/{uuid.uuid4().hex}/wh"


def reach(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Point this process at a server, and drop connections to an earlier one."""
    from curate.store import roots

    for name, value in environment(endpoint).items():
        monkeypatch.setenv(name, value)
    roots._bucket.cache_clear()
