"""Draw a pipeline before it runs: each stage with its state, inputs, size and cost.

Sizes come from the checked configs and the sealed versions, so that nothing is loaded. The drawing
marks sizes that depend on the traces that an earlier stage will keep. Costs are seconds for a stage
that ran, else a maximum of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from curate.pipeline.runner import Pipeline
from curate.pipeline.stages import Done, Stage
from curate.progress import duration
from curate.store.paths import files

TABLES = {"problems": "problems", "traces": "traces", "corpus": "corpora"}


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
    rows: dict[str, int | None] = {}  # rows that each stage gives, if known

    def rows_of(name: Any) -> int | None:
        named = isinstance(name, str) and name.startswith("@")
        return rows.get(name[1:].partition(".")[0]) if named else None

    plan: list[Planned] = []
    for stage in pipeline.stages:
        earlier = None
        if all(name in done for name in stage.needs):
            stage = pipeline.fitted(stage, done)
            earlier = pipeline.find(stage, pipeline.key(stage, done))
        size = stage.kind.size(stage.checked, rows_of)
        rows[stage.name] = size.rows
        if earlier is not None:
            done[stage.name] = earlier
            rows[stage.name] = _sealed_rows(pipeline, stage, earlier) or size.rows
            state, text, cost = "done", earlier.summary, duration(earlier.seconds)
        else:
            state = _state(pipeline, stage, done)
            text = size.text + (f", {stage.processes} processes" if stage.processes > 1 else "")
            text += f" on {stage.nodes} nodes" if stage.nodes > 1 else ""
            cost = f"≤ {size.tokens:,} tokens" if size.tokens else ""
        plan.append(Planned(stage.name, stage.do, stage.needs, state, text, cost))
    return plan


def _sealed_rows(pipeline: Pipeline, stage: Stage, done: Done) -> int:
    """Rows that a finished stage gave, from the manifests of its versions."""
    refs = [ref.split("/") for ref in done.refs]
    wanted = TABLES.get(stage.kind.gives or "")
    manifests = [
        pipeline.context.warehouse.version(*ref).manifest for ref in refs if ref[0] == wanted
    ]
    return sum(int(manifest.get("rows") or 0) for manifest in manifests)


def _state(pipeline: Pipeline, stage: Stage, done: dict[str, Done]) -> str:
    """State of an unfinished stage: the stages it waits for, and whether it ran before with another
    config or other inputs.
    """
    waits = [name for name in stage.needs if name not in done]
    state = f"waits for {', '.join(waits)}" if waits else "to run"
    records = files(pipeline.folder, f"{stage.name}-*.json")
    # A key has 24 characters: a longer rest is a record of another stage whose name begins in the
    # same way.
    ran = any(len(path.stem) == len(stage.name) + 25 for path in records)
    return f"{state}, changed since it ran" if ran else state


def draw(name: str, description: str, stages: Sequence[Planned]) -> str:
    """The stages as text, one per line, each followed by the stages it takes from."""
    wide = max(len(s.name) for s in stages)
    kind = max(len(s.do) for s in stages)
    lines = [f"{name}: {description}" if description else name, ""]
    for number, stage in enumerate(stages, 1):
        mark = "✓" if stage.state == "done" else "·"
        joint = "┬" if number == 1 else "└" if number == len(stages) else "├"
        takes = f" ← {', '.join(stage.needs)}" if stage.needs else ""
        state = "" if stage.state == "done" else stage.state.split(" for ")[0]
        details = ", ".join(part for part in (state, stage.size, stage.cost) if part)
        lines.append(f"{joint}─ {mark} {stage.name:<{wide}}  {stage.do:<{kind}}  {details}{takes}")
    ready = sum(s.state == "done" for s in stages)
    lines += ["", f"{ready} of {len(stages)} stages are done; ✓ is skipped when the pipeline runs"]
    return "\n".join(lines)
