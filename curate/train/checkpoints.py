"""Checkpoints: a model in Hugging Face format, and beside it what a killed run needs to go on.

    <warehouse>/checkpoints/<run_id>/step-000012/model/      config.json, *.safetensors, tokenizer
                                                 trainer.pt  optimizer, random states, position
                                                 shards/     the optimizer, where it is sharded over ranks
                                     best/                   the model of the best evaluation
                                     model/                  the finished model
                                     result.json             written last: the run is done

Everything is written beside, fsynced and renamed, so that what has its name is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.atomic import disk_errors, is_abandoned, whole_directory
from curate.atomic import write_whole as write_file
from curate.train.model.policy import restore, trained_state, weights, write_model
from curate.train.model.shards import load_shards, save_shards

if TYPE_CHECKING:
    from curate.train.model.policy import Policy
    from curate.train.ranks import World

STEP = "step-"


@dataclass
class TrainResult:
    """What a training run made."""

    model_path: Path
    run_id: str
    steps: int  # optimizer steps
    skipped: bool = False  # the run was finished before
    resumed_from: int = 0  # steps that were there when this call began
    metrics: dict[str, float] = field(default_factory=dict)  # of the last step
    counts: dict[str, int] = field(default_factory=dict)  # examples, tokens, too long, ...
    best_path: Path | None = None  # the policy of the best evaluation, which may be the start
    best_step: int | None = None  # optimizer steps behind it; 0: the start
    warning: str = ""

    @property
    def chosen_path(self) -> Path:
        """The model that later stages go on from: the best policy where it was kept, else the last."""
        return self.best_path or self.model_path


def write_whole(target: Path, write: Callable[[Path], None]) -> Path:
    """`target` as a directory that `write` filled, whole or not at all; what had the name before is replaced."""
    with disk_errors(target), whole_directory(target) as staged:
        write(staged)
    return target


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, root: Path, run_id: str, keep_last: int = 1) -> None:
        self.path = root / "checkpoints" / run_id
        self.keep_last = keep_last

    def steps(self) -> list[int]:
        """Steps that have a whole checkpoint, in order."""
        names = [p.name for p in self.path.glob(f"{STEP}*") if (p / "trainer.pt").exists()]
        return sorted(int(name.removeprefix(STEP)) for name in names)

    def directory(self, step: int) -> Path:
        return self.path / f"{STEP}{step:06d}"

    def save(
        self, step: int, policy: Policy, tokenizer: Any, optimizer: Any, world: World, **state: Any
    ) -> None:
        """Write step `step` and drop what `keep_last` no longer covers. Every rank must call."""
        import torch

        full = weights(policy)
        state["random"] = world.gather(random_state())
        if not world.sharded:
            state |= trained_state(policy, optimizer)

        def write(beside: Path) -> None:
            if world.sharded:
                save_shards(policy, optimizer, Path(world.share(str(beside))) / "shards")
            write_model(policy, tokenizer, beside / "model", "float32", full)
            torch.save(state, beside / "trainer.pt")

        if world.first:
            write_whole(self.directory(step), write)
            for old in self.steps()[: -self.keep_last]:
                shutil.rmtree(self.directory(old), ignore_errors=True)
            self._sweep()
        elif world.sharded:
            save_shards(policy, optimizer, Path(world.share(None)) / "shards")
        world.barrier()

    def load(self, step: int, policy: Policy, optimizer: Any, world: World) -> dict[str, Any]:
        """Put back optimizer, adapters and random states of a step; returns what else was saved with it."""
        import torch

        state = torch.load(
            self.directory(step) / "trainer.pt", map_location="cpu", weights_only=False
        )
        shards = self.directory(step) / "shards"
        if shards.exists():
            load_shards(policy, optimizer, shards)
        else:
            restore(policy, optimizer, state)
        states = state["random"]
        set_random_state(states[world.rank if len(states) == world.size else 0])
        return dict(state)

    def save_best(self, write_model: Callable[[Path], None]) -> Path:
        return write_whole(self.path / "best", write_model)

    def finish(
        self, write_model: Callable[[Path], None], result: TrainResult, record: Callable[[], None]
    ) -> TrainResult:
        """The finished model, `record` of what else tells of it, then the mark that the run is done.

        A kill before the mark has all of it done again. What only resuming needed goes.
        """
        result.model_path = write_whole(self.path / "model", write_model)
        record()
        text = json.dumps(
            {k: str(v) if isinstance(v, Path) else v for k, v in asdict(result).items()}, indent=1
        )
        write_file(self.path / "result.json", text)
        for step in self.steps():
            shutil.rmtree(self.directory(step), ignore_errors=True)
        rounds = [] if any(self.path.glob("rounds/keep_days")) else [self.path / "rounds"]
        for path in [*self.path.glob("reference-*"), *rounds]:
            shutil.rmtree(path, ignore_errors=True)
        self._sweep()
        return result

    def finished(self) -> TrainResult | None:
        """The result of a run that is done, with `skipped` set; None where it is not."""
        try:
            found = json.loads((self.path / "result.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        model, best = self.path / "model", self.path / "best"  # the warehouse may have moved
        if not (model / "config.json").exists():
            return None
        found.update(model_path=model, best_path=best if best.exists() else None, skipped=True)
        return TrainResult(**found)

    def _sweep(self) -> None:
        """What a killed write left."""
        for path in self.path.glob(".*"):
            if path.is_dir() and is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)


def random_state() -> dict[str, Any]:
    """The states of the generators that training draws from."""
    import torch

    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    import torch

    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
