"""Figures of the report, queried from the warehouse. Nothing here returns text of models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb
import polars as pl

from curate.errors import CurateError, UsageError
from curate.filter.decide import apply_rules
from curate.filter.expressions import check_expression
from curate.filter.job import FilterConfig, prepare
from curate.warehouse.sql import quote

if TYPE_CHECKING:
    from curate.warehouse import Warehouse

# Curves over training: title, SQL over one row of `annotated` joined with its rollout (r), and what
# it means.
CURVES = (
    ("accuracy", "avg((a.verdict = 'correct')::INT)", "share of rollouts with a correct answer"),
    ("reward", "avg(r.reward)", "weighted sum of the run's own components"),
    ("length", "avg(a.completion_tokens)", "sampled tokens per completion"),
    ("well-formed", "avg(a.well_formed::INT)", "share in the requested form"),
    (
        "mixed languages",
        "avg(a.mixed_language::INT)",
        "share whose reasoning moves between languages",
    ),
    (
        "target language",
        "avg(a.target_language_share)",
        "share of the reasoning's words in the problem's language",
    ),
    ("steps", "avg(a.step_count)", "sentences or lines of reasoning with content"),
    ("reflection", "avg(a.reflection_count)", "phrases of doubt and pause per trace"),
    ("verification", "avg(a.verification_count)", "phrases of checking per trace"),
    ("truncated", "avg((a.finish_reason = 'length')::INT)", "share cut off by the length limit"),
)

# Signals whose distributions are drawn for kept and dropped.
SIGNALS = (
    "completion_tokens",
    "words",
    "step_count",
    "reflection_count",
    "verification_count",
    "target_language_share",
    "dominant_language_share",
    "duplicate_5_gram_share",
    "compression",
    "loop_share",
    "longest_paragraph",
    "quality",
)
BINS = 24


@dataclass(frozen=True)
class Corpus:
    """A corpus, the rules that selected it, and their decision about every trace they saw."""

    name: str
    version: str
    rules: Any  # RuleSet
    decisions: pl.DataFrame  # trace_id, attempt, dropped_by
    changed: bool  # today the rules decide differently than when the corpus was made


def curves(con: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    """One row per run and policy step: run_id, name, policy_step, rollouts, one column per curve.

    Only traces listed in `rollouts` count. Signals that were not measured give nulls.
    """
    columns = ", ".join(f'{sql} AS "{name}"' for name, sql, _ in CURVES)
    return con.sql(
        f"""
        SELECT r.run_id, coalesce(any_value(m.name), r.run_id) AS name, r.policy_step,
               count(*) AS rollouts, {columns}
        FROM rollouts r
        JOIN annotated a ON a.trace_id = r.trace_id
        LEFT JOIN (SELECT run_id, any_value(name) AS name FROM models
                   WHERE run_id IS NOT NULL GROUP BY run_id) m
               ON m.run_id = r.run_id
        GROUP BY r.run_id, r.policy_step ORDER BY r.run_id, r.policy_step
        """
    ).pl()


def funnels(con: duckdb.DuckDBPyConnection) -> list[pl.DataFrame]:
    """The funnel of each corpus version, summed over sources, newest version first."""
    frame = con.sql(
        "SELECT f.corpus, f.corpus_version, f.rules, f.position, f.rule, any_value(f.predicate) "
        "AS predicate, "
        "sum(f.traces)::BIGINT AS traces, sum(f.drops_alone)::BIGINT AS drops_alone, "
        "sum(f.drops_first)::BIGINT AS drops_first, sum(f.remaining)::BIGINT AS remaining, "
        "any_value(m.sealed_at) AS sealed_at "
        "FROM funnel f LEFT JOIN manifests m ON m.ref = 'corpora/' || f.corpus || '/' || "
        "f.corpus_version "
        "GROUP BY f.corpus, f.corpus_version, f.rules, f.position, f.rule"
    ).pl()
    parts = frame.partition_by("corpus", "corpus_version") if frame.height else []
    return sorted(
        (p.sort("position") for p in parts), key=lambda p: str(p["sealed_at"][0]), reverse=True
    )


def evaluations(con: duckdb.DuckDBPyConnection, most: int = 6) -> list[tuple[str, pl.DataFrame]]:
    """The newest evaluations, each as (dataset and id, rows of the table)."""
    frame = con.sql("SELECT * FROM evaluations").pl()
    names = dict(
        con.sql("SELECT version, dataset FROM manifests WHERE \"table\" = 'evaluations'").fetchall()
    )
    if frame.is_empty():
        return []
    parts = sorted(
        frame.partition_by("evaluation_id"), key=lambda p: str(p["created_at"][0]), reverse=True
    )
    result = []
    for part in parts[:most]:
        key = part["evaluation_id"][0]
        result.append((f"{names.get(key, 'evaluation')} ({key[:8]})", part))
    return result


def corpora(
    warehouse: Warehouse, con: duckdb.DuckDBPyConnection, names: list[str] | None = None
) -> list[Corpus]:
    """The newest version of each corpus, with the decisions that its rules make about the traces of
    today.
    """
    wanted = (
        names
        if names is not None
        else sorted({v.dataset for v in warehouse.versions("corpora", sealed=True)})
    )
    result = []
    for name in wanted:
        version = warehouse.latest("corpora", name)
        config = version.manifest.get("config") or {}
        fields = {
            k: v for k, v in config.items() if k in FilterConfig.model_fields and v is not None
        }
        if not isinstance(fields.get("rules"), str):
            continue  # not made by `curate filter`
        try:
            rules, where = prepare(FilterConfig(**fields), warehouse)
            decided = apply_rules(con, rules, where)
        except (CurateError, ValueError):
            continue  # its rule file or its traces no longer exist
        kept = set(version.read(["trace_id"]).collect()["trace_id"].drop_nulls())
        now = set(decided.kept["trace_id"])
        result.append(
            Corpus(
                version.dataset,
                version.version,
                rules,
                decided.decisions,
                bool(kept) and kept != now,
            )
        )
    return result


def distributions(
    con: duckdb.DuckDBPyConnection, corpus: Corpus
) -> list[tuple[str, list[float], list[int], list[int]]]:
    """(signal, bin edges, kept per bin, dropped per bin) of each signal that varies.

    Bins span the 0.5th to the 99.5th percentile, so that one long trace does not flatten the rest;
    values outside count in the first and the last bin.
    """
    con.register("_decisions", corpus.decisions.to_arrow())
    columns = ", ".join(f"a.{name}::DOUBLE AS {name}" for name in SIGNALS)
    frame = con.sql(
        f"SELECT d.dropped_by IS NULL AS kept, {columns} FROM _decisions d "
        "JOIN annotated a ON a.trace_id = d.trace_id AND a.attempt = d.attempt"
    ).pl()
    con.unregister("_decisions")
    result = []
    for name in SIGNALS:
        values = frame.select("kept", pl.col(name)).drop_nulls()
        if values.is_empty():
            continue
        low, high = values[name].quantile(0.005), values[name].quantile(0.995)
        if low is None or high is None or high <= low:
            low, high = values[name].min(), values[name].max()
        if not high > low:
            continue
        whole = (
            high - low < BINS and values[name].dtype.is_float() and (values[name] % 1 == 0).all()
        )
        bins = int(high - low) + 1 if whole else BINS
        start = low - 0.5 if whole else low
        step = 1.0 if whole else (high - low) / bins
        at = ((pl.col(name) - start) / step).floor().clip(0, bins - 1).cast(pl.Int64)
        counts = values.group_by("kept", at.alias("bin")).len()
        tall = {(k, b): n for k, b, n in counts.iter_rows()}
        edges = [start + step * i for i in range(bins + 1)]
        result.append(
            (
                name,
                edges,
                [tall.get((True, b), 0) for b in range(bins)],
                [tall.get((False, b), 0) for b in range(bins)],
            )
        )
    return result


TRACE_COLUMNS = (
    "trace_id, attempt, problem_id, dataset, sample_index, recipe, form, model, model_hash, "
    "policy_step, "
    "finish_reason, error, completion, prompt, reasoning, answer, question, reference, source, "
    "domain, "
    "difficulty, split, coalesce(target_language, question_language) AS target, verdict, "
    "verified_by, extracted, verdict_detail, judge_verdict, consensus_verdict, completion_tokens, "
    "temperature, "
    "created_at, readable, mixed_language, quality, "
    "well_formed, truncated, words, step_count, reflection_count, verification_count, "
    "backtrack_count, "
    "target_language_share, dominant_language, dominant_language_share, duplicate_5_gram_share, "
    "loop_share, "
    "compression, longest_paragraph, code_blocks, unbalanced_latex"
)


def picked(
    con: duckdb.DuckDBPyConnection, where: str, most: int, each: int = 4, newest: bool = False
) -> tuple[pl.DataFrame, int]:
    """(at most `most` traces that meet a SQL condition over `annotated`, number that meet it).

    Problems are drawn by the hash of their id, with up to `each` traces per problem: two traces of
    one problem can be compared, and the page is reproducible. `newest`: the traces that were
    sampled last instead, the newest first.
    """
    check_expression(where, "where")
    order = "ORDER BY created_at DESC NULLS LAST, trace_id"
    try:
        total = con.sql(f"SELECT count(*) FROM annotated WHERE ({where}\n)").fetchall()[0][0]
        if newest:  # ids first: texts and joins of all traces would be sorted otherwise
            ids = con.sql(
                f"SELECT trace_id FROM annotated WHERE ({where}\n) {order} LIMIT {most}"
            ).fetchall()
            chosen = in_ids([i for (i,) in ids])
            frame = con.sql(f"SELECT {TRACE_COLUMNS} FROM annotated WHERE {chosen} {order}").pl()
            return frame, int(total)
        frame = con.sql(
            f"SELECT {TRACE_COLUMNS} FROM "
            f"(SELECT *, row_number() OVER (PARTITION BY problem_id ORDER BY md5(trace_id)) AS _n "
            f"FROM annotated WHERE ({where}\n)) WHERE _n <= {each} "
            f"ORDER BY md5(problem_id), problem_id, _n LIMIT {most}"
        ).pl()
    except duckdb.Error as error:
        raise UsageError(f"--where {where}: {str(error).strip()}") from error
    return frame, int(total)


def in_ids(ids: list[str]) -> str:
    """A SQL condition that is true for these traces."""
    return f"trace_id IN ({', '.join(quote(i) for i in ids)})" if ids else "FALSE"
