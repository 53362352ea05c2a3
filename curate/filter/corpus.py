"""From decisions to a sealed corpus: the kept rows, with prompts rendered anew and completions in the corpus's form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from curate.errors import CurateError
from curate.filter.engine import FilterResult
from curate.prompts.forms import Form
from curate.prompts.render import Template, load_template, render

if TYPE_CHECKING:
    import duckdb

    from curate.warehouse import Version, Warehouse

PART_ROWS = 15_000  # rows whose text is in memory at once: prompt, completion and messages are held several times
_TEXTS = ("completion", "reasoning", "answer", "form", "template", "question")


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
) -> Version:
    """Seal `corpora/<name>/<version>` and its funnel; returns the corpus version (the same one when nothing changed).

    Prompts are rendered anew, without worked examples, by `template` (a name or a path), else by the rule set's, else
    by the one that each trace was asked with. The version is the hash of the rule set, the kept traces, the text of the
    templates and `key` (whatever else determines the rows).
    """
    from curate.warehouse.identity import digest

    kept = _ordered(result)
    rules = result.rules.model_dump(mode="json")
    templates = _templates(con, result, template, view)
    hashes = {label: found.hash for label, found in templates.items()}
    identity = [name, rules, kept["trace_id"].to_list(), kept["attempt"].to_list(), hashes, key]
    facts = {"parents": list(parents), "config": {"rules": rules, **(config or {}), "rule_set": rules}}
    version = warehouse.version("corpora", name, digest(identity)[:16], **facts)
    if not version.sealed:
        for number, rows in enumerate(corpus_rows(con, result, name, template, view=view)):
            version.publish(f"{number:05d}", rows)
        version.seal()
    funnel = result.funnel.with_columns(corpus=pl.lit(name), corpus_version=pl.lit(version.version))
    warehouse.write("funnel", name, funnel, key=[version.ref, funnel.to_dicts()], parents=[version.ref])
    _write_overlaps(warehouse, result, name, version)
    return version


def _write_overlaps(warehouse: Warehouse, result: FilterResult, name: str, version: Version) -> None:
    """What contaminated problems share with the benchmarks, where the rule set looks for that and found any."""
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
    warehouse.write("contamination", name, rows, key=[version.ref, rows.to_dicts()], parents=[version.ref])


def corpus_rows(
    con: duckdb.DuckDBPyConnection,
    result: FilterResult,
    name: str,
    template: str | None = None,
    view: str = "annotated",
    part_rows: int = PART_ROWS,
) -> Iterator[pl.DataFrame]:
    """The kept rows in the columns of schemas/corpora.sql, in the order of their ids, `part_rows` at a time."""
    kept = _ordered(result)
    templates = _templates(con, result, template, view)
    known = {str(row[0]) for row in con.sql(f"DESCRIBE {view}").fetchall()}
    texts = [column for column in _TEXTS if column in known and column not in kept.columns]
    for part in kept.iter_slices(part_rows):
        con.register("_kept", part.with_row_index("_n").to_arrow())
        try:
            selected = ", ".join(["k.*", *(f'a."{column}"' for column in texts)])
            rows = con.sql(
                f"SELECT {selected} FROM _kept k JOIN {view} a ON a.trace_id = k.trace_id AND a.attempt = k.attempt "
                "ORDER BY k._n"
            ).pl()
        finally:
            con.unregister("_kept")
        yield _shape_rows(rows.drop("_n"), result, name, templates)


def _ordered(result: FilterResult) -> pl.DataFrame:
    """Kept traces in an order of their own; for RL, one row a problem."""
    kept = result.kept.sort("trace_id", "attempt")
    return kept.unique("problem_id", keep="first", maintain_order=True) if result.rules.kind == "rl" else kept


def _templates(
    con: duckdb.DuckDBPyConnection, result: FilterResult, template: str | None, view: str
) -> dict[str, Template]:
    """The template of each label in the column `template`."""
    wanted, form = template or result.rules.output.template, result.rules.output.form
    labels = con.sql(f"SELECT DISTINCT template, form FROM {view} WHERE template IS NOT NULL").fetchall()
    return {label: load_template(wanted or label.partition("@")[0], form or own) for label, own in labels}


def _shape_rows(rows: pl.DataFrame, result: FilterResult, name: str, templates: dict[str, Template]) -> pl.DataFrame:
    output, reinforcement = result.rules.output, result.rules.kind == "rl"
    if rows["question"].null_count() or rows["template"].null_count():
        raise CurateError(
            f"{rows.filter(pl.col('question').is_null() | pl.col('template').is_null()).height} kept traces have no "
            "problem or no template in the warehouse, so that no prompt can be made for them"
        )
    # Rendering is text work on each distinct question, not on each trace.
    asked = rows.select("template", "question").unique()
    prompts = [render(templates[label], question) for label, question in asked.iter_rows()]
    asked = asked.with_columns(prompt=pl.Series(prompts, dtype=pl.String))
    rows = rows.join(asked, on=["template", "question"], how="left", maintain_order="left")
    if output.form is not None:
        rows = rows.with_columns(completion=_in_form(output.form), form=pl.lit(output.form))
    # As sampled completions begin (see curate.prompts.render.join): one space, unless the prompt ends in white space.
    text = pl.col("completion").str.strip_chars()
    gap = pl.when(pl.col("prompt").str.contains(r"\s\z")).then(pl.lit("")).otherwise(pl.lit(" "))
    rows = rows.with_columns(completion=gap + text, _text=text)
    turns = [_turn("user", pl.col("question"))]
    if not reinforcement:
        turns.append(_turn("assistant", pl.col("_text")))
    rows = rows.with_columns(corpus=pl.lit(name), weight=pl.lit(1.0), messages=pl.concat_list(turns))
    if reinforcement:
        nothing = pl.lit(None, dtype=pl.String)
        rows = rows.with_columns(completion=pl.lit(""), trace_id=nothing, attempt=pl.lit(None, dtype=pl.Int32))
    return rows.select(column for column in CORPUS_COLUMNS if column in rows.columns)


CORPUS_COLUMNS = (
    "corpus", "trace_id", "attempt", "problem_id", "source", "domain", "recipe", "form", "prompt", "completion",
    "messages", "quality", "difficulty", "weight",
)  # fmt: skip


def _turn(role: str, content: pl.Expr) -> pl.Expr:
    return pl.struct(pl.lit(role).alias("role"), content.alias("content"))


def _in_form(form: str) -> pl.Expr:
    """The completion in `form`: as it is where the trace was asked for in it, else put together from its parts."""
    shape = Form.of(form)
    reasoning, answer = pl.col("reasoning").fill_null(""), pl.col("answer").fill_null("")
    if shape.name == "plain":
        made = answer
    elif shape.name == "r1-zero":
        made = pl.format("<think> {} </think> <answer> {} </answer>", reasoning, answer)
    else:
        made = pl.concat_str(pl.lit(f"{shape.open}\n"), reasoning, pl.lit(f"\n{shape.close}\n\n"), answer)
    return pl.when(pl.col("form") == form).then(pl.col("completion")).otherwise(made)
