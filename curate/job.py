"""The contract of every job: its context (warehouse, engine, verifiers), result and kind of stage.

A job module declares the kind of stage that it is in a pipeline, and no other module knows it:

    STAGE = StageKind(config=partial(validate, FilterConfig), run=run, gives="corpus")

`curate.pipeline.stages` names the module; a package of your own may offer one in the entry point
group `curate.stage`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import Field

from curate.config import Config
from curate.engines.shared import SharedEngine
from curate.progress import say
from curate.verify import VerifierPool
from curate.version import code_version
from curate.warehouse import Warehouse
from curate.warehouse.claims import Claims, claims_of
from curate.warehouse.identity import digest
from curate.warehouse.names import now


class ClusterConfig(Config):
    """The machines that work on a job together (docs/scale.md)."""

    ray: str = "auto"
    """Address of a Ray cluster, as HOST:PORT; auto: the one that this machine belongs to."""
    workers: int = Field(1, ge=1)
    """Workers, at most. A job begins with those that start first, and later ones join."""
    resources: dict[str, float] = {"CPU": 1}
    """What each worker needs, such as {GPU: 1, CPU: 8}; an engine sees its GPUs only."""
    env: dict[str, str] = {}
    """Environment variables of the workers. No secrets: they belong into the environment of the
    machines."""


@dataclass
class JobResult:
    """Result of a job: `refs` are its versions, new or old; `rows` were committed by this run.

    rate: samples per second while sampling, without start-up; None if nothing was sampled.
    """

    refs: list[str] = field(default_factory=list)
    rows: int = 0
    failed: int = 0
    seconds: float = 0.0
    model: str | None = None
    summary: str = ""
    rate: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Size:
    """Expected size of a stage: in words, and its rows and most sampled tokens if they can be
    known.
    """

    text: str = ""
    rows: int | None = None
    tokens: int | None = None


# Number of rows of another stage's output (`@harvest`), if it can be known.
Rows = Callable[[Any], int | None]


def _unknown_size(_: Any, __: Rows) -> Size:
    return Size()


@dataclass(frozen=True)
class StageKind:
    """Kind of stage: everything that a pipeline needs to know about a job.

    config: validates the keys of a stage, with `@stage` unresolved; raises UsageError.
    run: runs the job. `@stage` means `facts["value"]` of its result, or else its model.
    size: estimates the size of the stage from its config and the rows of earlier stages.
    takes: keys with a default from the pipeline: `engine`, `seed`, `cluster`, `label` or `name`.
    ranks: whether several processes can run it together under torchrun.
    exact: keys in which `@stage` means the versions of that stage instead of the whole dataset.
    gives: what `@stage` names: problems, traces, corpus, model, page, or None.
    """

    config: Callable[[Mapping[str, Any], str], Any]
    run: Callable[[Any, Context], JobResult]
    size: Callable[[Any, Rows], Size] = _unknown_size
    takes: frozenset[str] = frozenset()
    exact: frozenset[str] = frozenset()
    ranks: bool = False
    gives: str | None = None


Payload = TypeVar("Payload")
Result = TypeVar("Result")
Item = TypeVar("Item")


class Crew(Protocol):
    """Processes on several machines that do the work of a job together (curate/cluster)."""

    def work(
        self,
        function: Callable[[Payload, Context], Result],
        payload: Payload,
        label: str,
        total: int,
    ) -> list[Result]:
        """Run `function` in every process, until one of them finds that nothing is missing."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Apply a function to each item in some process; results in the order of the items."""


class Context:
    """The warehouse, and the expensive resources that the jobs of a process share."""

    def __init__(
        self, warehouse: Warehouse | str | Path = "warehouse", claims: Claims | None = None
    ) -> None:
        self.warehouse = warehouse if isinstance(warehouse, Warehouse) else Warehouse(warehouse)
        self.warehouse.clean()
        self.claims = claims or claims_of(self.warehouse.root)
        self.crew: Crew | None = None
        self.engine = SharedEngine(say)
        self._pool: Any = None

    def spread(
        self,
        function: Callable[[Payload, Context], Result],
        payload: Payload,
        label: str,
        total: int,
    ) -> list[Result]:
        """Results of a function that works until nothing is missing: of this process, or of each
        process of the crew if there is one.

        Function and payload must pickle. The function shares `total` claims, and shows its progress
        itself; a crew shows how many of the claims are done, under `label`.
        """
        if self.crew is None:
            return [function(payload, self)]
        return self.crew.work(function, payload, label, total)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`map`, by the processes of the crew if there is one; function and items must pickle."""
        return map(function, items) if self.crew is None else self.crew.map(function, items)

    @property
    def pool(self) -> Any:
        """Warm verifier workers."""
        if self._pool is None:
            self._pool = VerifierPool()
        return self._pool

    def close(self) -> None:
        self.engine.close()
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def record(
        self, job_id: str, kind: str, name: str, config: dict[str, Any], result: JobResult
    ) -> None:
        """Add a row to the table `jobs` if the run did anything."""
        row = {
            "job_id": job_id,
            "kind": kind,
            "name": name,
            "config": json.dumps(config, default=str),
            "code_version": code_version(),
            "rows": result.rows,
            "failed": result.failed,
            "seconds": result.seconds,
            "finished_at": now(),
        }
        self.warehouse.write("jobs", kind, [row], key=[job_id, time.time_ns(), digest(config)])
