"""What a person sees of long work: a bar with rate and time left on a terminal, plain lines
elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

LINE_SECONDS = 15.0


def say(text: str = "") -> None:
    """One line for the user, on stderr: stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`75` as `1m15s`."""
    seconds = int(max(seconds, 0))
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"


class Task:
    """One running piece of work. `update` may be called as often as one likes."""

    def __init__(self, name: str, total: int, done: int = 0) -> None:
        self.name, self.total, self.done, self.first = name, total, done, done
        self.note = ""
        self.started = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        self.done, self.note = done, note
        self.show()

    def show(self) -> None:
        """Draw; the base class draws nothing."""

    def line(self) -> str:
        passed = time.monotonic() - self.started
        made = self.done - self.first
        left = duration(passed / made * (self.total - self.done)) if made else "?"
        note = f", {self.note}" if self.note else ""
        return (
            f"{self.name}: {self.done}/{self.total}{note}, {duration(passed)} passed, {left} left"
        )


class _Lines(Task):
    _next = 0.0

    def show(self) -> None:
        present = time.monotonic()
        if present >= self._next or self.done >= self.total:
            if self._next or self.done >= self.total:
                say("  " + self.line())
            self._next = float("inf") if self.done >= self.total else present + LINE_SECONDS


class _Bar(Task):
    def __init__(self, name: str, total: int, done: int, bar: object, handle: object) -> None:
        super().__init__(name, total, done)
        self.bar, self.handle = bar, handle

    def show(self) -> None:
        self.bar.update(self.handle, completed=self.done, total=self.total, note=self.note)  # type: ignore[attr-defined]


_current: Task | None = None  # the one that is shown now


@contextmanager
def task(name: str, total: int, done: int = 0) -> Iterator[Task]:
    """Work of `total` steps, of which `done` were there already."""
    if not sys.stderr.isatty():
        with _shown(_Lines(name, total, done)) as lines:
            yield lines
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        handle = bar.add_task(name, total=total, completed=done, note="")
        with _shown(_Bar(name, total, done, bar, handle)) as shown:
            yield shown


@contextmanager
def _shown(work: Task) -> Iterator[Task]:
    global _current
    outer, _current = _current, work
    try:
        yield work
    finally:
        _current = outer


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say what is being waited for, keep saying for how long, and how long it took in the end.

    The time stands next to the progress of the running task if there is one, else in a line of its own.
    """
    started, stop = time.monotonic(), threading.Event()
    say(f"  {what}")

    def tick() -> None:
        following = LINE_SECONDS
        while not stop.wait(1.0):
            passed = time.monotonic() - started
            if isinstance(_current, _Bar):
                _current.update(_current.done, f"{what}, {duration(passed)}")
            elif passed >= following:
                following += LINE_SECONDS
                say(f"  {what}, {duration(passed)} so far")

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        stop.set()
        ticker.join()
    say(f"  {what}: done in {duration(time.monotonic() - started)}")
