"""The trace browser: sets of traces chosen when the page is written, each trace rendered then.

Each trace is finished, escaped markup in a `<template>`. What the script sorts and filters by is
JSON in another one: it becomes text nodes and values of form fields, never markup.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import polars as pl

from curate.filter.clauses import failed_clauses
from curate.report.data import Corpus, in_ids, picked
from curate.report.html import Html, number, tag
from curate.report.marked_text import Mark, foreign_marks, render_text, repeated_marks
from curate.visible import one_line
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
# Filters by a value: the SQL over a row of `annotated` that a rule compares with the value.
FACETS = {
    "verdict": "coalesce(verdict, 'none')",
    "recipe": "recipe",
    "model": "coalesce(model_hash, model, '')",
    "source": "coalesce(source, '')",
    "problem": "problem_id",
}
# Columns to sort by and to limit, besides the signals.
NUMBERS = ("policy_step", "sample_index", "difficulty")


@dataclass
class Chosen:
    """One set of the browser: traces that a corpus keeps or drops, or that meet a condition.

    `where` is the condition in SQL, or None if only the ids say what is in the set.
    """

    label: str
    total: int
    ids: list[str] = field(default_factory=list)
    where: str | None = None


def choose(
    con: duckdb.DuckDBPyConnection,
    corpora: Sequence[Corpus],
    conditions: Mapping[str, str],
    most: int,
    newest: bool = False,
) -> tuple[list[Chosen], pl.DataFrame]:
    """The sets, and one row per trace in any of them. At most `most` traces per set: with `newest`,
    those sampled last.
    """
    sets: list[Chosen] = []
    frames: list[pl.DataFrame] = []

    def add(label: str, where: str, total: int | None = None) -> None:
        frame, count = picked(con, where, most, newest=newest and total is None)
        known = where if total is None else None
        ids = frame["trace_id"].to_list()
        sets.append(Chosen(label, count if total is None else total, ids, known))
        frames.append(frame)

    for label, where in conditions.items():
        add(label, where)
    for corpus in corpora:
        decided = corpus.decisions.unique("trace_id", keep="last")
        kept = pl.col("dropped_by").is_null()
        for name, fate in (("kept", kept), ("dropped", ~kept)):
            part = decided.filter(fate)
            con.register("_part", part.select("trace_id").to_arrow())
            ids = con.sql(
                "SELECT trace_id FROM annotated SEMI JOIN _part USING (trace_id) "
                f"ORDER BY md5(problem_id), md5(trace_id) LIMIT {most}"
            ).fetchall()
            con.unregister("_part")
            if ids:
                add(f"{name} by {corpus.name}", in_ids([i for (i,) in ids]), part.height)
    traces = pl.concat(frames, how="vertical_relaxed") if frames else pl.DataFrame()
    return sets, traces.unique(
        "trace_id", keep="first", maintain_order=True
    ) if traces.height else traces


def browser(
    con: duckdb.DuckDBPyConnection,
    corpora: Sequence[Corpus],
    conditions: Mapping[str, str],
    most: int,
    newest: bool = False,
) -> Html:
    """Filters, list of traces, two panes, and the templates that fill them."""
    return tag(
        "div",
        _controls(),
        LEGEND,
        tag(
            "div",
            tag("div", tag("ol", id="list", aria_label="traces"), _pager(), class_="listed"),
            tag(
                "div",
                tag("p", "Choose a trace.", class_="empty"),
                id="pane-a",
                class_="pane",
                aria_live="polite",
            ),
            tag("div", id="pane-b", class_="pane", hidden=True),
            tag("div", id="pane-diff", class_="pane", hidden=True),
            class_="browser",
        ),
        entries(con, corpora, conditions, most, newest),
        tag("noscript", tag("p", "The list needs scripts; nothing else on this page does.")),
    )


def entries(
    con: duckdb.DuckDBPyConnection,
    corpora: Sequence[Corpus],
    conditions: Mapping[str, str],
    most: int,
    newest: bool = False,
) -> Html:
    """What the browser shows: the rows as JSON, and one template per trace."""
    sets, traces = choose(con, corpora, conditions, most, newest)
    rows, templates = _entries(con, corpora, sets, traces) if traces.height else (Rows(), [])
    text = Html(escape_json(rows.data(sets, traces)))
    none = "No traces: nothing was generated yet, or nothing fits the condition."
    empty = tag("p", none, class_="empty") if traces.is_empty() else None
    return tag("div", empty, tag("template", text, id="rows"), templates, id="entries")


def escape_json(value: object) -> str:
    """JSON as the text of an element: in ASCII, without a character that begins markup."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


LEGEND = tag(
    "p",
    tag("mark", "foreign", class_="foreign"),
    " words in another language than requested  ",
    tag("mark", "repeated", class_="repeated"),
    " five words or more that occurred before",
    class_="note",
)


