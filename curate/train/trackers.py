"""Send metrics to TensorBoard, Weights & Biases or trackio, in addition to the table `metrics`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curate.errors import UsageError

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


class Trackers:
    """The trackers of one run. A resumed run continues under its own id."""

    def __init__(
        self, names: Sequence[str], name: str, run_id: str, folder: Path, config: dict[str, Any]
    ) -> None:
        self._writers: list[Any] = []
        self._runs: list[Any] = []
        for tracker in names:
            if tracker == "tensorboard":
                writer = _load("torch.utils.tensorboard", tracker).SummaryWriter(
                    str(folder / "tensorboard")
                )
                self._writers.append(writer)
            elif tracker == "wandb":
                self._runs.append(
                    _load("wandb", tracker).init(
                        project="curate", name=name, id=run_id, resume="allow", config=config
                    )
                )
            else:
                _load("trackio", tracker).init(
                    project="curate", name=f"{name}-{run_id}", resume="allow", config=config
                )
                self._runs.append(_load("trackio", tracker))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for writer in self._writers:
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)
        for run in self._runs:
            run.log(metrics, step=step)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
        for run in self._runs:
            run.finish()


def _load(module: str, tracker: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"trackers: {tracker} is not installed: pip install {PACKAGES[tracker]}, or leave it "
            "out (the metrics are in the warehouse: select * from metrics)"
        ) from error
