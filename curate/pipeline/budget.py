"""A time budget: later stages shrink to fit the machine, by the measured speed of an earlier stage.

    budget:
      minutes: 25
      speed: harvest                # this stage's samples per second are the unit
      stages:
        grpo: {least: {steps: 6}, cost: 2.5}     # keys that shrink, and the least they may be
        evaluate: {least: {limit: 40}}

Before each of these stages, the remaining time is divided: if the stage and those after it, as
written, would take longer, their keys are multiplied by one common factor. The next stage is fitted
again, from the time actually used, so a wrong estimate costs precision and not the deadline.

A decision depends on how fast the machine was, so it is recorded next to the records of the stages
    and read back by
every later run: a second run finds the same configs, and so does nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field

from curate.atomic import disk_errors
from curate.config import Config
from curate.errors import UsageError
from curate.pipeline.stages import Done, Stage
from curate.progress import duration, say
from curate.store.paths import make_folder, read_text
from curate.warehouse.identity import digest
from curate.warehouse.names import publish_file

# Share of the remaining time that is divided. The rest is for stages without an estimate: verdicts,
# filters, the report.
SHARE = 0.95


class FitConfig(Config):
    """Limits within which one stage may shrink."""

    least: dict[str, int] = Field(
        default={}, description="keys that shrink, with their least value"
    )
    cost: float = Field(
        1.0, gt=0, description="time of one of its samples, in samples of the stage `speed`"
    )


class BudgetConfig(Config):
    """The key `budget` of a pipeline."""

    minutes: float | None = Field(None, gt=0, description="for the whole pipeline; null: no limit")
    speed: str = Field(description="a stage that samples: its rate is the unit for the others")
    stages: dict[str, FitConfig] = Field(
        min_length=1, description="stages that shrink, with their limits"
    )


def check_budget(config: BudgetConfig, stages: Sequence[Stage], where: str) -> None:
    """UsageError for names of stages or keys that do not exist."""
    where = f"{where}: budget"
    by_name = {stage.name: stage for stage in stages}
    for name in (config.speed, *config.stages):
        if name not in by_name:
            raise UsageError(f"{where}: no stage {name}; there are {', '.join(by_name)}")
    order = list(by_name)
    for name, fit in config.stages.items():
        if order.index(name) < order.index(config.speed):
            raise UsageError(
                f"{where}: {name} runs before {config.speed}, which is to show the speed"
            )
        for key in fit.least:
            if type(by_name[name].config.get(key)) is not int:
                raise UsageError(f"{where}: stage {name} has no number {key} that could shrink")


@dataclass(frozen=True)
class Decision:
    """The values that a stage runs with, and why."""

    values: dict[str, int]
    reason: str


class Budget:
    """Fits the stages of one pipeline into its minutes. Records its decisions in `folder`."""

    def __init__(self, config: BudgetConfig, stages: Sequence[Stage], folder: Path) -> None:
        self.config, self.stages, self.folder = config, list(stages), folder

    def fitted(
        self, stage: Stage, key: str, done: Mapping[str, Done], decide: bool = True
    ) -> Stage:
        """The stage with the values that fit. `key` is its key as written.

        With `decide`, a stage that has no recorded decision gets one; otherwise it stays as
        written.
        """
        if self.config.minutes is None or stage.name not in self.config.stages:
            return stage
        path = (
            self.folder / f"budget-{stage.name}-{digest(key, self.config.model_dump())[:24]}.json"
        )
        decision = _read(path)
        if decision is None and decide:
            decision = self._decide(stage, done)
            self._record(path, decision)
            decision = _read(path) or decision  # another process may have decided first
            if decision.reason:
                say(f"  {decision.reason}")
        return _with(stage, decision.values) if decision else stage

    def _decide(self, stage: Stage, done: Mapping[str, Done]) -> Decision:
        speed = done.get(self.config.speed)
        if speed is None or not speed.rate:
            reason = f"{self.config.speed} sampled nothing now"
            return Decision(
                {}, f"budget: no speed is known ({reason}); {stage.name} stays as written"
            )
        minutes = self.config.minutes or 0.0
        used = sum(d.seconds for d in done.values())
        seconds = SHARE * (60 * minutes - used)
        ahead = [s for s in self.stages[self.stages.index(stage) :] if s.name not in done]
        factor = self._factor(ahead, seconds, speed.rate)
        values = self._values(stage, factor)
        changes = [
            f"{name} {stage.config[name]} -> {value}"
            for name, value in values.items()
            if value != stage.config[name]
        ]
        if not changes:
            return Decision({}, "")
        smaller = _samples(stage) / max(1, _samples(_with(stage, values)))
        reason = (
            f"budget: {duration(used)} of {minutes:g} minutes are used, and {self.config.speed} "
            f"made {speed.rate:.2g} samples per second, so {stage.name} gets {', '.join(changes)}"
        )
        if stage.do == "evaluate":
            reason += f": its intervals become {math.sqrt(smaller):.1f} times as wide"
        needed = self._seconds(ahead, factor, speed.rate)
        if needed > seconds:
            reason += f"; even so, about {duration(needed)} are still to come"
        return Decision({k: v for k, v in values.items() if v != stage.config[k]}, reason)

    def _factor(self, ahead: Sequence[Stage], seconds: float, rate: float) -> float:
        """Largest factor in [0, 1] at which the remaining stages fit into `seconds`; 0 if none
        does.
        """
        low, high = 0.0, 1.0
        if self._seconds(ahead, high, rate) <= seconds:
            return high
        for _ in range(20):
            middle = (low + high) / 2
            fits = self._seconds(ahead, middle, rate) <= seconds
            low, high = (middle, high) if fits else (low, middle)
        return low

    def _seconds(self, stages: Sequence[Stage], factor: float, rate: float) -> float:
        """Estimated seconds of the stages at this factor; those that sample nothing count as
        none.
        """
        return sum(
            _samples(_with(stage, self._values(stage, factor))) * self._cost(stage) / rate
            for stage in stages
        )

    def _values(self, stage: Stage, factor: float) -> dict[str, int]:
        """The keys of the stage that shrink, at this factor: never below their least, never above
        as written.
        """
        fit = self.config.stages.get(stage.name)
        return {
            key: min(stage.config[key], max(least, math.floor(stage.config[key] * factor)))
            for key, least in (fit.least if fit else {}).items()
        }

    def _cost(self, stage: Stage) -> float:
        fit = self.config.stages.get(stage.name)
        return fit.cost if fit else 1.0

    def _record(self, path: Path, decision: Decision) -> None:
        text = json.dumps(decision.__dict__, indent=1)
        with disk_errors(self.folder):
            make_folder(self.folder)
            publish_file(
                self.folder.parents[1], path, lambda staged: staged.write_text(text, "utf-8")
            )


def _samples(stage: Stage) -> int:
    """Maximum number of completions that a stage samples; 0 if none, or unknown."""
    if "engine" not in stage.kind.takes:
        return 0
    size = stage.kind.size(stage.checked, lambda _: None)
    return size.rows or 0 if size.tokens else 0


def _with(stage: Stage, values: Mapping[str, int]) -> Stage:
    if not values:
        return stage
    config = {**stage.config, **values}
    return replace(stage, config=config, checked=stage.kind.config(config, f"stage {stage.name}"))


def _read(path: Path) -> Decision | None:
    try:
        return Decision(**json.loads(read_text(path)))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
