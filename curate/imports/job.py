"""Import existing traces into the tables, to annotate, filter and train on them like sampled ones.

    curate import traces.jsonl                     # the format is detected from the columns
    curate import data/ columns.question=task columns.completion=text verifier=math
    curate import owner/name subset=default limit=1000

Files are read in parts: only the ids of the traces of a large file are in memory. The id of a
trace is the hash of its data set, problem and text. Importing again, or importing a file that has
grown, adds only what is new, and the same text in two data sets is two traces.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field, field_validator

from curate.config import Config, validate
from curate.engines.models import is_hub_id
from curate.errors import CurateError, UsageError, did_you_mean
from curate.files import Reading, data_files, kind_of, read_parts, stem_of
from curate.imports.columns import Table, find_columns, find_labels, model_columns
from curate.imports.formats import Layout, Plan, choose_layout, fields_read, read_traces
from curate.job import Context, JobResult, StageKind
from curate.problems.base import SCHEMA, ReferencePattern, VerifierName, to_schema
from curate.problems.hub import opened, saved
from curate.problems.identity import add_problem_id, add_split
from curate.progress import counted, duration, say
from curate.prompts.conversations import last_answer, messages_of
from curate.prompts.forms import Form
from curate.prompts.render import load_template
from curate.warehouse import Version
from curate.warehouse.identity import digest
from curate.warehouse.names import now
from curate.warehouse.schemas import shipped_file
from curate.warehouse.traces import with_parts

# Form to the template that prompts of a corpus are rendered with.
TEMPLATES = {"r1": "r1", "r1-zero": "r1-zero", "plain": "plain"}


class ImportConfig(Config):
    """The data to import, and the meaning of its columns if their names do not show it."""

    path: str = Field(
        description="a file, a directory of files, a directory written by save_to_disk, or a Hub id"
    )
    name: str | None = Field(
        None, description="name of the data sets of problems and traces; default: the file's"
    )
    layout: Layout | str = Field("auto", description="the format; auto: detected from the columns")
    columns: dict[str, str] = Field(
        default_factory=dict, description="our field: their column (`a.b` for nested ones)"
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="label: column of a judgement or score, for rules (`labels.NAME`)",
    )
    form: str | None = Field(None, description="r1, r1-zero or plain; default: each text's own")
    delimiters: tuple[str, str] | None = Field(
        None, description="delimiters of the reasoning, in addition to the common ones"
    )
    reference_pattern: ReferencePattern | None = Field(
        None, description="regular expression whose first group is the reference, e.g. '#### (.+)'"
    )
    template: str | None = Field(
        None, description="template of prompts made from these traces; default: that of the form"
    )
    model: str | None = Field(None, description="author of the traces, if no column names it")
    verifier: VerifierName | None = Field(None, description="verifier of problems that name none")
    domain: str | None = Field(None, description="domain of problems that name none")
    target_language: str | None = Field(
        None, description="target_language of problems that name none"
    )
    source: str | None = Field(
        None, description="source of problems that name none; default: the name"
    )
    held_out: float = Field(
        0.0, ge=0, lt=1, description="share of the questions that are held out, drawn by hash"
    )
    subset: str | None = Field(None, description="configuration of a data set from the Hub")
    part: str = Field("train", description="split of a data set from the Hub")
    revision: str | None = Field(None, description="revision of a data set from the Hub")
    limit: int | None = Field(None, ge=1, description="maximum number of rows")
    header: bool | None = Field(
        None, description="whether the first row of CSV and TSV files holds names; null: detected"
    )
    rows: str | None = Field(None, description="the key of a JSON object that holds the rows")
    skip_invalid: bool = Field(
        False, description="leave out lines that are not JSON objects instead of failing"
    )

    @field_validator("form")
    @classmethod
    def _valid_form(cls, form: str | None) -> str | None:
        if form is not None:
            Form.of(form)
        return form

    @field_validator("layout")
    @classmethod
    def _valid_layout(cls, layout: str) -> str:
        if layout not in (names := ("auto", *Layout.__args__)):  # type: ignore[attr-defined]
            raise ValueError(f"choose one of {', '.join(names)}")
        return layout


@dataclass
class _Seen:
    """Ids that the warehouse holds already, and counts of this import."""

    traces: set[bytes] = field(default_factory=set)
    problems: set[bytes] = field(default_factory=set)
    samples: dict[bytes, int] = field(default_factory=dict)  # of each problem
    counts: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    repeated: int = 0
    without_reference: int = 0
    without_verifier: int = 0


def run(config: ImportConfig, context: Context) -> JobResult:
    """Import new rows. The versions in the result hold the problems and traces of the file."""
    started = time.monotonic()
    name = config.name or _name(config.path)
    where = Path(config.path).expanduser()
    check_path(config.path)
    content = _content(config, where)
    version = digest("import", content, config.model_dump(mode="json"))[:16]
    facts: dict[str, Any] = {"config": config.model_dump(mode="json"), "content": content}
    problems = context.warehouse.version("problems", name, version, **facts)
    traces = context.warehouse.version("traces", name, version, parents=[problems.ref], **facts)
    result = JobResult(refs=[problems.ref, traces.ref])
    result.facts = {"family": name, "value": name, "problems": f"{name}@{version}"}
    if traces.sealed:
        result.summary = (
            f"nothing new: {counted(traces.manifest['rows'], 'trace')} of {config.path} in "
            f"{traces.ref}"
        )
        return result
    _check_options(config, content, context.warehouse.versions("traces", name))
    seen = _stored(context, name, version)
    reading = Reading(header=config.header, rows=config.rows, skip_invalid=config.skip_invalid)
    plan: Plan | None = None
    for number, table in enumerate(_tables(config, where, reading)):
        plan = plan or _plan(config, table)
        result.rows += _part(config, table, plan, f"{number:05d}", problems, traces, seen)
    if plan is None or not seen.counts["imported"] + seen.repeated + seen.counts["problems"]:
        raise CurateError(
            f"{config.path}: none of {seen.rows} rows has a question and a trace"
            + "".join(f"; {n} {what}" for what, n in seen.counts.items() if n)
        )
    problems.seal()
    traces.seal()
    result.seconds = time.monotonic() - started
    seen.counts["that are not JSON objects"] += reading.skipped
    result.summary = _summary(config, seen, plan, traces, result)
    context.record(digest(traces.ref)[:24], "import", name, config.model_dump(), result)
    return result


# options that decide which rows are read; all others decide how a row is converted
_READING = ("path", "name", "limit", "skip_invalid", "held_out")


def _check_options(config: ImportConfig, content: list[Any], earlier: Sequence[Version]) -> None:
    """Raise `UsageError` if the same file is stored under this name, read with other options.

    Its rows would be stored twice: with another reference or verifier, a row is another trace.
    """
    options = config.model_dump(mode="json")
    for version in earlier:
        if not version.sealed or not version.manifest["rows"]:
            continue
        stored = version.manifest.get("config") or {}
        same = stored.get("path") == config.path or (
            version.manifest["facts"].get("content") == content
        )
        changed = [
            f"{option}: {_shown(stored.get(option))}, now {_shown(value)}"
            for option, value in options.items()
            if option not in _READING and option in stored and stored[option] != value
        ]
        if same and changed:
            name = version.dataset
            raise UsageError(
                f"{config.path} is in {version.ref} already, imported with other options "
                f"({'; '.join(changed)}). Imported again under this name, every row would be there "
                f"twice: give it another (name={name}-2), and narrow filters to that one "
                f"(traces='[{name}-2]')"
            )


def _shown(value: Any) -> str:
    return "none" if value is None or value == {} else str(value)


def check_path(path: str) -> None:
    """Raise UsageError if the path is neither a file, a folder nor a Hub id.

    `owner/name` is a Hub id, unless a folder `owner` exists.
    """
    where = Path(path).expanduser()
    of_hub = is_hub_id(path) and kind_of(path) is None and not where.parent.is_dir()
    if where.exists() or of_hub:
        return
    there = sorted(item.name for item in where.parent.glob("*")) if where.parent.is_dir() else []
    hint = did_you_mean(where.name, there)
    raise UsageError(
        f"nothing at '{path}': give a data file, a directory of them, or a Hub id{hint}"
    )


def _summary(
    config: ImportConfig, seen: _Seen, plan: Plan, traces: Version, result: JobResult
) -> str:
    """One line for the result, then one for every kind of row that is not a plain new trace."""
    counts = Counter(seen.counts)
    skipped = counts.pop("that are not JSON objects", 0)
    imported, problems = counts.pop("imported", 0), len(seen.problems)
    counts.pop("problems", 0)
    left_out = {
        what: counts.pop(what, 0)
        for what in list(counts)
        if what.startswith(("without", "that cannot")) and counts[what]
    }
    if plan.layout == "problems":
        head = f"{counted(problems, 'problem')}, no traces (no column holds any)"
    else:
        head = f"{counted(imported, 'trace')} of {counted(problems, 'problem')} in {traces.ref}"
    lines = [f"{counted(seen.rows + skipped, 'row')}: {head}, {duration(result.seconds)}"]
    lines += [f"  {count} {what}" for what, count in counts.items() if count]
    if seen.repeated:
        repeated = counted(seen.repeated, "trace was", "traces were")
        lines.append(f"  {repeated} there already (stored before, or repeated in the file)")
    lines += [f"  left out: {counted(count, 'row')} {what}" for what, count in left_out.items()]
    if skipped:
        lines.append(f"  left out: {counted(skipped, 'line')} without a JSON object (skip_invalid)")
    if seen.without_reference:
        have = counted(seen.without_reference, "problem has", "problems have")
        lines.append(f"  {have} no reference: nothing judges their answers")
    if seen.without_verifier:
        have = counted(seen.without_verifier, "problem has", "problems have")
        name = "names" if seen.without_verifier == 1 else "name"
        lines.append(
            f"  {have} a reference but {name} no verifier: say "
            "verifier=math (or choice, exact, code) to have their answers judged"
        )
    return "\n".join(lines)


def _name(path: str) -> str:
    """Derive a data set's name from a path or a Hub id."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", stem_of(path.rstrip("/"))).strip("-.") or "import"


