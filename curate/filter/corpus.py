"""Write a sealed corpus: the kept rows, with rendered prompts and completions in the corpus's form.

Rows are sorted by id. Texts are read slice by slice, each once, and wait in files until they are
sorted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import polars as pl

from curate.errors import CurateError, UsageError
from curate.filter.decide import FilterResult
from curate.filter.spill import ExternalSort, bounds_of, in_chunks, problem_key
from curate.prompts.conversations import Message, exchanges, last_answer
from curate.prompts.forms import Form, compose_expr
from curate.prompts.render import Example, Template, load_template, render, shipped
from curate.warehouse.identity import digest_listed
from curate.warehouse.latest import link_latest
from curate.warehouse.sql import joined_as_written

if TYPE_CHECKING:
    import duckdb

    from curate.warehouse import Version, Warehouse

PART_ROWS = 15_000
# Bytes of completions per part; prompt, completion and messages are in memory several times.
PART_BYTES = 16 << 20
_BATCH = 1_000  # rows with text that are read from the view at once
_RANGE = 2_000  # rows with text that are sorted at once
_TEXTS = ("completion", "reasoning", "answer", "form", "template", "question", "messages")


def write_corpus(
    warehouse: Warehouse,
    con: duckdb.DuckDBPyConnection,
    result: FilterResult,
    name: str,
    *,
    template: str | None = None,
    parents: Sequence[str] = (),
    config: dict[str, Any] | None = None,
    key: Any = None,
    view: str = "annotated",
    slices: Iterable[Any] = (),
) -> Version:
    """Seal `corpora/<name>/<version>` and its funnel; return the corpus version (the same one if
    nothing changed).

    Prompts are rendered again, without worked examples: with `template` (a name or a path), else
    with the template of the rule set, else with that of each trace. The version is the hash of the
    rule set, the kept traces, the text of the templates and `key` (whatever else determines the
    rows). `slices`: those given to `apply_rules`.
    """

    rules = result.rules.model_dump(mode="json")
    if rules["select"]["top"] is None:  # so that corpora of rule sets without it keep their version
        del rules["select"]["top"]
    templates = _templates(con, result, template, view)
    hashes = {label: used.hash for label, used in templates.items()}
    with _ordered_ids(result) as ids:
        listed = [
            (part["trace_id"].to_list() for part in ids()),
            (part["attempt"].to_list() for part in ids()),
        ]
        identity = digest_listed([name, rules, *listed, hashes, key])
    facts = {
        "parents": list(parents),
        "config": {"rules": rules, **(config or {}), "rule_set": rules},
    }
    version = warehouse.version("corpora", name, identity[:16], **facts)
    if not version.sealed:
        for number, rows in enumerate(
            corpus_rows(con, result, name, template, view=view, slices=slices)
        ):
            version.publish(f"{number:05d}", rows)
        version.seal()
    funnel = result.funnel.with_columns(corpus=pl.lit(name), corpus_version=pl.lit(version.version))
    warehouse.write(
        "funnel", name, funnel, key=[version.ref, funnel.to_dicts()], parents=[version.ref]
    )
    _write_overlaps(warehouse, result, name, version)
    link_latest(warehouse, name)
    return version


def _write_overlaps(
    warehouse: Warehouse, result: FilterResult, name: str, version: Version
) -> None:
    """Write the overlaps of contaminated problems with the benchmarks, if there are any."""
    step = result.rules.select.contamination
    if step is None or result.overlaps.is_empty():
        return
    rows = result.overlaps.select(
        pl.all(),
        corpus=pl.lit(name),
        corpus_version=pl.lit(version.version),
        benchmarks=pl.lit(", ".join(step.benchmarks)),
        n=pl.lit(step.n, dtype=pl.Int32),
    )
    warehouse.write(
        "contamination", name, rows, key=[version.ref, rows.to_dicts()], parents=[version.ref]
    )


def corpus_rows(
    con: duckdb.DuckDBPyConnection,
    result: FilterResult,
    name: str,
    template: str | None = None,
    view: str = "annotated",
    part_rows: int = PART_ROWS,
    slices: Iterable[Any] = (),
) -> Iterator[pl.DataFrame]:
    """Yield the kept rows in the columns of schemas/corpora.sql, sorted by id, `part_rows` at a
    time.
    """
    templates = _templates(con, result, template, view)
    columns = {str(row[0]) for row in con.sql(f"DESCRIBE {view}").fetchall()}
    texts = [column for column in _TEXTS if column in columns]
    if result.rules.kind == "rl":
        texts = [column for column in texts if column not in ("completion", "reasoning", "answer")]
    longest = "completion" if "completion" in texts else "question"
    ordered = ExternalSort(_bounds(result, _RANGE), result.rows.folder)
    try:
        for kept in kept_by_slice(result, slices):
            for batch in _with_texts(con, kept, texts, view):
                ordered.add(batch)
        for part in in_chunks(_one_each(ordered, result), part_rows, PART_BYTES, longest):
            yield _shape_rows(part, result, name, templates)
    finally:
        ordered.remove()


def kept_by_slice(result: FilterResult, slices: Iterable[Any]) -> Iterator[pl.DataFrame]:
    """Yield the kept rows of each slice while the view shows it; without slices, all kept rows."""
    numbers = range(result.rows.parts)
    if not slices or result.rows.parts == 1:
        yield from map(result.rows.kept, numbers)
        return
    for number, _ in zip(numbers, slices, strict=True):
        yield result.rows.kept(number)


def _with_texts(
    con: duckdb.DuckDBPyConnection, kept: pl.DataFrame, texts: list[str], view: str
) -> Iterator[pl.DataFrame]:
    con.register("_kept", kept.to_arrow())
    try:
        selected = ", ".join(["k.*", *(f'a."{column}"' for column in texts)])
        with joined_as_written(con):
            reader = con.sql(
                f"SELECT {selected} FROM {view} a JOIN _kept k ON a.trace_id = k.trace_id AND "
                "a.attempt = k.attempt"
            ).to_arrow_reader(_BATCH)
            for batch in reader:
                yield pl.DataFrame(pl.from_arrow(batch))
    finally:
        con.unregister("_kept")


def _bounds(result: FilterResult, rows: int) -> pl.Series:
    return bounds_of((result.rows.kept(number) for number in range(result.rows.parts)), rows)


@contextmanager
def _ordered_ids(result: FilterResult) -> Iterator[Callable[[], Iterator[pl.DataFrame]]]:
    """Return a function that iterates over the ids of the corpus's rows in order."""
    ordered = ExternalSort(_bounds(result, 16 * PART_ROWS), result.rows.folder)
    try:
        for number in range(result.rows.parts):
            ordered.add(result.rows.kept(number).select("trace_id", "attempt", "problem_id"))
        yield lambda: _one_each(ordered, result)
    finally:
        ordered.remove()


