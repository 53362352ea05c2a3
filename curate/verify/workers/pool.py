"""Judging many answers: what is quick in the caller, the rest in warm worker processes that are killed on time.

A worker is a fresh interpreter (`python -m curate.verify.workers.worker`), never a fork: it inherits no thread, no lock and no
CUDA context. Callers take idle workers, drive them from their own thread with a selector and put them back, so the pool
has no threads of its own and can be used from any. Items go out in groups; every verdict comes back at once, so
the parent knows which item overran: that one is lost, its worker is replaced, and the rest of its group goes to
another.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
import selectors
import subprocess
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from curate.errors import CurateError, UsageError
from curate.records import Problem, Verdict
from curate.verify.base import Judgement, Verifier
from curate.verify.extract import THINK, Found
from curate.verify.registry import verifier_named
from curate.verify.workers.process import START_LIMIT, Job, Worker

TIME_LIMIT = 2.0  # seconds of processor time an item may take
MEMORY_LIMIT = 2 << 30  # bytes of address space of a worker
GROUP = 16  # items in one message, at most
CACHE = 65_536  # judgements remembered
CACHED_LENGTH = 1024  # characters; longer answers are not remembered


class VerifierPool:
    """Judges completions with warm worker processes. Safe to share between threads; close it, or use it as a context.

    `workers`: processes (default: one a core). `time_limit`: seconds an item may take, of processor
    time (and five times that by the clock, so that a busy machine changes no verdict). `memory_limit`: bytes of address
    space of a worker. `cache`: judgements remembered (0: none); judgements that hit a limit are not.
    """

    def __init__(
        self,
        workers: int | None = None,
        time_limit: float = TIME_LIMIT,
        memory_limit: int = MEMORY_LIMIT,
        cache: int = CACHE,
    ) -> None:
        if sys.platform != "linux":
            raise CurateError(
                "verification needs Linux: its workers rely on memory limits that other systems lack"
            )
        if workers is not None and workers < 1:
            raise UsageError(f"workers must be at least 1, not {workers}")
        self.workers = workers or len(os.sched_getaffinity(0))
        self.time_limit, self.memory_limit = time_limit, memory_limit
        self._idle: list[Worker] = []
        self._failed_starts = 0  # in a row
        self._dying: list[Worker] = []  # killed, not yet reaped
        self._alive = 0
        self._free = threading.Condition()
        self._closed = False
        self._cache: OrderedDict[tuple[Any, ...], Judgement] = OrderedDict()
        self._cache_size = cache
        self._cache_lock = threading.Lock()
        self.hits = 0  # judgements that came from the cache

    # -- the public calls

    def verify(
        self, problem: Problem, completion: str, delimiters: tuple[str, str] = THINK
    ) -> Verdict:
        """One verdict."""
        return self.verify_batch([problem], [completion], delimiters)[0]

    def verify_batch(
        self,
        problems: Sequence[Problem],
        completions: Sequence[str],
        delimiters: tuple[str, str] = THINK,
        forms: Sequence[str | None] | None = None,
    ) -> list[Verdict]:
        """Verdicts in the order of the input. Raises only for wrong use; a hostile input costs its own verdict.

        `delimiters` enclose the reasoning. `forms` (names of output forms, one a completion) win over them: in the form
        `r1` a completion without the closing delimiter never ended its reasoning, even where the prompt opened it.
        """
        if forms is not None and len(forms) != len(completions):
            raise UsageError(
                f"{len(completions)} completions and {len(forms)} forms: give one form a completion"
            )

        def found(i: int, verifier: Verifier) -> Found:
            return _found(
                verifier,
                problems[i],
                completions[i],
                delimiters,
                forms[i] if forms is not None else None,
            )

        return self._judge(problems, completions, found)

    def answers(
        self, problems: Sequence[Problem], completions: Sequence[str], forms: Sequence[str | None]
    ) -> list[str | None]:
        """The answers that `verify_batch` would judge, None where a completion has none; nothing is judged."""
        named = [_named(problem.verifier) or verifier_named("text") for problem in problems]
        found = map(_found, named, problems, completions, [THINK] * len(problems), forms)
        return [one.answer for one in found]

    def judge_answers(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[Verdict]:
        """Verdicts on answers that were extracted before: nothing is looked for in them."""
        return self._judge(problems, answers, lambda i, _: Found(answers[i]))

    async def verify_batch_async(
        self,
        problems: Sequence[Problem],
        completions: Sequence[str],
        delimiters: tuple[str, str] = THINK,
    ) -> list[Verdict]:
        """`verify_batch` in a thread, so that an event loop goes on."""
        return await asyncio.to_thread(self.verify_batch, problems, completions, delimiters)

    def _judge(
        self,
        problems: Sequence[Problem],
        completions: Sequence[str],
        find: Callable[[int, Verifier], Found],
    ) -> list[Verdict]:
        if len(problems) != len(completions):
            raise UsageError(
                f"{len(problems)} problems and {len(completions)} completions: give one completion a problem"
            )
        finished: list[Verdict | None] = [None] * len(problems)
        waiting: dict[tuple[Any, ...], list[int]] = {}
        jobs: list[Job] = []
        answers: list[str] = [""] * len(problems)
        for i, problem in enumerate(problems):
            began = time.perf_counter()
            verifier = _named(problem.verifier)
            if verifier is None:
                why = (
                    f"unknown verifier '{problem.verifier}'"
                    if problem.verifier
                    else "the problem names no verifier"
                )
                finished[i] = Verdict("unverifiable", None, why, verifier=problem.verifier or "")
                continue
            answer, judged = self._in_caller(verifier, problem, find, i)
            if judged is not None:
                finished[i] = _verdict(verifier, answer, judged, time.perf_counter() - began)
                continue
            answers[i] = answer or ""
            key = _key(problem, answers[i]) if verifier.cacheable else (i,)
            if key in waiting:
                waiting[key].append(i)
            else:
                waiting[key] = [i]
                jobs.append((i, problem.verifier or "", problem, answers[i]))
        results = self._run(jobs) if jobs else {}
        for key, members in waiting.items():
            judged, seconds = results[members[0]]
            self._remember(key, judged)
            for i in members:
                verifier = verifier_named(problems[i].verifier or "")
                finished[i] = _verdict(
                    verifier, answers[i], judged, seconds if i == members[0] else 0.0
                )
        return [verdict for verdict in finished if verdict is not None]

    def verify_answers(
        self, golds: Sequence[str], predictions: Sequence[str], verifier: str = "math"
    ) -> list[Verdict]:
        """Verdicts for plain pairs: a prediction is a whole completion or a bare answer."""
        if len(golds) != len(predictions):
            raise UsageError(
                f"{len(golds)} golds and {len(predictions)} predictions: give one prediction a gold"
            )
        verifier_named(verifier)  # an unknown name is an error here, not a verdict
        return self.verify_batch([Problem("", gold, verifier) for gold in golds], predictions)

    def warm(self, verifiers: Sequence[str] = ("math",)) -> None:
        """Start every worker and import what these verifiers need, so that nothing after it waits."""
        jobs: list[Job] = [
            (i, name, Problem("", "x", name), "y")
            for i in range(self.workers)
            for name in verifiers
        ]
        self._drive_all(jobs, size=len(verifiers))

    def close(self) -> None:
        """End the workers. Idempotent; a batch in flight in another thread finishes with fresh workers' errors."""
        with self._free:
            self._closed = True
            idle, self._idle = self._idle, []
            self._alive -= len(idle)
            self._free.notify_all()
        for worker in idle:
            worker.kill()
        for worker in [*idle, *self._dying]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(5)

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- in the caller

    def _in_caller(
        self,
        verifier: Verifier,
        problem: Problem,
        find: Callable[[int, Verifier], Found],
        index: int,
    ) -> tuple[str | None, Judgement | None]:
        """The answer, and its judgement where no worker is needed."""
        try:
            why, found = verifier.unverifiable(problem), find(index, verifier)
        except Exception as error:
            return None, Judgement(
                "unverifiable", f"limit: the verifier raised {type(error).__name__}"
            )
        if why:
            return found.answer, Judgement("unverifiable", why)
        if found.answer is None:
            return None, Judgement("wrong", found.detail)
        try:
            judged = verifier.quick(problem, found.answer)
        except Exception:
            judged = None  # a worker will say what is wrong
        if judged is None and verifier.cacheable and self._cache_size:
            with self._cache_lock:
                judged = self._cache.get(_key(problem, found.answer))
                self.hits += judged is not None
        return found.answer, judged

    def _remember(self, key: tuple[Any, ...], judged: Judgement) -> None:
        if (
            len(key) == 1
            or not self._cache_size
            or judged.detail.startswith("limit:")
            or len(key[-1]) > CACHED_LENGTH
        ):
            return
        with self._cache_lock:
            self._cache[key] = judged
            if len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)

    # -- in workers

    def _run(self, jobs: list[Job]) -> dict[int, tuple[Judgement, float]]:
        """index -> judgement and seconds, of every job."""
        threaded = [job for job in jobs if verifier_named(job[1]).runs_in == "thread"]
        inside = [job for job in jobs if verifier_named(job[1]).runs_in != "thread"]
        results: dict[int, tuple[Judgement, float]] = {}
        if threaded:
            with ThreadPoolExecutor(self.workers) as executor:
                results.update(executor.map(_guarded, threaded))
        if inside:
            results.update(self._drive_all(inside))
        return results

    def _drive_all(
        self, jobs: list[Job], size: int | None = None
    ) -> dict[int, tuple[Judgement, float]]:
        pending = deque(jobs)
        results: dict[int, tuple[Judgement, float]] = {}
        held: list[Worker] = []
        size = size or max(1, min(GROUP, len(jobs) // (2 * self.workers) or 1))
        selector = selectors.DefaultSelector()
        try:
            while pending or held:
                while pending and len(held) < self.workers:
                    worker = self._take(wait=not held)
                    if worker is None:
                        break
                    held.append(worker)
                    selector.register(worker.stdout, selectors.EVENT_READ, worker)
                    self._feed(worker, pending, size, selector)
                self._turn(selector, held, pending, results, size)
        finally:
            selector.close()
            for worker in held:
                self._lose(worker)
        return results

    def _feed(
        self, worker: Worker, pending: deque[Job], size: int, selector: selectors.BaseSelector
    ) -> None:
        worker.send([pending.popleft() for _ in range(min(size, len(pending)))], self.time_limit)
        worker.flush()
        if worker.sending:
            selector.register(worker.stdin, selectors.EVENT_WRITE, worker)

    def _turn(
        self,
        selector: selectors.BaseSelector,
        held: list[Worker],
        pending: deque[Job],
        results: dict[int, tuple[Judgement, float]],
        size: int,
    ) -> None:
        """Wait for the next thing to happen and deal with it."""
        nearest = min(worker.deadline for worker in held) - time.monotonic()
        for key, _ in selector.select(max(0.0, nearest)):
            worker = key.data
            if worker not in held:
                continue
            if key.fd == worker.stdin:
                worker.flush()
                if not worker.sending:
                    selector.unregister(worker.stdin)
                continue
            messages = worker.receive()
            if messages is None:
                self._bury(worker, selector, held, pending, results, "the worker died")
                continue
            for message in messages:
                self._hear(worker, message, results)
            if not worker.group:
                if pending:
                    self._feed(worker, pending, size, selector)
                else:
                    self._release(worker, selector, held)
        now = time.monotonic()
        for worker in [worker for worker in held if worker.deadline <= now]:
            left = worker.unused(self.time_limit)
            if left > 0.01:
                worker.deadline = now + left
                continue
            self._bury(
                worker,
                selector,
                held,
                pending,
                results,
                f"over the time limit of {self.time_limit:g} s",
            )

    def _hear(
        self, worker: Worker, message: dict[str, Any], results: dict[int, tuple[Judgement, float]]
    ) -> None:
        now = time.monotonic()
        if "verdict" in message and worker.group:
            results[worker.group.popleft()[0]] = (
                Judgement(*message["verdict"]),
                now - worker.began,
            )
        worker.ready, worker.cpu = True, message.get("cpu", worker.cpu)
        self._failed_starts = 0
        worker.began = now
        worker.deadline = now + (START_LIMIT if "loading" in message else self.time_limit)

    def _bury(
        self,
        worker: Worker,
        selector: selectors.BaseSelector,
        held: list[Worker],
        pending: deque[Job],
        results: dict[int, tuple[Judgement, float]],
        why: str,
    ) -> None:
        """Kill a worker, judge the item it was at, and hand the others back."""
        self._forget(worker, selector, held)
        self._lose(worker)
        if not worker.ready:
            raise CurateError(
                "a verifier worker did not start: run `python -m curate.verify.workers.worker 2147483648 2` to see why"
            )
        if worker.group:
            lost = worker.group.popleft()
            results[lost[0]] = (
                Judgement("unverifiable", f"limit: {why}"),
                time.monotonic() - worker.began,
            )
            pending.extendleft(reversed(worker.group))
            worker.group.clear()

    def _forget(self, worker: Worker, selector: selectors.BaseSelector, held: list[Worker]) -> None:
        held.remove(worker)
        for fd in (worker.stdout, worker.stdin):
            with contextlib.suppress(KeyError, ValueError):
                selector.unregister(fd)

    def _release(
        self, worker: Worker, selector: selectors.BaseSelector, held: list[Worker]
    ) -> None:
        self._forget(worker, selector, held)
        self._put(worker)

    def _take(self, wait: bool) -> Worker | None:
        """An idle worker, or a new one; None where all are busy and the caller does not wait."""
        with self._free:
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
                self._free.wait()
        try:
            return Worker(self.memory_limit, self.time_limit)
        except BaseException:
            with self._free:
                self._alive -= 1
                self._free.notify()
            raise

    def _put(self, worker: Worker) -> None:
        with self._free:
            if self._closed:
                self._alive -= 1
            else:
                self._idle.append(worker)
                self._free.notify()
                return
        worker.kill()

    def _lose(self, worker: Worker) -> None:
        worker.kill()
        with self._free:
            self._dying = [one for one in [*self._dying, worker] if one.process.poll() is None]
            self._alive -= 1
            self._free.notify()


def _named(name: str | None) -> Verifier | None:
    try:
        return verifier_named(name) if name else None
    except UsageError:
        return None


@functools.cache
def _reasoning(form: str | None) -> tuple[tuple[str, str], bool]:
    """The delimiters of a form, and whether a completion without the closing one has no answer."""
    from curate.prompts.forms import Form

    if not form:
        return THINK, False
    known = Form.of(form)
    if not known.open:
        return ("\0", "\0"), False  # plain: there is no reasoning to leave out
    return (known.open, known.close), not form.startswith("r1-zero")


def _found(
    verifier: Verifier,
    problem: Problem,
    completion: str,
    delimiters: tuple[str, str],
    form: str | None,
) -> Found:
    """Where a verifier finds the answer of a completion, in the form that it was asked for."""
    inside, must_end = _reasoning(form) if form is not None else (delimiters, False)
    if must_end and inside[1] not in completion:
        return Found(None, detail="no answer: the reasoning never ended")
    return verifier.extract(problem, completion, inside)


def _key(problem: Problem, answer: str) -> tuple[Any, ...]:
    choices = tuple(problem.choices) if problem.choices else None
    return (problem.verifier, problem.reference, choices, problem.metadata, answer)


def _verdict(verifier: Verifier, answer: str | None, judged: Judgement, seconds: float) -> Verdict:
    detail = judged.detail.removeprefix("limit: ")
    return Verdict(judged.verdict, answer, detail, seconds, verifier.name, verifier.version)


def _guarded(job: Job) -> tuple[int, tuple[Judgement, float]]:
    began = time.perf_counter()
    index, name, problem, answer = job
    try:
        judged = verifier_named(name).check(problem, answer)
    except CurateError:
        raise
    except Exception as error:
        judged = Judgement(
            "unverifiable", f"limit: the verifier raised {type(error).__name__}: {error}"
        )
    return index, (judged, time.perf_counter() - began)


# -- one pool for the process

_default: VerifierPool | None = None
_lock = threading.Lock()


def default_pool() -> VerifierPool:
    """The pool of this process, made at first use and closed at exit."""
    global _default
    with _lock:
        if _default is None or _default._closed:
            _default = VerifierPool()
        return _default


def _close_default() -> None:
    if _default is not None:
        _default.close()


def _after_fork() -> None:
    """A forked child must not talk to its parent's workers: it makes its own pool when it needs one."""
    global _default, _lock
    _default, _lock = None, threading.Lock()


atexit.register(_close_default)
os.register_at_fork(after_in_child=_after_fork)