def _content(config: ImportConfig, where: Path) -> list[Any]:
    """Hashes of the files that are read, or name and revision of a data set from the Hub."""
    if not where.exists():
        return [config.path, config.subset, config.part, config.revision]
    files = sorted(where.rglob("*.arrow")) if saved(where) else data_files([where])
    hashes = []
    for path in files:
        with path.open("rb") as stream:
            hashes.append(hashlib.file_digest(stream, "blake2b").hexdigest())
    return hashes


def _tables(config: ImportConfig, where: Path, reading: Reading) -> Iterator[Table]:
    """The rows in parts, in order, at most `limit` of them."""
    rest = config.limit or 1 << 60
    parts: Iterator[pl.DataFrame]
    if where.exists() and not saved(where):
        parts = _file_parts(data_files([where]), config, reading)
    else:
        parts = _datasets(config, where)
    for part in parts:
        if rest <= 0:
            return
        if part.height:
            yield Table(part.head(rest))
        rest -= part.height


def _file_parts(
    paths: list[Path], config: ImportConfig, reading: Reading
) -> Iterator[pl.DataFrame]:
    """Parts of files; nested columns of JSON come with their exact values if needed."""
    skipped = 0
    for path in paths:
        first = next(read_parts(path, reading=reading), None)
        if first is None:
            continue
        names = {
            column.split(".")[0] for column in _plan(config, Table(first), quiet=True).columns()
        }
        reading.exact = frozenset(names & set(first.columns))
        yield from read_parts(path, reading=reading)
        skipped += reading.skipped
    reading.skipped = skipped


