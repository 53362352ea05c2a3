"""Pipelines: stages in order, each skipped when its inputs and config are unchanged.

A stage names another's output with `@stage` (a model, a corpus, problems, traces) or `@stage.fact`. What a stage did is
remembered under a key: the hash of its config, with those names resolved, and of what the stages before it gave. The
jobs resume by themselves, so a stage that was killed goes on where it was. A stage that trains takes `processes: N`,
and is then run by N ranks under torchrun.

A loop back (traces of the new model into the next round) is a stage `do: loop`, which stands for its own stages so many
times. `carry` says what each round begins with: `$model` is `first` in the first round, and in a later one what the
stage `then` of the round before gave. Behind the loop, `@loop-name` is what `then` gave in the last round.

    loop: {do: loop, rounds: 3, carry: {model: {first: "@sft", then: tune}}, stages: {sample: …, tune: …}}
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from curate.atomic import disk_errors
from curate.config import Config, merge, override, read_yaml, validate
from curate.errors import UsageError
from curate.job import Context, JobResult
from curate.progress import duration, say
from curate.train.launch import TRAINED, launch
from curate.warehouse.files import publish_file
from curate.warehouse.identity import digest


class PipelineConfig(Config):
    """A pipeline file. `engine` and `seed` are defaults of the stages that have such keys."""

    name: str
    description: str = ""
    warehouse: str = "warehouse"
    engine: dict[str, Any] = {}
    seed: int = 0
    vars: dict[str, Any] = {}  # `$name` as a value in a stage stands for one of these
    stages: dict[str, dict[str, Any]] = Field(min_length=1)
    # laid over the file where the engine of that name is the one that `auto` finds
    presets: dict[str, dict[str, Any]] = {}
    queries: list[str] = []


@dataclass(frozen=True)
class Stage:
    """One stage: `do` names the kind of job, `config` is as written, `needs` are the stages it names."""

    name: str
    do: str
    config: dict[str, Any]
    needs: tuple[str, ...]
    processes: int = (
        1  # ranks that train together, under torchrun; how many says nothing of what comes out
    )


@dataclass(frozen=True)
class Done:
    """What a finished stage gave: read back when it is skipped."""

    key: str
    value: str
    facts: dict[str, Any]
    refs: list[str]
    summary: str
    seconds: float

    @property
    def digest(self) -> str:
        return digest(self.value, self.facts, sorted(self.refs))


# -- kinds of stages ---------------------------------------------------------------------------------------------

Runner = Callable[[dict[str, Any], Context, str], JobResult]


def _problems(config: dict[str, Any], context: Context, where: str) -> JobResult:
    from curate.problems import ProblemsConfig
    from curate.problems.store import stored_problems

    name = config.pop("name", None) or where.removeprefix("stage ")
    config["sources"] = [_shipped(source) for source in config["sources"]]
    version = stored_problems(validate(ProblemsConfig, config, where), context, name)
    rows = version.manifest["rows"]
    result = JobResult(refs=[version.ref], rows=rows, summary=f"{rows} problems in {version.ref}")
    result.facts["value"] = f"{version.dataset}@{version.version}"
    return result


def _generate(config: dict[str, Any], context: Context, where: str) -> JobResult:
    from curate.generate import job
    from curate.generate.config import generate_config

    result = job.run(generate_config(config, where), context)
    result.facts["value"] = result.facts["family"]
    return result


def _shipped(config: dict[str, Any]) -> dict[str, Any]:
    """A config whose `path` is no file here, and the name of one that ships: with that one's path."""
    from curate.warehouse.schemas import data_dir

    path = Path(str(config.get("path")))
    shipped = data_dir("pipelines") / path
    return {**config, "path": str(shipped)} if not path.exists() and shipped.is_file() else config


def _import(config: dict[str, Any], context: Context, where: str) -> JobResult:
    from curate.imports import job as importing

    config = _shipped(config)
    result = importing.run(validate(importing.ImportConfig, config, where), context)
    result.facts["value"] = result.facts["family"]
    return result


def _annotate(config: dict[str, Any], context: Context, where: str) -> JobResult:
    from curate.annotate import job as annotate

    return annotate.run(validate(annotate.AnnotateConfig, config, where), context)


def _filter(config: dict[str, Any], context: Context, where: str) -> JobResult:
    from curate.filter.job import FilterConfig, run

    result = run(validate(FilterConfig, config, where), context)
    result.facts["value"] = result.facts["corpus"]
    return result


def _base(config: dict[str, Any], context: Context, where: str) -> JobResult:
    from curate.train import toy_base as bases

    return bases.run(validate(bases.BaseConfig, config, where), context)


