"""Annotation: verdicts and signals for every part of traces that lacks them. It adds, and drops nothing.

A part of traces never changes, so what was measured of it is a part of the same name: `signals/<group>@<version>/…` and
`verdicts/<verifier>@<version>/…`, with dataset and version of the traces in the place of the version. What is annotated
already is never annotated again, and a new signal or a better verifier annotates only itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from curate.config import Config, validate
from curate.engines import EngineConfig
from curate.job import Context, JobResult, Rows, Size, StageKind
from curate.memory import DEFAULT, keep_level, text_bytes
from curate.progress import duration, task
from curate.records import Problem
from curate.warehouse import Version, Warehouse
from curate.warehouse.annotations import address
from curate.warehouse.identity import digest

if TYPE_CHECKING:
    import polars as pl

    from curate.verify.models.judge import Judge

# What signals read of a trace, beside two columns of its problem.
TRACE_COLUMNS = [
    "trace_id",
    "attempt",
    "problem_id",
    "prompt",
    "completion",
    "reasoning",
    "answer",
    "form",
]
TRACE_COLUMNS += ["finish_reason"]
NO_VERIFIER = "none"
# In front of a verifier that is run beside the problems' own: its parts are apart from those of problems that name it.
BESIDE = "beside."


class JudgeConfig(Config):
    """A model that judges what rules called wrong or unverifiable; its verdicts stand beside theirs."""

    model: str
    engine: EngineConfig = EngineConfig()
    rubric: Literal["equivalence", "helpfulness", "coherence"] = "equivalence"
    max_tokens: int = 1024
    chat: bool = True  # by the model's chat template; false: the bare text is the prompt


class ConsensusConfig(Config):
    """What most samples of a problem say, as its reference where it has none; verdicts of kind `consensus`."""

    share: float = Field(0.5, gt=0, le=1)  # of the samples of one model that must agree; ours
    samples: int = Field(4, ge=2)  # fewer than so many of a problem are no consensus; ours
    every: bool = False  # also for problems that have a reference
    verifier: str = "math"  # by which answers are compared where the problem names none


class AnnotateConfig(Config):
    """Which traces to annotate (datasets of the table `traces`; all of them by default), and with what.

    `verifiers` are run beside each problem's own, to compare them in SQL; the column `verdict` stays its own one's.
    """

    traces: list[str] = []
    signals: list[str] | None = None  # groups; all by default
    verify: bool = True
    verifiers: list[str] = []
    consensus: ConsensusConfig | None = None
    judge: JudgeConfig | None = None
    memory: str = (
        DEFAULT  # bound of what is held at once, beside the verifiers' own processes and a judge
    )
    label: str | None = None


@dataclass
class _Todo:
    """One part of traces, and the versions that lack it."""

    path: Path
    name: str
    signals: dict[str, Version]
    verdicts: dict[str, Version]


def run(config: AnnotateConfig, context: Context) -> JobResult:
    """Annotate what is missing. The result counts the traces that were read for it."""
    started = time.monotonic()
    keep_level()
    size = text_bytes(config.memory)
    for name in config.verifiers:
        _known(name)
    sources = [
        v
        for v in context.warehouse.versions("traces")
        if not config.traces or v.dataset in config.traces
    ]
    problems = _problems(context.warehouse)
    todo: list[_Todo] = []
    targets: dict[str, list[Version]] = {}
    for source in sources:
        found, targets[source.ref] = _lacking(source, problems, config, context.warehouse)
        todo += found
    rows = 0
    if todo:
        with task(config.label or "annotate", len(todo)) as bar:
            for done, item in enumerate(todo, 1):
                rows += _annotate(item, problems, context, size)
                bar.update(done, f"{rows} traces")
    if config.consensus:
        rows += _consensus(config.consensus, sources, problems, targets, context)
    if config.judge:
        rows += _judge(config.judge, sources, problems, targets, context)
    for source in sources:
        for target in targets[source.ref] if source.sealed else []:
            target.seal()
    result = JobResult(rows=rows, seconds=time.monotonic() - started)
    result.refs = [target.ref for source in sources for target in targets[source.ref]]
    result.summary = (
        f"{rows} traces annotated in {duration(result.seconds)}"
        if rows
        else "nothing new to annotate"
    )
    if rows:
        context.record(
            digest(config.model_dump(exclude={"memory"}))[:24],
            "annotate",
            config.label or "",
            config.model_dump(),
            result,
        )
    return result


def _problems(warehouse: Warehouse) -> pl.DataFrame:
    import polars as pl

    frame = warehouse.sql("SELECT * FROM problems") if warehouse.exists() else pl.DataFrame()
    return frame.with_columns(pl.col("verifier").fill_null(NO_VERIFIER)) if len(frame) else frame


def _known(name: str) -> None:
    """Raises `UsageError` where there is no verifier of this name."""
    from curate.verify import verifier_named

    verifier_named(name)


def _lacking(
    source: Version, problems: pl.DataFrame, config: AnnotateConfig, wh: Warehouse
) -> tuple[list[_Todo], list[Version]]:
    """Parts of one version of traces that something lacks, and all versions that annotate it."""
    import polars as pl

    from curate.signals import GROUPS

    parts = source.parts()
    if not parts:
        return [], []
    groups = config.signals if config.signals is not None else list(GROUPS)
    signals = {g: address(wh, "signals", source, g, GROUPS[g].version) for g in groups}
    verdicts: dict[str, Version] = {}
    asked: dict[str, set[str]] = {}
    if config.verify:
        pairs = (
            pl.scan_parquet(parts, include_file_paths="path")
            .select("path", "problem_id")
            .join(problems.lazy().select("problem_id", "verifier"), on="problem_id", how="left")
            .select("path", pl.col("verifier").fill_null(NO_VERIFIER))
            .unique()
            .collect()
        )
        for path, verifier in pairs.iter_rows():
            asked.setdefault(Path(path).name, set()).add(verifier)
            asked[Path(path).name] |= {BESIDE + name for name in config.verifiers}
        for verifier in sorted(set().union(*asked.values())):
            version = _verifier_version(verifier.removeprefix(BESIDE))
            verdicts[verifier] = address(wh, "verdicts", source, verifier, version)
    todo = []
    for path in parts:
        name = path.stem.removeprefix("part-")
        item = _Todo(
            path,
            name,
            {g: v for g, v in signals.items() if not v.has(name)},
            {v: verdicts[v] for v in asked.get(path.name, ()) if not verdicts[v].has(name)},
        )
        if item.signals or item.verdicts:
            todo.append(item)
    return todo, [*signals.values(), *verdicts.values()]


def _verifier_version(name: str) -> str:
    from curate.errors import UsageError
    from curate.verify import verifier_named

    if name == NO_VERIFIER:
        return "1"
    try:
        return verifier_named(name).version
    except UsageError:
        return "0"  # a name that nothing answers to: every verdict is unverifiable, until something does


def _annotate(item: _Todo, problems: pl.DataFrame, context: Context, size: int) -> int:
    """Measure and judge one part, `size` bytes of text at a time; publish each result under the part's own name."""
    import polars as pl

    from curate.files import read_parts
    from curate.signals import GROUPS, annotate_frame

    known = problems.select("problem_id", "question", "target_language") if len(problems) else None
    measured: dict[str, list[pl.DataFrame]] = {group: [] for group in item.signals}
    judged: dict[str, list[pl.DataFrame]] = {name: [] for name in item.verdicts}
    rows = 0
    for traces in read_parts(item.path, size, TRACE_COLUMNS):
        rows += len(traces)
        if item.signals:
            frame = (
                traces.join(known, on="problem_id", how="left", maintain_order="left")
                if known is not None
                else traces
            )
            found = annotate_frame(frame, list(item.signals))
            for group, parts in measured.items():
                parts.append(found.select("trace_id", "attempt", *GROUPS[group].columns))
        for name, some in verdict_rows(traces, problems, context, list(item.verdicts)).items():
            judged[name].append(some)
    for group, target in item.signals.items():
        target.publish(item.name, pl.concat(measured[group]))
    for name, target in item.verdicts.items():
        target.publish(item.name, pl.concat(judged[name], how="vertical_relaxed"))
    return rows


