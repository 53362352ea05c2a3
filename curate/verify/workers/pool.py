"""Judge many answers: quick cases in the caller, the rest in warm worker processes.

A worker is a fresh interpreter (`python -m curate.verify.workers.worker`), never a fork: it
inherits no thread, no lock and no CUDA context. Callers take idle workers, drive them from their
own thread (`batch.py`) and put them back, so the pool needs no threads of its own and can be used
from any.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from curate.cores import cores
from curate.errors import CurateError, UsageError
from curate.prompts.forms import Form
from curate.records import Problem, Verdict
from curate.verify.base import Judgement, Verifier
from curate.verify.extract import THINK, Extracted
from curate.verify.registry import verifier_named
from curate.verify.workers.batch import Batch, Results
from curate.verify.workers.process import Job, WorkerProcess

TIME_LIMIT = 2.0  # seconds of processor time per item
MEMORY_LIMIT = 2 << 30  # bytes of address space of a worker
CACHE_SIZE = 65_536  # judgements remembered
CACHED_LENGTH = 1024  # characters; longer answers are not remembered


class VerifierPool:
    """Judges completions with warm worker processes. Safe to share between threads; close it, or
    use it in `with`.

    `workers`: number of processes (default: one per core that this process may use, see
    curate/cores.py). `time_limit`: seconds of processor time per item; the wall-clock limit is
    thirty times that, with a second try, so the load of the machine changes no verdict.
    `memory_limit`: bytes of address space of a worker. `cache`: judgements to remember (0: none).
    """

    def __init__(
        self,
        workers: int | None = None,
        time_limit: float = TIME_LIMIT,
        memory_limit: int = MEMORY_LIMIT,
        cache: int = CACHE_SIZE,
    ) -> None:
        if sys.platform != "linux":
            raise CurateError(
                "verification needs Linux: its workers rely on memory limits that other systems "
                "lack"
            )
        if workers is not None and workers < 1:
            raise UsageError(f"workers must be at least 1, not {workers}")
        self.workers = workers or cores()
        self.time_limit, self.memory_limit = time_limit, memory_limit
        self.failed_starts = 0  # workers in a row that ended before they were ready
        self.hits = 0  # judgements that came from the cache
        self._idle: list[WorkerProcess] = []
        self._reaping: list[WorkerProcess] = []  # killed, not yet waited for
        self._alive = 0
        self._changed = threading.Condition()
        self._closed = False
        self._cache: OrderedDict[tuple[Any, ...], Judgement] = OrderedDict()
        self._cache_size = cache
        self._cache_lock = threading.Lock()

    # -- the public calls

    def verify(
        self, problem: Problem, completion: str, delimiters: tuple[str, str] = THINK
    ) -> Verdict:
        """Return one verdict."""
        return self.verify_batch([problem], [completion], delimiters)[0]

    def verify_batch(
        self,
        problems: Sequence[Problem],
        completions: Sequence[str],
        delimiters: tuple[str, str] = THINK,
        forms: Sequence[str | None] | None = None,
    ) -> list[Verdict]:
        """Return verdicts in the order of the input. Raises only on wrong use; a hostile input
        costs its own verdict.

        `delimiters` enclose the reasoning. `forms` (names of output forms, one per completion) take
        precedence: in the form `r1` a completion without the closing delimiter never ended its
        reasoning, even if the prompt opened it.
        """
        if forms is not None and len(forms) != len(completions):
            raise UsageError(
                f"{len(completions)} completions and {len(forms)} forms: give one form per "
                f"completion"
            )

        def extract(i: int, verifier: Verifier) -> Extracted:
            form = forms[i] if forms is not None else None
            return _extract(verifier, problems[i], completions[i], delimiters, form)

        return self._judge(problems, completions, extract)

    def answers(
        self, problems: Sequence[Problem], completions: Sequence[str], forms: Sequence[str | None]
    ) -> list[str | None]:
        """Return the answers that `verify_batch` would judge (None for completions without one);
        judge nothing.
        """
        verifiers = [_verifier(problem.verifier) or verifier_named("text") for problem in problems]
        delimiters = [THINK] * len(problems)
        return [
            e.answer for e in map(_extract, verifiers, problems, completions, delimiters, forms)
        ]

    def judge_answers(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[Verdict]:
        """Return verdicts on answers that are already extracted."""
        return self._judge(problems, answers, lambda i, _: Extracted(answers[i]))

    def verify_answers(
        self, golds: Sequence[str], predictions: Sequence[str], verifier: str = "math"
    ) -> list[Verdict]:
        """Return verdicts for plain pairs; a prediction is a whole completion or a bare answer."""
        if len(golds) != len(predictions):
            raise UsageError(
                f"{len(golds)} golds and {len(predictions)} predictions: give one prediction per "
                f"gold"
            )
        verifier_named(verifier)  # an unknown name is an error here, not a verdict
        return self.verify_batch([Problem("", gold, verifier) for gold in golds], predictions)

    def warm(self, verifiers: Sequence[str] = ("math",)) -> None:
        """Start every worker and import what these verifiers need, so that later calls do not wait
        for it.
        """
        jobs: list[Job] = [
            (i, name, Problem("", "x", name), "y")
            for i in range(self.workers)
            for name in verifiers
        ]
        Batch(self, jobs, group_size=len(verifiers)).run()

    def close(self) -> None:
        """End the workers. May be called twice; a batch still running in another thread fails."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            self._alive -= len(idle)
            self._changed.notify_all()
        for worker in idle:
            worker.kill()
        for worker in [*idle, *self._reaping]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(5)

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- one batch, in the caller

    def _judge(
        self,
        problems: Sequence[Problem],
        completions: Sequence[str],
        extract: Callable[[int, Verifier], Extracted],
    ) -> list[Verdict]:
        if len(problems) != len(completions):
            raise UsageError(
                f"{len(problems)} problems and {len(completions)} completions: "
                "give one completion per problem"
            )
        verdicts: list[Verdict | None] = [None] * len(problems)
        answers: list[str] = [""] * len(problems)
        # Equal pairs of problem and answer are checked once: key -> indices of the rows that share
        # it.
        rows_by_key: dict[tuple[Any, ...], list[int]] = {}
        jobs: list[Job] = []
        # Name -> why it cannot be used: a failed import is not repeated for every row.
        unusable: dict[str, str] = {}
        for i, problem in enumerate(problems):
            began = time.perf_counter()
            name = problem.verifier or ""
            verifier = None if name in unusable else _verifier(name)
            if verifier is None:
                if name not in unusable:
                    unusable[name] = _why_unusable(name)
                verdicts[i] = Verdict("unverifiable", None, unusable[name], verifier=name)
                continue
            answer, judgement = self._judge_in_caller(verifier, problem, extract, i)
            if judgement is not None:
                verdicts[i] = _verdict(verifier, answer, judgement, time.perf_counter() - began)
                continue
            answers[i] = answer or ""
            key = _key(problem, answers[i]) if verifier.cacheable else (i,)
            if key not in rows_by_key:
                jobs.append((i, name, problem, answers[i]))
            rows_by_key.setdefault(key, []).append(i)
        results = self._run(jobs) if jobs else {}
        for key, rows in rows_by_key.items():
            judgement, seconds = results[rows[0]]
            self._remember(key, judgement)
            for i in rows:
                verifier = verifier_named(problems[i].verifier or "")
                cost = seconds if i == rows[0] else 0.0
                verdicts[i] = _verdict(verifier, answers[i], judgement, cost)
        return [verdict for verdict in verdicts if verdict is not None]

    def _judge_in_caller(
        self,
        verifier: Verifier,
        problem: Problem,
        extract: Callable[[int, Verifier], Extracted],
        index: int,
    ) -> tuple[str | None, Judgement | None]:
        """Return the answer, and its judgement if no worker is needed."""
        try:
            why, extracted = verifier.unverifiable(problem), extract(index, verifier)
        except Exception as error:
            return None, Judgement(
                "unverifiable", f"limit: the verifier raised {type(error).__name__}: {error}"
            )
        if why:
            return extracted.answer, Judgement("unverifiable", why)
        if extracted.answer is None:
            return None, Judgement("wrong", extracted.detail)
        try:
            judgement = verifier.quick(problem, extracted.answer)
        except Exception:
            judgement = None  # the worker meets the same error and reports it
        if judgement is None and verifier.cacheable and self._cache_size:
            with self._cache_lock:
                judgement = self._cache.get(_key(problem, extracted.answer))
                self.hits += judgement is not None
        return extracted.answer, judgement

    def _remember(self, key: tuple[Any, ...], judgement: Judgement) -> None:
        if (
            len(key) == 1
            or not self._cache_size
            or judgement.detail.startswith("limit:")
            or len(key[-1]) > CACHED_LENGTH
        ):
            return
        with self._cache_lock:
            self._cache[key] = judgement
            if len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)

    def _run(self, jobs: list[Job]) -> Results:
        in_threads = [job for job in jobs if verifier_named(job[1]).runs_in == "thread"]
        in_workers = [job for job in jobs if verifier_named(job[1]).runs_in != "thread"]
        results: Results = {}
        if in_threads:
            with ThreadPoolExecutor(self.workers) as executor:
                results.update(executor.map(_check_in_thread, in_threads))
        if in_workers:
            results.update(Batch(self, in_workers).run())
        return results

    # -- workers; called by `Batch`

    def take(self, wait: bool) -> WorkerProcess | None:
        """Return an idle worker or a new one; None if all are busy and the caller does not wait."""
        with self._changed:
            while True:
                if self._closed:
                    raise CurateError("the verifier pool is closed: make a new one")
                if self._idle:
                    worker = self._idle.pop()
                    if worker.process.poll() is None:
                        return worker
                    self._alive -= 1
                    worker.kill()
                    continue
                if self._alive < self.workers:
                    self._alive += 1
                    break
                if not wait:
                    return None
                self._changed.wait()
        try:
            return WorkerProcess(self.memory_limit, self.time_limit)
        except BaseException:
            with self._changed:
                self._alive -= 1
                self._changed.notify()
            raise

    def put(self, worker: WorkerProcess) -> None:
        """Make a worker available to other batches."""
        with self._changed:
            if not self._closed:
                self._idle.append(worker)
                self._changed.notify()
                return
            self._alive -= 1
        worker.kill()

    def discard(self, worker: WorkerProcess) -> None:
        """Kill a worker, so that a new one may start in its place."""
        worker.kill()
        with self._changed:
            self._reaping = [w for w in [*self._reaping, worker] if w.process.poll() is None]
            self._alive -= 1
            self._changed.notify()


