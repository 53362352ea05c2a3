"""S3 servers on loopback, and a proxy in front of one that loses answers or removes conditions."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "testtest",
    "AWS_REGION": "us-east-1",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(endpoint: str) -> dict[str, str]:
    """Environment with which a process reaches a server."""
    return {**KEYS, "AWS_ENDPOINT_URL": endpoint}


@contextmanager
def moto() -> Iterator[str]:
    """The server of moto: an S3 in memory."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, port, {}) as endpoint:
        yield endpoint


@contextmanager
def localbucket(folder: Path) -> Iterator[str]:
    """The server of localbucket, written independently of moto: an S3 over a directory. It keeps no
    attributes of objects, and has no bulk deletion.
    """
    port = free_port()
    command = [sys.executable, "-m", "localbucket", "--port", str(port), str(folder)]
    with _running(command, port, {}) as endpoint:
        yield endpoint


def has(package: str) -> bool:
    return find_spec(package) is not None


@contextmanager
def _running(command: list[str], port: int, variables: Mapping[str, str]) -> Iterator[str]:
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **variables},
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, f"{command} ended with {process.returncode}"
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, f"{command} does not answer"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


class Proxy:
    """Hands requests on to a server. `lose`: creations that succeed there and whose answer never
    arrives. `strip`: leave out the condition, as a server does that does not know it. `refuse`:
    creations that are answered with 409, as by a server on which another one is in progress.
    """

    def __init__(self, target: str, lose: int = 0, strip: bool = False, refuse: int = 0) -> None:
        self.lose, self.strip, self.refuse = lose, strip, refuse
        self.lost = self.refused = 0
        host = target.removeprefix("http://")
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def _forward(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else None
                headers = dict(self.headers.items())
                conditional = self.headers.get("If-None-Match") is not None
                if conditional and proxy.refuse > proxy.refused:
                    proxy.refused += 1
                    self.send_response(409)
                    text = b"<Error><Code>ConditionalRequestConflict</Code></Error>"
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)
                    return
                if proxy.strip:
                    headers = {k: v for k, v in headers.items() if k.lower() != "if-none-match"}
                connection = http.client.HTTPConnection(host, timeout=60)
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                if conditional and answer.status == 200 and proxy.lost < proxy.lose:
                    proxy.lost += 1
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                        self.send_header(name, value)
                if answer.getheader("Content-Length") is None:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def make_bucket(endpoint: str, name: str) -> None:
    """Create a bucket; a request without a signature is enough for servers that check none."""
    host = endpoint.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=30)
    # for moto: the service and the region, the only parts of a signature that it reads
    credential = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"
    connection.request("PUT", f"/{name}", headers={"Authorization": f"{credential}, Signature=0"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    assert answer.status in (200, 409), (answer.status, name)
