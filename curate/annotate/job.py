"""Annotation: add verdicts and signals to every part of traces that lacks them. Nothing is dropped
or changed.

Four passes: signals and the verdicts of rules (verdicts.py), then, if configured, a consensus
(consensus.py) and a model that judges (judge.py). Where results are stored is decided in
curate/warehouse/annotations.py: a part that exists is never written again, so a second run
processes only new traces, and several processes, on one machine or many, share the parts by claims.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl
from pydantic import Field

from curate.annotate.consensus import ConsensusConfig, annotate_consensus
from curate.annotate.judge import JudgeConfig, annotate_judge
from curate.annotate.verdicts import (
    ALONGSIDE,
    NO_VERIFIER,
    TRACE_COLUMNS,
    Judging,
    verdict_rows,
)
from curate.config import Config, validate
from curate.files import read_parts
from curate.job import ClusterConfig, Context, JobResult, Rows, Size, StageKind
from curate.memory import DEFAULT, limit_malloc_arenas, text_bytes
from curate.progress import counted, duration, task
from curate.signals import GROUPS, annotate_frame
from curate.store.paths import on_disk, scan
from curate.verify import verifier_named
from curate.warehouse import Version, Warehouse
from curate.warehouse.annotations import address, version_name
from curate.warehouse.claims import share
from curate.warehouse.identity import digest
from curate.warehouse.names import part_name


class AnnotateConfig(Config):
    """The traces to annotate, and the verifiers, signals and judges to run on them."""

    traces: list[str] = []
    """Datasets of the table `traces`; all of them by default."""
    signals: list[str] | None = None
    """Groups of signals; all of them by default."""
    verify: bool = True
    """Judge traces with the verifiers of their problems."""
    verifiers: list[str] = []
    """Verifiers to run alongside each problem's own, for a comparison in SQL. The column `verdict`
    stays that of the problem's own verifier."""
    consensus: ConsensusConfig | None = None
    """Add the agreement of most samples, for problems without a reference."""
    judge: JudgeConfig | None = None
    """Have a model judge traces that rules called wrong or unverifiable."""
    memory: str = DEFAULT
    """Memory of this process, such as 500MB or 2GB. Processes of verifiers and a judge are
    additional.
    """
    label: str | None = None
    """Name in the progress display and in the table `jobs`."""
    cluster: ClusterConfig | None = Field(None, exclude=True)
    """Cluster of machines that share the work; null: this machine alone."""


@dataclass
class Todo:
    """One part of traces, and the versions that lack a part about it."""

    source: Version
    path: Path
    signals: dict[str, Version]
    verdicts: dict[Judging, Version]

    @property
    def name(self) -> str:
        return part_name(self.path)


@dataclass
class Work:
    """Parts to annotate by one or more processes, `size` bytes of text at a time."""

    todo: list[Todo]
    problems: pl.DataFrame
    size: int
    label: str


def run(config: AnnotateConfig, context: Context) -> JobResult:
    """Add missing annotations. The result counts the annotated traces of each pass."""
    started = time.monotonic()
    limit_malloc_arenas()
    size = text_bytes(config.memory)
    for name in config.verifiers:
        verifier_named(name)  # raises UsageError for an unknown name before any work starts
    sources = [
        v
        for v in context.warehouse.versions("traces")
        if not config.traces or v.dataset in config.traces
    ]
    problems = stored_problems(context.warehouse)
    todo: list[Todo] = []
    targets: dict[str, list[Version]] = {}
    for source in sources:
        items, targets[source.ref] = _missing(source, problems, config, context.warehouse)
        todo += items
    work = Work(todo, problems, size, config.label or "annotate")
    rows, verdicts = 0, Counter[str]()
    for count, counts in (
        context.spread(annotate_parts, work, work.label, len(todo)) if todo else ()
    ):
        rows += count
        verdicts += counts
    lines = []
    if rows:
        listed = _listed(verdicts) or (", judged before" if config.verify else "")
        lines.append(f"{counted(rows, 'trace')} annotated{listed}")
    if config.consensus:
        seen = annotate_consensus(config.consensus, sources, problems, targets, context)
        lines += [f"consensus sought among {counted(seen, 'trace')}"] if seen else []
        rows += seen
    if config.judge:
        judged = annotate_judge(config.judge, sources, problems, targets, context)
        if number := judged.total():
            lines.append(f"the judge was asked about {counted(number, 'trace')}{_listed(judged)}")
            rows += number
    for source in sources:
        for target in targets[source.ref] if source.sealed else []:
            target.seal()
    result = JobResult(rows=rows, seconds=time.monotonic() - started)
    result.refs = [target.ref for source in sources for target in targets[source.ref]]
    result.summary = "nothing new to annotate"
    if lines:
        result.summary = f"{'; '.join(lines)} (in {duration(result.seconds)})"
    if rows:
        job_id = digest(config.model_dump(exclude={"memory"}))[:24]
        context.record(job_id, "annotate", config.label or "", config.model_dump(), result)
    return result


def annotate_parts(work: Work, context: Context) -> tuple[int, Counter[str]]:
    """Annotate parts until none lacks anything. Returns the number of traces that this process
    read, and the verdicts of the problems' own verifiers.
    """
    limit_malloc_arenas()
    rows, verdicts = 0, Counter[str]()
    with task(work.label, len(work.todo)) as bar:
        for done, item in enumerate(share(work.todo, context.claims, _claim_of, _lacking), 1):
            rows += _annotate(item, work.problems, context, work.size, verdicts)
            bar.update(done, f"{counted(rows, 'trace')}{_listed(verdicts)}")
    return rows, verdicts