def _sft(config: dict[str, Any], context: Context, where: str) -> JobResult:
    from curate.train.job import run_sft

    return run_sft(config, context, where)


def _distill(config: dict[str, Any], context: Context, where: str) -> JobResult:
    from curate.train.job import run_distill

    return run_distill(config, context, where)


def _grpo(config: dict[str, Any], context: Context, where: str) -> JobResult:
    from curate.train.job import run_grpo

    return run_grpo(config, context, where)


def _evaluate(config: dict[str, Any], context: Context, where: str) -> JobResult:
    from curate.evaluate import job

    return job.run(validate(job.EvaluateConfig, config, where), context)


def _report(config: dict[str, Any], context: Context, where: str) -> JobResult:
    from curate.report import job

    return job.run(validate(job.ReportConfig, config, where), context)


KINDS: dict[str, Runner] = {
    "problems": _problems,
    "generate": _generate,
    "import": _import,
    "annotate": _annotate,
    "filter": _filter,
    "base": _base,
    "sft": _sft,
    "distill": _distill,
    "grpo": _grpo,
    "evaluate": _evaluate,
    "report": _report,
}


def _check(stage: Stage, where: str) -> None:
    """UsageError for a stage whose config is wrong, before any stage runs. Names of outputs stand as they are."""
    config = dict(stage.config)
    if stage.do == "problems":
        from curate.problems import ProblemsConfig

        config.pop("name", None)
        validate(ProblemsConfig, config, where).built()
    elif stage.do == "generate":
        from curate.generate.config import generate_config

        generate_config(config, where)
    elif stage.do == "import":
        from curate.imports.job import ImportConfig

        validate(ImportConfig, config, where)
    elif stage.do == "annotate":
        from curate.annotate.job import AnnotateConfig

        validate(AnnotateConfig, config, where)
    elif stage.do == "filter":
        from curate.filter.job import FilterConfig
        from curate.filter.rules import load_rules

        checked = validate(FilterConfig, config, where)
        load_rules(checked.rules, checked.set)
    elif stage.do == "base":
        from curate.train.toy_base import BaseConfig

        validate(BaseConfig, config, where)
    elif stage.do == "sft":
        from curate.train.config import SFTConfig

        validate(SFTConfig, config, where)
    elif stage.do == "distill":
        from curate.train.job import check_distill

        check_distill(config, where)
    elif stage.do == "grpo":
        from curate.train.job import check_grpo

        check_grpo(config, where)
    elif stage.do == "evaluate":
        from curate.evaluate.job import EvaluateConfig, generation_configs

        generation_configs(validate(EvaluateConfig, config, where))
    elif stage.do == "report":
        from curate.report.job import ReportConfig

        validate(ReportConfig, config, where)


WITH_ENGINE = ("generate", "grpo", "evaluate")
WITH_SEED = ("base", "generate", "sft", "distill", "grpo", "evaluate")


# -- reading -----------------------------------------------------------------------------------------------------


def load_pipeline(
    path: str | Path, overrides: Sequence[str] = ()
) -> tuple[PipelineConfig, list[Stage]]:
    """The pipeline and its stages in order. Raises UsageError for a stage that names what does not come before it."""
    from curate.engines import EngineConfig
    from curate.engines.registry import choose

    data = read_yaml(_find(path))
    config = validate(PipelineConfig, override(data, overrides), str(path))
    if config.presets:
        wanted = validate(EngineConfig, config.engine, f"{path}: engine")
        chosen, _ = choose(wanted)
        if chosen in config.presets:
            data = merge(data, config.presets[chosen])
            config = validate(
                PipelineConfig, override(data, overrides), f"{path} with the preset {chosen}"
            )
    stages: list[Stage] = []
    for name, raw in unrolled(config.stages, str(path)).items():
        body = _fill(raw, config.vars, f"{path}: stage {name}")
        do, after, processes = body.pop("do", None), body.pop("after", []), body.pop("processes", 1)
        if do not in KINDS:
            raise UsageError(f"{path}: stage {name}: do: {do!r} is none of {', '.join(KINDS)}")
        if type(processes) is not int or processes < 1 or (processes > 1 and do not in TRAINED):
            raise UsageError(
                f"{path}: stage {name}: processes: {processes!r}; give a number of ranks, to a stage that trains "
                f"({', '.join(TRAINED)})"
            )
        if do in WITH_ENGINE:
            body["engine"] = merge(config.engine, body.get("engine", {}))
        if do in WITH_SEED:
            body.setdefault("seed", config.seed)
        needs = tuple(dict.fromkeys([*_names(body), *after]))
        for need in needs:
            if need not in [s.name for s in stages]:
                raise UsageError(
                    f"{path}: stage {name} needs '{need}', and no stage before it has that name"
                )
        stages.append(Stage(name, do, body, needs, processes))
        _check(stages[-1], f"{path}: stage {name}")
    return config, stages


