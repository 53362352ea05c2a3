"""The plan of a job, resolved before any model is loaded: units, model, engine, and the family of
its traces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import polars as pl

from curate.engines import EngineConfig, ModelRef, model_for
from curate.engines.registry import alternatives, settle, takes_chat
from curate.engines.registry import label as engine_label
from curate.errors import UsageError
from curate.filter.rules import RuleSet, load_rules
from curate.generate import rework
from curate.generate.config import GenerateConfig
from curate.generate.examples import load_examples
from curate.generate.units import Row, Units, select
from curate.job import Context
from curate.problems.store import ProblemStore
from curate.progress import say
from curate.prompts.render import Example, load_template
from curate.records import Problem
from curate.store.paths import is_folder
from curate.verify.registry import verifier_named
from curate.warehouse.chunks import Family
from curate.warehouse.identity import digest, family_id
from curate.warehouse.names import JOBS


@dataclass(frozen=True)
class Plan:
    """Everything a job needs to know before it samples."""

    config: GenerateConfig
    context: Context
    units: Units
    model: ModelRef | None
    engine: EngineConfig  # settled: a definite engine and precision
    rules: RuleSet | None  # rules that a good trace of an adaptive job must pass
    family: Family
    job_id: str
    chat: bool  # whether prompts are messages for the model's chat template

    def portable(self) -> PortablePlan:
        """Return the plan for other processes, which read no problems, templates or rules."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _OF_PROCESS}
        units: Any = replace(self.units, context=None)  # type: ignore[arg-type]
        return PortablePlan(values | {"units": units}, self.family.family, self.family.facts)

    @property
    def requests(self) -> int:
        """Maximum number of samples of the job."""
        return len(self.units.frame) * self.config.samples

    def unit(self, place: int | None, unit: str) -> Row:
        """Return the row of a unit; pass `place` None for a unit of another job's plan."""
        if place is not None:
            return self.units.frame.row(place, named=True)
        return self.units.fetch(unit)


_OF_PROCESS = ("context", "family")


@dataclass(frozen=True)
class PortablePlan:
    """A plan without the objects of the process that made it, so that it can be sent to others."""

    values: dict[str, Any]
    family: str
    facts: dict[str, Any]

    def in_process(self, context: Context) -> Plan:
        """The plan in this process. UsageError if its model is not on this machine."""
        values = {**self.values, "units": replace(self.values["units"], context=context)}
        if values["model"] is not None:
            values["model"] = values["model"].on_this_machine()
        family = _family(self.family, self.facts, values["config"], context)
        return Plan(context=context, family=family, **values)


def _family(name: str, facts: dict[str, Any], config: GenerateConfig, context: Context) -> Family:
    return Family(context.warehouse, name, facts, config.chunk, context.claims, config.flush)


def as_problem(row: Row) -> Problem:
    """The problem of a unit."""
    return Problem(**{name: row[name] for name in Problem.__dataclass_fields__})


def make_plan(config: GenerateConfig, context: Context, commit: bool = True) -> Plan:
    """Resolve problems, template, examples, model and engine, without loading the model.

    Without `commit` nothing is written (not even problems whose sources are in the config) and no
    engine is measured. Raises UsageError for missing inputs.
    """
    units = _units(config, context, commit)
    if config.adapts and not units.frame["verifier"].is_not_null().any():
        raise UsageError(
            f"adaptive: none of the {len(units.frame)} problems names a verifier, so no answer can "
            "be judged: set `verifier: math` (or code, choice, procedural) on their source, or "
            "take a fixed number of samples with adaptive=null"
        )
    sampled = config.model if config.source != "solutions" else None
    model = model_for(config.engine, sampled) if sampled else None
    weights = model.hash if model else digest("solutions", units.origin.split("/")[1].split(" ")[0])
    chat = _chat(config)

    def family_of(engine: EngineConfig) -> str:
        return family_id(
            model_hash=weights,
            recipe=config.recipe,
            template=units.label(chat),
            form=units.template.form.name,
            sampling=config.sampling.model_dump(),
            seed=config.seed,
            engine=engine_label(engine) if model else "",
        )[:24]

    engine = _engine(config.engine, model, context, family_of, commit)
    facts: dict[str, Any] = {
        "parents": [*units.parents, *([f"model:{model.hash}"] if model else [])],
        "config": config.model_dump(mode="json"),
        "model_hash": weights,
        "seed": config.seed,
        "engine": engine_label(engine) if model else "solution",
    }
    job_id, rules = family_of(engine), None
    family = job_id
    if config.adapts and config.adaptive is not None:
        rules = load_rules(config.adaptive.rules) if config.adaptive.rules else None
        facts["judged_by"] = _judged_by(units.frame, rules)
        job_id = digest(family, config.adaptive.model_dump(), facts["judged_by"])[:24]
    stored = _family(family, facts, config, context)
    return Plan(config, context, units, model, engine, rules, stored, job_id, chat)


def _units(config: GenerateConfig, context: Context, commit: bool) -> Units:
    """Select the units of the job."""
    template = load_template(config.template, config.form)
    if config.rework is not None:
        return rework.select(config, context, template)
    problems = ProblemStore(context, commit)
    simple = load_template(config.simple.template) if config.simple else None
    examples: tuple[Example, ...] = ()
    if config.examples:
        examples = load_examples(config.examples, template.form, context, problems)
    return select(config, problems, template, simple, examples)


def _chat(config: GenerateConfig) -> bool:
    """Whether prompts are messages: by the config, else by the engine's needs."""
    if config.source == "solutions":
        return bool(config.chat)
    needed = takes_chat(config.engine)
    if config.chat and needed is False:
        raise UsageError(
            "chat: the completions API of a server takes raw text; leave chat out, or use "
            "engine.args.api=chat"
        )
    return bool(needed) if config.chat is None else config.chat


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
        if is_folder(context.warehouse.root / JOBS / family_of(option))
    ]
    if not stored:
        return settle(config, model.path, may_measure)
    if stored[0] != usual:
        say(
            f"  engine {engine_label(stored[0])}, as for the existing traces; to sample anew "
            f"with another, name it: engine.name={usual.name} engine.dtype={usual.dtype}"
        )
    return stored[0]


def _judged_by(units: pl.DataFrame, rules: RuleSet | None) -> dict[str, str]:
    """Name and version of the verifiers and rules that decide which traces are good.

    It decides on samples too, so it belongs to the job.
    """
    names = units["verifier"].drop_nulls().unique().sort()
    versions = {str(name): verifier_named(name).version for name in names}
    if rules is not None:
        versions[f"rules {rules.name}"] = digest(rules.model_dump(mode="json"))[:12]
    return versions
