"""An OpenAI-compatible server without a model, and a proxy that disturbs the traffic to a real one.
Both listen on loopback.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[
    [int, dict[str, Any]], Any
]  # (number of the request, body) -> None, or a fault (see `spoil`)


class Handler(BaseHTTPRequestHandler):
    server: Loopback
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        """Return the list of models with their owner."""
        if self.server.owner is None:
            return self.reply(404, b"{}")
        model = {"id": "m", "object": "model", "created": 0, "owned_by": self.server.owner}
        self.reply(200, json.dumps({"object": "list", "data": [model]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        number = self.server.record(self.path, body, dict(self.headers))
        try:
            fault = self.server.fault(number, body) if self.server.fault else None
            if fault is None or not self.spoil(fault):
                self.server.answer(self, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.server.leave()

    def spoil(self, fault: Any) -> bool:
        """Apply a fault: status (code, headers), drop, hang (seconds), slow (seconds),
        garbage, raw (body, headers), drip (seconds per byte)."""
        kind = fault[0]
        if kind == "slow":
            time.sleep(fault[1])
            return False
        if kind == "hang":
            time.sleep(fault[1])
        if kind in ("hang", "drop"):
            self.close_connection = True
            return True
        if kind == "garbage":
            self.reply(200, b'{"choices": []}')
            return True
        if kind == "raw":
            self.reply(200, fault[1], fault[2])
            return True
        if kind == "drip":
            self.send_response(200)
            self.send_header("content-length", "1000")
            self.end_headers()
            for _ in range(1000):
                self.wfile.write(b" ")
                time.sleep(fault[1])
            return True
        _, status, headers = fault
        message = headers.pop("message", "injected")
        self.reply(status, json.dumps({"error": {"message": message}}).encode(), headers)
        return True

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Loopback(ThreadingHTTPServer):
    """Records each request. `fault` may spoil it; otherwise `reply` or the server behind answers
    it.
    """

    daemon_threads = True

    def __init__(
        self,
        reply: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        behind: str = "",
        fault: Fault | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.make, self.behind, self.fault = reply, behind, fault
        self.seen: list[tuple[float, str, dict[str, Any], dict[str, str]]] = []
        self.open = self.most_open = 0
        self.owner: str | None = None  # of the models, if the server lists any
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def record(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> int:
        with self.lock:
            self.seen.append((time.monotonic(), path, body, headers))
            self.open += 1
            self.most_open = max(self.most_open, self.open)
            return len(self.seen) - 1

    def leave(self) -> None:
        with self.lock:
            self.open -= 1

    def answer(self, handler: Handler, body: dict[str, Any]) -> None:
        if self.make:
            return handler.reply(200, json.dumps(self.make(body)).encode())
        path = handler.path.removeprefix("/v1")
        sent = urllib.request.Request(
            self.behind + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(sent, timeout=120) as back:
                handler.reply(back.status, back.read())
        except urllib.error.HTTPError as error:
            handler.reply(error.code, error.read())

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def chat_answer(body: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Answer of a chat server: the last message and the seed, with 10 prompt tokens and 5
    completion tokens.
    """
    message = {
        "role": "assistant",
        "content": f"{body['messages'][-1]['content']}|{body.get('seed')}",
    }
    message |= changes.pop("message", {})
    choice = {"index": 0, "finish_reason": "stop", "message": message} | changes.pop("choice", {})
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15} | changes.pop(
        "usage", {}
    )
    whole = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [choice],
    }
    return whole | {"usage": usage} | changes