def verdict_rows(
    traces: pl.DataFrame, problems: pl.DataFrame, context: Context, verifiers: Sequence[str]
) -> dict[str, pl.DataFrame]:
    """Verdicts of these traces (TRACE_COLUMNS) by verifier; `beside.x` judges what other verifiers own by `x`."""
    import polars as pl

    from curate.prompts.forms import with_opener_expr

    text = with_opener_expr(pl.col("completion"), pl.col("prompt"), pl.col("form"))
    joined = traces.select(
        "trace_id", "attempt", "problem_id", "form", "finish_reason", text.alias("text")
    ).join(problems, on="problem_id", how="left", maintain_order="left")
    joined = joined.with_columns(
        pl.col("verifier").fill_null(NO_VERIFIER), pl.col("question").fill_null("")
    )
    result = {}
    fields = list(Problem.__dataclass_fields__)
    for asked_name in verifiers:
        name = asked_name.removeprefix(BESIDE)
        own = pl.col("verifier") == name
        rows = (
            joined.filter(own)
            if name == asked_name
            else joined.filter(~own).with_columns(verifier=pl.lit(name))
        )
        asked = (
            rows.filter(pl.col("finish_reason") != "error") if name != NO_VERIFIER else rows.head(0)
        )
        found = context.pool.verify_batch(
            [Problem(**row) for row in asked.select(fields).iter_rows(named=True)],
            asked["text"].to_list(),
            forms=asked["form"].to_list(),
        )
        said = asked.select("trace_id", "attempt").with_columns(
            pl.Series("verdict", [v.verdict for v in found], dtype=pl.String),
            pl.Series("extracted", [v.extracted for v in found], dtype=pl.String),
            pl.Series("detail", [v.detail for v in found], dtype=pl.String),
            pl.Series("seconds", [v.seconds for v in found], dtype=pl.Float64),
        )
        silent = (
            "the problem names no verifier"
            if name == NO_VERIFIER
            else "the request failed: there is no answer"
        )
        result[asked_name] = (
            rows.select("trace_id", "attempt")
            .join(said, on=["trace_id", "attempt"], how="left", maintain_order="left")
            .with_columns(
                pl.col("verdict").fill_null("unverifiable"),
                pl.when(pl.col("verdict").is_null())
                .then(pl.lit(silent))
                .otherwise(pl.col("detail"))
                .alias("detail"),
                verifier=pl.lit(name),
                verifier_version=pl.lit(_verifier_version(name)),
                kind=pl.lit("rule"),
            )
        )
    return result


