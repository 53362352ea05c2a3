"""The generation job: problems × samples to traces, each exactly once, even after `kill -9`.

    plan what is missing ─▶ claim chunks ─▶ engine ─▶ logs ─▶ commit ─▶ seal

plan.py resolves the config; worker.py feeds the engine and commits; steering.py, by the rule of
adaptive.py, decides which problems get more samples; background.py verifies in the meantime;
meter.py shows progress; history.py reads committed rows. curate/warehouse/chunks.py decides what
happens after a kill: which samples are in a log or a part already, and who may make the rest.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from curate.errors import CurateError
from curate.generate import history
from curate.generate.adaptive import next_round
from curate.generate.background import committed_progress
from curate.generate.config import GenerateConfig, generate_config
from curate.generate.estimate import describe
from curate.generate.plan import Plan, make_plan
from curate.generate.worker import Worker
from curate.job import Context, JobResult, Rows, Size, StageKind
from curate.progress import counted, duration, say

__all__ = ["Plan", "describe", "make_plan", "run"]

REASONS = 10  # reasons of failure that are listed one by one
_WORDS = {"stop": "complete", "length": "truncated", "error": "failed"}


def run(config: GenerateConfig, context: Context) -> JobResult:
    """Generate the missing samples. Returns the versions that hold the wanted rows.

    Raises CurateError if more requests failed than `max_failed` allows, or if the budget is spent.
    Finished rows are kept in either case.
    """
    plan = make_plan(config, context)
    started = time.monotonic()
    worker = Worker(plan)
    try:
        _until_done(plan, worker)
    finally:
        worker.close()
        result = JobResult(rows=worker.committed, seconds=time.monotonic() - started)
    result.refs = [v.ref for v in plan.family.seal()]
    result.rate = worker.meter.rate
    result.facts = {"family": plan.family.family, "value": plan.family.family}
    rows = history.outcome(plan)
    result.failed = rows.get("error", 0)
    total = sum(rows.values())
    result.summary = _summary(plan, worker, rows, result.seconds)
    if worker.committed:
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
                plan.context, family.family, config.samples, config.adaptive.rules
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


def _summary(plan: Plan, worker: Worker, rows: dict[str, int], seconds: float) -> str:
    again = f", {worker.again:,} sampled again" if worker.again else ""
    text = f"{counted(sum(rows.values()), 'trace')} ({worker.new:,} new{again}): "
    text += ", ".join(f"{count:,} {_WORDS[reason]}" for reason, count in sorted(rows.items()))
    if others := worker.committed - worker.new - worker.again:
        text += f"; {counted(others, 'sample')} of a larger plan finished as well"
    if worker.committed:
        text += f"; {counted(worker.tokens, 'token')} in {duration(seconds)}"
    if worker.cost:
        text += f", cost {worker.cost:.4g}"
    if (earlier := worker.committed - worker.meter.finished) > 0:
        text += f" ({counted(earlier, 'sample')} of them from an earlier run)"
    config = plan.config
    if config.adaptive is not None and worker.steering is not None:
        progress = worker.steering.progress_by_unit
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
        return Size(f"{config.samples} samples per problem")
    count = problems * config.samples
    most = "at most " if config.adapts else ""
    text = f"{most}{problems:,} problems x {config.samples} = {count:,} traces"
    return Size(text, count, count * config.sampling.max_tokens)


STAGE = StageKind(
    config=_checked,
    run=run,
    size=_size,
    takes=frozenset({"engine", "seed", "label"}),
    gives="traces",
)