def _listed(verdicts: Counter[str]) -> str:
    """Counts of verdicts, as the end of a phrase; empty if nothing was judged."""
    if not verdicts:
        return ""
    parts = [f"{verdicts[name]:,} {name}" for name in ("correct", "wrong", "unverifiable")]
    if unnamed := verdicts[NO_VERIFIER]:
        total = verdicts["unverifiable"] + unnamed
        parts[-1] = f"{total:,} unverifiable ({unnamed:,} of problems without a verifier)"
    return f": {', '.join(parts)}"


def stored_problems(warehouse: Warehouse) -> pl.DataFrame:
    """All problems of the warehouse; those without a verifier get NO_VERIFIER."""
    frame = warehouse.sql("SELECT * FROM problems") if warehouse.exists() else pl.DataFrame()
    return frame.with_columns(pl.col("verifier").fill_null(NO_VERIFIER)) if len(frame) else frame


def _missing(
    source: Version, problems: pl.DataFrame, config: AnnotateConfig, wh: Warehouse
) -> tuple[list[Todo], list[Version]]:
    """Parts of one version of traces that lack something, and all versions that annotate it."""
    parts = source.parts()
    if not parts:
        return [], []
    groups = config.signals if config.signals is not None else list(GROUPS)
    signals = {g: address(wh, "signals", source, g, GROUPS[g].version) for g in groups}
    by_part = _verifiers_by_part(parts, problems, config.verifiers) if config.verify else {}
    verdicts = {
        judging: address(wh, "verdicts", source, judging.dataset, judging.version)
        for judging in sorted(set().union(*by_part.values()))
    }
    todo = []
    for path in parts:
        name = part_name(path)
        item = Todo(source, path, signals, {j: verdicts[j] for j in by_part.get(name, ())})
        if (lacking := _lacking(item)) is not None:
            todo.append(lacking)
    return todo, [*signals.values(), *verdicts.values()]


def _claim_of(item: Todo) -> str:
    return f"_annotate/{version_name(item.source)}.{item.name}"


def _lacking(item: Todo) -> Todo | None:
    """The item with the versions that still lack a part; None if all have it."""
    signals = {group: v for group, v in item.signals.items() if not v.has(item.name)}
    verdicts = {judging: v for judging, v in item.verdicts.items() if not v.has(item.name)}
    return Todo(item.source, item.path, signals, verdicts) if signals or verdicts else None


def _verifiers_by_part(
    parts: list[Path], problems: pl.DataFrame, alongside: Sequence[str]
) -> dict[str, set[Judging]]:
    """Map each part to the verifiers that its problems name, and those to run alongside."""
    columns = problems.lazy().select("problem_id", "verifier", "correction")
    pairs = (
        scan(parts, include_file_paths="path")
        .select("path", "problem_id")
        .join(columns, on="problem_id", how="left")
        .select(
            "path", pl.col("verifier").fill_null(NO_VERIFIER), pl.col("correction").fill_null(0)
        )
        .unique()
        .collect()
    )
    other = [ALONGSIDE + name for name in alongside]
    by_part: dict[str, set[Judging]] = {}
    for path, verifier, correction in pairs.iter_rows():
        names = by_part.setdefault(part_name(Path(path)), {Judging(name) for name in other})
        names |= {Judging(name, correction) for name in (verifier, *other)}
    return by_part


def _annotate(
    item: Todo, problems: pl.DataFrame, context: Context, size: int, counts: Counter[str]
) -> int:
    """Measure and judge one part, `size` bytes of text at a time; publish each result as a part of
    the same name. Returns its rows; `counts` gets the verdicts of the problems' own verifiers.
    """
    columns = (
        problems.select("problem_id", "question", "target_language") if len(problems) else None
    )
    measured: dict[str, list[pl.DataFrame]] = {group: [] for group in item.signals}
    judged: dict[Judging, list[pl.DataFrame]] = {judging: [] for judging in item.verdicts}
    rows = 0
    with on_disk(item.path) as path:
        for traces in read_parts(path, size, TRACE_COLUMNS):
            rows += len(traces)
            if item.signals:
                frame = traces
                if columns is not None:
                    frame = traces.join(columns, on="problem_id", how="left", maintain_order="left")
                signals = annotate_frame(frame, list(item.signals))
                for group, frames in measured.items():
                    frames.append(signals.select("trace_id", "attempt", *GROUPS[group].columns))
            verdicts = verdict_rows(traces, problems, context, list(item.verdicts))
            for judging, frames in judged.items():
                frames.append(verdicts[judging])
                if judging.dataset == NO_VERIFIER:
                    counts[NO_VERIFIER] += len(verdicts[judging])
                elif not judging.dataset.startswith(ALONGSIDE):
                    counts.update(dict(verdicts[judging]["verdict"].value_counts().iter_rows()))
    for group, target in item.signals.items():
        target.publish(item.name, pl.concat(measured[group]))
    for judging, target in item.verdicts.items():
        target.publish(item.name, pl.concat(judged[judging], how="vertical_relaxed"))
    return rows


def _size(config: AnnotateConfig, rows: Rows) -> Size:
    counts = [rows(name) for name in config.traces]
    if not counts or None in counts:
        return Size("traces without verdicts or signals")
    return Size(counted(sum(count or 0 for count in counts), "trace"))


STAGE = StageKind(
    config=partial(validate, AnnotateConfig),
    run=run,
    size=_size,
    takes=frozenset({"cluster", "label"}),
)
