"""A pipeline file, and its stages in order.

A stage refers to another's output by `@stage` (a model, a corpus, problems, traces) or
`@stage.fact`, and to a variable of `vars` by `$name`. A stage that trains takes `processes: N`
and is then run by N ranks under torchrun, on each of `nodes: M` machines.

A loop back, with traces of the new model going into the next round, is a stage `do: loop`. It
is replaced by its own stages, once per round. `carry` gives the start of each round: `$model` is
`first` in the first round, and in a later one the output of stage `then` of the round before. After
the loop, `@loop-name` is the output of `then` in the last round.

    loop:
      do: loop
      rounds: 3
      carry: {model: {first: "@sft", then: tune}}
      stages: {sample: …, tune: …}

Training that is repeated with several seeds is a stage `do: repeat`. It is replaced by its own
stages, once per seed. Inside it, `@stage` is the stage of the same seed; after it, `@stage` is the
list of all of them, which an evaluation takes as one model with several seeds.

    training:
      do: repeat
      seeds: [0, 1, 2]
      stages: {rl: {do: grpo, …}}
    evaluate: {do: evaluate, models: [{label: RL, model: "@rl"}], …}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from curate.config import Config, merge, override, read_yaml, validate
from curate.engines import EngineConfig
from curate.errors import UsageError, did_you_mean
from curate.job import ClusterConfig
from curate.pipeline.budget import BudgetConfig, check_budget
from curate.pipeline.references import check_outputs, fill, rename, stage_names, variables
from curate.pipeline.stages import KINDS, Stage, stage_kind
from curate.registry import add_folder
from curate.shipped import data_dir


class PipelineConfig(Config):
    """A pipeline file."""

    name: str
    """Name of the pipeline: records of finished stages are kept under it."""
    description: str = ""
    """One line for `--plan`."""
    warehouse: str = "warehouse"
    """Where the data is, unless the command names another place."""
    engine: dict[str, Any] = {}
    """Defaults for the `engine` of every stage that samples."""
    cluster: ClusterConfig | None = None
    """Cluster for every stage that can use several machines and does not set its own."""
    seed: int = 0
    """Seed of every stage that takes one and does not set its own."""
    vars: dict[str, Any] = {}
    """Variables: a stage refers to one by `$name`."""
    stages: dict[str, dict[str, Any]] = Field(min_length=1)
    """The stages by name, in order; `do` is the kind of stage, the other keys are its config."""
    budget: BudgetConfig | None = None
    """Minutes that the pipeline may take, and the stages that shrink to fit."""
    queries: list[str] = []
    """SQL queries that are suggested at the end of a run."""


class CarryConfig(Config):
    """The value that each round of a loop begins with."""

    first: Any
    """The value in the first round."""
    then: str
    """The stage whose output is the value in the next round."""


class LoopConfig(Config):
    """A stage `do: loop`."""

    rounds: int = Field(ge=1)
    """Number of rounds."""
    carry: dict[str, CarryConfig] = Field(min_length=1)
    """Variables that change from round to round."""
    stages: dict[str, dict[str, Any]] = Field(min_length=1)
    """The stages of a round."""


class RepeatConfig(Config):
    """A stage `do: repeat`."""

    seeds: list[int] = Field(min_length=1)
    """Seeds of the stages, one run of all of them for each."""
    stages: dict[str, dict[str, Any]] = Field(min_length=1)
    """The stages of a run."""


def load_pipeline(
    path: str | Path, overrides: Sequence[str] = ()
) -> tuple[PipelineConfig, list[Stage]]:
    """Load a pipeline and its stages in order. UsageError for any error that is detectable without
    running it.
    """
    file = find_pipeline(path)
    add_folder(file.parent)
    data = read_yaml(file)
    changed = override(data, overrides)
    if changed.get("budget"):
        changed["budget"] = fill(changed["budget"], changed.get("vars") or {}, f"{path}: budget")
    config = validate(PipelineConfig, changed, str(path))
    validate(EngineConfig, config.engine, f"{path}: engine")
    _check_overrides(data, overrides, str(path))
    stages: dict[str, Stage] = {}
    for name, raw in unroll(config.stages, str(path)).items():
        where = f"{path}: stage {name}"
        stages[name] = _stage(name, fill(raw, config.vars, where), config, stages, where)
    if config.budget is not None:
        check_budget(config.budget, list(stages.values()), str(path))
    return config, list(stages.values())


_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def code_of(path: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """List dotted paths `module:name` in a pipeline file and its overrides, sorted. Imports
    nothing.

    Every string that looks like one is listed: checking it would mean importing it.
    """
    stack: list[Any] = [override(read_yaml(find_pipeline(path)), overrides)]
    paths: set[str] = set()
    while stack:
        value = stack.pop()
        if isinstance(value, Mapping):
            stack += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            stack += value
        elif isinstance(value, str) and _DOTTED.fullmatch(value):
            paths.add(value)
    return sorted(paths)


def find_pipeline(path: str | Path) -> Path:
    """Find a pipeline by path, or a shipped one by name."""
    path = Path(path)
    if path.exists():
        return path
    folder = data_dir("pipelines")
    shipped = folder / (path.name if path.suffix else f"{path.name}.yaml")
    if shipped.exists():
        return shipped
    names = sorted(p.stem for p in folder.glob("*.yaml"))
    hint = did_you_mean(path.stem, names) or f"; those that ship are {', '.join(names)}"
    raise UsageError(f"no pipeline {path}{hint}")


def _check_overrides(data: Mapping[str, Any], overrides: Sequence[str], where: str) -> None:
    """UsageError for an override of a variable or a stage that the file does not have."""
    for item in overrides:
        group, _, rest = item.partition("=")[0].partition(".")
        names = list(data.get(group) or {})
        name = rest.split(".")[0]
        if group not in ("vars", "stages") or not name or name in names:
            continue
        what = {"vars": "variable", "stages": "stage"}[group]
        if group == "stages" and rest == name:
            continue  # a whole stage is added
        raise UsageError(
            f"{where}: override '{item}': no {what} '{name}'{did_you_mean(name, names)} There are "
            f"{', '.join(names) or 'none'}"
        )


def _stage(
    name: str,
    body: dict[str, Any],
    pipeline: PipelineConfig,
    before: Mapping[str, Stage],
    where: str,
) -> Stage:
    """One stage, checked against its kind and the stages before it."""
    do, after = body.pop("do", None), body.pop("after", [])
    processes, nodes = body.pop("processes", 1), body.pop("nodes", 1)
    if not isinstance(do, str) or (do not in KINDS and ":" not in do):
        kinds = [*KINDS, "loop", "repeat"]
        hint = did_you_mean(str(do), kinds)
        raise UsageError(f"{where}: do: {do!r} is none of {', '.join(kinds)}{hint}")
    kind = stage_kind(do)
    for key, count in (("processes", processes), ("nodes", nodes)):
        if type(count) is not int or count < 1 or (count > 1 and not kind.ranks):
            raise UsageError(
                f"{where}: {key}: {count!r}; give a number of ranks or of machines, and only to a "
                "stage that trains"
            )
    if "engine" in kind.takes:
        body["engine"] = _engine(pipeline.engine, body.get("engine", {}))
    if "seed" in kind.takes:
        body.setdefault("seed", pipeline.seed)
    if "cluster" in kind.takes and pipeline.cluster is not None:
        body.setdefault("cluster", pipeline.cluster.model_dump())
    needs = tuple(dict.fromkeys([*stage_names(body), *after]))
    for need in needs:
        if need not in before:
            hint = did_you_mean(need, before)
            raise UsageError(f"{where} needs '{need}', and no stage before it has that name{hint}")
    stage = Stage(name, do, body, kind.config(body, where), needs, processes, nodes)
    check_outputs(stage, before, where)
    return stage


def _engine(default: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The engine of a stage: its own keys over those of the pipeline. `args` are only for the
    engine they were given to.
    """
    other = own.get("name") not in (None, default.get("name"))
    return merge({k: v for k, v in default.items() if not (other and k == "args")}, own)


