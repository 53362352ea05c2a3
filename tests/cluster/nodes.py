"""A real Ray cluster on this machine: a head for drivers, and raylets that workers run on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

MEMORY = 80_000_000  # bytes of a node's object store, the minimum of Ray


class Nodes:
    """The raylets of a cluster. Those of workers have one slot each, and the head has none."""

    def __init__(self, workers: int) -> None:
        os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_memory_monitor_refresh_ms="0")
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "object_store_memory": MEMORY,
                "include_dashboard": False,
            },
        )
        self.workers: list[Any] = []
        for _ in range(workers):
            self.add()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self) -> None:
        """Start another machine."""
        node = self.cluster.add_node(
            num_cpus=1, resources={"slot": 1}, object_store_memory=MEMORY, wait=False
        )
        self.workers.append(node)

    def kill_one(self) -> None:
        """Lose a machine: kill its raylet, and with it everything that it runs."""
        node = self.workers.pop(0)
        self.cluster.remove_node(node, allow_graceful=False)

    def actors(self) -> list[psutil.Process]:
        """Processes in which workers of jobs run."""
        return [
            process
            for node in self.workers
            for process in _raylet(node).children(recursive=True)
            if _title(process).startswith("ray::Worker")
        ]

    def kill_actor(self, number: int) -> bool:
        """Kill a worker's process. Returns whether there was one."""
        actors = self.actors()
        if not actors:
            return False
        try:
            actors[number % len(actors)].send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            return False
        return True

    def stop(self) -> None:
        self.cluster.shutdown()


def _raylet(node: Any) -> psutil.Process:
    (raylet,) = node.all_processes["raylet"]
    return psutil.Process(raylet.process.pid)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def nodes(workers: int) -> Iterator[Nodes]:
    """A cluster that ends with the block."""
    started = Nodes(workers)
    try:
        yield started
    finally:
        started.stop()
