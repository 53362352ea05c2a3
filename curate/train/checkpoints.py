"""Checkpoints: a model in Hugging Face format, and next to it what a killed run needs to resume.

    <warehouse>/checkpoints/<run_id>/step-000012/model/      config.json, *.safetensors, tokenizer
                                                 trainer.pt  optimizer, random states, position
                                                 shards/     the optimizer, if sharded over ranks
                                     best/                   the model of the best evaluation
                                     model/                  the finished model
                                     result.json             written last: the run is done

Everything is written under another name, fsynced and renamed, so a file under its own name is
complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from curate.atomic import SUFFIX, disk_errors, is_abandoned, whole_directory, write_whole
from curate.errors import CurateError, UsageError
from curate.store import is_remote, url_of
from curate.train.model.loading import weights, write_model
from curate.train.model.policy import Policy
from curate.train.model.sharding import (
    load_shards,
    optimizer_state,
    restore_optimizer,
    save_shards,
)
from curate.train.ranks import Ranks
from curate.train.result import TrainResult

STEP = "step-"


def write_directory(target: Path, write: Callable[[Path], None]) -> Path:
    """Write a directory with `write`, completely or not at all; an older one is replaced."""
    with disk_errors(target), whole_directory(target) as staged:
        write(staged)
    return target


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, root: Path, run_id: str, keep_last: int = 1) -> None:
        if is_remote(root):
            raise UsageError(
                f"training needs a warehouse on a file system, for its checkpoints; {url_of(root)} "
                "is object storage. Export the corpus (curate export), import it into a warehouse "
                "on a disk that all nodes of the training share, and train there"
            )
        self.path = root / "checkpoints" / run_id
        self.keep_last = keep_last

    def steps(self) -> list[int]:
        """Return the steps that have a complete checkpoint, in order."""
        names = [p.name for p in self.path.glob(f"{STEP}*") if (p / "trainer.pt").exists()]
        return sorted(int(name.removeprefix(STEP)) for name in names)

    def directory(self, step: int) -> Path:
        return self.path / f"{STEP}{step:06d}"

    def save(
        self, step: int, policy: Policy, tokenizer: Any, optimizer: Any, ranks: Ranks, **state: Any
    ) -> None:
        """Write a step and remove checkpoints beyond `keep_last`. Every rank must call this."""
        full = weights(policy)
        state["random"] = ranks.gather(random_state())
        if not ranks.sharded:
            state |= optimizer_state(policy, optimizer)

        def write(staging: Path) -> None:
            if ranks.sharded:
                save_shards(policy, optimizer, Path(ranks.broadcast(str(staging))) / "shards")
            write_model(policy, tokenizer, staging / "model", "float32", full)
            torch.save(state, staging / "trainer.pt")

        if ranks.first:
            write_directory(self.directory(step), write)
            for old in self.steps()[: -self.keep_last]:
                shutil.rmtree(self.directory(old), ignore_errors=True)
            self._sweep()
        elif ranks.sharded:
            save_shards(policy, optimizer, Path(ranks.broadcast(None)) / "shards")
        ranks.barrier()

    def load(self, step: int, policy: Policy, optimizer: Any, ranks: Ranks) -> dict[str, Any]:
        """Restore optimizer, adapters and random states; return the trainer's own state."""
        path = self.directory(step) / "trainer.pt"
        try:
            # Tensors and plain values only: somebody else's file must not run code.
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's reader raises many types
            raise CurateError(
                f"{path} cannot be read ({type(error).__name__}): it is damaged, or holds more "
                f"than tensors. Delete {path.parent} to resume from the step before it"
            ) from error
        shards = self.directory(step) / "shards"
        if shards.exists():
            load_shards(policy, optimizer, shards)
        else:
            restore_optimizer(policy, optimizer, state)
        states = state["random"]
        set_random_state(states[ranks.rank if len(states) == ranks.size else 0])
        return dict(state)

    def save_best(self, write_model: Callable[[Path], None]) -> Path:
        return write_directory(self.path / "best", write_model)

    def finish(
        self, write_model: Callable[[Path], None], result: TrainResult, record: Callable[[], None]
    ) -> TrainResult:
        """Write the finished model, call `record`, then mark the run as done.

        After a kill before the mark, all of it is repeated. Files needed only for resuming are
        removed.
        """
        result.model_path = write_directory(self.path / "model", write_model)
        record()
        text = json.dumps(
            {k: str(v) if isinstance(v, Path) else v for k, v in asdict(result).items()}, indent=1
        )
        write_whole(self.path / "result.json", text)
        for step in self.steps():
            shutil.rmtree(self.directory(step), ignore_errors=True)
        rounds = [] if any(self.path.glob("rounds/keep_days")) else [self.path / "rounds"]
        for path in [*self.path.glob("reference-*"), *rounds]:
            shutil.rmtree(path, ignore_errors=True)
        self._sweep()
        return result

    def finished(self) -> TrainResult | None:
        """Return the result of a finished run, with `skipped` set; None if it has not finished."""
        path = self.path / "result.json"
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise self._damaged(path, error) from error
        model, best = self.path / "model", self.path / "best"  # the warehouse may have been moved
        if not (model / "config.json").exists():
            return None
        try:
            stored.update(model_path=model, best_path=best if best.exists() else None, skipped=True)
            return TrainResult(**stored)
        except (TypeError, AttributeError) as error:
            raise self._damaged(path, error) from error

    @staticmethod
    def _damaged(path: Path, error: Exception) -> CurateError:
        return CurateError(f"{path} cannot be read ({error}): delete it to train the model again")

    def _sweep(self) -> None:
        """Remove the remains of killed writers."""
        for path in self.path.glob(f".*{SUFFIX}"):
            if path.is_dir() and is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)


def random_state() -> dict[str, Any]:
    """Return the states of the random generators that training uses."""
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
