"""Backends without a model for the child process. The prompt selects their behaviour: count, stall,
die or refuse.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from curate.engines.base import EngineConfig
from curate.engines.child import Done, Job
from curate.engines.pool import PooledEngine
from curate.records import Completion


class CountingCore:
    """One step finishes the newest job. The text names the weights, the prompt and the seed, but
    not the process.
    """

    def __init__(self, model_dir: str, config: dict[str, Any]) -> None:
        if config["args"].get("broken"):
            raise RuntimeError("no kernel image is available")
        self.args = config["args"]
        self.weights = Path(model_dir).name
        self.jobs: list[Job] = []

    def info(self) -> dict[str, Any]:
        return {"max_num_seqs": 4, "max_model_len": 100}

    def add(self, job: Job) -> Done | None:
        if "refuse" in job[2].prompt:
            return job[0], Completion(job[2].request_id, "", "error", error="refused")
        self.jobs.append(job)
        return None

    def busy(self) -> bool:
        return bool(self.jobs)

    def step(self) -> list[Done]:
        number, ids, request = self.jobs.pop()
        if self._first_time(request.prompt, "die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if "kill-always" in request.prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.args.get("seconds", 0))
        text = f"{self.weights}|{request.prompt}|{request.seed}"
        extra = {"pid": os.getpid()}
        return [
            (
                number,
                Completion(request.request_id, text, "stop", ids, completion_tokens=1, extra=extra),
            )
        ]

    def _first_time(self, prompt: str, word: str) -> bool:
        """True once per test: a file remembers it when the process dies."""
        if word not in prompt or "marks" not in self.args:
            return False
        mark = Path(self.args["marks"]) / prompt
        if mark.exists():
            return False
        mark.touch()
        return True

    def abort(self) -> None:
        self.jobs.clear()

    def update_weights(self, directory: str) -> str:
        self.weights = Path(directory).name
        return self.weights


class CountingEngine(PooledEngine):
    name = "counting"
    core = "tests.engines.cores:CountingCore"


def counting(model_dir: Path, **settings: Any) -> CountingEngine:
    return CountingEngine(
        EngineConfig(name="tests.engines.cores:CountingEngine", **settings), model_dir
    )
