"""One queue over several child processes: feed the least loaded, stream completions, restart
those that die.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from curate.engines.base import EngineConfig, ModelDirectory, failed
from curate.engines.child import Child, Job
from curate.errors import CurateError
from curate.progress import say
from curate.records import Completion, Request

RESTARTS = 5  # deaths in a row, without a completion in between, after which the engine is given up
SUSPECT = 2  # deaths with a request in flight after which it runs alone; at the next one it fails
PAUSE = 0.01  # seconds between reads of a source that has nothing yet


@dataclass
class Flight:
    """The requests of one `generate`.

    suspects: jobs that may have killed the engine; they run one at a time, with nothing else.
    """

    source: Iterator[Request | None]
    started: dict[int, Request] = field(default_factory=dict)
    suspects: list[Job] = field(default_factory=list)
    at_once: list[Completion] = field(default_factory=list)
    exhausted: bool = False


class PooledEngine(ModelDirectory):
    """An engine whose backend, the `core` of a subclass, runs in `config.replicas` child
    processes.
    """

    core = ""

    def __init__(self, config: EngineConfig, model_dir: str | Path) -> None:
        super().__init__(config, model_dir)
        self._weights = self.model_path  # loaded by a child that is restarted
        self._number = 0
        self._deaths = 0  # since the last completion
        self._died_with: dict[int, int] = {}  # deaths of the engine by the jobs in flight
        self._lost = False
        self.restarts = 0
        self._children: list[Child] = [self._start(i) for i in range(config.replicas)]

    # --- for subclasses to override

    def child_config(self) -> dict[str, Any]:
        # Never longer than the model's own length: a backend would refuse to start.
        length = self.max_model_len if self.config.max_model_len else None
        return {
            **self.config.model_dump(),
            "max_model_len": length,
            "end_token_ids": sorted(self.end_token_ids),
        }

    def child_env(self, replica: int) -> dict[str, str]:
        return {}

    # --- the contract

    def wait_ready(self) -> None:
        """Wait until every replica runs.

        They start in parallel, while the caller does other things.
        """
        for child in self._children:
            info = child.ready()
            self.max_model_len = min(
                self.max_model_len, info.get("max_model_len", self.max_model_len)
            )

    @property
    def window(self) -> int:
        """Requests in flight: enough that the backend's queue never runs dry."""
        return self.config.in_flight or 2 * sum(
            c.ready().get("max_num_seqs", 64) for c in self._children
        )

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        with self._exclusively():
            if self._lost:
                raise CurateError("this engine died and was given up: open another")
            flight = Flight(iter(requests))
            try:
                self.wait_ready()
                yield from self._run(flight)
            finally:
                self._died_with.clear()
                if flight.started and not self._lost:
                    self._abort()

    def _run(self, flight: Flight) -> Iterator[Completion]:
        window = self.window
        while True:
            if flight.suspects:
                self._ask_suspect(flight)
            else:
                self._feed(flight, window)
            at_once, flight.at_once = flight.at_once, []
            yield from at_once
            if flight.started:
                for number, completion in self._receive(flight):
                    if number in flight.started:
                        del flight.started[number]
                        yield completion
            elif flight.exhausted:
                return
            elif not at_once:
                time.sleep(PAUSE)

    def _feed(self, flight: Flight, window: int) -> None:
        """Fill the window. Requests that cannot be completed fail at once."""
        jobs: list[Job] = []
        while (
            not flight.exhausted and len(flight.started) < window and len(flight.at_once) < window
        ):
            try:
                request = next(flight.source)
            except StopIteration:
                flight.exhausted = True
                break
            if request is None:
                break
            ids, fault = self.prepare(request)
            if fault:
                flight.at_once.append(failed(request, fault, ids))
                continue
            self._number += 1
            flight.started[self._number] = request
            jobs.append((self._number, ids, request))
        self._share(flight, jobs)

    def _share(self, flight: Flight, jobs: list[Job]) -> None:
        """Give each job to the least loaded replica.

        Neighbours with one prompt stay together, to share its prefix.
        """
        shares: dict[int, list[Job]] = {}
        load = [len(child.in_flight) for child in self._children]
        last: tuple[str, int] | None = None
        for job in jobs:
            prompt = job[2].prompt
            least = min(range(len(load)), key=load.__getitem__)
            chosen = (
                last[1]
                if last and last[0] == prompt and load[last[1]] <= load[least] + 8
                else least
            )
            shares.setdefault(chosen, []).append(job)
            load[chosen] += 1
            last = (prompt, chosen)
        for index, share in shares.items():
            try:
                self._children[index].add(share)
            except OSError as error:  # it died with the jobs in flight; its successor gets them
                self._recover(flight, index, error)

    def _ask_suspect(self, flight: Flight) -> None:
        """Start the next suspect, once nothing else is in flight."""
        if not any(child.in_flight for child in self._children):
            self._share(flight, [flight.suspects.pop(0)])

    def _receive(self, flight: Flight) -> list[tuple[int, Completion]]:
        done: list[tuple[int, Completion]] = []
        busy = {child.conn: i for i, child in enumerate(self._children) if child.in_flight}
        held = [i for i in busy.values() if self._children[i].has_arrived]
        for index in held or [busy[conn] for conn in wait(list(busy))]:  # type: ignore[index]
            try:
                done += self._children[index].receive()
            except (EOFError, OSError) as error:
                self._recover(flight, index, error)
        if done:
            self._deaths = 0
        return done

    def _abort(self) -> None:
        for index, child in enumerate(self._children):
            try:
                child.abort()
            except CurateError as error:
                child.in_flight.clear()
                self._restart(index, error)

    def _recover(self, flight: Flight, index: int, why: BaseException) -> None:
        """Restart a dead child and send its requests again, with the same seeds.

        One bad request must not end the job: a request in flight at `SUSPECT` deaths runs alone,
        and fails if the engine dies once more.
        """
        pending = list(self._children[index].in_flight.values())
        log = self._restart(index, why)
        again: list[Job] = []
        for job in pending:
            deaths = self._died_with[job[0]] = self._died_with.get(job[0], 0) + 1
            if deaths > SUSPECT and len(pending) == 1:
                del flight.started[job[0]]
                reason = f"the engine died {deaths} times of this request: {log.splitlines()[-1]}"
                flight.at_once.append(failed(job[2], reason, job[1]))
            elif deaths >= SUSPECT:
                flight.suspects.append(job)
            else:
                again.append(job)
        if again:
            self._children[index].add(again)

    def _restart(self, index: int, why: BaseException) -> str:
        """Replace a dead child. Returns the tail of its log."""
        dead = self._children[index]
        log = dead.log_tail()
        dead.close(0)
        self._deaths += 1
        if self._deaths > RESTARTS:
            self._lost = True
            raise CurateError(
                f"the engine died {self._deaths} times in a row ({why}); the end of its log:\n{log}"
            )
        self.restarts += 1
        say(f"  the engine died and is started again; the end of its log: {log.splitlines()[-1]}")
        self._children[index] = self._start(index)
        self._children[index].ready()
        return log

    def _start(self, replica: int) -> Child:
        return Child(self.core, str(self._weights), self.child_config(), self.child_env(replica))

    def update_weights(self, directory: str | Path) -> str:
        directory = Path(directory).resolve()
        self._check_idle()
        self.check_same_architecture(directory)
        hashes = {child.call("update_weights", str(directory)) for child in self._children}
        if len(hashes) != 1:
            raise CurateError(
                f"the replicas hold different weights after the update to '{directory}'"
            )
        self._weights = directory
        self._adopt(directory)
        return hashes.pop()

    def sleep(self) -> None:
        for child in self._children:
            child.call("sleep")

    def wake(self) -> None:
        for child in self._children:
            child.call("wake")

    def close(self) -> None:
        for child in self._children:
            child.close()
