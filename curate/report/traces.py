"""The trace browser: sets of traces chosen when the page is written, each trace rendered then.

No trace is data for a script: the page holds finished, escaped markup in `<template>` elements, and
the script only shows one or two of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import polars as pl

from curate.filter.clauses import failed_clauses
from curate.report.data import Corpus, in_ids, picked
from curate.report.html import Html, number, tag
from curate.report.marked_text import Mark, foreign_marks, render_text, repeated_marks
from curate.warehouse.sql import quote

if TYPE_CHECKING:
    import duckdb

LONGEST = 60_000  # characters of a text that are shown; the rest is counted
SIGNALS_SHOWN = (
    "completion_tokens",
    "words",
    "step_count",
    "reflection_count",
    "verification_count",
    "backtrack_count",
    "target_language_share",
    "dominant_language",
    "dominant_language_share",
    "duplicate_5_gram_share",
    "loop_share",
    "compression",
    "longest_paragraph",
    "code_blocks",
    "unbalanced_latex",
    "well_formed",
    "truncated",
    "readable",
    "mixed_language",
    "quality",
)


@dataclass
class Chosen:
    """One set of the browser: traces that a corpus keeps or drops, or that meet a condition."""

    label: str
    total: int
    ids: list[str] = field(default_factory=list)


def choose(
    con: duckdb.DuckDBPyConnection,
    corpora: Sequence[Corpus],
    conditions: Mapping[str, str],
    most: int,
) -> tuple[list[Chosen], pl.DataFrame]:
    """The sets, and one row per trace in any of them. At most `most` traces per set."""
    sets: list[Chosen] = []
    frames: list[pl.DataFrame] = []

    def add(label: str, where: str, total: int | None = None) -> None:
        frame, count = picked(con, where, most)
        sets.append(Chosen(label, count if total is None else total, frame["trace_id"].to_list()))
        frames.append(frame)

    for label, where in conditions.items():
        add(label, where)
    for corpus in corpora:
        decided = corpus.decisions.unique("trace_id", keep="last").sort(
            pl.col("trace_id").hash(seed=0)
        )
        con.register(
            "_kept", decided.filter(pl.col("dropped_by").is_null()).select("trace_id").to_arrow()
        )
        con.register(
            "_dropped",
            decided.filter(pl.col("dropped_by").is_not_null()).select("trace_id").to_arrow(),
        )
        for name, table in (("kept", "_kept"), ("dropped", "_dropped")):
            ids = con.sql(
                f"SELECT trace_id FROM annotated SEMI JOIN {table} USING (trace_id) "
                f"ORDER BY md5(problem_id), md5(trace_id) LIMIT {most}"
            ).fetchall()
            total = con.sql(f"SELECT count(*) FROM {table}").fetchall()[0][0]
            if ids:
                add(f"{name} by {corpus.name}", in_ids([i for (i,) in ids]), total)
        con.unregister("_kept")
        con.unregister("_dropped")
    traces = pl.concat(frames, how="vertical_relaxed") if frames else pl.DataFrame()
    return sets, traces.unique(
        "trace_id", keep="first", maintain_order=True
    ) if traces.height else traces


def browser(
    con: duckdb.DuckDBPyConnection,
    corpora: Sequence[Corpus],
    conditions: Mapping[str, str],
    most: int,
) -> Html:
    """Selection of sets, list of traces, two panes, and the templates that fill them."""
    sets, traces = choose(con, corpora, conditions, most)
    if traces.is_empty():
        return tag(
            "p",
            "No traces: nothing was generated yet, or nothing fits the condition.",
            class_="empty",
        )
    items, templates = _entries(con, corpora, sets, traces)
    return tag(
        "div",
        _controls(sets),
        LEGEND,
        tag(
            "div",
            tag("ol", items, id="list", aria_label="traces"),
            tag(
                "div",
                tag("p", "Choose a trace.", class_="empty"),
                id="pane-a",
                class_="pane",
                aria_live="polite",
            ),
            tag("div", id="pane-b", class_="pane", hidden=True),
            class_="browser",
        ),
        templates,
        tag("noscript", tag("p", "The list needs scripts; nothing else on this page does.")),
    )


LEGEND = tag(
    "p",
    tag("mark", "foreign", class_="foreign"),
    " words in another language than requested  ",
    tag("mark", "repeated", class_="repeated"),
    " five words or more that occurred before",
    class_="note",
)


def _controls(sets: Sequence[Chosen]) -> Html:
    """Selection by set, verdict and text."""
    options = [
        tag("option", f"{s.label} ({number(len(s.ids))} of {number(s.total)})", value=i)
        for i, s in enumerate(sets)
    ]
    names = ("correct", "wrong", "unverifiable", "none")
    verdicts = [tag("option", "any", value=""), *(tag("option", n, value=n) for n in names)]
    search = tag("input", type="search", id="search", placeholder="in question, reasoning, answer")
    return tag(
        "div",
        tag("label", "traces ", tag("select", options, id="set")),
        tag("label", "verdict ", tag("select", verdicts, id="verdict")),
        tag("label", "text ", search),
        tag("span", id="shown", role="status"),
        class_="controls",
    )


def _entries(
    con: duckdb.DuckDBPyConnection,
    corpora: Sequence[Corpus],
    sets: Sequence[Chosen],
    traces: pl.DataFrame,
) -> tuple[list[Html], list[Html]]:
    """The list item and the template of each trace."""
    fates = {
        c.name: dict(c.decisions.select("trace_id", "dropped_by").iter_rows()) for c in corpora
    }
    reasons = {c.name: {r.name: r for r in c.rules.rules} for c in corpora}
    member: dict[str, list[int]] = {}
    for i, one in enumerate(sets):
        for trace in one.ids:
            member.setdefault(trace, []).append(i)
    # arg_max ignores rows whose key is null.
    newest = "arg_max(name, coalesce(created_at, '-infinity'))"
    called = dict(con.sql(f"SELECT model_hash, {newest} FROM models GROUP BY ALL").fetchall())
    # Clauses are looked up one by one below, and the view would repeat its joins for each.
    shown = in_ids(traces.get_column("trace_id").to_list())
    con.execute(f"CREATE OR REPLACE TEMP TABLE _shown AS SELECT * FROM annotated WHERE {shown}")
    items, templates = [], []
    for row, marks in zip(traces.iter_rows(named=True), _marks(traces), strict=True):
        row["model"] = _model_name(row, called)
        decided = {
            name: fate[row["trace_id"]] for name, fate in fates.items() if row["trace_id"] in fate
        }
        dropped = {name: (by, reasons[name].get(by)) for name, by in decided.items() if by}
        condition = f"trace_id = {quote(row['trace_id'])}"
        clauses = {
            name: failed_clauses(con, "_shown", condition, rule.keep)
            for name, (_, rule) in dropped.items()
            if rule is not None
        }
        items.append(_item(row, member.get(row["trace_id"], [])))
        article = _article(row, marks, _fates(decided, dropped, clauses))
        templates.append(tag("template", article, id=f"t-{row['trace_id']}"))
    return items, templates


def _marks(traces: pl.DataFrame) -> list[list[Mark]]:
    """Marks in the reasoning of each trace, or in its completion if it has no reasoning."""
    texts = [
        _cut(t)
        for t in traces.select(pl.coalesce("reasoning", "completion").fill_null(""))["reasoning"]
    ]
    foreign = foreign_marks(texts, traces["target"].to_list())
    return [[*f, *repeated_marks(t)] for t, f in zip(texts, foreign, strict=True)]


def _cut(text: str | None) -> str:
    text = text or ""
    return (
        text
        if len(text) <= LONGEST
        else f"{text[:LONGEST]}\n… {len(text) - LONGEST:,} more characters"
    )


def _item(row: Mapping[str, Any], sets: Sequence[int]) -> Html:
    verdict = row["verdict"] or "none"
    step = f", step {row['policy_step']}" if row["policy_step"] is not None else ""
    button = tag(
        "button",
        tag("span", verdict, class_=f"badge {verdict}"),
        tag("span", f" {row['recipe']}{step} "),
        tag("span", (row["question"] or "")[:90], class_="q"),
        type="button",
    )
    return tag(
        "li",
        button,
        data_trace=row["trace_id"],
        data_problem=row["problem_id"],
        data_verdict=verdict,
        data_sets=" ".join(map(str, sets)),
        data_label=f"{row['recipe']}{step}, {verdict}, {row['trace_id'][:8]}",
    )


def _model_name(row: Mapping[str, Any], called: Mapping[str, str]) -> str | None:
    """A readable name of the model, unlike the path of a checkpoint."""
    if row["model_hash"] in called:
        return f"{called[row['model_hash']]} ({row['model_hash'][:8]})"
    if row["policy_step"] is not None:  # a policy during training, without a checkpoint
        return f"{row['dataset']} at step {row['policy_step']}"
    path = PurePosixPath(row["model"] or "")
    if not path.is_absolute():
        return row["model"]
    return path.parent.name if path.name == "model" else path.name  # …/checkpoints/RUN/model


def _article(row: Mapping[str, Any], marks: Sequence[Mark], fates: Sequence[Html]) -> Html:
    """Everything about one trace."""
    facts = [
        f"form {row['form']}",
        f"sample {row['sample_index']}",
        f"{number(row['completion_tokens'])} tokens",
        f"ended: {row['finish_reason']}",
        f"temperature {row['temperature']:g}" if row["temperature"] is not None else None,
        row["source"],
        f"split {row['split']}" if row["split"] else None,
    ]
    texts = [_text("Reasoning", row["reasoning"], marks), _text("Answer", row["answer"])]
    if row["reasoning"] is None:
        title = "Text, which has no reasoning in its form"
        texts = [texts[1], _text(title, row["completion"] or "", marks)]
    signals = [[name, _value(row[name])] for name in SIGNALS_SHOWN if row[name] is not None]
    return tag(
        "article",
        tag(
            "header",
            tag("h4", tag("code", row["trace_id"])),
            tag("p", ", ".join(f for f in facts if f), class_="note"),
            tag("p", "by ", row["model"] or "no model (worked solution)", class_="note"),
        ),
        _text("Question", row["question"] or ""),
        tag("h5", "Verdict"),
        tag("p", _judgement(row)),
        fates,
        texts,
        tag("p", "failed: ", row["error"]) if row["error"] else None,
        tag(
            "details",
            tag("summary", "signals"),
            tag("dl", [[tag("dt", n), tag("dd", v)] for n, v in signals]),
        ),
        tag(
            "details",
            tag("summary", "as sampled, with the prompt"),
            tag("pre", row["prompt"] or "", tag("b", row["completion"] or "")),
        ),
        lang=None,
    )


def _text(title: str, text: str | None, marks: Sequence[Mark] = ()) -> list[Html] | None:
    """A heading and a text below it; None without a text."""
    if text is None:
        return None
    return [tag("h5", title), tag("div", render_text(_cut(text), marks), class_="text")]


def _judgement(row: Mapping[str, Any]) -> list[Html | str]:
    """The verdicts on a trace, with the answers that were compared."""
    verdict = row["verdict"] or "none"
    parts: list[Html | str] = [
        tag("span", verdict, class_=f"badge {verdict}"),
        " ",
        f"by {row['verified_by']}" if row["verified_by"] else "",
    ]
    if row["extracted"] is not None:
        parts += [" read ", tag("code", row["extracted"][:300])]
    if row["reference"] is not None:
        parts += [", wanted ", tag("code", row["reference"][:300])]
    if row["verdict_detail"]:
        parts += [tag("span", f" ({row['verdict_detail'][:300]})", class_="note")]
    for kind in ("judge", "consensus"):
        if row[f"{kind}_verdict"]:
            parts += [
                f" · {kind}: ",
                tag("span", row[f"{kind}_verdict"], class_=f"badge {row[f'{kind}_verdict']}"),
            ]
    return parts


def _fates(
    decided: Mapping[str, str | None],
    dropped: Mapping[str, Any],
    clauses: Mapping[str, list[str]],
) -> list[Html]:
    """The decision of each corpus about a trace, with the rule and the clauses that dropped it."""
    fates = [tag("p", "kept by ", tag("b", name)) for name, by in decided.items() if by is None]
    for name, (by, rule) in dropped.items():
        lines = [tag("p", "dropped by ", tag("b", name), ", rule ", tag("b", by))]
        if rule is not None:
            lines.append(tag("p", tag("code", rule.keep), tag("br"), rule.reason, class_="note"))
            lines.append(tag("ul", [tag("li", clause) for clause in clauses[name]], class_="note"))
        fates.append(tag("div", lines, class_="fate"))
    return fates


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, int | float) else str(value)
