"""Progress of a running job: samples done, tokens per second, and a live share of correct
answers.
"""

from __future__ import annotations

import time

import polars as pl

from curate.generate.background import BackgroundVerifier
from curate.generate.open_chunk import Row, without_tokens
from curate.progress import Task, say
from curate.records import Completion, Problem

SHOWN = 300  # characters of a prompt's end and of a completion's beginning in the first trace
# For the display, a sample of the traces is verified: at most one per second, and at most a
# fiftieth of the time of one core.
LIVE_SECONDS, LIVE_SHARE = 1.0, 0.02
LIVE = "live"  # key of such a trace among those that the background verifier returns


class Meter:
    """Counts of one job.

    The bar counts units of one kind: problems if verdicts decide on samples, else samples.
    """

    def __init__(self) -> None:
        self.bar: Task | None = None
        self.finished = self.tokens = self.stopped = 0
        self.cost = 0.0
        self.seconds = 0.0  # of sampling, in finished passes
        self.correct = self.judged = 0
        self._pass_started = 0.0
        self._pass_tokens = 0
        self._next_live = 0.0
        self._shown = False

    def begin_pass(self) -> None:
        """Start the clock of the rates, now that the engine runs."""
        self._pass_started, self._pass_tokens = time.monotonic(), self.tokens
        if self.bar is not None:
            self.bar.started = self._pass_started

    def end_pass(self) -> None:
        self.seconds += time.monotonic() - self._pass_started

    @property
    def rate(self) -> float | None:
        """Samples per second of sampling; None if nothing was sampled."""
        return self.finished / self.seconds if self.finished and self.seconds > 0 else None

    def advance(self, count: int) -> None:
        """Advance the bar."""
        if self.bar is not None:
            self.bar.update(self.bar.done + count, self.note() if self.finished else self.bar.note)

    def count(self, completion: Completion, row: Row) -> None:
        """Count a finished sample; the first one is shown."""
        self.finished += 1
        self.tokens += completion.completion_tokens
        self.stopped += completion.finish_reason == "stop"
        self.cost += row["cost"] or 0.0
        if not self._shown and completion.finish_reason != "error" and row["engine"] != "solution":
            self._shown = True
            say(f"  first trace: …{row['prompt'][-SHOWN:]!r}")
            say(f"            -> {row['completion'][:SHOWN]!r}")

    def note(self) -> str:
        """Rates and shares, next to the bar."""
        seconds = max(time.monotonic() - self._pass_started, 1e-9)
        parts = []
        if self.tokens > self._pass_tokens:
            parts.append(f"{(self.tokens - self._pass_tokens) / seconds:.0f} tokens/s")
        parts.append(f"{self.stopped / self.finished:.0%} complete")
        if self.judged:
            parts.append(f"{self.correct / self.judged:.0%} of {self.judged} judged correct")
        if self.cost:
            parts.append(f"cost {self.cost:.4g}")
        return ", ".join(parts)

    # -- the live share of correct answers ---------------------------------------------------------

    def sample_live(self, row: Row, problem: Problem, verifier: BackgroundVerifier) -> None:
        """Have this trace verified for the live share, if it is time for another one."""
        due = time.monotonic() >= self._next_live and not verifier.busy
        if due and row["finish_reason"] != "error" and problem.verifier:
            self._next_live = float("inf")  # until the verdict is there
            verifier.submit(LIVE, [(without_tokens(row), problem)])

    def judged_live(self, verdicts: pl.DataFrame) -> None:
        """Count the verdict of a trace that `sample_live` submitted."""
        self.add_verdicts(verdicts)
        for seconds in verdicts["seconds"]:
            wait = max(LIVE_SECONDS, (seconds or 0.0) / LIVE_SHARE)
            self._next_live = time.monotonic() + wait

    def add_verdicts(self, verdicts: pl.DataFrame) -> None:
        """Add to the live share."""
        self.correct += int((verdicts["verdict"] == "correct").sum())
        self.judged += int(verdicts["verdict"].is_in(["correct", "wrong"]).sum())
