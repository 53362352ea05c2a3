"""One batch of checks: feed workers, collect judgements, replace workers that fail.

Items go out in groups. A verdict comes back for each item as soon as it is known, so the parent
knows which item a worker was at when it failed: that item gets a judgement, and the rest of its
group goes to another worker.
"""

from __future__ import annotations

import contextlib
import selectors
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from curate.errors import CurateError
from curate.verify.base import Judgement
from curate.verify.registry import verifier_named
from curate.verify.workers.process import START_LIMIT, Job, WorkerProcess
from curate.verify.workers.worker import WALL_CLOCK

if TYPE_CHECKING:
    from curate.verify.workers.pool import VerifierPool

GROUP = 16  # items per message, at most

# The index of a job -> its judgement and the seconds it took.
Results = dict[int, tuple[Judgement, float]]


class Batch:
    """The jobs of one call to the pool, and the workers it holds until they are done."""

    def __init__(self, pool: VerifierPool, jobs: list[Job], group_size: int | None = None) -> None:
        self.pool = pool
        self.time_limit = pool.time_limit
        self.pending = deque(jobs)
        # Small groups keep all workers busy to the end; large ones save messages.
        self.group_size = group_size or max(1, min(GROUP, len(jobs) // (2 * pool.workers)))
        self.results: Results = {}
        self.workers: list[WorkerProcess] = []
        self.retried: set[int] = set()
        self.selector = selectors.DefaultSelector()

    def run(self) -> Results:
        """Return the results of all jobs."""
        try:
            while self.pending or self.workers:
                self._recruit()
                self._handle_events()
                self._handle_deadlines()
        finally:
            self.selector.close()
            for worker in self.workers:
                self.pool.discard(worker)
        return self.results

    def _recruit(self) -> None:
        """Take as many workers as there is work for; wait for one only if this batch has none."""
        while self.pending and len(self.workers) < self.pool.workers:
            worker = self.pool.take(wait=not self.workers)
            if worker is None:
                return
            self.workers.append(worker)
            self.selector.register(worker.stdout, selectors.EVENT_READ, worker)
            self._feed(worker)

    def _feed(self, worker: WorkerProcess) -> None:
        count = min(self.group_size, len(self.pending))
        worker.send([self.pending.popleft() for _ in range(count)], self.time_limit)
        worker.flush()
        if worker.sending:
            self.selector.register(worker.stdin, selectors.EVENT_WRITE, worker)

    def _handle_events(self) -> None:
        """Wait for the next message or deadline, and act on what arrived."""
        nearest = min(worker.deadline for worker in self.workers) - time.monotonic()
        for key, _ in self.selector.select(max(0.0, nearest)):
            worker = key.data
            if worker not in self.workers:
                continue  # failed earlier in this loop
            if key.fd == worker.stdin:
                worker.flush()
                if not worker.sending:
                    self.selector.unregister(worker.stdin)
                continue
            messages = worker.receive()
            if messages is None:
                self._fail(worker, "the worker died", retry=True)
                continue
            for message in messages:
                self._on_message(worker, message)
            if worker.group:
                continue
            if self.pending:
                self._feed(worker)
            else:
                self._detach(worker)
                self.pool.put(worker)

    def _on_message(self, worker: WorkerProcess, message: dict[str, Any]) -> None:
        now = time.monotonic()
        if "verdict" in message and worker.group:
            job = worker.group.popleft()
            verdict, detail = message["verdict"]
            judgement = Judgement(verdict, detail)
            if message.get("failed"):
                judgement = _without_verdict(job, detail)
            self.results[job[0]] = judgement, now - worker.began
        worker.ready = True
        worker.cpu = message.get("cpu", worker.cpu)
        worker.began = now
        worker.deadline = now + (START_LIMIT if "loading" in message else self.time_limit)
        self.pool.failed_starts = 0

    def _handle_deadlines(self) -> None:
        now = time.monotonic()
        for worker in [worker for worker in self.workers if worker.deadline <= now]:
            unused = worker.unused(self.time_limit)
            if unused > 0.01:
                # The machine is busy: the item has not had its processor time yet.
                worker.deadline = now + unused
            elif worker.over_wall_clock(self.time_limit):
                limit = WALL_CLOCK * self.time_limit
                self._fail(worker, f"no result within {limit:g} s by the clock", retry=True)
            else:
                self._fail(worker, f"over the time limit of {self.time_limit:g} s")

    def _fail(self, worker: WorkerProcess, why: str, retry: bool = False) -> None:
        """Kill a worker, judge the item it was at (or try it once more), hand the others back.

        An item that the machine stopped (a kill, a wall-clock overrun) gets a second try; an
        item that used up its processor time would do so again.
        """
        self._detach(worker)
        self.pool.discard(worker)
        if not worker.ready:
            raise CurateError(
                "a verifier worker did not start: run `python -m curate.verify.workers.worker "
                "2147483648 2` to see why"
            )
        if not worker.group:
            return
        job = worker.group.popleft()
        self.pending.extendleft(reversed(worker.group))
        worker.group.clear()
        if retry and job[0] not in self.retried:
            self.retried.add(job[0])
            self.pending.append(job)
            return
        judgement = (
            Judgement("unverifiable", f"limit: {why}") if retry else _without_verdict(job, why)
        )
        self.results[job[0]] = judgement, time.monotonic() - worker.began

    def _detach(self, worker: WorkerProcess) -> None:
        self.workers.remove(worker)
        for descriptor in (worker.stdout, worker.stdin):
            with contextlib.suppress(KeyError, ValueError):
                self.selector.unregister(descriptor)


def _without_verdict(job: Job, why: str) -> Judgement:
    """Return the verifier's judgement on an item whose check used up its limits or raised."""
    _, name, problem, answer = job
    verdict, detail = verifier_named(name).failed(problem, answer, why)
    return Judgement(verdict, f"limit: {detail}")