def _datasets(config: ImportConfig, where: Path) -> Iterator[pl.DataFrame]:
    """A data set of the Hub, streamed, or one that `save_to_disk` wrote."""
    with opened(config.path, config.subset, config.part, config.revision, streaming=True) as data:
        for batch in data.with_format("arrow").iter(batch_size=2_000):
            yield pl.DataFrame(pl.from_arrow(batch))


def _plan(config: ImportConfig, table: Table, quiet: bool = False) -> Plan:
    """Plan how to read the table. Prints the plan, so that a wrong mapping is seen at
    once.
    """
    fields = find_columns(table.schema, config.columns, config.path)
    if unnamed := _unnamed(table, fields):
        fields |= unnamed
    layout = config.layout
    if layout == "auto":
        layout = choose_layout(table, fields, config.columns, config.path)
    layout = "messages" if layout == "sharegpt" else layout
    if layout == "messages" and config.layout == "auto" and _asks_only(table, fields):
        # turns that end with the user's are the prompt of a completion in another column
        fields["question"] = fields.pop("turns")
        layout = "pairs"
    taken = list(fields.values())
    labels = find_labels(table.schema, config.labels, taken, config.path)
    if "difficulty" in fields and table.is_text(fields["difficulty"]):
        highest = table.text(fields["difficulty"]).cast(pl.Float64, strict=False).max()
        if isinstance(highest, float) and highest > 1:  # ours ends at 1
            labels["difficulty"] = fields.pop("difficulty")
    if layout == "problems":  # labels are of traces
        labels = {}
    fields = {
        name: column for name, column in fields.items() if name in fields_read(layout, fields)
    }
    plan = Plan(
        layout,  # type: ignore[arg-type]
        fields,
        labels,
        (config.delimiters,) if config.delimiters else (),
        config.reference_pattern,
        frozenset(config.columns),
        config.skip_invalid,
    )
    if not quiet:
        pairs = [f"{ours} = {theirs}" for ours, theirs in fields.items()]
        pairs += [f"labels.{name} = {column}" for name, column in labels.items()]
        say(f"  layout {layout}: {', '.join(pairs)}")
        used = {column.split(".")[0] for column in plan.columns()}
        used |= set(model_columns(table.schema)) if layout == "models" else set()
        if unused := [name for name in table.schema if name not in used]:
            say(f"  not imported: {', '.join(unused[:20])}{', …' if len(unused) > 20 else ''}")
    return plan


