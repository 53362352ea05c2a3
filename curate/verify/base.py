"""The contract of a verifier: a name, a version, and three steps from a completion to a judgement.

`extract` finds the answer in the text, `quick` decides what can be decided in microseconds with
bounded work (it runs in the caller), `check` decides the rest (it runs in a worker that may be
killed). Your own verifier is a subclass of `Verifier`, named by an entry point (`curate.verifier`)
or as `package.module:Class`.
"""

from __future__ import annotations

from typing import NamedTuple

from curate.records import Problem, VerdictName
from curate.verify.extract import Extracted, find_answer


class Judgement(NamedTuple):
    """A verdict and its reason, before the pool adds the time it took and the verifier's name."""

    verdict: VerdictName
    detail: str = ""


CORRECT = Judgement("correct")
WRONG = Judgement("wrong")

# Characters. A longer text is not a final answer and not worth reading. Our choice, not a paper's.
MAX_ANSWER = 4096


class Verifier:
    """Base class of verifiers. Subclasses set `name` and `version`, and raise the version whenever
    a verdict could change.
    """

    name = ""
    version = "1"
    # "worker": `check` runs in a worker process with limits. "thread": it limits itself (the code
    # sandbox).
    runs_in = "worker"
    # False if the same answer may be judged differently twice.
    cacheable = True

    def load(self) -> None:
        """Import what `check` needs. A worker calls this before the clock of its first item
        starts.
        """

    def extract(self, problem: Problem, completion: str, delimiters: tuple[str, str]) -> Extracted:
        """Return the final answer of a completion; `answer` is None if there is none."""
        return find_answer(completion, delimiters)

    def unverifiable(self, problem: Problem) -> str | None:
        """Return why no answer to this problem can be judged, or None."""
        return None if (problem.reference or "").strip() else "no reference answer"

    def quick(self, problem: Problem, answer: str) -> Judgement | None:
        """Judge in bounded microseconds, or return None to leave it to `check`. Must not raise."""
        return None

    def check(self, problem: Problem, answer: str) -> Judgement:
        """Judge an answer. If `runs_in` is "worker", this may be slow, raise or never return."""
        raise NotImplementedError

    def failed(self, problem: Problem, answer: str, why: str) -> Judgement:
        """Judge an answer whose `check` raised or used up its processor time or memory.

        Unverifiable, unless the verifier knows that the reference is not to blame.
        """
        return Judgement("unverifiable", why)
