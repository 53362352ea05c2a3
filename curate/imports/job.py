"""Traces that somebody else made, into the same tables: annotated, filtered and trained on like ours.

    curate import traces.jsonl                                  # the layout is recognised by its columns
    curate import data/ columns.question=task columns.completion=text verifier=math
    curate import owner/name subset=default limit=1000

What is read comes in parts: of a large file only the ids of its traces are in memory. A trace is the hash of its
problem and its text: importing twice, or a file that has grown, adds only what is new.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from curate.config import Config, validate
from curate.errors import CurateError, UsageError
from curate.job import Context, JobResult, StageKind
from curate.progress import duration, say
from curate.registry import check
from curate.verify.registry import REGISTRY
from curate.warehouse import Version
from curate.warehouse.files import now
from curate.warehouse.identity import digest
from curate.warehouse.schemas import shipped_file

if TYPE_CHECKING:
    import polars as pl

TEMPLATES = {
    "r1": "r1",
    "r1-zero": "r1-zero",
    "plain": "plain",
}  # what prompts of a corpus are rendered with


class ImportConfig(Config):
    """What to import, and what its columns mean where their names do not tell."""

    path: str  # a file, a directory of files, a directory that `save_to_disk` wrote, or a Hub id
    name: str | None = None  # of the datasets of problems and traces; by default that of the file
    layout: Literal["auto", "openr1", "openthoughts", "sharegpt", "pairs"] = "auto"
    columns: dict[str, str] = Field(default_factory=dict)  # our field: their column
    form: str | None = None  # by default each text's own: r1, r1-zero or plain
    template: str | None = None  # of prompts made from these traces; by default that of the form
    model: str | None = None  # who wrote the traces, where no column says so
    verifier: str | None = None
    domain: str | None = None
    target_language: str | None = None
    source: str | None = None
    held_out: float = Field(0.0, ge=0, lt=1)  # share of the questions, drawn by hash
    subset: str | None = None
    part: str = "train"
    revision: str | None = None
    limit: int | None = Field(None, ge=1)  # rows

    @field_validator("verifier")
    @classmethod
    def _verifier_exists(cls, name: str | None) -> str | None:
        if name is not None:
            check("verifier", name, REGISTRY)
        return name

    @field_validator("form")
    @classmethod
    def _known_form(cls, form: str | None) -> str | None:
        from curate.prompts.forms import Form

        if form is not None:
            Form.of(form)
        return form


@dataclass
class _Seen:
    """What is there already, and what this import found."""

    traces: set[bytes] = field(default_factory=set)
    problems: set[bytes] = field(default_factory=set)
    samples: dict[bytes, int] = field(default_factory=dict)  # of each problem
    rows: int = 0
    new: int = 0
    doubled: int = 0
    empty: int = 0
    unjudged: int = 0  # problems without a verifier


def run(config: ImportConfig, context: Context) -> JobResult:
    """Import what is new. The result's versions hold the problems and traces of the file."""
    started = time.monotonic()
    name = config.name or _name(config.path)
    where = Path(config.path).expanduser()
    version = digest("import", _content(config, where), config.model_dump(mode="json"))[:16]
    facts: dict[str, Any] = {"config": config.model_dump(mode="json")}
    problems = context.warehouse.version("problems", name, version, **facts)
    traces = context.warehouse.version("traces", name, version, parents=[problems.ref], **facts)
    result = JobResult(refs=[problems.ref, traces.ref])
    result.facts = {"family": name, "value": name, "problems": f"{name}@{version}"}
    if traces.sealed:
        result.summary = (
            f"nothing new: {traces.manifest['rows']} traces of {config.path} are in {traces.ref}"
        )
        return result
    seen = _known(context, name, version)
    made = 0
    for number, table in enumerate(_tables(config, where)):
        made += _part(config, table, f"{number:05d}", problems, traces, seen)
    if not seen.rows - seen.empty:
        raise CurateError(f"{config.path}: {seen.rows} rows, and none with a question and a trace")
    problems.seal()
    traces.seal()
    result.rows, result.seconds = made, time.monotonic() - started
    result.summary = (
        f"{made} traces of {len(seen.problems)} problems in {traces.ref}, {duration(result.seconds)}"
        + (f"; {seen.doubled} were there already" if seen.doubled else "")
        + (f"; {seen.empty} rows without a question or a text were left out" if seen.empty else "")
        + _unjudged(config, seen)
    )
    context.record(digest(traces.ref)[:24], "import", name, config.model_dump(), result)
    return result


