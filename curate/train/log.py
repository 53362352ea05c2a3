"""What training measured, as parts of the `metrics` table, and the row that makes a trained model known."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from curate.train.checkpoints import TrainResult
from curate.train.world import World
from curate.warehouse.identity import digest
from curate.warehouse.store import now

if TYPE_CHECKING:
    from curate.warehouse import Warehouse


class MetricsLog:
    """Rows of one run, published in parts named by their steps; a step that is there already is not published again."""

    def __init__(self, wh: Warehouse, name: str, run_id: str, world: World, **facts: Any) -> None:
        self.run_id, self.world = run_id, world
        self.version = wh.version("metrics", name, run_id, **facts)
        self.rows: list[dict[str, Any]] = []

    def add(self, step: int, metrics: dict[str, float]) -> None:
        self.rows += [
            {"run_id": self.run_id, "step": step, "name": name, "value": float(value), "created_at": now()}
            for name, value in metrics.items()
        ]

    def publish(self) -> None:
        """Commit what was added since, as one part."""
        if self.rows and self.world.first and not self.version.sealed:
            self.version.publish(f"step-{self.rows[0]['step']:06d}", self.rows)
        self.rows = []

    def seal(self) -> None:
        if self.world.first:
            self.version.seal()


def record_model(
    wh: Warehouse,
    result: TrainResult,
    name: str,
    kind: str,
    parent: str,
    inputs: dict[str, Any],
    config: dict[str, Any],
) -> None:
    """A row of the `models` table."""
    from curate.engines.models import weights_hash

    row = {
        "model_hash": weights_hash(result.model_path),
        "name": name,
        "kind": kind,
        "path": str(result.model_path.relative_to(wh.root)),
        "parent_hash": parent,
        "run_id": result.run_id,
        "step": result.steps,
        "data": json.dumps(inputs),
        "config": json.dumps(config),
        "parameters": result.counts.get("parameters"),
        "created_at": now(),
    }
    parents = [*inputs.get("corpora", []), *inputs.get("problems", [])]
    wh.write("models", name, [row], key=[result.run_id, digest(config)], parents=parents, model_hash=row["model_hash"])
