"""The evaluation job: sample each model on the same held-out problems, judge, and compare.

It is one generation job per model (so it resumes, and existing samples are reused), an annotation,
and a table.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import polars as pl
from pydantic import Field

from curate.annotate import job as annotate
from curate.config import Config, merge, validate
from curate.errors import UsageError, did_you_mean
from curate.evaluate.table import evaluation_rows, format_table
from curate.generate import job as generation
from curate.generate.config import (
    ExamplesConfig,
    GenerateConfig,
    SamplingConfig,
    generate_config,
)
from curate.job import ClusterConfig, Context, JobResult, Rows, Size, StageKind
from curate.progress import counted, duration
from curate.prompts.forms import FormName
from curate.prompts.render import TemplateName
from curate.verify.consensus import cluster_ids
from curate.warehouse.card import write_card
from curate.warehouse.identity import digest
from curate.warehouse.names import now


class EvaluatedModel(Config):
    """One model of the comparison. Settings left out are those of the evaluation."""

    label: str
    """Name of the model in the table."""
    model: str | list[str]
    """Directory, hub id, or name at a server; a list is one model trained with several seeds."""
    template: TemplateName | None = None
    """Prompt template."""
    form: FormName | None = None
    """Output form, by which answers are extracted."""
    examples: ExamplesConfig | None = None
    """Worked examples in the prompt."""
    chat: bool | None = None
    """Whether the prompt is a message for the model's chat template."""


class EvaluateConfig(Config):
    """The models to compare, and the problems to compare them on."""

    models: list[EvaluatedModel] = Field(min_length=1)
    """Models, in the order of the table."""
    problems: Any
    """Sources of problems, or the name of stored ones."""
    split: str | None = "held-out"
    """Split of the problems; null for all."""
    limit: int | None = Field(None, ge=1)
    """Largest number of problems."""
    samples: int = Field(16, ge=1)
    """Samples per problem. The report takes 64 on AIME."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.6, top_p=0.95, max_tokens=8192)
    """Sampling settings. Temperature and top_p are the report's."""
    template: TemplateName = "r1-zero"
    """Prompt template of models that do not name one."""
    form: FormName | None = None
    """Output form; by default that of the template."""
    chat: bool | None = None
    """Whether prompts are messages for the model's chat template; null: with a chat server only."""
    engine: dict[str, Any] = {}
    """How models are run."""
    greedy: bool = True
    """Whether to answer each problem once more at temperature 0, for the metric `greedy`."""
    seed: int = 0
    """Seed of sampling and of the bootstrap."""
    compare: list[tuple[str, str]] | None = None
    """Pairs [model, baseline] by label. By default each model is compared with the previous one."""
    resamples: int = Field(2000, ge=100)
    """Bootstrap draws of problems."""
    label: str | None = None
    """Name in the progress display and in the table `jobs`."""
    cluster: ClusterConfig | None = Field(None, exclude=True)
    """Cluster of machines that share the work; null: this machine alone."""


class Run(NamedTuple):
    """The generation jobs of one model: its samples, and one greedy answer per problem."""

    samples: GenerateConfig
    greedy: GenerateConfig | None


def generation_configs(config: EvaluateConfig, where: str = "evaluate") -> dict[str, list[Run]]:
    """The generation jobs by label: one entry per training seed."""
    labels = [m.label for m in config.models]
    if len(set(labels)) < len(labels):
        raise UsageError(f"{where}: two models have the same label")
    for pair in config.compare or []:
        for label in pair:
            if label not in labels:
                raise UsageError(
                    f"{where}: compare: no model has the label '{label}'"
                    f"{did_you_mean(label, labels)} There are {', '.join(labels)}"
                )
    return {model.label: _runs(model, config, where) for model in config.models}


def _runs(model: EvaluatedModel, config: EvaluateConfig, where: str) -> list[Run]:
    """The jobs of each training seed of a model."""
    paths = [model.model] if isinstance(model.model, str) else model.model
    if not paths or len(set(paths)) < len(paths):
        raise UsageError(f"{where}: model {model.label}: the list is empty or names a model twice")
    data: dict[str, Any] = {
        "recipe": "evaluate",
        "problems": config.problems,
        "split": config.split,
        "limit": config.limit,
        "samples": config.samples,
        "sampling": config.sampling.model_dump(),
        "template": model.template or config.template,
        "form": model.form or config.form,
        "chat": config.chat if model.chat is None else model.chat,
        "engine": config.engine,
        "seed": config.seed,
        "max_failed": 1.0,
        "label": f"evaluate {model.label}",
    }
    if model.examples:
        data = merge(data, {"examples": model.examples.model_dump()})
        # without a chat template a base model continues with another question after its answer
        data["sampling"] = {**data["sampling"], "stop": config.sampling.stop or ["</answer>"]}
    once = {"sampling": {"temperature": 0.0, "top_p": 1.0}, "samples": 1}
    runs = []
    for path in paths:
        own = {**data, "model": path}
        samples = generate_config(own, f"{where}: model {model.label}")
        greedy = {**merge(own, once), "label": f"evaluate {model.label}, greedy"}
        runs.append(Run(samples, generate_config(greedy, where) if config.greedy else None))
    return runs


