"""Verdicts of a model on traces that rules called wrong or unverifiable, stored next to the rules'
verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from curate.config import Config
from curate.engines import EngineConfig, ModelRef, model_for
from curate.engines.registry import LOCAL, choose
from curate.errors import CurateError
from curate.progress import counted, task
from curate.records import Problem
from curate.store.paths import scan
from curate.verify.models.judge import NO_REPLY, Item, Judge, judge_identity
from curate.warehouse import Version
from curate.warehouse.annotations import address
from curate.warehouse.claims import share
from curate.warehouse.names import part_name
from curate.warehouse.parts import verify

if TYPE_CHECKING:
    from curate.job import Context


class JudgeConfig(Config):
    """A model that judges traces that rules could not."""

    model: str
    """Directory, hub id, or name at a server."""
    engine: EngineConfig = EngineConfig()
    """Engine that runs the model."""
    rubric: Literal["equivalence", "helpfulness", "coherence"] = "equivalence"
    """Rubric that the model applies."""
    max_tokens: int = 1024
    """Longest reply, in tokens."""
    chat: bool = True
    """Use the model's chat template; otherwise the bare text is the prompt."""


def annotate_judge(
    config: JudgeConfig,
    sources: Sequence[Version],
    problems: pl.DataFrame,
    targets: dict[str, list[Version]],
    context: Context,
) -> Counter[str]:
    """Judge every part that this judge has not judged yet. Returns its verdicts, counted."""
    model = model_for(config.engine, config.model)
    name, version = judge_identity(config.rubric, _who(config, model))
    todo = []
    for source in sources:
        target = address(
            context.warehouse,
            "verdicts",
            source,
            name,
            version,
            parents=[f"model:{model.hash}"],
        )
        targets[source.ref].append(target)
        todo += [(target, part) for part in source.parts() if not target.has(part_name(part))]
    judged = Counter[str]()
    if not todo:
        return judged
    verdicts = context.warehouse.sql(
        "SELECT trace_id, attempt, verdict FROM last_verdicts WHERE verdict IS NOT NULL"
    )
    work = Work(todo, config, model, problems, verdicts)
    return sum(context.spread(judge_parts, work, "judge", len(todo)), judged)


Part = tuple[Version, Path]  # the version that lacks a part, and the part of traces


@dataclass
class Work:
    """Parts to judge by one or more processes.

    `verdicts`: the rules' verdicts (trace_id, attempt, verdict).
    """

    todo: list[Part]
    config: JudgeConfig
    model: ModelRef
    problems: pl.DataFrame
    verdicts: pl.DataFrame


def judge_parts(work: Work, context: Context) -> Counter[str]:
    """Judge parts until none is left. Returns the verdicts of this process, counted."""
    judge = open_judge(work.config, context, work.model.on_this_machine())
    judged = Counter[str]()
    with task("judge", len(work.todo)) as bar:
        parts = share(work.todo, context.claims, _claim_of, _unjudged)
        for done, (target, part) in enumerate(parts, 1):
            rows = _judge_part(judge, part, work.problems, work.verdicts)
            if rows and all(str(row["detail"]).startswith(NO_REPLY) for row in rows):
                raise CurateError(
                    f"the judge replied to none of {len(rows)} requests ({rows[0]['detail']}): "
                    f"check that its "
                    "model or server works, and run the same command again; earlier verdicts are "
                    "kept"
                )
            target.publish(part_name(part), rows)
            judged.update(row["verdict"] for row in rows)
            bar.update(done, f"{counted(judged.total(), 'trace')} judged")
    return judged


def _who(config: JudgeConfig, model: ModelRef) -> str:
    """Name of a judge in verdicts. Verdicts of the stub, or of a user's own engine, never replace
    those of the model."""
    engine_name, _ = choose(config.engine, model.path)
    real = engine_name in (*LOCAL, "openai")
    return model.hash[:12] + ("" if real else f"-{engine_name.replace(':', '.')}")


def open_judge(config: JudgeConfig, context: Context, model: ModelRef | None = None) -> Judge:
    """Open the engine of a judge in the context, which holds one engine.

    `model`: the config's, if it was resolved before.
    """
    model = model or model_for(config.engine, config.model)
    engine = context.engine.get(config.engine, model.path, model.hash)

    def render(message: str) -> str:
        if not config.chat:
            return message
        return str(engine.render_chat([{"role": "user", "content": message}]))

    return Judge(engine, _who(config, model), config.rubric, render, config.max_tokens)


def _claim_of(part: Part) -> str:
    target, path = part
    return f"_judge/{target.dataset}.{target.version}.{part_name(path)}"


def _unjudged(part: Part) -> Part | None:
    return None if part[0].has(part_name(part[1])) else part


def _judge_part(
    judge: Judge, part: Path, problems: pl.DataFrame, verdicts: pl.DataFrame
) -> list[dict[str, Any]]:
    """Rows of the table `verdicts` for one part."""
    columns = ["trace_id", "attempt", "problem_id", "reasoning", "answer", "finish_reason"]
    verify([part])
    frame = (
        scan([part])
        .select(columns)
        .collect()
        .join(verdicts, on=["trace_id", "attempt"], how="left", maintain_order="left")
        .join(problems, on="problem_id", how="inner", maintain_order="left")
    )
    fields = list(Problem.__dataclass_fields__)
    items = [
        Item(
            Problem(**{field: row[field] for field in fields}),
            row["answer"],
            row["finish_reason"],
            row["verdict"],
            row["reasoning"],
        )
        for row in frame.iter_rows(named=True)
    ]
    return [
        {
            "trace_id": trace_id,
            "attempt": attempt,
            "verifier": verdict.verifier,
            "verifier_version": verdict.verifier_version,
            "kind": "judge",
            "verdict": verdict.verdict,
            "extracted": verdict.extracted,
            "detail": verdict.detail,
            "seconds": verdict.seconds,
        }
        for (trace_id, attempt), verdict in zip(
            frame.select("trace_id", "attempt").iter_rows(), judge.verdicts(items), strict=True
        )
        if verdict is not None
    ]
