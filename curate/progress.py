"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere.

All text for a person goes through here, so that nothing of it reaches the terminal as a control
sequence or as markup.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from curate.visible import one_line, visible

LINE_SECONDS = 15.0


def say(text: str = "") -> None:
    """Print one line for the user on stderr: stdout is for results."""
    print(visible(text), file=sys.stderr, flush=True)


def output(text: str = "") -> None:
    """Print a result for a person on stdout."""
    print(visible(text))


def duration(seconds: float) -> str:
    """Seconds as text: `75` is `1m15s`."""
    whole = int(max(seconds, 0))
    hours, rest = divmod(whole, 3600)
    minutes, whole = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{whole:02d}s" if minutes else f"{whole}s"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number and what it counts: `1 step`, `1,200 steps`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


class Task:
    """Work in progress. `update` may be called at any rate."""

    def __init__(self, name: str, total: int, done: int = 0, unit: str = "") -> None:
        self.name, self.total, self.done, self.first = one_line(name), total, done, done
        self.unit = unit
        self.note = ""
        self.started = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        self.done, self.note = done, one_line(note)
        self.draw()

    def draw(self) -> None:
        """Show the present state; the base class shows nothing."""

    def line(self) -> str:
        elapsed = time.monotonic() - self.started
        new = self.done - self.first
        remaining = duration(elapsed / new * (self.total - self.done)) if new else "?"
        unit = f" {self.unit}" if self.unit else ""
        note = f", {self.note}" if self.note else ""
        return (
            f"{self.name}: {self.done}/{self.total}{unit}{note}, {duration(elapsed)} passed, "
            f"{remaining} left"
        )


class _Lines(Task):
    """A line every LINE_SECONDS, and one at the end."""

    _next = 0.0

    def draw(self) -> None:
        present = time.monotonic()
        if present >= self._next or self.done >= self.total:
            if self._next or self.done >= self.total:
                say("  " + self.line())
            self._next = float("inf") if self.done >= self.total else present + LINE_SECONDS


class _Bar(Task):
    """A bar of rich."""

    def __init__(
        self, name: str, total: int, done: int, unit: str, bar: object, handle: object
    ) -> None:
        super().__init__(name, total, done, unit)
        self.bar, self.handle = bar, handle

    def draw(self) -> None:
        self.bar.update(  # type: ignore[attr-defined]
            self.handle, completed=self.done, total=self.total, note=self.note
        )


_current: Task | None = None  # the one that is shown now


@contextmanager
def task(name: str, total: int, done: int = 0, unit: str = "") -> Iterator[Task]:
    """Show work of `total` units (named `unit`), of which `done` were done before."""
    if not sys.stderr.isatty():
        with _shown(_Lines(name, total, done, unit)) as lines:
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
        TextColumn("  {task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        handle = bar.add_task(one_line(name), total=total, completed=done, unit=unit, note="")
        with _shown(_Bar(name, total, done, unit, bar, handle)) as shown:
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
    """Report what is being waited for, and the time that has passed, until the block ends.

    The time is shown next to the progress of the running task if there is one, else in a line of
    its own every LINE_SECONDS.
    """
    started, stop = time.monotonic(), threading.Event()
    say(f"  {what}")

    def tick() -> None:
        following = LINE_SECONDS
        while not stop.wait(1.0):
            elapsed = time.monotonic() - started
            if isinstance(_current, _Bar):
                _current.update(_current.done, f"{what}, {duration(elapsed)}")
            elif elapsed >= following:
                following += LINE_SECONDS
                say(f"  {what}, {duration(elapsed)} so far")

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        stop.set()
        ticker.join()
    say(f"  {what}: done in {duration(time.monotonic() - started)}")
