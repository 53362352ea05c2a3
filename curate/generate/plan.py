"""The plan of a job, resolved before any model is loaded: units, prompts, model, engine, and the
family of its traces.

A unit is a problem to sample, or a trace to rewrite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import duckdb
import polars as pl

from curate.engines import EngineConfig, ModelRef, model_for
from curate.engines.registry import alternatives, settle
from curate.engines.registry import label as engine_label
from curate.errors import UsageError
from curate.filter.expressions import check_expression
from curate.filter.rules import load_rules
from curate.generate import rework
from curate.generate.config import GenerateConfig
from curate.generate.examples import load_examples
from curate.job import Context
from curate.problems.store import ProblemStore
from curate.progress import say
from curate.prompts.render import Chat, Example, Template, load_template, render
from curate.records import Problem
from curate.verify.registry import verifier_named
from curate.warehouse.chunks import Family
from curate.warehouse.identity import digest, family_id

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Everything a job needs to know before it samples.

    `units` has one row per unit: its id `unit`, and the columns of `problems`.
    """

    config: GenerateConfig
    context: Context
    units: pl.DataFrame
    source: str  # where the units come from, in words
    template: Template
    simple: Template | None
    examples: tuple[Example, ...]
    model: ModelRef | None
    engine: EngineConfig  # settled: a definite engine and precision
    family: Family
    job_id: str

    @property
    def problems(self) -> pl.DataFrame:
        return self.units.select("problem_id").unique(maintain_order=True)

    @property
    def requests(self) -> int:
        """Samples of the job, at most."""
        return len(self.units) * self.config.samples

    def unit(self, place: int | None, unit: str) -> Row:
        """The row of a unit.

        One that another job planned has no place in `units` and is looked up.
        """
        if place is not None:
            return self.units.row(place, named=True)
        if self.config.source == "rework":
            return rework.fetch(self.context, unit)
        rows = self.context.warehouse.sql("SELECT * FROM problems WHERE problem_id = ?", [unit])
        return {"unit": unit, "simple": False, **rows.row(0, named=True)}

    def template_of(self, row: Row) -> Template:
        return self.simple if self.simple is not None and row["simple"] else self.template

    def label_of(self, row: Row) -> str:
        """Value of the column `template` for this unit."""
        template = self.template_of(row)
        if self.config.source == "rework":
            return f"{template.label()}+{rework.label()}"
        return template.label(() if template is self.simple else self.examples)

    def prompt(self, row: Row, chat: Chat | None) -> str:
        """The prompt of one unit, as the engine gets it."""
        if self.config.source == "rework":
            text = rework.prompt(row, self.template.form)
            return chat([{"role": "user", "content": text}]) if chat else text
        template = self.template_of(row)
        examples = () if template is self.simple else self.examples
        return render(template, row["question"], examples, chat=chat)


def as_problem(row: Row) -> Problem:
    """The problem of a unit."""
    return Problem(**{name: row[name] for name in Problem.__dataclass_fields__})


def make_plan(config: GenerateConfig, context: Context, commit: bool = True) -> Plan:
    """Resolve problems, template, examples, model and engine, without loading the model.

    Without `commit` nothing is written (not even problems whose sources are in the config) and no
    engine is measured. Raises UsageError for what is missing.
    """
    template = load_template(config.template, config.form)
    simple = load_template(config.simple.template) if config.simple else None
    problems = ProblemStore(context, commit)
    examples: tuple[Example, ...] = ()
    if config.examples:
        examples = load_examples(config.examples, template.form, context, problems)
    units, source, parents = _units(config, context, problems, examples)
    if config.adapts and not units["verifier"].is_not_null().any():
        raise UsageError(
            f"adaptive: none of the {len(units)} problems names a verifier, so no answer can be "
            "judged: set `verifier: math` (or code, choice, procedural) on their source, or take "
            "a fixed number of samples with adaptive=null"
        )
    model = (
        model_for(config.engine, config.model)
        if config.model and config.source != "solutions"
        else None
    )
    weights = model.hash if model else digest("solutions", source.split("/")[1].split(" ")[0])
    label = template.label(examples) + ("+chat" if config.chat else "")
    if config.source == "rework":
        label += f"+{rework.label()}"
    if config.simple and simple:
        label += f"+{simple.label()} where {config.simple.where}"

    def family_of(engine: EngineConfig) -> str:
        return family_id(
            model_hash=weights,
            recipe=config.recipe,
            template=label,
            form=template.form.name,
            sampling=config.sampling.model_dump(),
            seed=config.seed,
            engine=engine_label(engine) if model else "",
        )[:24]

    engine = _engine(config.engine, model, context, family_of, commit)
    family = family_of(engine)
    facts: dict[str, Any] = {
        "parents": [*parents, *([f"model:{model.hash}"] if model else [])],
        "config": config.model_dump(mode="json"),
        "model_hash": weights,
        "seed": config.seed,
        "engine": engine_label(engine) if model else "solution",
    }
    job_id = family
    if config.adapts and config.adaptive is not None:
        judged_by = _judged_by(config, units)
        job_id = digest(family, config.adaptive.model_dump(), judged_by)[:24]
        facts["judged_by"] = judged_by
    return Plan(
        config,
        context,
        units,
        source,
        template,
        simple,
        examples,
        model,
        engine,
        Family(context.warehouse, family, facts, config.chunk),
        job_id,
    )


