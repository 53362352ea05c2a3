"""The desk separates workers, and releases the claims of lost ones."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from curate.cluster.desk import Desk, DeskClaims


def claims(desk: Desk, worker: str) -> DeskClaims:
    def call(method: str, *arguments: Any) -> Any:
        return getattr(desk, method)(*arguments)

    return DeskClaims(call, worker)


def test_a_claim_has_one_holder_until_it_is_released() -> None:
    desk = Desk()
    one, other = claims(desk, "one"), claims(desk, "other")
    held = one.take("f/1")
    assert held is not None
    assert other.take("f/1") is None
    assert one.take("f/1") is None, "two threads of one worker are kept apart as well"
    assert other.take("f/2") is not None
    held.release(done=True)
    assert other.take("f/1") is not None
    assert desk.status().done == 1
    assert desk.status().workers == 2


def test_a_restarted_worker_gets_its_claims_at_once() -> None:
    desk = Desk()
    assert claims(desk, "one").take("f/1") is not None
    assert claims(desk, "other").take("f/1") is None
    assert claims(desk, "one").take("f/1") is not None


def test_a_silent_worker_loses_its_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    desk = Desk(lease=60)
    assert desk.take("f/1", "one")
    clock[0] = 59.0
    assert not desk.take("f/1", "other")
    desk.beat("one")
    clock[0] = 118.0
    assert not desk.take("f/1", "other")
    clock[0] = 120.0
    assert desk.take("f/1", "other")
    assert not desk.take("f/1", "one")
    desk.release("f/1", "one", done=False)  # too late: another worker holds it
    assert not desk.take("f/1", "third")


def test_a_pause_ends_with_the_job() -> None:
    desk = Desk()
    worker, stop = claims(desk, "one"), threading.Event()
    desk.finish()
    beats = threading.Thread(target=worker.beat, args=(stop,))
    beats.start()
    began = time.monotonic()
    worker.pause(300)
    assert time.monotonic() - began < 100
    stop.set()
    beats.join(10)
    assert not beats.is_alive()