def _verifier(name: str | None) -> Verifier | None:
    try:
        return verifier_named(name) if name else None
    except UsageError:
        return None


def _why_unusable(name: str) -> str:
    """Return why a verifier cannot be used: no name, an unknown one, or an import that failed."""
    if not name:
        return "the problem names no verifier"
    try:
        verifier_named(name)
    except UsageError as error:
        return str(error)
    return f"unknown verifier '{name}'"


@functools.cache
def _delimiters(form: str) -> tuple[tuple[str, str], bool]:
    """Return the delimiters of a form, and whether an answer needs the closing one before it."""
    shape = Form.of(form)
    if not shape.open:
        return ("\0", "\0"), False  # plain: there is no reasoning to leave out
    return (shape.open, shape.close), not form.startswith("r1-zero")


def _extract(
    verifier: Verifier,
    problem: Problem,
    completion: str,
    delimiters: tuple[str, str],
    form: str | None,
) -> Extracted:
    """Let a verifier extract the answer of a completion, in the requested form."""
    must_end = False
    if form is not None:
        delimiters, must_end = _delimiters(form) if form else (THINK, False)
    if must_end and delimiters[1] not in completion:
        return Extracted(None, detail="no answer: the reasoning never ended")
    return verifier.extract(problem, completion, delimiters)