def _controls() -> Html:
    """Filters, order and export. The script fills in the choices that the traces give."""
    facets = [tag("label", f"{name} ", tag("select", id=name)) for name in FACETS]
    search = tag("input", type="search", id="search", placeholder="in all of its text")
    as_ = [
        tag("option", "ids", value="ids"),
        tag("option", "a rule for these traces", value="traces"),
        tag("option", "a rule for these conditions", value="conditions"),
    ]
    return tag(
        "div",
        tag(
            "div",
            tag("label", "traces ", tag("select", id="set")),
            facets,
            tag("label", "text ", search),
            tag("label", "limit ", tag("select", id="signal")),
            tag("span", id="limits"),
            class_="controls",
        ),
        tag(
            "div",
            tag("label", "sort by ", tag("select", id="sort")),
            tag("button", "ascending", type="button", id="direction"),
            tag("button", "clear filters", type="button", id="clear"),
            tag("span", id="shown", role="status"),
            tag(
                "span",
                tag("label", "export as ", tag("select", as_, id="as")),
                tag("button", "export", type="button", id="export"),
                class_="group",
            ),
            class_="controls",
        ),
        tag("p", id="message", role="status", class_="note"),
        tag(
            "div",
            tag("p", id="export-note", class_="note"),
            tag("textarea", id="exported", rows=12, readonly=True, aria_label="export"),
            tag(
                "p",
                tag("button", "copy", type="button", id="export-copy"),
                tag("button", "download", type="button", id="export-save"),
                tag("button", "close", type="button", id="export-close"),
            ),
            id="export-pane",
            class_="pane",
            hidden=True,
        ),
    )


def _pager() -> Html:
    return tag(
        "div",
        tag("button", "previous", type="button", id="previous"),
        tag("span", id="page"),
        tag("button", "next", type="button", id="next"),
        class_="pager",
    )


class Rows:
    """What the script knows about each trace. Values that repeat are kept once, by position."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, int]] = {name: {} for name in FACETS}
        self.shown: dict[str, list[list[str]]] = {name: [] for name in FACETS}
        self.rows: list[list[Any]] = []

    def add(self, row: Mapping[str, Any], sets: Sequence[int], names: Sequence[str]) -> None:
        """Add a trace: a row of `picked`, the sets it is in, and the columns of its numbers."""
        facets = {
            "verdict": (row["verdict"] or "none", row["verdict"] or "none"),
            "recipe": (row["recipe"], row["recipe"]),
            "model": (row["model_key"], row["model"] or "no model"),
            "source": (row["source"] or "", row["source"] or "no source"),
            "problem": (row["problem_id"], row["question"] or row["problem_id"]),
        }
        places = [self._place(name, *facets[name]) for name in FACETS]
        answer = row["answer"] if row["reasoning"] is not None else row["completion"]
        numbers = [_plain(row[name]) for name in names]
        self.rows.append([row["trace_id"], list(sets), places, _short(answer, 60), numbers])

    def _place(self, name: str, value: str, shown: str) -> int:
        known = self.values[name]
        if value not in known:
            known[value] = len(known)
            self.shown[name].append([value, _short(shown, 110)])
        return known[value]

    def data(self, sets: Sequence[Chosen], traces: pl.DataFrame) -> dict[str, Any]:
        """The JSON that the script reads."""
        return {
            "sets": [[s.label, len(s.ids), s.total, s.where] for s in sets],
            "facets": [[name, FACETS[name], self.shown[name]] for name in FACETS],
            "numbers": _numbers(traces),
            "rows": self.rows,
        }


def _numbers(traces: pl.DataFrame) -> list[list[str]]:
    """Columns to sort by and to limit: name, kind (number or flag), SQL of the number."""
    types = traces.schema
    found = []
    for name in (*SIGNALS_SHOWN, *NUMBERS):
        if name in types and types[name] == pl.Boolean:
            found.append([name, "flag", f"CAST({name} AS INTEGER)"])
        elif name in types and types[name].is_numeric():
            found.append([name, "number", name])
    return found


def _plain(value: Any) -> float | int | None:
    """A number of JSON. Flags are 0 and 1; a number that is not finite is missing."""
    if isinstance(value, bool):
        return int(value)
    return None if value is None or not math.isfinite(value) else value


def _short(text: str | None, most: int) -> str:
    text = one_line((text or "").strip()[: 2 * most])
    return text if len(text) <= most else text[: most - 1] + "…"


def _entries(
    con: duckdb.DuckDBPyConnection,
    corpora: Sequence[Corpus],
    sets: Sequence[Chosen],
    traces: pl.DataFrame,
) -> tuple[Rows, list[Html]]:
    """What the list shows, and the template of each trace."""
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
    rows, templates = Rows(), []
    names = [name for name, _, _ in _numbers(traces)]
    for row, marks in zip(traces.iter_rows(named=True), _marks(traces), strict=True):
        row["model_key"] = row["model_hash"] or row["model"] or ""
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
        article = _article(row, marks, _fates(decided, dropped, clauses))
        templates.append(tag("template", article, id=f"t-{len(rows.rows)}"))
        rows.add(row, member.get(row["trace_id"], []), names)
    return rows, templates


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
