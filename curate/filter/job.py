"""The filter job: rules over annotated traces to a sealed, versioned corpus, with its funnel stored beside it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from curate.config import Config
from curate.errors import UsageError
from curate.filter.engine import FilterResult, apply_rules, explain
from curate.filter.rules import RuleSet, load_rules
from curate.jobs import Context, JobResult
from curate.progress import duration
from curate.warehouse.sql import connect, quote

if TYPE_CHECKING:
    import duckdb
    import polars as pl


class FilterConfig(Config):
    """Which rules, over which traces (datasets of the table `traces`; all by default), to which corpus."""

    rules: str
    corpus: str | None = None  # name of the corpus; by default that of the rule set
    traces: list[str] = []
    where: str | None = None  # one more SQL condition on the view `annotated`
    set: dict[str, Any] = {}  # values of the rule set to replace, by dotted place
    template: str | None = None  # of the prompts in the corpus; by default the rule set's, else the trace's own


def _prepare(config: FilterConfig) -> tuple[RuleSet, str | None]:
    rules = load_rules(config.rules, config.set)
    conditions = [f"({config.where})"] if config.where else []
    if config.traces:
        conditions.append(f"dataset IN ({', '.join(quote(t) for t in config.traces)})")
    return rules, " AND ".join(conditions) or None


def explain_trace(config: FilterConfig, context: Context, trace_id: str) -> str:
    """Why one trace was kept or dropped, as text."""
    rules, where = _prepare(config)
    with connect(context.warehouse) as connection:
        return str(explain(connection, rules, trace_id, where))


def run(config: FilterConfig, context: Context) -> JobResult:
    """Decide, print the funnel, and seal the corpus.

    Raises CurateError naming the rule that dropped most where nothing is kept; then no corpus is made.
    """
    from curate.filter.funnel import print_funnel

    started = time.monotonic()
    rules, where = _prepare(config)
    name = config.corpus or rules.name
    with connect(context.warehouse) as connection:
        found = apply_rules(connection, rules, where)
        print_funnel(found.funnel)
        rows = _corpus_rows(connection, found, name, config)
        parents = _parents(connection, found)
    facts = {"parents": parents, "config": {**config.model_dump(), "rule_set": rules.model_dump(mode="json")}}
    key = [name, rules.model_dump(mode="json"), config.model_dump(), rows.hash_rows(1, 2, 3, 4).to_list()]
    version = context.warehouse.write("corpora", name, rows, key=key, **facts)
    import polars as pl

    funnel = found.funnel.with_columns(corpus=pl.lit(name), corpus_version=pl.lit(version.version))
    context.warehouse.write("funnel", name, funnel, key=version.ref, parents=[version.ref])
    result = JobResult(refs=[version.ref], rows=len(rows), seconds=time.monotonic() - started)
    result.facts = {"corpus": f"{name}@{version.version}"}
    result.summary = (
        f"{len(rows)} of {len(found.decisions)} traces kept, {rows['problem_id'].n_unique()} problems, "
        f"corpus {name}@{version.version}, {duration(result.seconds)}"
    )
    return result


def _corpus_rows(con: duckdb.DuckDBPyConnection, found: FilterResult, name: str, config: FilterConfig) -> pl.DataFrame:
    """The kept traces in the columns of `corpora`: prompts rendered anew, without the worked examples."""
    import polars as pl

    from curate.prompts.render import join, load_template, render

    con.register("kept", found.kept.select("trace_id", "attempt", pl.col("quality")).to_arrow())
    rows = con.sql(
        "SELECT k.trace_id, k.attempt, a.problem_id, a.source, a.domain, a.recipe, a.form, a.template, a.question, "
        "a.completion, a.difficulty, k.quality FROM kept k JOIN annotated a USING (trace_id, attempt) "
        "ORDER BY a.problem_id, a.sample_index, k.trace_id"
    ).pl()
    if rows["question"].null_count():
        raise UsageError("some kept traces have no problem in the warehouse, so that no prompt can be made for them")
    wanted = config.template or found.rules.output.template
    form = found.rules.output.form
    templates = {
        label: load_template(wanted or str(label).partition("@")[0], form if wanted else own)
        for label, own in rows.select("template", "form").unique().iter_rows()
    }
    asked = rows.select("template", "question", "completion").iter_rows()
    prompts = [render(templates[label], question) for label, question, _ in asked]
    texts = [text.strip() for text in rows["completion"]]
    completions = [join(prompt, text)[len(prompt) :] for prompt, text in zip(prompts, texts, strict=True)]
    return rows.select(
        pl.lit(name).alias("corpus"),
        *("trace_id", "attempt", "problem_id", "source", "domain", "recipe", "form"),
        pl.Series("prompt", prompts, dtype=pl.String),
        pl.Series("completion", completions, dtype=pl.String),
        pl.concat_list(
            pl.struct(role=pl.lit("user"), content=pl.col("question")),
            pl.struct(role=pl.lit("assistant"), content=pl.Series(texts, dtype=pl.String)),
        ).alias("messages"),
        pl.col("quality").cast(pl.Float64),
        pl.col("difficulty").cast(pl.Float64),
        pl.lit(1.0).alias("weight"),
    )


def _parents(con: duckdb.DuckDBPyConnection, found: FilterResult) -> list[str]:
    """The versions of traces that kept rows come from."""
    con.register("kept_ids", found.kept.select("trace_id", "attempt").to_arrow())
    rows = con.sql(
        "SELECT DISTINCT 'traces/' || dataset || '/' || version FROM traces JOIN kept_ids USING (trace_id, attempt) "
        "ORDER BY 1"
    ).fetchall()
    return [ref for (ref,) in rows]