def _asks_only(table: Table, fields: dict[str, str]) -> bool:
    """Whether no conversation has a turn of the assistant, which another column may hold."""
    if not {"completion", "reasoning"} & set(fields):
        return False
    try:
        talks = [messages_of(turns) for turns in table.values(fields["turns"])[:100] if turns]
    except ValueError:
        return False
    return bool(talks) and all(last_answer(talk) is None for talk in talks)


def _unnamed(table: Table, fields: dict[str, str]) -> dict[str, str]:
    """Two columns without names are a question and its reference, or its trace if they are long."""
    if list(table.schema) != ["column_1", "column_2"] or fields:
        return {}
    second = "reference" if table.mean_length("column_2") <= 60 else "completion"
    return {"question": "column_1", second: "column_2"}


def _part(
    config: ImportConfig,
    table: Table,
    plan: Plan,
    number: str,
    problems: Version,
    traces: Version,
    seen: _Seen,
) -> int:
    """Publish one part of the file; return the number of new traces."""
    frame, counts = read_traces(table, plan, config.path)
    if number == "00000" and frame.height:
        _show_first(frame)
    seen.rows += table.frame.height
    seen.counts.update(counts)
    missing = pl.col("question").is_null() | (pl.col("question").str.strip_chars() == "")
    if plan.layout != "problems":
        missing |= pl.col("completion").is_null()
    whole = frame.filter(~missing)
    counted = counts["without a turn of the assistant"] + counts["without a turn of the user"]
    if (empty := frame.height - whole.height - counted) > 0:
        seen.counts["without a question or a text"] += empty
    rows = _problems(config, whole, plan)
    first = [key not in seen.problems for key in map(bytes.fromhex, rows["problem_id"])]
    new = rows.filter(pl.Series(first, dtype=pl.Boolean)).unique(
        "problem_id", keep="first", maintain_order=True
    )
    seen.problems.update(map(bytes.fromhex, new["problem_id"]))
    unjudged = new.filter(pl.col("verifier").is_null())
    seen.without_reference += unjudged["reference"].null_count()
    seen.without_verifier += unjudged.height - unjudged["reference"].null_count()
    problems.publish(number, new.with_columns(verifier=_judging()))
    if plan.layout == "problems":
        seen.counts["problems"] += whole.height
        return 0
    imported = _traces(config, whole.with_columns(rows["problem_id"]), traces, seen)
    seen.counts["imported"] += imported.height
    return imported.height if traces.publish(number, imported) else 0


def _judging() -> pl.Expr:
    """Verifier of the problems that have a reference."""
    return pl.when(pl.col("reference").is_not_null()).then("verifier")