class CarryConfig(Config):
    """What a round begins with: `first` in the first one, then what the stage `then` of the round before gave."""

    first: Any
    then: str


class LoopConfig(Config):
    """A stage `do: loop`."""

    rounds: int = Field(ge=1)
    carry: dict[str, CarryConfig] = Field(min_length=1)
    stages: dict[str, dict[str, Any]] = Field(min_length=1)


def unrolled(stages: Mapping[str, dict[str, Any]], where: str) -> dict[str, dict[str, Any]]:
    """The stages with every loop replaced by its rounds: `loop-1-stage`, `loop-2-stage`, …"""
    made: dict[str, dict[str, Any]] = {}
    last: dict[
        str, str
    ] = {}  # name of a loop, or one of its stages by `loop.stage`: the stage of its last round
    for name, raw in stages.items():
        if raw.get("do") != "loop":
            made[name] = _renamed(raw, last)
            continue
        body = {key: value for key, value in raw.items() if key != "do"}
        loop = validate(LoopConfig, body, f"{where}: stage {name}")
        if unknown := sorted({c.then for c in loop.carry.values()} - set(loop.stages)):
            raise UsageError(
                f"{where}: stage {name}: carry names '{unknown[0]}', which is no stage of the loop"
            )
        for turn in range(1, loop.rounds + 1):
            own = {inner: f"{name}-{turn}-{inner}" for inner in loop.stages}
            before = f"{name}-{turn - 1}-"
            carried = {
                k: c.first if turn == 1 else f"@{before}{c.then}" for k, c in loop.carry.items()
            }
            for inner, config in loop.stages.items():
                filled = _fill(
                    config,
                    {**{k: f"${k}" for k in _variables(config)}, **carried, "round": turn},
                    name,
                )
                made[own[inner]] = _renamed(filled, {**last, **own})
        last[name] = f"{name}-{loop.rounds}-{next(iter(loop.carry.values())).then}"
    return made


