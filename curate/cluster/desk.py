"""The desk hands out claims to the workers of one job, and counts what is done.

It lives in an actor on the driver's node, so that it ends with the driver and the loss of another
machine does not end it. Its state is a hint: after a restart it is empty, and some work is done
twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# A worker that is silent for this long loses its claims: its machine may be gone without a
# replacement. A worker that comes back has the same name, and gets its claims back at once.
LEASE_SECONDS = 60.0
BEAT_SECONDS = 5.0


@dataclass(frozen=True)
class Status:
    """Progress of a job. `workers`: the number that reported recently."""

    workers: int
    done: int


class Desk:
    """Claims by name, each held by one worker."""

    def __init__(self, lease: float = LEASE_SECONDS) -> None:
        self._lease = lease
        self._held: dict[str, str] = {}
        self._heard: dict[str, float] = {}
        self._done: set[str] = set()
        self._over = False

    def take(self, name: str, worker: str) -> bool:
        """Give a claim to a worker, unless another one that is alive holds it."""
        self.beat(worker)
        holder = self._held.get(name, worker)
        if holder != worker and self._is_alive(holder):
            return False
        self._held[name] = worker
        return True

    def release(self, name: str, worker: str, done: bool) -> None:
        """Take a claim back, if this worker still holds it."""
        if self._held.get(name) == worker:
            del self._held[name]
        if done:
            self._done.add(name)

    def beat(self, worker: str) -> bool:
        """Record that a worker is alive. Returns whether the job is over."""
        self._heard[worker] = time.monotonic()
        return self._over

    def finish(self) -> None:
        """Record that nothing is missing any more."""
        self._over = True

    def status(self) -> Status:
        return Status(sum(map(self._is_alive, self._heard)), len(self._done))

    def _is_alive(self, worker: str) -> bool:
        return time.monotonic() - self._heard.get(worker, -self._lease) < self._lease


class DeskClaims:
    """Claims of one worker at the desk. `call` calls a method of the desk and waits for it."""

    shared = True

    def __init__(self, call: Callable[..., Any], worker: str) -> None:
        self._call, self._worker = call, worker
        self._mine: set[str] = set()
        self._guard = threading.Lock()
        self._over = threading.Event()

    def take(self, name: str) -> _Held | None:
        with self._guard:
            if name in self._mine:  # another thread of this worker
                return None
            self._mine.add(name)
        if self._call("take", name, self._worker):
            return _Held(self, name)
        with self._guard:
            self._mine.discard(name)
        return None

    def pause(self, seconds: float) -> None:
        """Wait, but return as soon as the job is over."""
        self._over.wait(seconds)

    def give_back(self, name: str, done: bool) -> None:
        with self._guard:
            self._mine.discard(name)
        self._call("release", name, self._worker, done)

    def beat(self, stop: threading.Event) -> None:
        """Report to the desk that this worker is alive, until `stop`."""
        while True:
            if self._call("beat", self._worker):
                self._over.set()
            if stop.wait(1.0 if self._over.is_set() else BEAT_SECONDS):
                return


class _Held:
    def __init__(self, claims: DeskClaims, name: str) -> None:
        self._claims, self._name = claims, name

    def release(self, done: bool = False) -> None:
        self._claims.give_back(self._name, done)