Names = dict[str, str | list[str]]  # a name in the file: the stages that replace it


def unroll(stages: Mapping[str, dict[str, Any]], where: str) -> dict[str, dict[str, Any]]:
    """Replace every loop and every repetition by its stages: `loop-1-stage`, `loop-2-stage`, …
    and `stage-0`, `stage-1`, … by seed.
    """
    flat: dict[str, dict[str, Any]] = {}
    names: Names = {}
    for name, raw in stages.items():
        body = {key: value for key, value in raw.items() if key != "do"}
        if raw.get("do") == "loop":
            _unroll_loop(name, body, f"{where}: stage {name}", flat, names)
        elif raw.get("do") == "repeat":
            _unroll_repeat(body, f"{where}: stage {name}", flat, names)
        else:
            flat[name] = rename(raw, names)
    return flat


def _unroll_loop(
    name: str,
    body: dict[str, Any],
    where: str,
    flat: dict[str, dict[str, Any]],
    names: Names,
) -> None:
    """Add the stages of every round to `flat`, and the output of the last round to `names`."""
    loop = validate(LoopConfig, body, where)
    for carry in loop.carry.values():
        if carry.then not in loop.stages:
            raise UsageError(
                f"{where}: carry names '{carry.then}', which is not a stage of the loop"
            )
    for turn in range(1, loop.rounds + 1):
        own: Names = {inner: f"{name}-{turn}-{inner}" for inner in loop.stages}
        carried = {
            key: carry.first if turn == 1 else f"@{name}-{turn - 1}-{carry.then}"
            for key, carry in loop.carry.items()
        }
        for inner, config in loop.stages.items():
            # Variables of the pipeline stay as they are, and are filled in later.
            values = {key: f"${key}" for key in variables(config)} | carried | {"round": turn}
            flat[f"{name}-{turn}-{inner}"] = rename(fill(config, values, name), {**names, **own})
    names[name] = f"{name}-{loop.rounds}-{next(iter(loop.carry.values())).then}"


def _unroll_repeat(
    body: dict[str, Any], where: str, flat: dict[str, dict[str, Any]], names: Names
) -> None:
    """Add the stages of every seed to `flat`, and the lists of their names to `names`."""
    repeat = validate(RepeatConfig, body, where)
    if len(set(repeat.seeds)) < len(repeat.seeds):
        raise UsageError(f"{where}: seeds: a seed occurs twice in {repeat.seeds}")
    for seed in repeat.seeds:
        own: Names = {inner: f"{inner}-{seed}" for inner in repeat.stages}
        for inner, config in repeat.stages.items():
            values = {key: f"${key}" for key in variables(config)} | {"seed": seed}
            stage = rename(fill(config, values, where), {**names, **own})
            kind = stage.get("do")
            if isinstance(kind, str) and kind in KINDS and "seed" in stage_kind(kind).takes:
                stage.setdefault("seed", seed)
            if "name" in stage:
                stage["name"] = f"{stage['name']}-{seed}"
            flat[f"{inner}-{seed}"] = stage
    for inner in repeat.stages:
        names[inner] = [f"{inner}-{seed}" for seed in repeat.seeds]