def _unjudged(config: ImportConfig, seen: _Seen) -> str:
    """Why some answers cannot be judged."""
    if not seen.unjudged:
        return ""
    why = (
        "have no reference"
        if config.verifier
        else "have no reference or name no verifier (verifier=math)"
    )
    return f"; {seen.unjudged} problems {why}, so that nothing judges their answers"


def _name(path: str) -> str:
    """A dataset's name from a path or a Hub id."""
    import re

    stem = Path(path.rstrip("/")).name
    for suffix in (".parquet", ".jsonl", ".ndjson"):
        stem = stem.removesuffix(suffix)
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", stem).strip("-.") or "import"


def _content(config: ImportConfig, where: Path) -> list[Any]:
    """What determines the rows: the bytes of files, or the name and revision of a Hub dataset."""
    from curate.files import data_files
    from curate.problems.hub import saved

    if not where.exists():
        return [config.path, config.subset, config.part, config.revision]
    files = sorted(where.rglob("*.arrow")) if saved(where) else data_files([where])
    found = []
    for path in files:
        with path.open("rb") as stream:
            found.append(hashlib.file_digest(stream, "blake2b").hexdigest())
    return found


def _tables(config: ImportConfig, where: Path) -> Iterator[pl.DataFrame]:
    """The rows in parts, in order, at most `limit` of them."""
    from curate.files import data_files, read_parts
    from curate.problems.hub import saved

    left = config.limit or 1 << 60
    parts: Iterator[pl.DataFrame]
    if where.exists() and not saved(where):
        parts = (part for path in data_files([where]) for part in read_parts(path))
    else:
        parts = _datasets(config, where)
    for part in parts:
        if left <= 0:
            return
        yield part.head(left)
        left -= part.height


def _datasets(config: ImportConfig, where: Path) -> Iterator[pl.DataFrame]:
    """A dataset of the Hub, streamed, or one that `save_to_disk` wrote."""
    import polars as pl

    from curate.problems.hub import opened

    if not where.exists() and config.path.count("/") != 1:
        raise UsageError(
            f"nothing at '{config.path}': give a JSONL or Parquet file, a directory, or a Hub id"
        )
    with opened(config.path, config.subset, config.part, config.revision, streaming=True) as data:
        for batch in data.with_format("arrow").iter(batch_size=2_000):
            yield pl.DataFrame(pl.from_arrow(batch))


def _known(context: Context, name: str, version: str) -> _Seen:
    """Traces of this name that other imports brought."""
    seen = _Seen()
    for other in context.warehouse.versions("traces", name):
        if other.version != version:
            rows = other.read(["trace_id", "problem_id"]).collect()
            for trace_id, problem_id in rows.iter_rows():
                _count(seen, bytes.fromhex(trace_id), bytes.fromhex(problem_id))
    seen.problems.clear()
    return seen


def _count(seen: _Seen, trace: bytes, problem: bytes) -> int | None:
    """The sample index of a trace in its problem; None where it is there already."""
    if trace in seen.traces:
        return None
    seen.traces.add(trace)
    index = seen.samples.get(problem, 0)
    seen.samples[problem] = index + 1
    return index


def _part(
    config: ImportConfig,
    table: pl.DataFrame,
    number: str,
    problems: Version,
    traces: Version,
    seen: _Seen,
) -> int:
    """Commit one part of problems and one of traces; returns how many traces are new."""
    import polars as pl

    from curate.imports.formats import layout_of, mapping, traces_of

    found = mapping(table.columns, config.columns, config.path)
    layout = (
        config.layout
        if config.layout != "auto"
        else layout_of(found, config.columns, table.columns, config.path)
    )
    frame = traces_of(table, layout, found)
    if number == "00000":
        _tell(layout, found, frame)
    seen.rows += frame.height
    whole = frame.filter(
        pl.col("question").str.strip_chars() != "", pl.col("completion").is_not_null()
    )
    seen.empty += frame.height - whole.height
    asked = _problems(config, whole, layout)
    first = [
        digest_bytes not in seen.problems
        for digest_bytes in map(bytes.fromhex, asked["problem_id"])
    ]
    new = asked.filter(pl.Series(first, dtype=pl.Boolean)).unique(
        "problem_id", keep="first", maintain_order=True
    )
    seen.problems.update(map(bytes.fromhex, new["problem_id"]))
    rows = _traces(config, whole.with_columns(asked["problem_id"]), traces, seen)
    seen.unjudged += new["verifier"].null_count()
    problems.publish(number, new)
    return len(rows) if traces.publish(number, rows) else 0


