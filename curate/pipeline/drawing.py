"""What a pipeline would do, drawn before it runs: each stage with its state, what it takes, its size and its cost.

Sizes are read off the configs and the sealed versions, so that nothing is loaded; where one depends on what an earlier
stage will keep, it says so. Costs are seconds where a stage ran, and else tokens at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curate.progress import duration

if TYPE_CHECKING:
    from curate.pipeline.runner import Done, Pipeline, Stage


@dataclass(frozen=True)
class Planned:
    """One stage of the drawing."""

    name: str
    do: str
    needs: tuple[str, ...]
    state: str
    size: str
    cost: str


def planned(pipeline: Pipeline) -> list[Planned]:
    """Every stage in order, without running anything."""
    done: dict[str, Done] = {}
    rows: dict[str, int | None] = {}  # how many rows a stage gives, where that is known
    made: list[Planned] = []
    for stage in pipeline.stages:
        found = None
        if all(n in done for n in stage.needs):
            found = pipeline.find(stage, pipeline.key(stage, done))
        size, count, tokens = _size(stage, rows)
        if stage.processes > 1:
            size += f", {stage.processes} processes"
        if found is not None:
            done[stage.name] = found
            rows[stage.name] = _rows(pipeline, stage, found, count)
            made.append(
                Planned(
                    stage.name,
                    stage.do,
                    stage.needs,
                    "done",
                    found.summary,
                    duration(found.seconds),
                )
            )
            continue
        rows[stage.name] = count
        waits = [n for n in stage.needs if n not in done]
        state = f"waits for {', '.join(waits)}" if waits else "to run"
        if started := _started(pipeline, stage):
            state += f", {started}"
        made.append(
            Planned(
                stage.name,
                stage.do,
                stage.needs,
                state,
                size,
                f"≤ {tokens:,} tokens" if tokens else "",
            )
        )
    return made


def _rows(pipeline: Pipeline, stage: Stage, found: Done, count: int | None) -> int | None:
    """What a finished stage gave, from the manifests of its versions."""
    told = 0
    for ref in found.refs if stage.do in ("problems", "generate", "filter") else ():
        table, dataset, version = ref.split("/")
        told += int(
            pipeline.context.warehouse.version(table, dataset, version).manifest.get("rows") or 0
        )
    return told or count


def _started(pipeline: Pipeline, stage: Stage) -> str:
    """Whether an earlier key of the stage ran: then its config or its inputs changed."""
    earlier = list(pipeline.folder.glob(f"{stage.name}-*.json"))
    exact = [p for p in earlier if len(p.stem) == len(stage.name) + 25]
    return "changed since it ran" if exact else ""


def _size(stage: Stage, rows: Mapping[str, int | None]) -> tuple[str, int | None, int | None]:
    """(in words, rows it gives or None, tokens at most or None)."""
    config = stage.config
    if stage.do == "problems":
        sizes = [
            s.get("size") or s.get("limit")
            for s in config.get("sources", [])
            if isinstance(s, Mapping)
        ]
        told = [size for size in sizes if isinstance(size, int)]
        total = sum(told) if told and len(told) == len(sizes) else None
        return (f"{total:,} problems" if total else "as many as the files hold"), total, None
    if stage.do == "generate":
        return _generated(config, rows)
    if stage.do == "grpo":
        steps, prompts, samples = (
            config.get(k, d) for k, d in (("steps", 100), ("prompts", 16), ("samples", 8))
        )
        count = steps * prompts * samples
        most = (config.get("sampling") or {}).get("max_tokens", 256)
        return f"{steps} rounds of {prompts} x {samples} = {count:,} rollouts", count, count * most
    if stage.do == "base":
        steps, batch = config.get("steps", 700), config.get("batch_size", 48)
        return f"{steps:,} steps of {batch} texts", None, None
    if stage.do in ("sft", "distill"):
        if stage.do == "distill" and config.get("kind") == "on-policy":
            return "", None, None
        corpora = config.get("corpus")
        names = [corpora] if isinstance(corpora, str) else [c.get("corpus") for c in corpora or []]
        counts = [rows.get(str(n)[1:].partition(".")[0]) for n in names]
        known = [c for c in counts if c is not None]
        if len(known) < len(counts):
            return f"{config.get('epochs', 1):g} epochs of what is kept", None, None
        total = round(sum(known) * config.get("epochs", 1))
        return (
            f"{total:,} examples, {-(-total // config.get('batch_size', 16)):,} steps",
            None,
            None,
        )
    if stage.do == "evaluate":
        count = len(config.get("models", []))
        problems = config.get("limit") or "all held-out"
        k = config.get("samples", 16)
        if isinstance(problems, int):
            most = (config.get("sampling") or {}).get("max_tokens", 8192)
            total = count * problems * k
            return (
                f"{count} models x {problems} problems x {k} = {total:,} samples",
                total,
                total * most,
            )
        return f"{count} models x {problems} problems x {k}", None, None
    if stage.do == "annotate":
        counts = [rows.get(str(t)[1:].partition(".")[0]) for t in config.get("traces", [])]
        total = sum(c or 0 for c in counts)
        return (
            (f"{total:,} traces" if total and all(counts) else "what lacks verdicts and signals"),
            None,
            None,
        )
    return "", None, None


def _generated(
    config: Mapping[str, Any], rows: Mapping[str, int | None]
) -> tuple[str, int | None, int | None]:
    from curate.generate.config import generate_config

    checked = generate_config(dict(config))
    asked = checked.problems
    known = (
        rows.get(asked[1:].partition(".")[0])
        if isinstance(asked, str) and asked.startswith("@")
        else None
    )
    problems = min(checked.limit or known or 0, known or checked.limit or 0) or None
    if checked.source == "solutions":
        return (
            (f"at most {problems:,} worked solutions" if problems else "worked solutions"),
            problems,
            None,
        )
    if checked.source == "rework":
        problems = checked.limit
    if problems is None:
        return f"{checked.samples} samples a problem", None, None
    count = problems * checked.samples
    most = "at most " if checked.adapts else ""
    said = f"{most}{problems:,} problems x {checked.samples} = {count:,} traces"
    return said, count, count * checked.sampling.max_tokens


def draw(name: str, description: str, stages: Sequence[Planned]) -> str:
    """The stages as text: what each takes stands behind it, one line a stage."""
    wide = max(len(s.name) for s in stages)
    kind = max(len(s.do) for s in stages)
    lines = [f"{name}: {description}" if description else name, ""]
    for number, stage in enumerate(stages, 1):
        mark = "✓" if stage.state == "done" else "·"
        joint = "┬" if number == 1 else "└" if number == len(stages) else "├"
        takes = f" ← {', '.join(stage.needs)}" if stage.needs else ""
        state = "" if stage.state == "done" else f"{stage.state.split(' for ')[0]}"
        told = ", ".join(part for part in (state, stage.size, stage.cost) if part)
        lines.append(f"{joint}─ {mark} {stage.name:<{wide}}  {stage.do:<{kind}}  {told}{takes}")
    ready = sum(s.state == "done" for s in stages)
    lines += ["", f"{ready} of {len(stages)} stages are done; ✓ is skipped when the pipeline runs"]
    return "\n".join(lines)
