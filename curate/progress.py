"""What a person sees of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
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


@contextmanager
def task(name: str, total: int, done: int = 0) -> Iterator[Task]:
    """Work of `total` steps, of which `done` were there already."""
    if not sys.stderr.isatty():
        yield _Lines(name, total, done)
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
        yield _Bar(name, total, done, bar, bar.add_task(name, total=total, completed=done, note=""))
