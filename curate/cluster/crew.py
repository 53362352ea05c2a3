"""The driver's side: start workers, watch them, and end them.

Workers are actors that Ray restarts on another machine if theirs is lost. They are never detached:
however the driver ends, Ray ends them. Nothing waits for all of them to start: work begins with the
first, and the others join.
"""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from curate.cluster.actor import Worker, apply
from curate.cluster.desk import Desk
from curate.cores import VARIABLE as CORES
from curate.errors import CurateError, UsageError
from curate.job import ClusterConfig, Context
from curate.progress import counted, say, task
from curate.registry import FOLDERS
from curate.store import url_of

# starts of a worker before it is abandoned, such as on a damaged model; lost machines count too
RESTARTS = 20
WATCH_SECONDS = 1.0
GRACE_SECONDS = 15.0  # for idle workers to return their counts
SILENCE_SECONDS = 30.0  # without any worker before the cluster's resources are shown

Payload = TypeVar("Payload")
Result = TypeVar("Result")
Item = TypeVar("Item")


@contextmanager
def connected(config: ClusterConfig) -> Iterator[None]:
    """Connect to the cluster, unless this process is connected. UsageError if none answers."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=config.ray, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises half a dozen kinds; each means: no connection
        raise UsageError(
            f"cluster: no Ray cluster answers at '{config.ray}' ({_first_line(error)}): "
            "start one with `ray start --head` here and `ray start --address=HOST:6379` on the "
            "other machines, or give its address as cluster.ray=HOST:6379"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


class RayCrew:
    """The workers of a cluster for the jobs over one warehouse."""

    def __init__(self, config: ClusterConfig, root: Path) -> None:
        self.config, self.root = config, url_of(root)
        cpus = config.resources.get("CPU", 1.0)
        threads = str(max(1, int(cpus)))
        self._environment = {CORES: threads, "POLARS_MAX_THREADS": threads}
        # Pass on modules that configs name and the bucket's endpoint, but no secrets.
        for name in ("PYTHONPATH", FOLDERS, "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"):
            if value := os.environ.get(name):
                self._environment[name] = value
        self._environment |= config.env
        others = {k: v for k, v in config.resources.items() if k not in ("CPU", "GPU")}
        self._needs = {
            "num_cpus": cpus,
            "num_gpus": config.resources.get("GPU", 0.0),
            "resources": others or None,
        }

    def work(
        self,
        function: Callable[[Payload, Context], Result],
        payload: Payload,
        label: str,
        total: int = 0,
    ) -> list[Result]:
        """Run the workers and return their results; the first to find nothing missing ends the job.

        CurateError with the first reason if every worker failed.
        """
        here = ray.get_runtime_context().get_node_id()
        desk: Any = (
            ray.remote(Desk)
            .options(
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
            )
            .remote()
        )
        pickled = ray.put(pickle.dumps((function, payload)))
        worker: Any = ray.remote(Worker).options(
            max_restarts=RESTARTS, max_task_retries=RESTARTS, **self._needs
        )
        actors: list[Any] = [worker.remote(self._environment) for _ in range(self.config.workers)]
        running = [actor.work.remote(desk, self.root, pickled) for actor in actors]
        try:
            return self._watch(running, desk, label, total)
        except RayError as error:
            raise CurateError(_lost(error)) from error
        finally:
            for actor in [*actors, desk]:
                with suppress(RayError):
                    ray.kill(actor, no_restart=True)

    def _watch(self, running: list[Any], desk: Any, label: str, total: int) -> list[Result]:
        results: list[Result] = []
        failures: list[CurateError] = []
        shown_resources, silent_since = False, time.monotonic()
        with task(label, total, unit="chunks") as bar:
            while running and not results:
                ended, running = ray.wait(running, num_returns=1, timeout=WATCH_SECONDS)
                _collect(ended, results, failures)
                status = ray.get(desk.status.remote())
                if status.workers:
                    silent_since = time.monotonic()
                elif not shown_resources and time.monotonic() - silent_since > SILENCE_SECONDS:
                    shown_resources = True
                    say(f"  no worker has started yet: {self._resources()}")
                if status.done != bar.done or status.workers:
                    bar.total = max(total, status.done)
                    bar.update(status.done, counted(status.workers, "worker"))
        if results and running:
            ray.get(desk.finish.remote())
            ended, _ = ray.wait(running, num_returns=len(running), timeout=GRACE_SECONDS)
            _collect(ended, results, failures)
        if not results:
            raise failures[0]
        return results

    def _resources(self) -> str:
        """One line: the resources that a worker needs, and those that the cluster has."""
        has = {k: v for k, v in ray.cluster_resources().items() if ":" not in k}
        return (
            f"each needs {_words(self.config.resources or {'CPU': 1})}, and the cluster has "
            f"{_words(has)} in {counted(len(ray.nodes()), 'node')}"
        )

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Map over the cluster, in order; slightly more items than workers are in flight."""
        remote: Any = ray.remote(apply).options(max_retries=RESTARTS, **self._needs)
        pickled = ray.put(pickle.dumps(function))
        waiting: deque[Any] = deque()
        for item in items:
            waiting.append(remote.remote(self._environment, pickled, pickle.dumps(item)))
            if len(waiting) > self.config.workers + 1:
                yield pickle.loads(_result(waiting.popleft()))
        while waiting:
            yield pickle.loads(_result(waiting.popleft()))


def _words(resources: dict[str, float]) -> str:
    return ", ".join(f"{name} {count:g}" for name, count in sorted(resources.items()))


def _collect(ended: list[Any], results: list[Any], failures: list[CurateError]) -> None:
    """Sort finished calls into results and failures; show a failure at once."""
    for reference in ended:
        try:
            results.append(_result(reference))
        except CurateError as error:
            failures.append(error)
            say(f"  a worker stopped: {error}")


def _result(reference: Any) -> Any:
    """Return the result of a call. Any failure on the other machine raises CurateError here."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, CurateError):
            raise cause from None
        last = str(error).strip().splitlines()[-1]
        raise CurateError(f"a worker failed: {last}") from error
    except RayActorError as error:
        raise CurateError(
            f"a worker died {RESTARTS} times or could not start: {_first_line(error)}. See "
            "the logs of Ray on its machine"
        ) from error
    except RayError as error:
        raise CurateError(_lost(error)) from error


def _lost(error: RayError) -> str:
    return (
        f"the cluster failed: {_first_line(error)}. What was committed is intact: run the same "
        "command again"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
