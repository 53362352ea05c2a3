"""The result of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class TrainResult:
    """Outcome of a training run, with the path of the trained model."""

    model_path: Path
    run_id: str
    steps: int  # optimizer steps
    skipped: bool = False  # the run had finished before this call
    resumed_from: int = 0  # steps in the checkpoint that this call started from
    metrics: dict[str, float] = field(default_factory=dict)  # of the last step
    counts: dict[str, int] = field(default_factory=dict)  # examples, tokens, too_long, ...
    best_path: Path | None = None  # the model of the best evaluation, which may be the start
    best_step: int | None = None  # optimizer steps of that model; 0: the start
    warning: str = ""
    ended: str = ""  # why a replay ended before its last step
    empty_rounds: int = 0  # of GRPO, in which no group had rewards that differ

    @property
    def chosen_path(self) -> Path:
        """Path of the model that later stages use: the best one if it was kept, else the last."""
        return self.best_path or self.model_path
