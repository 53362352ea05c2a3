"""Score stored rollouts with other rewards, and show which completions change sides.

    curate rescore RUN rewards.format=0.5 rewards.language=null

The completions of a run are judged again (with other verifiers, references or a judge, if the
config names them) and rewarded again. The new rewards and advantages are rows of `rescored`; those
that the run trained on stay unchanged. Nothing is sampled and nothing is trained.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import polars as pl

from curate.annotate.judge import open_judge
from curate.annotate.verdicts import verifier_version
from curate.config import merge, validate
from curate.errors import UsageError
from curate.job import Context, JobResult
from curate.problems import from_rows
from curate.progress import counted, duration, task
from curate.records import Problem
from curate.rewards import components
from curate.train.config import RescoreConfig
from curate.train.replay import StoredRun, find_run
from curate.train.rollouts import rollout_rows, score_rollouts, verify_rollouts
from curate.verify import verifier_named
from curate.verify.models.judge import Item
from curate.verify.models.preference import JudgeEngines
from curate.warehouse import Warehouse
from curate.warehouse.identity import digest

RESCORE_VERSION = 1  # raised when the same config would give other rows
PROBLEMS_SHOWN = 10


def run(data: Mapping[str, Any], context: Context, where: str) -> JobResult:
    """Score the rollouts of a run again, unless that was done before.

    `data` overrides the rewards and the advantage of the run. UsageError for an unknown run,
    component or verifier.
    """
    started = time.monotonic()
    config, source = _config(data, context, where)
    problems = _problems(config, source, context)
    identity = [
        [RESCORE_VERSION, source.run_id, config.model_dump(mode="json", exclude={"name", "run"})],
        [[p.problem_id, p.reference, p.verifier] for p in problems],
        sorted({verifier_version(p.verifier or "none") for p in problems}),
    ]
    rescore_id = digest("rescore", *identity)[:16]
    version = context.warehouse.version(
        "rescored",
        config.name,
        rescore_id,
        parents=source.refs,
        config=config.model_dump(mode="json"),
    )
    result = JobResult(refs=[version.ref])
    if not version.sealed:
        names = {"rescore": config.name, "rescore_id": rescore_id}
        steps = [step for step in source.steps() if not version.has(f"step-{step:06d}")]
        with task(config.name, len(steps)) as bar, JudgeEngines() as judges:
            for done, step in enumerate(steps, 1):
                rows = _rescored(config, source.traces(step), problems, context, judges)
                version.publish(f"step-{step:06d}", _with_names(rows, names))
                result.rows += rows.num_rows
                bar.update(done, counted(result.rows, "rollout"))
        version.seal()
    result.seconds = time.monotonic() - started
    result.facts = {"rescore_id": rescore_id}
    result.summary = (
        f"{counted(version.manifest['rows'], 'rollout')} of run {source.run_id} scored again, "
    )
    result.summary += duration(result.seconds) if result.rows else "done before"
    if result.rows:
        job = config.model_dump(mode="json")
        context.record(rescore_id, "rescore", config.name, job, result)
    return result


def _config(
    data: Mapping[str, Any], context: Context, where: str
) -> tuple[RescoreConfig, StoredRun]:
    """Return the config, with the run's rewards and advantage as defaults."""
    if not isinstance(data.get("run"), str):
        raise UsageError(f"{where}: name the run whose rollouts to score: `curate rescore RUN`")
    source = find_run(context.warehouse, data["run"], "rescore")
    loss = source.config.get("loss") or {}
    stored = {key: loss[key] for key in ("advantage", "ddof") if key in loss}
    merged = merge({"rewards": source.config.get("rewards") or {}, **stored}, data)
    if isinstance(merged["rewards"], Mapping):
        merged["rewards"] = {k: v for k, v in merged["rewards"].items() if v is not None}
    config = validate(RescoreConfig, merged | {"run": source.run_id}, where)
    components(config.rewards)
    if config.verifier:
        verifier_named(config.verifier)
    return config, source


