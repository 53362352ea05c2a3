"""What a verifier is: a name, a version, and three steps from a completion to a judgement.

`extract` finds the answer in the text, `quick` decides what can be decided in microseconds with bounded work (it runs
in the caller), `check` decides the rest (it runs in a worker that may be killed). A verifier of your own subclasses
`Verifier` and is named by entry point (`curate.verifier`) or as `package.module:Class`.
"""

from __future__ import annotations

from typing import NamedTuple

from curate.records import Problem, VerdictName
from curate.verify.extract import Found, find_answer


class Judgement(NamedTuple):
    """A verdict and why, before the pool adds the time it took and who said it."""

    verdict: VerdictName
    detail: str = ""


CORRECT = Judgement("correct")
WRONG = Judgement("wrong")

# An answer longer than this is no final answer and not worth the time to read it. Characters; ours, not a paper's.
MAX_ANSWER = 4096


class Verifier:
    """The contract. Subclasses set `name` and `version`; the version rises whenever a verdict could change."""

    name = ""
    version = "1"
    # "worker": `check` runs in a worker process that is killed on time. "thread": it guards itself (the code sandbox).
    runs_in = "worker"
    # False where the same answer may be judged differently twice.
    cacheable = True

    def load(self) -> None:
        """Import what `check` needs. In a worker this is done before the clock of the first item starts."""

    def extract(self, problem: Problem, completion: str, delimiters: tuple[str, str]) -> Found:
        """The final answer of a completion; `Found.answer` is None where there is none."""
        return find_answer(completion, delimiters)

    def unverifiable(self, problem: Problem) -> str | None:
        """Why no answer of this problem can be judged, or None."""
        return None if (problem.reference or "").strip() else "no reference answer"

    def quick(self, problem: Problem, answer: str) -> Judgement | None:
        """A judgement in bounded microseconds, or None to ask `check`. Must not raise and must not run away."""
        return None

    def check(self, problem: Problem, answer: str) -> Judgement:
        """The judgement. May be slow, raise or run away when `runs_in` is "worker"."""
        raise NotImplementedError