def _key(problem: Problem, answer: str) -> tuple[Any, ...]:
    choices = tuple(problem.choices) if problem.choices else None
    return (problem.verifier, problem.reference, choices, problem.metadata, answer)


def _verdict(
    verifier: Verifier, answer: str | None, judgement: Judgement, seconds: float
) -> Verdict:
    detail = judgement.detail.removeprefix("limit: ")
    return Verdict(judgement.verdict, answer, detail, seconds, verifier.name, verifier.version)


def _check_in_thread(job: Job) -> tuple[int, tuple[Judgement, float]]:
    began = time.perf_counter()
    index, name, problem, answer = job
    try:
        judgement = verifier_named(name).check(problem, answer)
    except CurateError:
        raise
    except Exception as error:
        judgement = Judgement(
            "unverifiable", f"limit: the verifier raised {type(error).__name__}: {error}"
        )
    return index, (judgement, time.perf_counter() - began)


# -- one pool for the process

_default: VerifierPool | None = None
_lock = threading.Lock()


def default_pool() -> VerifierPool:
    """Return the pool of this process, which is created at first use and closed at exit."""
    global _default
    with _lock:
        if _default is None or _default._closed:
            _default = VerifierPool()
        return _default


def _close_default() -> None:
    if _default is not None:
        _default.close()


def _after_fork() -> None:
    """Drop the parent's pool in a forked child, which must not talk to its parent's workers."""
    global _default, _lock
    _default, _lock = None, threading.Lock()


atexit.register(_close_default)
os.register_at_fork(after_in_child=_after_fork)