def _consensus(
    config: ConsensusConfig,
    sources: Sequence[Version],
    problems: pl.DataFrame,
    targets: dict[str, list[Version]],
    context: Context,
) -> int:
    """Cluster the answers of each problem and commit what the largest cluster says of them; returns how many traces.

    More samples change it, so that each set of traces has a version of its own, and `verifier_version` ends with
    how many traces it saw: the newest one counts.
    """
    import polars as pl

    from curate.prompts.forms import with_opener_expr
    from curate.verify.consensus import consensus_frame

    rows = 0
    families: dict[str, list[Version]] = {}
    for source in sources:
        if source.parts() and len(problems):
            families.setdefault(source.dataset, []).append(source)
    for family, versions in families.items():  # further samples are further versions of one family
        columns = [
            "trace_id",
            "attempt",
            "problem_id",
            "model_hash",
            "policy_step",
            "prompt",
            "completion",
            "form",
        ]
        text = with_opener_expr(pl.col("completion"), pl.col("prompt"), pl.col("form"))
        traces = pl.concat([v.read([*columns, "finish_reason"]) for v in versions]).filter(
            pl.col("finish_reason") != "error"
        )
        last = pl.col("attempt") == pl.col("attempt").max().over("trace_id")
        frame = traces.filter(last).with_columns(text=text).drop("prompt", "completion").collect()
        frame = frame.join(problems, on="problem_id", how="inner", maintain_order="left").sort(
            "trace_id"
        )
        if not config.every:
            frame = frame.filter(pl.col("reference").fill_null("").str.strip_chars() == "")
        if not len(frame):
            continue
        key = [
            config.model_dump(),
            frame["trace_id"].to_list(),
            frame["attempt"].to_list(),
            _verifier_version("math"),
        ]
        target = context.warehouse.version(
            "verdicts",
            "consensus@1",
            f"{family}.{digest(key)[:16]}",
            parents=[v.ref for v in versions],
        )
        targets[versions[-1].ref].append(target)
        if target.sealed:
            continue
        frame = frame.with_columns(
            verifier=pl.col("verifier").replace(NO_VERIFIER, config.verifier)
        )
        target.publish("0", consensus_frame(frame, config.share, config.samples, context.pool))
        target.seal()
        rows += len(frame)
    return rows


