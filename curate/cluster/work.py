"""One worker of a job: this process's context, with claims at the desk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import ray

from curate.cluster.desk import DeskClaims
from curate.job import Context


def work(desk: Any, root: str, function: Callable[[Any, Context], Any], payload: Any) -> Any:
    """Run a function that works until nothing is missing, and return its result."""

    def call(method: str, *arguments: Any) -> Any:
        return ray.get(getattr(desk, method).remote(*arguments))

    # A restarted actor keeps its id, and so its claims.
    claims = DeskClaims(call, ray.get_runtime_context().get_actor_id() or "driver")
    stop = threading.Event()
    beats = threading.Thread(target=claims.beat, args=(stop,), name="curate-beat", daemon=True)
    beats.start()
    try:
        with Context(root, claims) as context:
            return function(payload, context)
    finally:
        stop.set()