def _problems(config: ImportConfig, frame: pl.DataFrame, layout: str) -> pl.DataFrame:
    """The problem of each trace, in the columns of `problems`."""
    import polars as pl

    from curate.problems.base import SCHEMA, to_schema
    from curate.problems.identity import add_problem_id, add_split

    name = config.source or _name(config.path)
    given = {
        "verifier": config.verifier or ("math" if layout in ("openr1", "openthoughts") else None),
        "domain": config.domain,
        "target_language": config.target_language,
        "source": name,
    }
    for column, value in given.items():
        own = [pl.col(column)] if column in frame.columns else []
        frame = frame.with_columns(pl.coalesce(*own, pl.lit(value, dtype=pl.String)).alias(column))
    if "reference" not in frame.columns:
        frame = frame.with_columns(reference=pl.lit(None, dtype=pl.String))
    # nothing can judge an answer without a reference
    frame = frame.with_columns(
        verifier=pl.when(pl.col("reference").is_not_null()).then(pl.col("verifier"))
    )
    known = to_schema(frame.select(c for c in SCHEMA if c in frame.columns))
    known, _ = add_split(add_problem_id(known), float(config.held_out))
    return known.select(list(SCHEMA))


def _traces(
    config: ImportConfig, frame: pl.DataFrame, traces: Version, seen: _Seen
) -> pl.DataFrame:
    """Those traces that are not there yet, in columns of `traces`."""
    import polars as pl

    from curate.prompts.render import load_template
    from curate.warehouse.traces import with_parts

    if config.form:
        frame = frame.with_columns(form=pl.lit(config.form))
    pairs = list(frame.select("problem_id", "form", "completion").iter_rows())
    ids = [digest("import", *pair) for pair in pairs]
    places = [
        _count(seen, bytes.fromhex(i), bytes.fromhex(p))
        for i, (p, _, _) in zip(ids, pairs, strict=True)
    ]
    frame = frame.with_columns(
        trace_id=pl.Series(ids, dtype=pl.String), sample_index=pl.Series(places, dtype=pl.Int32)
    ).filter(pl.col("sample_index").is_not_null())
    seen.doubled += len(places) - frame.height
    labels = {
        form: load_template(config.template or TEMPLATES.get(form, "r1"), form).label()
        for form in frame["form"].unique()
    }
    model = [pl.col("model")] if "model" in frame.columns else []
    kept = [
        "trace_id",
        "problem_id",
        "sample_index",
        "form",
        "completion",
        "finish_reason",
        "completion_tokens",
    ]
    return with_parts(frame.with_columns(prompt=pl.lit(None, dtype=pl.String))).select(
        *[column for column in kept if column in frame.columns],
        *["reasoning", "answer"],
        attempt=pl.lit(0, pl.Int32),
        job_id=pl.lit(traces.version),
        recipe=pl.lit("import"),
        engine=pl.lit("import"),
        template=pl.col("form").replace_strict(labels, return_dtype=pl.String),
        model=pl.coalesce(*model, pl.lit(config.model, dtype=pl.String)),
        created_at=pl.lit(now()),
    )


def _tell(layout: str, found: dict[str, str], frame: pl.DataFrame) -> None:
    """What the columns were taken for, and the first row: a wrong mapping is seen at once."""
    pairs = ", ".join(f"{ours} = {theirs}" for ours, theirs in found.items())
    say(f"  layout {layout}: {pairs}")
    if frame.height:
        row = frame.row(0, named=True)
        say(
            f"  first trace: {str(row['question'])[:160]!r}\n            -> {str(row['completion'])[:240]!r}"
        )


def _run_stage(config: ImportConfig, context: Context) -> JobResult:
    return run(config.model_copy(update={"path": shipped_file(config.path)}), context)


STAGE = StageKind(config=partial(validate, ImportConfig), run=_run_stage, gives="traces")
