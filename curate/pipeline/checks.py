"""Check for errors that would stop a pipeline hours after its start: done by `--plan`, and by every
run before the first stage.

Configs are already checked when this runs. The rest is their environment: files and their columns,
models, judges, packages, rules and conditions in SQL, splits without problems. Nothing is written
to the warehouse, no model is loaded, and finished stages are not checked. SQL over traces is
evaluated on the views of a warehouse without rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import polars as pl

from curate.annotate.job import AnnotateConfig
from curate.config import validate
from curate.engines import EngineConfig
from curate.engines.models import check_model
from curate.engines.openai import OpenAIArgs
from curate.engines.registry import LOCAL, choose, need
from curate.errors import UsageError
from curate.evaluate.job import EvaluateConfig
from curate.extras import install, missing_packages
from curate.files import data_files
from curate.filter.contamination import is_preset
from curate.filter.decide import check_rules
from curate.filter.expressions import check_expression
from curate.filter.job import FilterConfig
from curate.filter.rules import RuleSet, load_rules
from curate.generate.config import GenerateConfig
from curate.generate.examples import find_file
from curate.generate.units import meets
from curate.imports.job import ImportConfig, check_path
from curate.pipeline.stages import Stage
from curate.problems import ProblemsConfig, Source, load_problems
from curate.problems.base import SCHEMA
from curate.problems.files import Files, find
from curate.problems.hub import Hub, saved
from curate.problems.identity import HELD_OUT
from curate.problems.procedural import Procedural
from curate.report.job import ReportConfig
from curate.warehouse import Warehouse
from curate.warehouse.schemas import shipped_file
from curate.warehouse.sql import connect

SMALL = 20_000_000  # bytes of problem files that are read as a whole, which takes about a second
MODEL_KEYS = ("model", "teacher", "reference")
# Groups in which these keys mean something else, or the model of another engine.
NOT_MODELS = ("engine", "judge", "problems", "rewards")


def check_stages(stages: Sequence[Stage]) -> None:
    """UsageError with everything that would stop one of these stages."""
    if lines := faults(stages):
        raise UsageError("\n  ".join(["the pipeline cannot run to its end:", *lines]))


def faults(stages: Sequence[Stage]) -> list[str]:
    """A line `stage NAME: …` for everything that would stop one of these stages."""
    with ExitStack() as stack:
        return _faults(stages, _Views(stack))


class _Views:
    """The views of a warehouse without rows, opened when the first stage needs them."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._connection: duckdb.DuckDBPyConnection | None = None

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        if self._connection is None:
            folder = self._stack.enter_context(TemporaryDirectory(prefix="curate-plan-"))
            root = Warehouse(folder).create().root
            self._connection = self._stack.enter_context(connect(root, views=False))
        return self._connection

    def check_rules(self, rules: RuleSet, where: str | None = None) -> None:
        """UsageError if a rule or condition cannot be evaluated on traces."""
        check_rules(self.connection, rules, where)

    def check_condition(self, condition: str, key: str) -> None:
        """UsageError if a condition cannot be evaluated on traces."""
        check_expression(condition, key)
        try:
            self.connection.sql(f"SELECT (({condition}\n) IS TRUE) FROM annotated").fetchall()
        except duckdb.Error as error:
            raise UsageError(f"{key}: '{condition}' cannot be evaluated: {error}") from error


def _faults(stages: Sequence[Stage], views: _Views) -> list[str]:
    """A line for everything that would stop one of these stages."""
    lines: list[str] = []
    splits: dict[
        str, bool
    ] = {}  # whether a stage of problems gives held-out ones, if that is known
    for stage in stages:
        checks: list[Callable[[], object]] = []
        if isinstance(stage.checked, ProblemsConfig):
            checks.append(partial(_look_at_problems, stage, splits))
        checks += [*_checks(stage, splits), *_sql_checks(stage.checked, views)]
        checks += _file_checks(stage.checked)
        for check in checks:
            try:
                check()
            except UsageError as error:
                line = f"stage {stage.name}: {error}"
                if line not in lines:
                    lines.append(line)
    return lines


def _checks(stage: Stage, splits: Mapping[str, bool]) -> Iterator[Callable[[], object]]:
    """One check for each requirement of the stage."""
    config = stage.checked
    engine = _engine(config)
    if engine is not None:
        yield partial(_check_engine, engine)
    if stage.kind.gives == "model":
        yield partial(_check_packages, "train", "torch", "transformers")
    # An import also has a key `model`, but only as the name of whoever wrote the traces.
    loads = isinstance(config, GenerateConfig | EvaluateConfig) or stage.kind.gives == "model"
    for spec in _models(stage.config) if loads else ():
        # A server or an engine of the user's own has models that are not files here.
        if engine is None or engine.name in (*LOCAL, "auto"):
            yield partial(check_model, spec)
    if isinstance(config, GenerateConfig):
        empty = pl.DataFrame(schema=SCHEMA)
        if config.where:
            yield partial(meets, empty, config.where, "where")
        if config.simple:
            yield partial(meets, empty, config.simple.where, "simple.where")
    for judge, engine in _judges(config):
        yield partial(_check_judge, judge, engine)
    yield partial(_check_split, stage, splits)


def _judges(config: Any) -> Iterator[tuple[str, EngineConfig]]:
    """Models that judge, of an annotation and of the reward `preference`, with their engines."""
    if isinstance(config, AnnotateConfig) and config.judge is not None:
        yield config.judge.model, config.judge.engine
    preference = (getattr(config, "rewards", None) or {}).get("preference")
    options = getattr(preference, "options", None)
    if isinstance(options, Mapping) and isinstance(options.get("model"), str):
        where = "rewards.preference.options.engine"
        yield options["model"], validate(EngineConfig, options.get("engine") or {}, where)