def _one_each(parts: Iterable[pl.DataFrame], result: FilterResult) -> Iterator[pl.DataFrame]:
    """Yield rows in the order of the corpus; for RL, the first row of each problem."""
    if result.rules.kind != "rl":
        yield from parts
        return
    seen = pl.Series("problem_id", [], dtype=pl.UInt64)
    for part in parts:
        first = part.unique("problem_id", keep="first", maintain_order=True)
        keys = first.select(problem_key()).to_series()
        new = ~keys.is_in(seen.implode())
        seen = pl.concat([seen, keys.filter(new)])
        yield first.filter(new)


def _templates(
    con: duckdb.DuckDBPyConnection, result: FilterResult, template: str | None, view: str
) -> dict[str, Template]:
    """Return the template of each label in the column `template`."""
    wanted, form = template or result.rules.output.template, result.rules.output.form
    labels = con.sql(
        f"SELECT DISTINCT template, form FROM {view} WHERE template IS NOT NULL"
    ).fetchall()
    names = {label: wanted or label.partition("@")[0] for label, _ in labels}
    if unknown := sorted(set() if wanted else set(names.values()) - set(shipped())):
        # Not looked up as a file: a row must not choose what is read.
        raise UsageError(
            f"traces were sampled with the template {', '.join(unknown)}, which does not ship with "
            "curate: give its path, or another template for the corpus, with template=PATH"
        )
    return {label: load_template(names[label], form or own) for label, own in labels}


