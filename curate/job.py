"""What every job is given (warehouse, engine, verifiers) and what it gives back."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curate.progress import say
from curate.warehouse import Warehouse
from curate.warehouse.files import now
from curate.warehouse.identity import code_version, digest


@dataclass
class JobResult:
    """`refs` are the versions the job stands for, made now or before; `rows` what it committed now."""

    refs: list[str] = field(default_factory=list)
    rows: int = 0
    failed: int = 0
    seconds: float = 0.0
    model: str | None = None
    summary: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class Context:
    """The warehouse, and what is expensive to start and is shared by the jobs of one process: engine and verifiers."""

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
