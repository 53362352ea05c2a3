"""Work is shared: one process does each item, and waits for items that others hold."""

from __future__ import annotations

import threading
import time

import pytest

from curate.warehouse import claims as module
from curate.warehouse.claims import LockClaims, share


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)


class Work:
    """Items, finished items, and the worker of each."""

    def __init__(self, count: int) -> None:
        self.items = list(range(count))
        self.done: list[tuple[int, int]] = []

    def lacking(self, item: int) -> int | None:
        return None if any(item == other for other, _ in self.done) else item

    def by(self, who: int, claims: LockClaims, seconds: float = 0.0) -> None:
        for item in share(self.items, claims, str, self.lacking):
            time.sleep(seconds)
            self.done.append((item, who))


def test_several_workers_do_each_item_once_and_all_return_when_all_is_done(tmp_path):
    work, claims = Work(30), LockClaims(tmp_path)
    workers = [threading.Thread(target=work.by, args=(who, claims, 0.005)) for who in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert sorted(item for item, _ in work.done) == work.items
    assert len({who for _, who in work.done}) > 1
    assert not list(tmp_path.glob("**/*.lock"))


def test_an_item_released_undone_is_taken_over(tmp_path):
    work, claims = Work(2), LockClaims(tmp_path)
    held = claims.take("0")
    assert held is not None
    worker = threading.Thread(target=work.by, args=(1, claims))
    worker.start()
    time.sleep(0.1)
    assert work.done == [(1, 1)]
    held.release()
    worker.join(30)
    assert work.done == [(1, 1), (0, 1)]


def test_an_error_releases_the_claim(tmp_path):
    work, claims = Work(1), LockClaims(tmp_path)
    with pytest.raises(TypeError):
        work.by(1, claims, seconds="none")
    work.by(2, claims)
    assert work.done == [(0, 2)]


def test_items_done_meanwhile_are_not_done_again(tmp_path):
    work, claims = Work(3), LockClaims(tmp_path)
    for item in share(work.items, claims, str, work.lacking):
        work.done.append((item, 1))
        if item == 0:
            work.done.append((2, 9))
    assert work.done == [(0, 1), (2, 9), (1, 1)]
