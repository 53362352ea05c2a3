"""The generation job: problems × samples to traces, each once, whatever is killed meanwhile.

    plan what is missing ─▶ claim chunks ─▶ engine ─▶ logs ─▶ commit ─▶ seal

The parts: plan.py resolves the config, worker.py feeds the engine and commits, adaptive.py decides who gets more,
good.py judges on the way, state.py asks what is there, and curate/warehouse/chunks.py keeps the promise of once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from curate.errors import CurateError
from curate.generate import history as state
from curate.generate.background import standing
from curate.generate.config import GenerateConfig, generate_config
from curate.generate.plan import Plan, make_plan
from curate.generate.worker import Worker
from curate.job import Context, JobResult, Rows, Size, StageKind
from curate.progress import duration, say

__all__ = ["Plan", "make_plan", "run"]

REASONS = 10  # reasons of failure that are told one by one
_WORDS = {"stop": "complete", "length": "truncated", "error": "failed"}


def run(config: GenerateConfig, context: Context) -> JobResult:
    """Generate what is missing. Returns the versions that hold the wanted rows.

    Raises CurateError where more requests failed than `max_failed` allows, or where the budget is spent; what finished
    is kept.
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
    result.facts = {"family": plan.family.family, "value": plan.family.family}
    rows = state.outcome(plan)
    result.failed = rows.get("error", 0)
    total = sum(rows.values())
    result.summary = _summary(plan, worker, rows, result.seconds)
    if worker.committed:
        context.record(
            plan.job_id, "generate", config.label or config.recipe, config.model_dump(), result
        )
    _tell_failures(plan, result.failed)
    if total and result.failed / total > config.max_failed:
        raise CurateError(
            f"{result.failed} of {total} requests failed, more than max_failed = {config.max_failed:g} allows; all "
            'rows are committed. See `curate sql "select error, count(*) from traces group by 1"`, mend the cause and '
            "run again with --retry-failed"
        )
    return result


def _until_done(plan: Plan, worker: Worker) -> None:
    """Plan and work until nothing is missing: first what is to be redone, then what was never asked."""
    config, family = plan.config, plan.family
    first = True
    while True:
        units = plan.units["unit"]
        again = state.to_redo(plan, retry_failed=config.retry_failed and first)
        if config.adaptive is not None and config.adapts:
            worker.standing = standing(
                plan.context, family.family, config.samples, config.adaptive.rules
            )
            units = units.filter(~units.is_in(_enough(plan, worker)))
            failed = again["finish_reason"] == "error"
            # of problems that are solved, truncated traces need no second try
            again = again.filter(again["unit"].is_in(units.implode()) | failed)
        added = family.redo(again)
        # A redone trace may turn out good, and then fewer new ones are needed.
        if not (added and config.adapts):
            first_samples = config.adaptive.first if config.adaptive and config.adapts else None
            added += family.extend(units, config.samples, first_samples)
        if not worker.work() and not added:
            return
        first = False


def _enough(plan: Plan, worker: Worker) -> list[str]:
    """Units of which no more is to be asked, by what is committed of them."""
    from curate.generate.adaptive import next_round

    config = plan.config
    assert config.adaptive is not None
    return [
        unit
        for unit, (asked, good, judged) in worker.standing.items()
        if next_round(asked, good, judged, config.samples, config.adaptive) == 0
    ]


def _summary(plan: Plan, worker: Worker, rows: dict[str, int], seconds: float) -> str:
    total = sum(rows.values())
    text = f"{total} traces ({worker.committed} new): "
    text += ", ".join(f"{count} {_WORDS[reason]}" for reason, count in sorted(rows.items()))
    if worker.committed:
        text += f"; {worker.tokens:,} tokens in {duration(seconds)}"
    if worker.cost:
        text += f", cost {worker.cost:.4g}"
    config = plan.config
    if config.adaptive is not None and config.adapts:
        there = [worker.standing.get(unit, (0, 0, 0)) for unit in plan.units["unit"]]
        solved = sum(good >= config.adaptive.keep for _, good, _ in there)
        some = sum(0 < good < config.adaptive.keep for _, good, _ in there)
        text += f"; of {len(there)} problems {solved} have the good ones wanted ({config.adaptive.keep}), {some} have "
        text += f"fewer, {len(there) - solved - some} none"
    return text


def _tell_failures(plan: Plan, failed: int) -> None:
    """Count of each reason of failure."""
    if not failed:
        return
    reasons = state.errors(plan)
    for reason, count in reasons[:REASONS]:
        say(f"  failed {count} times: {reason}")
    if len(reasons) > REASONS:
        say(
            f"  failed {sum(count for _, count in reasons[REASONS:])} times for {len(reasons) - REASONS} other reasons"
        )


# -- as a stage ----------------------------------------------------------------------------------


def _checked(data: Mapping[str, Any], where: str) -> GenerateConfig:
    return generate_config(dict(data), where)


def _size(config: GenerateConfig, rows: Rows) -> Size:
    known = [n for n in (config.limit, rows(config.problems)) if n is not None]
    problems = min(known) if known else None
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
