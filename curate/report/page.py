"""The page: one HTML file that loads nothing and runs only its own script.

A content security policy in its head allows only the script and the style sheet whose hashes it
lists. Text of models is escaped when it becomes markup (html.py); if that failed somewhere, the
browser would still not run it.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from curate.progress import counted
from curate.report import data, graph, plots
from curate.report.html import Html, escape, join, number, table, tag
from curate.report.traces import browser

if TYPE_CHECKING:
    import duckdb

    from curate.warehouse import Warehouse

SCRIPTS = ("page.js", "diff.js", "traces.js")
HEADINGS = {
    "pipeline": "Origin of the data",
    "evaluation": "Evaluation",
    "training": "Behaviour over training",
    "funnel": "What each rule did",
    "signals": "Signals of kept and dropped",
    "traces": "Traces",
}
METRICS = (
    *("pass@1", "greedy", "per answer", "cons@k", "voting", "pass@k"),
    *("format", "language", "length", "truncated"),
)


def static(name: str) -> str:
    return (importlib.resources.files("curate.report") / "static" / name).read_text(
        encoding="utf-8"
    )


def document(
    title: str,
    subtitle: str,
    sections: list[tuple[str, str, Html]],
    live: set[str] | None = None,
) -> str:
    """The whole file. A section is (id, heading, body).

    `live`: the page loads itself again (live.js). It holds the versions of sections that the
    browser has; these come without their body.
    """
    scripts = SCRIPTS if live is None else (*SCRIPTS, "live.js")
    style, script = static("page.css"), _script(scripts)
    head = join(
        tag("meta", charset="utf-8"),
        tag(
            "meta",
            http_equiv="Content-Security-Policy",
            content=content_policy(style, script, live is not None),
        ),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        Html(f"<style>{style}</style>"),
    )
    links = [tag("li", _link(name, heading)) for name, heading, _ in sections]
    pause = tag("button", "pause", type="button", id="pause")
    state = tag("p", tag("span", "live", id="live", role="status"), pause, class_="note")
    body = join(
        tag(
            "header",
            tag("h1", title),
            tag("p", subtitle, class_="note", id="subtitle"),
            None if live is None else state,
            tag("button", "dark or light", type="button", id="theme"),
            class_="top",
        ),
        tag("nav", tag("ul", links), aria_label="sections"),
        tag("main", [_section(*section, live) for section in sections]),
    )
    whole = f"<head>{head}</head>\n<body>\n{body}\n<script>{script}</script>\n</body>"
    return f'<!doctype html>\n<html lang="en">\n{whole}\n</html>\n'


def _section(name: str, heading: str, content: Html, live: set[str] | None) -> Html:
    """A section. On a live page it has a version, by which it is known."""
    if live is None:
        return tag("section", tag("h2", heading), content, id=name)
    version = hashlib.sha256(content.encode()).hexdigest()[:16]
    inside = None if version in live else join(tag("h2", heading), content)
    return tag("section", inside, id=name, data_version=version)


def _script(names: Sequence[str]) -> str:
    """The parts of the script as one, with names of its own."""
    parts = "\n".join(static(name) for name in names)
    return f'"use strict";\n{{\n{parts}}}\n'


def content_policy(style: str, script: str, live: bool = False) -> str:
    """The policy of the page: its own style and script, no request, and no text as markup. A live
    page may load itself.
    """
    allowed = f"style-src '{_sha(style)}'; script-src '{_sha(script)}'"
    allowed += "; connect-src 'self'" if live else ""
    never = "base-uri 'none'; form-action 'none'"
    types = "trusted-types 'none'; require-trusted-types-for 'script'"
    return f"default-src 'none'; {allowed}; {never}; {types}"


def _link(name: str, heading: str) -> Html:
    """A link within the page, the only kind there is. `name` is ours, never a model's."""
    assert name.isalpha()
    return Html(f'<a href="#{name}">{escape(heading)}</a>')


