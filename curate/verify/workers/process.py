"""The parent's side of a worker process: start it, talk to it without blocking, end it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

from curate.records import Problem
from curate.verify.workers.worker import LENGTH, WALL_CLOCK

START_LIMIT = 300.0  # seconds by the clock to start a worker, or to import what a verifier needs

# Index of the item, name of its verifier, problem, answer.
Job = tuple[int, str, Problem, str]


class WorkerProcess:
    """A worker process, and the state that its parent keeps about it."""

    def __init__(self, memory: int, limit: float) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
        }
        root = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [root, environment.get("PYTHONPATH")])
        )
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the worker)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "curate.verify.workers.worker", str(memory), str(limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            env=environment,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.stdin, False)
        os.set_blocking(self.stdout, False)
        self.received = bytearray()
        self.sending = b""
        self.group: deque[Job] = deque()
        self.ready = False
        self.cpu = 0.0  # seconds of processor time used before the item in progress
        self.began = time.monotonic()  # start of the item in progress, or of the worker
        self.deadline = self.began + START_LIMIT

    def send(self, group: list[Job], limit: float) -> None:
        self.group.extend(group)
        body = json.dumps(
            [[name, _fields(problem), answer] for _, name, problem, answer in group]
        ).encode()
        self.sending = LENGTH.pack(len(body)) + body
        if self.ready:
            self.began = time.monotonic()
            self.deadline = self.began + limit

    def flush(self) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self.sending:
                self.sending = self.sending[os.write(self.stdin, self.sending[: 1 << 18]) :]

    def receive(self) -> list[dict[str, Any]] | None:
        """Return the complete messages that have arrived; None if the worker is gone."""
        ended = False
        while True:
            try:
                part = os.read(self.stdout, 1 << 16)
            except BlockingIOError:
                break
            if not part:
                ended = True
                break
            self.received += part
        messages = []
        while len(self.received) >= LENGTH.size:
            size = LENGTH.unpack_from(self.received)[0]
            if len(self.received) < LENGTH.size + size:
                break
            messages.append(json.loads(bytes(self.received[LENGTH.size : LENGTH.size + size])))
            del self.received[: LENGTH.size + size]
        return None if ended and not messages else messages

    def unused(self, limit: float) -> float:
        """Return the seconds of processor time that the item in progress may still use.

        0 if they are used up or the wall-clock limit is reached.
        """
        if not self.ready or self.over_wall_clock(limit):
            return 0.0
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return max(0.0, limit - (used - self.cpu))

    def over_wall_clock(self, limit: float) -> bool:
        return time.monotonic() - self.began >= WALL_CLOCK * limit

    def kill(self) -> None:
        """End the process now."""
        with contextlib.suppress(OSError):
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        self.process.poll()  # not waited for: freeing a large memory takes time


def _fields(problem: Problem) -> dict[str, Any]:
    """Return the fields of a problem that verifiers read."""
    return {
        "reference": problem.reference,
        "choices": problem.choices,
        "metadata": problem.metadata,
        "target_language": problem.target_language,
    }