def _variables(value: Any) -> list[str]:
    """Names of the variables that a config mentions."""
    if isinstance(value, str) and value.startswith("$"):
        return [value[1:]]
    inside = (
        value.values()
        if isinstance(value, Mapping)
        else value
        if isinstance(value, list | tuple)
        else []
    )
    return [name for item in inside for name in _variables(item)]


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """The config with `@old` written as `@new`; stages named by `after` as well."""
    if isinstance(value, str) and value.startswith("@"):
        name, dot, fact = value[1:].partition(".")
        return f"@{names.get(name, name)}{dot}{fact}"
    if isinstance(value, Mapping):
        return {
            k: [names.get(n, n) for n in v]
            if k == "after" and isinstance(v, list)
            else _renamed(v, names)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [_renamed(v, names) for v in value]
    return value


def _find(path: str | Path) -> Path:
    """A pipeline by path, or one that ships by its file name."""
    from curate.warehouse.schemas import data_dir

    path = Path(path)
    shipped = data_dir("pipelines") / path.name
    if not path.exists() and path.suffix == "":
        shipped = shipped.with_suffix(".yaml")
    return shipped if not path.exists() and shipped.exists() else path


def _names(value: Any) -> list[str]:
    """Names of stages that a config mentions."""
    if isinstance(value, str) and value.startswith("@"):
        return [value[1:].split(".")[0]]
    if isinstance(value, Mapping):
        return [n for v in value.values() for n in _names(v)]
    if isinstance(value, list | tuple):
        return [n for v in value for n in _names(v)]
    return []


def _fill(value: Any, variables: Mapping[str, Any], where: str) -> Any:
    """The value with `$name` replaced by the variable of that name."""
    if isinstance(value, str) and value.startswith("$"):
        if value[1:] not in variables:
            known = ", ".join(variables) or "none"
            raise UsageError(f"{where}: no variable '{value[1:]}' in vars; there are {known}")
        return variables[value[1:]]
    if isinstance(value, Mapping):
        return {k: _fill(v, variables, where) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_fill(v, variables, where) for v in value]
    return value


def _resolve(value: Any, done: Mapping[str, Done]) -> Any:
    if isinstance(value, str) and value.startswith("@"):
        name, _, fact = value[1:].partition(".")
        found = done[name].facts.get(fact) if fact else done[name].value
        if not found:
            raise UsageError(f"'{value}': stage {name} gives no {fact or 'output to name'}")
        return found
    if isinstance(value, Mapping):
        return {k: _resolve(v, done) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_resolve(v, done) for v in value]
    return value


def _versions(traces: Sequence[str], done: Mapping[str, Done]) -> list[str]:
    """Traces by the versions that the named stages gave: of a family, not what other runs added to it."""
    found: list[str] = []
    for name in traces:
        refs = done[name[1:]].refs if name[1:] in done else []
        made = [ref for ref in refs if ref.startswith("traces/")]
        found += made if name.startswith("@") and made else [_resolve(name, done)]
    return found


# -- running -----------------------------------------------------------------------------------------------------


class Pipeline:
    """A pipeline over one warehouse."""

    def __init__(self, config: PipelineConfig, stages: list[Stage], context: Context) -> None:
        self.config, self.stages, self.context = config, stages, context
        self.folder = context.warehouse.root / "_runs" / config.name

    def key(self, stage: Stage, done: Mapping[str, Done]) -> str:
        resolved = _resolve(stage.config, done)
        return digest(stage.do, resolved, [(n, done[n].digest) for n in stage.needs])[:24]

    def find(self, stage: Stage, key: str) -> Done | None:
        """What the stage gave under this key, where that is still there."""
        path = self.folder / f"{stage.name}-{key}.json"
        try:
            found = Done(**json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        root = self.context.warehouse.root
        intact = all(
            (root / ref / "manifest.json").exists() for ref in found.refs if ref.count("/") == 2
        )
        model = found.facts.get("model")
        return found if intact and (not model or Path(model).exists()) else None

    def run(self, only: Sequence[str] = ()) -> dict[str, Done]:
        """Run what is not done; returns what every stage gave. A failing stage raises, and what it committed stays."""
        unknown = set(only) - {s.name for s in self.stages}
        if unknown:
            names = ", ".join(s.name for s in self.stages)
            raise UsageError(f"no stage {', '.join(sorted(unknown))}: there are {names}")
        done: dict[str, Done] = {}
        started, skipped = time.monotonic(), 0
        for number, stage in enumerate(self.stages, 1):
            if only and stage.name not in only and not _needed(stage.name, only, self.stages):
                continue
            head = f"[{number}/{len(self.stages)}] {stage.name}"
            key = self.key(stage, done)
            found = self.find(stage, key)
            if found is not None:
                done[stage.name] = found
                skipped += 1
                say(f"{head}: done before, skipped ({found.summary})")
                continue
            if only and stage.name not in only:
                raise UsageError(
                    f"stage {stage.name} comes before what you asked for and is not done: run it first"
                )
            say(head)
            done[stage.name] = self._run_stage(stage, key, done)
            say(f"{head}: {done[stage.name].summary}")
        if skipped == len(done):
            say(
                f"nothing to do: all {skipped} stages were done before ({duration(time.monotonic() - started)})"
            )
        else:
            say(
                f"{len(done) - skipped} stages run, {skipped} skipped, in {duration(time.monotonic() - started)}"
            )
            from curate.warehouse.sql import write_database

            write_database(self.context.warehouse)
        return done

    def _run_stage(self, stage: Stage, key: str, done: Mapping[str, Done]) -> Done:
        started = time.monotonic()
        config = _resolve(stage.config, done)
        if stage.do == "filter" and "traces" in config:
            config["traces"] = _versions(stage.config["traces"], done)
        if "label" not in config and stage.do in ("generate", "annotate", "evaluate", "report"):
            config["label"] = stage.name
        if stage.processes > 1:
            self.context.engine.close()  # the first rank opens its own
            launch(
                stage.do,
                config,
                self.context.warehouse.root,
                stage.processes,
                f"stage {stage.name}",
            )
        result = KINDS[stage.do](config, self.context, f"stage {stage.name}")
        facts = dict(result.facts)
        if result.model:
            facts["model"] = result.model
        value = str(facts.pop("value", result.model or ""))
        finished = Done(
            key, value, facts, result.refs, result.summary, round(time.monotonic() - started, 1)
        )
        text = json.dumps(finished.__dict__, indent=1, default=str)
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{stage.name}-{key}.json"
            path.unlink(missing_ok=True)  # a record whose outputs are gone
            publish_file(
                self.context.warehouse.root, path, lambda staged: staged.write_text(text, "utf-8")
            )
        return finished


def _needed(name: str, only: Sequence[str], stages: Sequence[Stage]) -> bool:
    """Whether any wanted stage needs `name`, directly or by way of others."""
    by_name = {s.name: s for s in stages}
    todo, seen = list(only), set()
    while todo:
        for need in by_name[todo.pop()].needs:
            if need == name:
                return True
            if need not in seen:
                seen.add(need)
                todo.append(need)
    return False
