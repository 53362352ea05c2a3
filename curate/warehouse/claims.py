"""Claims: the process that works on a chunk or part, so that others leave it alone.

A claim is a hint and never a proof. Correctness rests on put-if-absent alone (store.py): if two
processes hold one claim, work is done twice and committed once.

    LockClaims   POSIX locks on `_logs/<name>.lock`: one machine, or a share with coherent locks
    OwnClaims    the threads of this process only: a bucket

On a cluster an actor of Ray holds the claims (curate/cluster).
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from curate.atomic import disk_errors
from curate.store import is_remote
from curate.warehouse.names import LOGS

# Each look at what other processes hold lists parts. With many workers on one store that adds up,
# so the pause doubles while nothing changes.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0

Item = TypeVar("Item")


class Claim(Protocol):
    """Work that this process holds, until `release` or the end of the process."""

    def release(self, done: bool = False) -> None:
        """Release the claim. `done`: the work is committed, so that no process claims it again."""


class Claims(Protocol):
    """Hands out claims by name. `shared`: other processes see them."""

    shared: bool

    def take(self, name: str) -> Claim | None:
        """Claim `<group>/<name>`. Returns None if another process or thread holds it."""

    def pause(self, seconds: float) -> None:
        """Wait before the next look at the claims of others, or until all is done."""


class LockClaims:
    """Claims by POSIX locks in a folder. The kernel drops them when the process dies; children do
    not inherit them."""

    shared = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def take(self, name: str) -> Claim | None:
        path = self.folder / f"{name}.lock"
        with disk_errors(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            return _lock(path)

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)


class OwnClaims:
    """Claims among the threads of this process, if no lock reaches others: in a bucket."""

    shared = False

    def __init__(self) -> None:
        self._held: set[str] = set()
        self._guard = threading.Lock()

    def take(self, name: str) -> Claim | None:
        with self._guard:
            if name in self._held:
                return None
            self._held.add(name)
        return _Own(self, name)

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def _free(self, name: str) -> None:
        with self._guard:
            self._held.discard(name)


class _Own:
    def __init__(self, claims: OwnClaims, name: str) -> None:
        self._claims, self._name = claims, name

    def release(self, done: bool = False) -> None:
        self._claims._free(self._name)


def claims_of(root: Path) -> Claims:
    """Return the claims of a warehouse without a cluster."""
    return OwnClaims() if is_remote(root) else LockClaims(root / LOGS)


class _Lock:
    """An exclusive lock on a file."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self.handle = path, handle

    def release(self, done: bool = False) -> None:
        with _held_guard:
            _held.discard(str(self.path))
            os.close(self.handle)
        if done:
            self.path.unlink(missing_ok=True)


# POSIX locks do not exclude each other within one process, and closing any descriptor of the file
# drops them: this set keeps track of those that this process holds.
_held: set[str] = set()
_held_guard = threading.Lock()


def _lock(path: Path) -> _Lock | None:
    """Lock a file; None if another thread or process holds it."""
    with _held_guard:
        if str(path) in _held:
            return None
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return None
            raise
        _held.add(str(path))
        return _Lock(path, handle)


def rotated(items: Sequence[Item]) -> list[Item]:
    """Rotate items to start at a random one."""
    start = random.randrange(len(items)) if items else 0
    return [*items[start:], *items[:start]]


def share(
    items: Sequence[Item],
    claims: Claims,
    name: Callable[[Item], str],
    lacking: Callable[[Item], Item | None],
) -> Iterator[Item]:
    """Yield every item that is not done, one at a time, while this process holds its claim.

    `lacking` returns what an item still needs, or None if another process did all of it. Items that
    others hold are looked at again, after a pause, until they are done or free.
    """
    waiting, pause = list(items) if claims.shared else rotated(items), FIRST_PAUSE
    while waiting:
        held = []
        for item in waiting:
            claim = claims.take(name(item))
            if claim is None:
                held.append(item)
                continue
            done = False
            try:
                remaining = lacking(item)
                if remaining is not None:
                    yield remaining
                done = True
            finally:
                claim.release(done)
        if len(held) == len(waiting):
            claims.pause(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            pause = FIRST_PAUSE
        waiting = [item for item in held if lacking(item) is not None]