def _problems(config: RescoreConfig, source: StoredRun, context: Context) -> list[Problem]:
    """Return the problems of the run, with the references and the verifier of the config."""
    problems = source.problems()
    if config.problems:
        version = context.warehouse.latest("problems", config.problems)
        theirs = {p.problem_id: p for p in from_rows(version.read().collect())}
        if missing := sum(p.problem_id not in theirs for p in problems):
            raise UsageError(f"rescore: {missing} problems of the run are not in {version.ref}")
        problems = [theirs[p.problem_id] for p in problems]
    if config.verifier:
        problems = [replace(p, verifier=config.verifier) for p in problems]
    return problems


def _rescored(
    config: RescoreConfig,
    frame: pl.DataFrame,
    problems: list[Problem],
    context: Context,
    judges: JudgeEngines,
) -> Any:
    """Return the rows of one step, as an Arrow table."""
    verifiers = pl.DataFrame(
        {
            "problem_id": [p.problem_id for p in problems],
            "verifier": [p.verifier for p in problems],
        },
        schema={"problem_id": pl.String, "verifier": pl.String},
    )
    frame = frame.drop("verifier").join(
        verifiers, on="problem_id", how="left", maintain_order="left"
    )
    verdicts = [v.verdict for v in verify_rollouts(frame, problems, context.pool)]
    frame = frame.with_columns(verdict=pl.Series(verdicts, dtype=pl.String))
    if config.judge:
        frame = _judged(config, frame, problems, context)
    scored = score_rollouts(frame, config.rewards, judges, scale=config.advantage, ddof=config.ddof)
    run_id = frame["job_id"][0]
    return rollout_rows(frame, scored, run_id).append_column("verdict", frame["verdict"].to_arrow())


def _judged(
    config: RescoreConfig, frame: pl.DataFrame, problems: list[Problem], context: Context
) -> pl.DataFrame:
    """Replace unverifiable verdicts by the judge's, if it gives one."""
    assert config.judge is not None
    by_id = {p.problem_id: p for p in problems}
    judge = open_judge(config.judge, context)
    columns = frame.select("problem_id", "answer", "finish_reason", "verdict", "reasoning")
    items = [
        Item(by_id[problem_id], answer, finish, verdict, reasoning)
        for problem_id, answer, finish, verdict, reasoning in columns.iter_rows()
        if verdict == "unverifiable"
    ]
    judgements = iter([v.verdict if v else "unverifiable" for v in judge.verdicts(items)])
    verdicts = [next(judgements) if v == "unverifiable" else v for v in frame["verdict"]]
    return frame.with_columns(verdict=pl.Series(verdicts, dtype=pl.String))


def _with_names(rows: Any, names: Mapping[str, str]) -> pl.DataFrame:
    frame = pl.DataFrame(pl.from_arrow(rows))
    return frame.with_columns(**{name: pl.lit(value) for name, value in names.items()})


BY_STEP = """
SELECT policy_step AS step, count(*) AS rollouts, count(*) FILTER (side <> side_before) AS changed,
       count(*) FILTER (side = 'for' AND side_before <> 'for') AS now_for,
       count(*) FILTER (side = 'against' AND side_before <> 'against') AS now_against,
       round(avg(reward_before), 3) AS reward_before, round(avg(reward), 3) AS reward,
       round(corr(advantage_before, advantage), 3) AS correlation
FROM rescored_sides WHERE rescore_id = ? GROUP BY policy_step ORDER BY policy_step
"""
BY_PROBLEM = """
SELECT any_value(p.question) AS problem, policy_step AS step, count(*) AS rollouts,
       count(*) FILTER (side <> side_before) AS changed,
       list(round(advantage_before, 2) ORDER BY sample_index) AS advantages_before,
       list(round(advantage, 2) ORDER BY sample_index) AS advantages
FROM rescored_sides s JOIN problems p ON p.problem_id = s.problem_id
WHERE rescore_id = ? GROUP BY s.problem_id, policy_step
HAVING changed > 0 ORDER BY changed DESC, step, problem LIMIT ?
"""


def changes(warehouse: Warehouse, rescore_id: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the changes per step, and those of the problems with the most changes."""
    by_problem = warehouse.sql(BY_PROBLEM, [rescore_id, PROBLEMS_SHOWN])
    return warehouse.sql(BY_STEP, [rescore_id]), by_problem
