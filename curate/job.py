"""The contract of every job: its context (warehouse, engine, verifiers), its result, and its kind of stage.

A job module declares the kind of stage it runs in a pipeline, and nothing else knows it:

    STAGE = StageKind(config=partial(validate, FilterConfig), run=run, gives="corpus")

`curate.pipeline.stages` names the module; a package of your own may offer one in the entry point group `curate.stage`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curate.progress import say
from curate.version import code_version
from curate.warehouse import Warehouse
from curate.warehouse.files import now
from curate.warehouse.identity import digest


@dataclass
class JobResult:
    """`refs` are the versions the job stands for, made now or before; `rows` what it committed now.

    rate: samples per second of sampling alone, without starting an engine; None if nothing was
        sampled now.
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
    """How large a stage will be: in words, the rows it gives and the tokens it samples at most, if they can be known."""

    text: str = ""
    rows: int | None = None
    tokens: int | None = None


# How many rows the output of another stage has (`@harvest`), if that is known.
Rows = Callable[[Any], int | None]


def _unknown_size(_: Any, __: Rows) -> Size:
    return Size()


@dataclass(frozen=True)
class StageKind:
    """A kind of stage: everything that a pipeline needs to know of a job.

    config: the keys of a stage as a checked config; UsageError says what is wrong with them. It sees the names of
        outputs (`@stage`) as they are written.
    run: the job. `facts["value"]` of its result, or else its model, is what `@stage` stands for.
    size: how large the stage will be, from its checked config and the rows of earlier stages.
    takes: keys that have a default from the pipeline: `engine`, `seed`, and `label` or `name`, the stage's own name.
    ranks: whether several processes can run it together under torchrun.
    exact: keys whose `@stage` stands for the versions that the stage gave, instead of the whole dataset.
    gives: what `@stage` stands for: problems, traces, corpus, model, page, or None if there is nothing to name.
    """

    config: Callable[[Mapping[str, Any], str], Any]
    run: Callable[[Any, Context], JobResult]
    size: Callable[[Any, Rows], Size] = _unknown_size
    takes: frozenset[str] = frozenset()
    exact: frozenset[str] = frozenset()
    ranks: bool = False
    gives: str | None = None


class Context:
    """The warehouse, and what is expensive to start and is shared by the jobs of one process:
    engine and verifiers."""

    def __init__(self, warehouse: Warehouse | str | Path = "warehouse") -> None:
        from curate.engines.shared import SharedEngine

        self.warehouse = warehouse if isinstance(warehouse, Warehouse) else Warehouse(warehouse)
        self.warehouse.clean()
        self.engine = SharedEngine(say)
        self._pool: Any = None

    @property
    def pool(self) -> Any:
        """Warm verifier workers."""
        if self._pool is None:
            from curate.verify import VerifierPool

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
        """A row of the `jobs` table, for a run that did something."""
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