def _judge(
    config: JudgeConfig,
    sources: Sequence[Version],
    problems: pl.DataFrame,
    targets: dict[str, list[Version]],
    context: Context,
) -> int:
    """Ask the judge about every part that it has not judged; returns how many traces it was asked about."""
    from curate.engines import model_for
    from curate.errors import CurateError
    from curate.verify.models.judge import NO_REPLY, Judge

    model = model_for(config.engine, config.model)
    # only its name and version are asked of this one
    probe = Judge(None, model.hash[:12], config.rubric)  # type: ignore[arg-type]
    todo = []
    for source in sources:
        target = address(
            context.warehouse,
            "verdicts",
            source,
            probe.name,
            probe.version,
            parents=[f"model:{model.hash}"],
        )
        targets[source.ref].append(target)
        todo += [
            (target, part)
            for part in source.parts()
            if not target.has(part.stem.removeprefix("part-"))
        ]
    if not todo:
        return 0
    engine = context.engine.get(config.engine, model.path, model.hash)

    def render(message: str) -> str:
        return (
            engine.render_chat([{"role": "user", "content": message}]) if config.chat else message
        )

    judge = Judge(engine, model.hash[:12], config.rubric, render, config.max_tokens)
    asked = 0
    said = context.warehouse.sql(
        "SELECT trace_id, attempt, verdict FROM last_verdicts WHERE verdict IS NOT NULL"
    )
    with task("judge", len(todo)) as bar:
        for done, (target, part) in enumerate(todo, 1):
            rows = _judged_rows(judge, part, problems, said)
            if rows and all(str(row["detail"]).startswith(NO_REPLY) for row in rows):
                raise CurateError(
                    f"the judge replied to none of {len(rows)} requests ({rows[0]['detail']}): see that its model or "
                    "server works, and run the same command again; what was judged before is kept"
                )
            target.publish(part.stem.removeprefix("part-"), rows)
            asked += len(rows)
            bar.update(done, f"{asked} traces judged")
    return asked


def _judged_rows(
    judge: Judge, part: Path, problems: pl.DataFrame, said: pl.DataFrame
) -> list[dict[str, object]]:
    """The judge's verdicts of one part, as rows of `verdicts`. `said`: the rules' verdicts of all traces."""
    import polars as pl

    from curate.verify.models.judge import Item

    columns = ["trace_id", "attempt", "problem_id", "reasoning", "answer", "finish_reason"]
    frame = (
        pl.read_parquet(part, columns=columns)
        .join(said, on=["trace_id", "attempt"], how="left", maintain_order="left")
        .join(problems, on="problem_id", how="inner", maintain_order="left")
    )
    fields = list(Problem.__dataclass_fields__)
    items = [
        Item(
            Problem(**{f: row[f] for f in fields}),
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


def _size(config: AnnotateConfig, rows: Rows) -> Size:
    counts = [rows(name) for name in config.traces]
    if not counts or None in counts:
        return Size("what lacks verdicts and signals")
    return Size(f"{sum(count or 0 for count in counts):,} traces")


STAGE = StageKind(
    config=partial(validate, AnnotateConfig), run=run, size=_size, takes=frozenset({"label"})
)
