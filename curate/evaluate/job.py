"""The evaluation job: sample each model on the same held-out problems, judge, and compare.

It is one generation job per model (so it resumes, and existing samples are reused), an annotation,
and a table.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import polars as pl
from pydantic import Field

from curate.annotate import job as annotate
from curate.config import Config, did_you_mean, merge, validate
from curate.errors import UsageError
from curate.evaluate.table import evaluation_rows, format_table
from curate.generate import job as generation
from curate.generate.config import ExamplesConfig, SamplingConfig, generate_config
from curate.job import Context, JobResult, Rows, Size, StageKind
from curate.progress import duration
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
    model: str
    """Directory, hub id, or name at a server."""
    template: TemplateName | None = None
    """Prompt template."""
    form: FormName | None = None
    """Output form that answers are read by."""
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
    """At most this many problems."""
    samples: int = Field(16, ge=1)
    """Samples per problem. The report takes 64 on AIME."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.6, top_p=0.95, max_tokens=8192)
    """How samples are drawn. Temperature and top_p are the report's."""
    template: TemplateName = "r1-zero"
    """Prompt template of all models that name none."""
    form: FormName | None = None
    """Output form; by default that of the template."""
    chat: bool = False
    """Whether prompts are messages for the model's chat template."""
    engine: dict[str, Any] = {}
    """How models are run."""
    seed: int = 0
    """Seed of sampling and of the bootstrap."""
    compare: list[tuple[str, str]] | None = None
    """Pairs [model, baseline] by label. By default each model is compared with the previous one."""
    resamples: int = Field(2000, ge=100)
    """Bootstrap draws of problems."""
    label: str | None = None
    """Name in the progress display and in the table `jobs`."""


def generation_configs(config: EvaluateConfig, where: str = "evaluate") -> dict[str, Any]:
    """The generation job of each model, by label."""
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
    jobs = {}
    for model in config.models:
        data: dict[str, Any] = {
            "recipe": "evaluate",
            "model": model.model,
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
            # without its own turns a base model continues with the next question after its answer
            data["sampling"] = {**data["sampling"], "stop": config.sampling.stop or ["</answer>"]}
        jobs[model.label] = generate_config(data, f"{where}: model {model.label}")
    return jobs


def run(config: EvaluateConfig, context: Context) -> JobResult:
    """Sample, judge, compare. Commits rows of the table `evaluations`; the summary is the printed
    table.
    """
    started = time.monotonic()
    frames, refs, rows, families, problems = [], [], 0, {}, {}
    for label, job in generation_configs(config).items():
        units = generation.make_plan(job, context).units.frame
        problems[label] = units.select("problem_id").unique(maintain_order=True)
        sampled = generation.run(job, context)
        rows += sampled.rows
        refs += sampled.refs
        families[label] = sampled.facts["family"]
    annotate.run(
        annotate.AnnotateConfig(traces=sorted(set(families.values())), label="judge"), context
    )
    for label, family in families.items():
        frames.append(_samples(label, family, problems[label], config, context))
    compare = config.compare or [
        (b.label, a.label) for a, b in zip(config.models, config.models[1:], strict=False)
    ]
    key = [sorted(families.items()), refs, config.model_dump(mode="json")]
    version = context.warehouse.version(
        "evaluations",
        config.label or "evaluation",
        digest(key)[:16],
        parents=refs,
        config=config.model_dump(),
    )
    table = evaluation_rows(
        _concat(frames), compare=compare, k=config.samples, resamples=config.resamples
    )
    table = _with_facts(table, version.version, config)
    if not version.sealed:
        version.publish("0", table)
        version.seal()
        for model_hash in table["model_hash"].drop_nulls().unique().to_list():
            write_card(context.warehouse, model_hash)
    result = JobResult(refs=[version.ref], rows=rows, seconds=time.monotonic() - started)
    result.facts = {"table": format_table(table), "evaluation_id": version.version}
    result.summary = (
        f"{len(config.models)} models on the same problems in {duration(result.seconds)}"
    )
    return result


def _samples(
    label: str, family: str, problems: pl.DataFrame, config: EvaluateConfig, context: Context
) -> pl.DataFrame:
    """Input of the table: one row per sample of the problems, with the cluster of its answer."""
    frame = context.warehouse.sql(
        "SELECT a.model_hash, a.problem_id, a.sample_index, a.verdict, a.extracted, a.well_formed, "
        "a.completion_tokens, a.truncated, a.target_language_share, a.source, a.difficulty, "
        "a.verifier, p.choices, p.metadata "
        "FROM annotated a LEFT JOIN problems p USING (problem_id) WHERE a.dataset = ? AND "
        "a.sample_index < ? "
        "ORDER BY a.problem_id, a.sample_index",
        [family, config.samples],
    ).join(problems, on="problem_id", how="semi", maintain_order="left")
    cluster = pl.Series("cluster", cluster_ids(frame, pool=context.pool), dtype=pl.Int64)
    # needed to compare answers, but not in the table
    return frame.drop("verifier", "choices", "metadata").with_columns(cluster, model=pl.lit(label))


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
    models = len(config.models)
    if config.limit is None:
        return Size(f"{models} models x all problems x {config.samples}")
    total = models * config.limit * config.samples
    text = f"{models} models x {config.limit} problems x {config.samples} = {total:,} samples"
    return Size(text, total, total * config.sampling.max_tokens)


STAGE = StageKind(
    config=_checked, run=run, size=_size, takes=frozenset({"engine", "seed", "label"})
)