def run(config: EvaluateConfig, context: Context) -> JobResult:
    """Sample, judge, compare. Commits rows of the table `evaluations`; the summary is the printed
    table.
    """
    started = time.monotonic()
    sampled: dict[str, list[list[_Sampled]]] = {}
    for label, runs in generation_configs(config).items():
        sampled[label] = [[_sample(job, context) for job in run if job] for run in runs]
    every = [one for runs in sampled.values() for run in runs for one in run]
    families = sorted({one.family for one in every})
    annotate.run(annotate.AnnotateConfig(traces=families, label="judge"), context)
    refs = [ref for one in every for ref in one.result.refs]
    key = [families, refs, config.model_dump(mode="json")]
    version = context.warehouse.version(
        "evaluations",
        config.label or "evaluation",
        digest(key)[:16],
        parents=refs,
        config=config.model_dump(),
    )
    table = _with_facts(_table(sampled, config, context), version.version, config)
    if not version.sealed:
        version.publish("0", table)
        version.seal()
        for model_hash in table["model_hash"].drop_nulls().unique().to_list():
            write_card(context.warehouse, model_hash)
    rows = sum(one.result.rows for one in every)
    result = JobResult(refs=[version.ref], rows=rows, seconds=time.monotonic() - started)
    result.facts = {"table": format_table(table), "evaluation_id": version.version}
    result.summary = (
        f"{counted(len(config.models), 'model')} on the same problems in {duration(result.seconds)}"
    )
    return result


@dataclass(frozen=True)
class _Sampled:
    """A finished generation job: the traces it gave, and the problems it was about."""

    result: JobResult
    problems: pl.DataFrame

    @property
    def family(self) -> str:
        return str(self.result.facts["family"])


def _sample(job: GenerateConfig, context: Context) -> _Sampled:
    units = generation.make_plan(job, context).units.frame
    problems = units.select("problem_id").unique(maintain_order=True)
    return _Sampled(generation.run(job, context), problems)


def _table(
    sampled: Mapping[str, list[list[_Sampled]]], config: EvaluateConfig, context: Context
) -> pl.DataFrame:
    """The rows of the evaluation from the judged samples."""
    families = {one.family for runs in sampled.values() for run in runs for one in run}
    judged = _judged(families, context)
    parts: list[list[pl.DataFrame]] = [[], []]  # samples, greedy
    for label, runs in sampled.items():
        for number, run in enumerate(runs):
            for part, one, count in zip(parts, run, (config.samples, 1), strict=False):
                frame = _samples(one, count, judged, context)
                part.append(frame.with_columns(model=pl.lit(label), run=pl.lit(number)))
    compare = config.compare or [
        (b.label, a.label) for a, b in zip(config.models, config.models[1:], strict=False)
    ]
    samples, greedy = (_concat(part) if part else None for part in parts)
    assert samples is not None
    return evaluation_rows(
        samples, compare=compare, k=config.samples, resamples=config.resamples, greedy=greedy
    )


def _judged(families: Iterable[str], context: Context) -> pl.DataFrame:
    """The judged samples of all generation jobs, by one query: it joins the whole warehouse."""
    return context.warehouse.sql(
        "SELECT a.dataset, a.model_hash, a.problem_id, a.sample_index, a.verdict, a.extracted, "
        "a.well_formed, a.completion_tokens, a.truncated, a.target_language_share, a.source, "
        "a.difficulty, a.verifier, p.choices, p.metadata "
        "FROM annotated a LEFT JOIN problems p USING (problem_id) WHERE a.dataset IN ? "
        "ORDER BY a.problem_id, a.sample_index",
        [sorted(families)],
    )


def _samples(sampled: _Sampled, count: int, judged: pl.DataFrame, context: Context) -> pl.DataFrame:
    """Input of the table: one row per sample of the problems, with the cluster of its answer."""
    frame = judged.filter(pl.col("dataset") == sampled.family, pl.col("sample_index") < count).join(
        sampled.problems, on="problem_id", how="semi", maintain_order="left"
    )
    cluster = pl.Series("cluster", cluster_ids(frame, pool=context.pool), dtype=pl.Int64)
    # needed to compare answers, but not in the table
    return frame.drop("dataset", "verifier", "choices", "metadata").with_columns(
        cluster, answered=pl.col("extracted").is_not_null()
    )


def _concat(frames: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(frames, how="vertical_relaxed")


def _with_facts(table: pl.DataFrame, evaluation_id: str, config: EvaluateConfig) -> pl.DataFrame:
    return table.with_columns(
        evaluation_id=pl.lit(evaluation_id),
        problems=pl.lit(config.problems if isinstance(config.problems, str) else "inline"),
        temperature=pl.lit(config.sampling.temperature),
        top_p=pl.lit(config.sampling.top_p),
        created_at=pl.lit(now()),
    )


def _checked(data: Mapping[str, Any], where: str) -> EvaluateConfig:
    config = validate(EvaluateConfig, data, where)
    generation_configs(config, where)
    return config


def _size(config: EvaluateConfig, _: Rows) -> Size:
    models = sum(1 if isinstance(m.model, str) else len(m.model) for m in config.models)
    per_problem = config.samples + config.greedy
    if config.limit is None:
        return Size(f"{counted(models, 'model')} x all problems x {per_problem}")
    total = models * config.limit * per_problem
    text = (
        f"{counted(models, 'model')} x {counted(config.limit, 'problem')} x {per_problem} = "
        f"{counted(total, 'sample')}"
    )
    return Size(text, total, total * config.sampling.max_tokens)


STAGE = StageKind(
    config=_checked, run=run, size=_size, takes=frozenset({"cluster", "engine", "seed", "label"})
)