def _shape_rows(
    rows: pl.DataFrame, result: FilterResult, name: str, templates: dict[str, Template]
) -> pl.DataFrame:
    output, reinforcement = result.rules.output, result.rules.kind == "rl"
    if reinforcement:  # rows are prompts only; completions are not read
        rows = rows.with_columns(
            pl.lit("").alias(column) for column in ("completion", "reasoning", "answer")
        )
    if rows["question"].null_count() or rows["template"].null_count():
        raise CurateError(
            f"{rows.filter(pl.col('question').is_null() | pl.col('template').is_null()).height} "
            "kept traces have no "
            "problem or no template in the warehouse, so their prompts cannot be rendered"
        )
    # Rendering is text work on each distinct question, not on each trace.
    questions = rows.select("template", "question").unique()
    prompts = [render(templates[label], question) for label, question in questions.iter_rows()]
    questions = questions.with_columns(prompt=pl.Series(prompts, dtype=pl.String))
    rows = rows.join(questions, on=["template", "question"], how="left", maintain_order="left")
    rows = _with_earlier_turns(rows, templates)
    if output.form is not None:
        rows = rows.with_columns(completion=_in_form(output.form), form=pl.lit(output.form))
    # Sampled completions begin like this (see curate.prompts.render.join): with one space, unless
    # the prompt ends in white space.
    text = pl.col("completion").str.strip_chars()
    gap = pl.when(pl.col("prompt").str.contains(r"\s\z")).then(pl.lit("")).otherwise(pl.lit(" "))
    rows = rows.with_columns(completion=gap + text, _text=text)
    turns = pl.col("_earlier")
    if not reinforcement:
        turns = turns.list.concat(pl.concat_list(_turn("assistant", pl.col("_text"))))
    rows = rows.with_columns(corpus=pl.lit(name), weight=pl.lit(1.0), messages=turns)
    if reinforcement:
        nothing = pl.lit(None, dtype=pl.String)
        rows = rows.with_columns(
            completion=pl.lit(""), trace_id=nothing, attempt=pl.lit(None, dtype=pl.Int32)
        )
    return rows.select(column for column in CORPUS_COLUMNS if column in rows.columns)


CORPUS_COLUMNS = (
    "corpus", "trace_id", "attempt", "problem_id", "source", "domain", "recipe", "form", "prompt",
    "completion", "messages", "quality", "difficulty", "weight",
)  # fmt: skip


def _turn(role: str, content: pl.Expr) -> pl.Expr:
    return pl.struct(pl.lit(role).alias("role"), content.alias("content"))


def _with_earlier_turns(rows: pl.DataFrame, templates: dict[str, Template]) -> pl.DataFrame:
    """Add `_earlier`: the turns before the completion, as chat messages.

    The prompt of a conversation is rendered again with all its turns: earlier turns of the
    assistant are earlier turns of the template, and system messages and tool results belong to the
    user's turn next to them.
    """
    rows = rows.with_columns(_earlier=pl.concat_list(_turn("user", pl.col("question"))))
    if "messages" not in rows.columns:
        return rows
    places = (rows.get_column("messages").list.len().fill_null(0) > 2).arg_true()
    if places.is_empty():
        return rows
    prompts, earlier = rows.get_column("prompt").to_list(), rows.get_column("_earlier").to_list()
    for place in places:
        talk = [Message(**turn) for turn in rows["messages"][place]]
        before = talk[: last_answer(talk)]
        examples, question = exchanges(before)
        template = templates[rows["template"][place]]
        prompts[place] = render(template, question, [Example(*pair) for pair in examples])
        earlier[place] = [{"role": turn.role, "content": turn.text()} for turn in before]
    return rows.with_columns(
        pl.Series("prompt", prompts, dtype=pl.String),
        pl.Series("_earlier", earlier, dtype=rows.schema["_earlier"]),
    )


def _in_form(form: str) -> pl.Expr:
    """Return the completion in `form`: unchanged if the trace has that form, else composed from its
    parts.

    A plain completion is the answer alone.
    """
    shape = Form.of(form)
    reasoning = pl.lit("") if shape.name == "plain" else pl.col("reasoning")
    composed = compose_expr(reasoning, pl.col("answer"), shape)
    return pl.when(pl.col("form") == form).then(pl.col("completion")).otherwise(composed)