def _problems(config: ImportConfig, frame: pl.DataFrame, plan: Plan) -> pl.DataFrame:
    """The problem of each trace, in the columns of `problems`."""
    usual = "math" if plan.layout in ("openr1", "openthoughts") else None
    defaults = {
        "domain": config.domain,
        "target_language": config.target_language,
        "source": config.source or _name(config.path),
    }
    for column, value in defaults.items():
        own = [pl.col(column)] if column in frame.columns else []
        frame = frame.with_columns(pl.coalesce(*own, pl.lit(value, dtype=pl.String)).alias(column))
    if "reference" not in frame.columns:
        frame = frame.with_columns(reference=pl.lit(None, dtype=pl.String))
    mathematics = pl.when(pl.col("domain").str.to_lowercase() == "math").then(pl.lit("math"))
    own = [pl.col("verifier")] if "verifier" in frame.columns else []
    verifier = pl.coalesce(*own, pl.lit(config.verifier or usual, dtype=pl.String), mathematics)
    # without a reference nothing is judged, so the id must not depend on a verifier
    frame = frame.with_columns(verifier=pl.when(pl.col("reference").is_not_null()).then(verifier))
    # the same last question after different turns is another problem
    frame = frame.with_columns(identity="context")
    rows = to_schema(frame.select(c for c in (*SCHEMA, "identity") if c in frame.columns))
    rows, _ = add_split(add_problem_id(rows), float(config.held_out))
    return rows.select(list(SCHEMA))


def _stored(context: Context, name: str, version: str) -> _Seen:
    """Stored traces of earlier imports under this name."""
    seen = _Seen()
    for other in context.warehouse.versions("traces", name):
        if other.version != version:
            rows = other.read(["trace_id", "problem_id"]).collect()
            for trace_id, problem_id in rows.iter_rows():
                _count(seen, bytes.fromhex(trace_id), bytes.fromhex(problem_id))
    seen.problems.clear()
    return seen


def _count(seen: _Seen, trace: bytes, problem: bytes, older: bytes | None = None) -> int | None:
    """Sample index of a trace in its problem; None if it is stored already, even under its older
    id.
    """
    if trace in seen.traces or older in seen.traces:
        return None
    seen.traces.add(trace)
    index = seen.samples.get(problem, 0)
    seen.samples[problem] = index + 1
    return index


def _traces(
    config: ImportConfig, frame: pl.DataFrame, traces: Version, seen: _Seen
) -> pl.DataFrame:
    """The traces that are not stored yet, in columns of `traces`."""
    if config.form:
        frame = frame.with_columns(form=pl.lit(config.form))
    keys = list(frame.select("problem_id", "form", "completion").iter_rows())
    ids = [digest("import", traces.dataset, *key) for key in keys]
    # Earlier versions left the data set out of the ids: traces imported by them are not imported
    # again.
    older = [digest("import", *key) for key in keys]
    places = [
        _count(seen, bytes.fromhex(i), bytes.fromhex(key[0]), bytes.fromhex(o))
        for i, o, key in zip(ids, older, keys, strict=True)
    ]
    frame = frame.with_columns(
        trace_id=pl.Series(ids, dtype=pl.String), sample_index=pl.Series(places, dtype=pl.Int32)
    ).filter(pl.col("sample_index").is_not_null())
    seen.repeated += len(places) - frame.height
    labels = {
        form: load_template(config.template or TEMPLATES.get(form, "r1"), form).label()
        for form in frame["form"].unique()
    }
    kept = (
        *("trace_id", "problem_id", "sample_index", "form", "completion", "finish_reason"),
        *("completion_tokens", "messages", "tools", "labels"),
    )
    return with_parts(frame.with_columns(prompt=pl.lit(None, dtype=pl.String))).select(
        *[column for column in kept if column in frame.columns],
        *["reasoning", "answer"],
        attempt=pl.lit(0, pl.Int32),
        job_id=pl.lit(traces.version),
        recipe=pl.lit("import"),
        engine=pl.lit("import"),
        template=pl.col("form").replace_strict(labels, return_dtype=pl.String),
        model=pl.coalesce("model", pl.lit(config.model, dtype=pl.String)),
        created_at=pl.lit(now()),
    )


def _show_first(frame: pl.DataFrame) -> None:
    row = frame.row(0, named=True)
    say(f"  first row: {str(row['question'])[:160]!r}")
    if row["completion"] is not None:
        say(f"          -> {row['completion'][:240]!r}")


def _run_stage(config: ImportConfig, context: Context) -> JobResult:
    return run(config.model_copy(update={"path": shipped_file(config.path)}), context)


STAGE = StageKind(config=partial(validate, ImportConfig), run=_run_stage, gives="traces")
