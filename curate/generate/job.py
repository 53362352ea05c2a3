"""The generation job: problems × samples to traces, each exactly once, even after `kill -9`.

    plan what is missing ─▶ claim chunks ─▶ engine ─▶ logs ─▶ commit ─▶ seal

plan.py resolves the config; worker.py feeds the engine and commits; steering.py, by the rule of
adaptive.py, decides which problems get more samples; background.py verifies in the meantime;
meter.py shows progress; history.py reads committed rows. curate/warehouse/chunks.py decides what
happens after a kill: which samples are in a log or a part already, and which process makes the
rest.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from curate.errors import CurateError
from curate.generate import history
from curate.generate.adaptive import next_round
from curate.generate.background import committed_progress
from curate.generate.config import GenerateConfig, generate_config
from curate.generate.estimate import describe
from curate.generate.plan import Plan, PortablePlan, make_plan
from curate.generate.worker import Worker
from curate.job import Context, JobResult, Rows, Size, StageKind
from curate.progress import counted, duration, say

__all__ = ["Plan", "describe", "make_plan", "run"]

REASONS = 10  # reasons of failure that are listed one by one
_WORDS = {"stop": "complete", "length": "truncated", "error": "failed"}


def run(config: GenerateConfig, context: Context) -> JobResult:
    """Generate the missing samples. Returns the versions that hold the rows of the job.

    Raises CurateError if more requests failed than `max_failed` allows, or if the budget is spent.
    Finished rows are kept in either case.
    """
    plan = make_plan(config, context)
    started = time.monotonic()
    portable, chunks = (plan.portable(), 0) if context.crew is None else _planned_here(plan)
    work = _sum(context.spread(sample, portable, config.label or config.recipe, chunks))
    result = JobResult(rows=work.committed, seconds=time.monotonic() - started, rate=work.rate)
    result.refs = [v.ref for v in plan.family.seal()]
    result.facts = {"family": plan.family.family, "value": plan.family.family}
    rows = history.outcome(plan)
    result.failed = rows.get("error", 0)
    total = sum(rows.values())
    result.summary = _summary(plan, work, rows, result.seconds)
    if work.committed:
        context.record(
            plan.job_id, "generate", config.label or config.recipe, config.model_dump(), result
        )
    _say_failures(plan, result.failed)
    if total and result.failed / total > config.max_failed:
        raise CurateError(
            f"{result.failed} of {counted(total, 'request')} failed, more than max_failed = "
            f"{config.max_failed:g} allows; "
            'all rows are committed. See `curate sql "select error, count(*) from traces group by '
            '1"`, '
            "remove the cause and run again with --retry-failed"
        )
    return result


@dataclass(frozen=True)
class Work:
    """Work done by one process, or by several together. `progress`: by unit, of an adaptive job.

    Of the committed samples, `sampled` are from this call and the others from an earlier run; `new`
    are in the plan of this job for the first time, `again` are repeated.
    """

    committed: int
    sampled: int
    new: int
    again: int
    tokens: int
    cost: float
    rate: float | None
    progress: Mapping[str, tuple[int, int, int]]


def sample(portable: PortablePlan, context: Context) -> Work:
    """Sample until nothing of the plan is missing, together with any other workers."""
    plan = portable.in_process(context)
    worker = Worker(plan)
    try:
        _until_done(plan, worker)
    finally:
        worker.close()
    meter, steering = worker.meter, worker.steering
    progress = steering.progress_by_unit if steering is not None else {}
    return Work(
        worker.committed,
        meter.finished,
        worker.new,
        worker.again,
        worker.tokens,
        worker.cost,
        meter.rate,
        progress,
    )


def _planned_here(plan: Plan) -> tuple[PortablePlan, int]:
    """The plan for the processes of a crew, and its open chunks. Its samples are in the journal, so
    that they find work as soon as they start.

    Failed samples are planned again only here: if every process did so at its own time, samples
    would be repeated twice.
    """
    config, family = plan.config, plan.family
    again = history.to_redo(plan, retry_failed=config.retry_failed)
    if config.adapts:
        family.redo(again.filter(pl.col("finish_reason") == "error"))
    else:
        family.redo(again)
        family.extend(plan.units.frame["unit"], config.samples)
    once = replace(plan, config=config.model_copy(update={"retry_failed": False}))
    chunks = family.open_rows(plan.units.frame["unit"], config.samples)["chunk_id"].n_unique()
    return once.portable(), chunks


def _sum(parts: Sequence[Work]) -> Work:
    """The work of all processes; each has seen the progress of all units at its end."""
    rates = [part.rate for part in parts if part.rate is not None]
    return Work(
        sum(part.committed for part in parts),
        sum(part.sampled for part in parts),
        sum(part.new for part in parts),
        sum(part.again for part in parts),
        sum(part.tokens for part in parts),
        sum(part.cost for part in parts),
        sum(rates) if rates else None,
        max((part.progress for part in parts), key=len, default={}),
    )


def _until_done(plan: Plan, worker: Worker) -> None:
    """Plan and work until nothing is missing: first the redone samples, then those never
    requested.
    """
    config, family = plan.config, plan.family
    first = True
    while True:
        units = plan.units.frame["unit"]
        again = history.to_redo(plan, retry_failed=config.retry_failed and first)
        if config.adaptive is not None and config.adapts:
            assert worker.steering is not None
            worker.steering.progress_by_unit = committed_progress(
                plan.context, family.family, config.samples, plan.rules
            )
            units = units.filter(~units.is_in(_settled(plan, worker)))
            failed = again["finish_reason"] == "error"
            # Truncated traces of solved problems need no second try.
            again = again.filter(again["unit"].is_in(units.implode()) | failed)
        added = family.redo(again)
        # A redone trace may turn out good, and then fewer new ones are needed.
        if not (added and config.adapts):
            first_samples = config.adaptive.first if config.adaptive and config.adapts else None
            added += family.extend(units, config.samples, first_samples)
        if not worker.work() and not added:
            return
        first = False


def _settled(plan: Plan, worker: Worker) -> list[str]:
    """Units that need no more samples, by their committed traces."""
    config = plan.config
    assert config.adaptive is not None
    assert worker.steering is not None
    return [
        unit
        for unit, (samples, good, verified) in worker.steering.progress_by_unit.items()
        if next_round(samples, good, verified, config.samples, config.adaptive) == 0
    ]


def _summary(plan: Plan, work: Work, rows: dict[str, int], seconds: float) -> str:
    again = f", {work.again:,} sampled again" if work.again else ""
    text = f"{counted(sum(rows.values()), 'trace')} ({work.new:,} new{again}): "
    text += ", ".join(f"{count:,} {_WORDS[reason]}" for reason, count in sorted(rows.items()))
    if others := work.committed - work.new - work.again:
        text += f"; {counted(others, 'sample')} of a larger plan finished as well"
    if work.committed:
        text += f"; {counted(work.tokens, 'token')} in {duration(seconds)}"
    if work.cost:
        text += f", cost {work.cost:.4g}"
    if (earlier := work.committed - work.sampled) > 0:
        text += f" ({counted(earlier, 'sample')} of them from an earlier run)"
    config = plan.config
    if config.adaptive is not None and config.adapts:
        progress = work.progress
        goods = [progress.get(unit, (0, 0, 0))[1] for unit in plan.units.frame["unit"]]
        keep = config.adaptive.keep
        solved, some = sum(g >= keep for g in goods), sum(0 < g < keep for g in goods)
        text += f"; of {counted(len(goods), 'problem')}, {solved} have {keep} good traces, "
        text += f"{some} have fewer, {len(goods) - solved - some} have none"
    return text


def _say_failures(plan: Plan, failed: int) -> None:
    """Print how often each reason of failure occurred."""
    if not failed:
        return
    reasons = history.errors(plan)
    for reason, count in reasons[:REASONS]:
        say(f"  failed {counted(count, 'time')}: {reason}")
    if len(reasons) > REASONS:
        rest = reasons[REASONS:]
        failures, kinds = sum(count for _, count in rest), counted(len(rest), "other reason")
        say(f"  failed {counted(failures, 'time')} for {kinds}")


# -- as a stage ----------------------------------------------------------------------------------


def _checked(data: Mapping[str, Any], where: str) -> GenerateConfig:
    return generate_config(dict(data), where)


def _size(config: GenerateConfig, rows: Rows) -> Size:
    limits = [n for n in (config.limit, rows(config.problems)) if n is not None]
    problems = min(limits) if limits else None
    if config.source == "solutions":
        text = f"at most {problems:,} worked solutions" if problems else "worked solutions"
        return Size(text, problems)
    if config.source == "rework":
        problems = config.limit
    if problems is None:
        return Size(f"{counted(config.samples, 'sample')} per problem")
    count = problems * config.samples
    most = "at most " if config.adapts else ""
    text = f"{most}{counted(problems, 'problem')} x {config.samples} = {counted(count, 'trace')}"
    return Size(text, count, count * config.sampling.max_tokens)


STAGE = StageKind(
    config=_checked,
    run=run,
    size=_size,
    takes=frozenset({"cluster", "engine", "seed", "label"}),
    gives="traces",
)