def _engine(
    config: EngineConfig,
    model: ModelRef | None,
    context: Context,
    family_of: Callable[[EngineConfig], str],
    may_measure: bool,
) -> EngineConfig:
    """The engine and precision of the job, which are part of what determines its traces.

    An `auto` stays with the engine that this job's stored traces are from, so that a second run on
    another machine, or after a faster engine was installed, requests nothing twice. Otherwise the
    faster engine here is used.
    """
    if model is None:
        return config
    usual = settle(config, model.path, may_measure=False)
    stored = [
        option
        for option in [usual, *alternatives(config, model.path)]
        if (context.warehouse.root / "_jobs" / family_of(option)).is_dir()
    ]
    if not stored:
        return settle(config, model.path, may_measure)
    if stored[0] != usual:
        say(
            f"  engine {engine_label(stored[0])}, as for the existing traces; to sample anew "
            f"with another, name it: engine.name={usual.name} engine.dtype={usual.dtype}"
        )
    return stored[0]


def _judged_by(config: GenerateConfig, units: pl.DataFrame) -> dict[str, str]:
    """Name and version of the verifiers and rules that decide which traces are good.

    It decides on samples too, so it belongs to the job.
    """
    names = units["verifier"].drop_nulls().unique().sort()
    versions = {str(name): verifier_named(name).version for name in names}
    if config.adaptive is not None and config.adaptive.rules:
        rules = load_rules(config.adaptive.rules)
        versions[f"rules {rules.name}"] = digest(rules.model_dump(mode="json"))[:12]
    return versions


def _units(
    config: GenerateConfig, context: Context, problems: ProblemStore, examples: tuple[Example, ...]
) -> tuple[pl.DataFrame, str, list[str]]:
    """The units of the job, where they come from, and the versions they were made from."""
    if config.rework is not None:
        frame = rework.parents(config.rework, context, config.split, config.where)
        versions = [
            v.ref
            for name in config.rework.traces
            for v in context.warehouse.versions("traces", name)
        ]
        frame = frame.head(config.limit) if config.limit else frame
        return (
            frame.with_columns(simple=pl.lit(False)),
            f"traces/{'+'.join(config.rework.traces)}",
            versions,
        )
    assert config.problems is not None  # the config checks it
    stored = problems.load(config.problems)
    frame = stored.frame.with_columns(unit=pl.col("problem_id"))
    if config.split:
        frame = frame.filter(pl.col("split") == config.split)
    if examples:
        frame = frame.filter(~pl.col("question").is_in([e.question for e in examples]))
    if config.source == "solutions":
        frame = frame.filter(pl.col("solution").is_not_null(), pl.col("reference").is_not_null())
    if config.where:
        frame = frame.filter(meets(frame, config.where, "where"))
    frame = frame.head(config.limit) if config.limit else frame
    if frame.is_empty():
        what = " with a worked solution" if config.source == "solutions" else ""
        what += f" where {config.where}" if config.where else ""
        raise UsageError(
            f"no problems{what} in {stored.ref}"
            + (f", split {config.split}" if config.split else "")
        )
    simple = meets(frame, config.simple.where, "simple.where") if config.simple else pl.lit(False)
    return frame.with_columns(simple=simple), stored.ref, [stored.ref]


def meets(frame: pl.DataFrame, condition: str, key: str) -> pl.Series:
    """Which problems meet a SQL condition on their columns. UsageError if DuckDB refuses it."""
    check_expression(condition, key)
    with duckdb.connect() as connection:
        connection.register("problems", frame.with_row_index("_row").to_arrow())
        try:
            query = f"SELECT (({condition}\n) IS TRUE) AS met FROM problems ORDER BY _row"
            return connection.sql(query).pl()["met"]
        except duckdb.Error as error:
            raise UsageError(
                f"{key}: the condition '{condition}' cannot be evaluated on problems: {error}"
            ) from error