def _sha(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# -- sections ------------------------------------------------------------------------------------


def sections(
    warehouse: Warehouse,
    con: duckdb.DuckDBPyConnection,
    corpora: list[str] | None,
    conditions: dict[str, str],
    traces: int,
) -> list[tuple[str, str, Html]]:
    """All sections of the page."""
    shown = data.corpora(warehouse, con, corpora)
    bodies = {
        "pipeline": origin(warehouse),
        "evaluation": evaluations(con),
        "training": curves(con),
        "funnel": funnels(con, corpora),
        "signals": distributions(con, shown),
        "traces": browser(con, shown, conditions, traces),
    }
    return [(name, HEADINGS[name], body) for name, body in bodies.items()]


def origin(warehouse: Warehouse) -> Html:
    """What was made from what."""
    return graph.draw(graph.build(warehouse))


def evaluations(con: duckdb.DuckDBPyConnection) -> Html:
    """Tables and intervals of the newest evaluations."""
    newest = data.evaluations(con)
    if not newest:
        return tag("p", "No model was evaluated yet.", class_="empty")
    return join([_evaluation(name, rows) for name, rows in newest])


def _evaluation(name: str, rows: pl.DataFrame) -> Html:
    own = rows.filter(pl.col("slice") == "all")
    most: Any = own["k"].max()
    own = own.filter((pl.col("metric") != "pass@k") | (pl.col("k") == most))
    if most == 1:  # with one sample they are pass@1 once more
        own = own.filter(~pl.col("metric").is_in(["pass@k", "cons@k"]))
    levels, differences = (
        own.filter(pl.col("baseline").is_null()),
        own.filter(pl.col("baseline").is_not_null()),
    )
    first = rows.row(0, named=True)
    runs = int(levels["seeds"].fill_null(1).max() or 1)  # type: ignore[arg-type]
    seeds = f" and up to {runs} training seeds" if runs > 1 else ""
    problems = int(levels["problem_count"].max() or 0)  # type: ignore[arg-type]
    settings = (
        f"{number(problems)} {'problem' if problems == 1 else 'problems'} of {first['problems']}, "
        f"{counted(most or 0, 'sample')} each, temperature "
        f"{first['temperature']:g}, top_p {first['top_p']:g}; 95 % bootstrap intervals over "
        f"problems{seeds}"
    )
    parts = [
        tag("h3", name),
        tag("p", settings, class_="note"),
        _figures(levels, ["model"], most, False),
    ]
    for metric in ("pass@1", "cons@k"):
        shown = [
            (r["model"], r["value"], r["low"], r["high"])
            for r in levels.filter(pl.col("metric") == metric).to_dicts()
        ]
        if shown:
            parts.append(plots.intervals(_metric(metric, most), shown))
    if differences.height:
        parts += [
            tag("h4", "Paired differences on the same problems"),
            _figures(differences, ["model", "baseline"], most, True),
        ]
        shown = [
            (f"{r['model']} − {r['baseline']}", r["value"], r["low"], r["high"])
            for r in differences.filter(pl.col("metric") == "pass@1").to_dicts()
        ]
        if shown:
            parts.append(plots.intervals("pass@1, difference", shown, zero=True))
    slices = [s for s in rows["slice"].unique().sort() if s != "all"]
    if slices:
        inner = rows.filter(
            (pl.col("slice") != "all")
            & pl.col("baseline").is_null()
            & (pl.col("metric") == "pass@1")
        )
        lines: list[list[object]] = [
            [r["slice"], r["model"], number(r["problem_count"]), _estimate(r, False)]
            for r in inner.to_dicts()
        ]
        parts.append(
            tag(
                "details",
                tag("summary", "pass@1 by source and difficulty"),
                table(
                    ["slice", "model", "problems", "pass@1"], lines, f"{name} by slice", numeric=2
                ),
            )
        )
    return join(parts)


def _figures(rows: pl.DataFrame, keys: list[str], k: Any, signed: bool) -> Html:
    metrics = [m for m in METRICS if m in set(rows["metric"])]
    lines: list[list[object]] = []
    for part in rows.partition_by(*keys, maintain_order=True):
        cells = {r["metric"]: _estimate(r, signed) for r in part.to_dicts()}
        lines.append(
            [" − ".join(part[key][0] for key in keys), *(cells.get(m, "") for m in metrics)]
        )
    return table(
        [" − ".join(keys), *(_metric(m, k) for m in metrics)],
        lines,
        "differences" if signed else "levels",
    )


def _metric(metric: str, k: Any) -> str:
    return f"{metric[:-1]}{k}" if metric.endswith("@k") else metric


def _estimate(row: dict[str, Any], signed: bool) -> Html:
    digits = 1 if row["metric"] == "length" else 3
    sign = "+" if signed else ""
    value = f"{row['value']:{sign}.{digits}f}"
    if row["low"] is None:
        return escape(value)
    sure = signed and (row["low"] > 0 or row["high"] < 0)
    return join(
        tag("b", value) if sure else value,
        tag("br"),
        tag(
            "span",
            f"[{row['low']:{sign}.{digits}f}, {row['high']:{sign}.{digits}f}]",
            class_="note",
        ),
    )


def curves(con: duckdb.DuckDBPyConnection) -> Html:
    """Means over rollouts, by policy step."""
    frame = data.curves(con)
    if frame.is_empty():
        return tag("p", "No training by reinforcement learning ran yet.", class_="empty")
    runs = frame.partition_by("run_id", maintain_order=True)
    titles = [f"{r['name'][0]} ({r['run_id'][0][:8]})" for r in runs]
    if frame["policy_step"].n_unique() == 1:
        return _one_step(frame, titles)
    drawn = []
    for name, _, meaning in data.CURVES:
        series = [
            plots.Series(t, list(r.select("policy_step", name).iter_rows()))
            for t, r in zip(titles, runs, strict=True)
        ]
        drawn.append(
            tag(
                "div",
                plots.lines(name, series, "policy step"),
                tag("p", meaning, class_="note"),
                class_="plot",
            )
        )
    missing = frame.select(pl.col("steps").is_null().any()).item()
    note = "Signals of some rollouts were not measured: run curate annotate." if missing else None
    sizes = ", ".join(
        f"{t}: {number(int(r['rollouts'].sum()))} rollouts"
        for t, r in zip(titles, runs, strict=True)
    )
    return join(
        tag(
            "p",
            f"Means over the rollouts that the policy sampled at each step. {sizes}.",
            class_="note",
        ),
        tag("p", note) if note else None,
        plots.legend(titles),
        tag("div", drawn, class_="plots"),
    )


def _one_step(frame: pl.DataFrame, titles: Sequence[str]) -> Html:
    """The means of runs that have one step: a point makes no curve."""
    names = [name for name, _, _ in data.CURVES]
    lines: list[list[object]] = [
        [title, number(row["rollouts"]), *(number(row[name]) for name in names)]
        for title, row in zip(titles, frame.iter_rows(named=True), strict=True)
    ]
    step = frame["policy_step"][0]
    return table(["run", "rollouts", *names], lines, f"means at policy step {step}")


def funnels(con: duckdb.DuckDBPyConnection, names: list[str] | None) -> Html:
    """The funnel of the newest version of each corpus."""
    parts = []
    seen: set[str] = set()
    for frame in data.funnels(con):
        name = frame["corpus"][0]
        if name in seen or (names is not None and name not in {n.partition("@")[0] for n in names}):
            continue
        seen.add(name)
        total = frame["traces"][0]
        lines: list[list[object]] = []
        for row in frame.iter_rows(named=True):
            share = row["remaining"] / total if total else 0.0
            bar = tag(
                "svg",
                tag("rect", x=0, y=0, width=f"{100 * share:.1f}", height=10, class_="bar kept"),
                width=100,
                height=10,
                viewBox="0 0 100 10",
                role="img",
                aria_label=f"{share:.0%} left",
            )
            alone = number(row["drops_alone"]) if row["drops_alone"] is not None else "–"
            lines.append(
                [
                    row["rule"],
                    tag("code", row["predicate"] or ""),
                    alone,
                    number(row["drops_first"]),
                    number(row["remaining"]),
                    bar,
                ]
            )
        parts.append(tag("h3", f"{name} ({frame['corpus_version'][0][:8]})"))
        parts.append(
            tag("p", f"rules {frame['rules'][0]}, {number(total)} traces looked at", class_="note")
        )
        parts.append(
            table(
                ["rule", "keeps", "drops alone", "drops first", "left", ""],
                lines,
                f"funnel of {name}",
                numeric=2,
                stacked=True,
            )
        )
    return join(parts) if parts else tag("p", "No corpus was made yet.", class_="empty")


def distributions(con: duckdb.DuckDBPyConnection, corpora: list[data.Corpus]) -> Html:
    """Histograms of what each corpus kept and dropped."""
    parts = []
    for corpus in corpora:
        drawn = [
            tag("div", plots.histograms(*one), class_="plot")
            for one in data.distributions(con, corpus)
        ]
        kept = corpus.decisions["dropped_by"].null_count()
        parts.append(tag("h3", f"{corpus.name} ({corpus.version[:8]})"))
        parts.append(
            tag(
                "p",
                f"{number(kept)} kept, {number(corpus.decisions.height - kept)} dropped; "
                "share of each per bin",
                class_="note",
            )
        )
        if corpus.changed:
            parts.append(
                tag(
                    "p",
                    "The rules or the verdicts have changed since this corpus was made: what "
                    "follows is what "
                    "they decide today.",
                )
            )
        parts.append(
            tag("div", drawn, class_="plots")
            if drawn
            else tag("p", "No signal varies.", class_="empty")
        )
    return join(parts) if parts else tag("p", "No corpus was made yet.", class_="empty")