def _check_judge(model: str, engine: EngineConfig) -> None:
    try:
        _check_engine(engine)
        if engine.name in (*LOCAL, "auto") and not model.startswith("@"):
            check_model(model)
    except UsageError as error:
        raise UsageError(f"judge: {error}") from error


def _sql_checks(config: Any, views: _Views) -> Iterator[Callable[[], object]]:
    """Rules and conditions over traces, which would otherwise fail once there are some."""
    if isinstance(config, FilterConfig):
        rules = load_rules(config.rules, config.set)
        yield partial(views.check_rules, rules, f"({config.where})" if config.where else None)
    if isinstance(config, ReportConfig):
        for label, condition in config.where.items():
            yield partial(views.check_condition, condition, f"where.{label}")
    if isinstance(config, GenerateConfig):
        if config.adaptive is not None and config.adaptive.rules:
            yield partial(views.check_rules, load_rules(config.adaptive.rules))
        if config.rework is not None:
            if config.rework.rules:
                yield partial(views.check_rules, load_rules(config.rework.rules))
            if config.rework.where:
                yield partial(views.check_condition, config.rework.where, "rework.where")


def _file_checks(config: Any) -> Iterator[Callable[[], object]]:
    """Files that a stage reads once its turn comes."""
    if isinstance(config, FilterConfig):
        step = load_rules(config.rules, config.set).select.contamination
        for path in step.benchmarks if step else ():
            yield partial(_check_file, path, "select.contamination.benchmarks")
    if isinstance(config, ImportConfig):
        yield partial(_check_import, config)
    examples = getattr(config, "examples", None)
    for one in [examples, *(m.examples for m in getattr(config, "models", None) or ())]:
        if one is not None and one.file is not None:
            yield partial(find_file, one.file)


def _check_file(path: str, key: str) -> None:
    if not Path(path).expanduser().exists() and not is_preset(path):
        raise UsageError(f"{key}: no file {path}, and no benchmark of that name")


def _check_import(config: ImportConfig) -> None:
    path = Path(shipped_file(config.path)).expanduser()
    check_path(str(path))
    if path.exists() and not saved(path):
        data_files([path])
    else:
        _check_packages("hub", "datasets")


def _engine(config: Any) -> EngineConfig | None:
    """The engine of a stage that samples from a model."""
    engine = getattr(config, "engine", None)
    if isinstance(config, GenerateConfig) and config.source == "solutions":
        return None
    if isinstance(engine, Mapping):
        return validate(EngineConfig, engine, "engine")
    return engine if isinstance(engine, EngineConfig) else None


def _check_engine(engine: EngineConfig) -> None:
    name, _ = choose(engine)
    if name in LOCAL:
        need(name)
    if name == "openai":
        validate(OpenAIArgs, engine.args, "engine.args")
        _check_packages("openai", "openai")


def _check_packages(extra: str, *names: str) -> None:
    if missing := missing_packages(*names):
        raise UsageError(f"needs {' and '.join(missing)}: {install(extra)}")


def _models(config: Any) -> Iterator[str]:
    """Names of models in a config, without those that are the output of a stage."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key in MODEL_KEYS and isinstance(value, str) and not value.startswith("@"):
                yield value
            elif key not in NOT_MODELS:
                yield from _models(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _models(value)


def _look_at_problems(stage: Stage, splits: dict[str, bool]) -> None:
    """Check the sources of a stage, and note whether it holds out problems if that is known."""
    config: ProblemsConfig = stage.checked
    sources = [with_shipped_path(source) for source in config.built()]
    for source in sources:
        _check_source(source)
    if not all(isinstance(source, Files) and _is_small(source) for source in sources):
        # A share or a number of the questions is held out; without one, a source may name splits.
        if config.held_out or all(isinstance(source, Procedural) for source in sources):
            splits[stage.name] = bool(config.held_out)
        return
    data = [source.model_dump() for source in sources]
    frame, _ = load_problems({**config.model_dump(exclude={"name"}), "sources": data})
    splits[stage.name] = HELD_OUT in frame["split"]


def with_shipped_path(source: Source) -> Source:
    """The source with the path of a file that ships in the place of that file's name."""
    path = getattr(source, "path", None)
    return (
        source.model_copy(update={"path": shipped_file(path)}) if isinstance(path, str) else source
    )


def _check_source(source: Source) -> None:
    if isinstance(source, Procedural):
        _check_packages("quickstart", "reasoning_gym")
    if isinstance(source, Hub) and not Path(source.dataset).exists():
        _check_packages("hub", "datasets")
    if isinstance(source, Files):
        _files(source)


def _files(source: Files) -> list[Path]:
    patterns = [source.path] if isinstance(source.path, str) else source.path
    return [path for pattern in patterns for path in find(pattern)]


def _is_small(source: Files) -> bool:
    return sum(path.stat().st_size for path in _files(source) if path.is_file()) < SMALL


def _check_split(stage: Stage, splits: Mapping[str, bool]) -> None:
    """UsageError if the stage evaluates on held-out problems and there are none."""
    config = stage.checked
    problems = getattr(config, "problems", None)
    source = problems[1:].partition(".")[0] if isinstance(problems, str) else ""
    if splits.get(source, True):
        return
    every = getattr(getattr(config, "evaluation", None), "every", 0)
    if getattr(config, "split", None) == HELD_OUT or every:
        raise UsageError(
            f"evaluates on held-out problems, and stage {source} holds out none: set "
            "held_out there, "
            "or split here"
        )
