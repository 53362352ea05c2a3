"""An OpenAI-compatible server with files and batches, on loopback. It answers a batch immediately
or after `release`, and records the requests.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.engines.server import chat_answer

Answer = Callable[[dict[str, Any]], dict[str, Any]]


class Handler(BaseHTTPRequestHandler):
    server: BatchServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        path = self.path.partition("?")[0]
        if self.server.absent:
            self.reply(404, {"error": {"message": "not found"}})
        elif path == "/v1/files":
            self.reply(200, self.server.add_file(content, self.headers["content-type"]))
        elif path == "/v1/batches":
            self.reply(200, self.server.add_batch(json.loads(content)))
        else:
            self.reply(404, {"error": {"message": f"no {path}"}})

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path == "/v1/batches":
            listed = [] if "after=" in query else list(self.server.batches.values())[::-1]
            self.reply(200, {"object": "list", "data": listed, "has_more": False})
        elif match := re.fullmatch(r"/v1/batches/([\w-]+)", path):
            self.reply(200, self.server.batches[match.group(1)])
        elif match := re.fullmatch(r"/v1/files/([\w-]+)/content", path):
            self.reply(200, self.server.files[match.group(1)], "application/jsonl")
        else:
            self.reply(404, {"error": {"message": f"no {path}"}})

    def reply(self, status: int, body: Any, kind: str = "application/json") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class BatchServer(ThreadingHTTPServer):
    """`answer` makes the line of the output file for a request's body: a dict with `status` and
    `body`, or a completion. With `hold`, batches stay in progress until `release`.
    """

    daemon_threads = True

    def __init__(self, answer: Answer = chat_answer, hold: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.hold = answer, hold
        self.absent = False  # without files and batches
        self.ending = "completed"
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.bodies: list[dict[str, Any]] = []  # bodies of all requests of all batches
        self.sizes: list[int] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def add_file(self, content: bytes, kind: str) -> dict[str, Any]:
        boundary = kind.partition("boundary=")[2].encode()
        parts = [p for p in content.split(b"--" + boundary) if b'name="file"' in p]
        data = parts[0].split(b"\r\n\r\n", 1)[1].rstrip(b"\r\n")
        name = f"file-{len(self.files)}"
        self.files[name] = data
        return {"id": name, "object": "file", "bytes": len(data), "created_at": 0,
                "filename": "x.jsonl", "purpose": "batch", "status": "processed"}  # fmt: skip

    def add_batch(self, body: dict[str, Any]) -> dict[str, Any]:
        name = f"batch-{len(self.batches)}"
        lines = [json.loads(line) for line in self.files[body["input_file_id"]].splitlines()]
        self.bodies += [line["body"] for line in lines]
        self.sizes.append(len(lines))
        self.batches[name] = {
            "id": name, "object": "batch", "created_at": 0, "status": "in_progress",
            "completion_window": body["completion_window"], "endpoint": body["endpoint"],
            "input_file_id": body["input_file_id"], "metadata": body.get("metadata"),
            "output_file_id": None, "error_file_id": None,
        }  # fmt: skip
        if not self.hold:
            self.finish(name)
        return self.batches[name]

    def finish(self, name: str) -> None:
        """End a batch: answers in its output file, failures in its error file."""
        batch = self.batches[name]
        good, bad = [], []
        for line in self.files[batch["input_file_id"]].splitlines():
            row = json.loads(line)
            answer = self.answer(row["body"])
            code = answer.pop("status", 200)
            if code is None:
                continue  # never answered
            body = answer if code == 200 else {"error": {"message": "injected"}}
            response = {"status_code": code, "request_id": "r", "body": body}
            out = {"id": "x", "custom_id": row["custom_id"], "response": response, "error": None}
            (good if code == 200 else bad).append(json.dumps(out))
        for lines, key in ((good, "output_file_id"), (bad, "error_file_id")):
            if lines:
                batch[key] = f"{name}-{key.removesuffix('_file_id')}"
                self.files[batch[key]] = ("\n".join(lines[::-1]) + "\n").encode()
        batch["status"] = self.ending

    def release(self) -> None:
        self.hold = False
        for name, batch in list(self.batches.items()):
            if batch["status"] == "in_progress":
                self.finish(name)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away

    def __enter__(self) -> BatchServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
