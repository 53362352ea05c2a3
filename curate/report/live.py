"""The page while jobs run: what is in work now, and the other sections as their tables change.

It reads what every reader may read: the parts that exist, plans, and the logs of open chunks. It
writes nothing and holds no claim.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from curate.errors import CurateError
from curate.progress import counted, duration
from curate.report import data, page, plots
from curate.report.html import Html, number, tag
from curate.report.marked_text import render_text
from curate.store import is_remote
from curate.store.paths import files, folders, scan
from curate.version import code_version
from curate.warehouse import Warehouse
from curate.warehouse.chunks import PLANS, Family
from curate.warehouse.logs import chunks_with_logs, is_whole
from curate.warehouse.names import JOBS, now, part_name
from curate.warehouse.parts import manifests, rows_of, table_parts, version_directories
from curate.warehouse.sql import connect

if TYPE_CHECKING:
    import duckdb

SECONDS = 2.0  # between two looks at the warehouse
REST = 5.0  # a section is rendered again after this many times as long as it took
RATE_SECONDS = 60.0  # over which a rate is measured
RUNS = 3  # newest training runs with curves
FRESH = 6  # newest samples that are shown with their text
LONGEST = 700  # characters of each
COUNTED = {  # tables, and the name of their rows
    "problems": "problems",
    "traces": "traces",
    "verdicts": "verdicts",
    "rollouts": "rollouts",
    "corpora": "rows of corpora",
    "metrics": "metrics",
}
CURVES = ("reward", "accuracy", "mean_length", "loss", "kl", "entropy", "tokens_per_second")

Section = tuple[str, str, Html]


@dataclass
class Tail:
    """A log that is read as it grows: the number of its whole lines, and the newest of them."""

    path: Path
    offset: int = 0
    lines: int = 0
    newest: deque[bytes] = field(default_factory=lambda: deque(maxlen=FRESH))

    def read(self) -> None:
        """Read what was appended since the last time. A torn last line waits for its end."""
        try:
            with self.path.open("rb") as handle:
                handle.seek(self.offset)
                for line in handle:
                    if not line.endswith(b"\n"):
                        return
                    self.offset += len(line)
                    if is_whole(line):
                        self.lines += 1
                        self.newest.append(line)
        except FileNotFoundError:
            return  # its chunk was committed meanwhile

    def rows(self) -> list[dict[str, Any]]:
        """The newest rows."""
        return [json.loads(line[9:-1]) for line in self.newest]


@dataclass
class Work:
    """A family of traces with an open plan: samples planned, done, and how fast they come."""

    title: str
    planned: int
    done: int
    adaptive: bool
    rate: float | None
    rows: list[dict[str, Any]]

    def left(self) -> str:
        """The time that is left at this rate, as text."""
        if not self.rate or self.done >= self.planned:
            return ""
        return f", {duration((self.planned - self.done) / self.rate)} left"


class Progress:
    """What is in work in a warehouse, with rates over the last minute of watching."""

    def __init__(self, warehouse: Warehouse) -> None:
        self.warehouse = warehouse
        self._families: dict[str, Family] = {}
        self._tails: dict[Path, Tail] = {}
        self._seen: dict[str, deque[tuple[float, int]]] = {}

    def works(self) -> list[Work]:
        """The families with a plan that is not sealed."""
        names = [f.name for f in folders(self.warehouse.root / JOBS) if list(files(f, PLANS))]
        return [work for name in names if (work := self._work(name)) is not None]

    def _work(self, name: str) -> Work | None:
        if name not in self._families:
            self._families[name] = Family(self.warehouse, name)
        family = self._families[name]
        plan = family.plan()
        done = planned = 0
        committed: set[str] = set()
        versions = []
        for (number_,), rows in plan.group_by(["plan"]):
            version = family.version(int(number_))
            if version.sealed:
                continue
            parts = version.parts()
            versions.append(version)
            committed |= {part_name(part) for part in parts}
            done += sum(map(rows_of, parts))
            planned += int((rows["stop"] - rows["start"]).sum())
        if not planned:
            return None
        tails = self._logs(family, committed)
        done += sum(tail.lines for tail in tails)
        fresh = [row for tail in tails for row in tail.rows()]
        title = self._title(versions, fresh) or f"family {name[:8]}"
        adaptive = bool(plan["adaptive"].any())
        return Work(title, planned, done, adaptive, self._rate(name, done), fresh)

    def _logs(self, family: Family, committed: set[str]) -> list[Tail]:
        """The logs of chunks that are not committed. Those in a bucket are not read."""
        if is_remote(self.warehouse.root):
            return []
        tails = []
        for chunk, path in chunks_with_logs(family.logs):
            if chunk in committed or path.suffix != ".log":
                continue
            tail = self._tails.setdefault(path, Tail(path))
            tail.read()
            tails.append(tail)
        return tails

    def _title(self, versions: Sequence[Any], fresh: Sequence[Mapping[str, Any]]) -> str:
        """Recipe and model from a committed row, else what a row of a log says."""
        for version in versions:
            for part in version.parts()[:1]:
                for recipe, model in (
                    scan([part]).select("recipe", "model").head(1).collect().rows()
                ):
                    return f"{recipe}, {Path(model).name}" if model else str(recipe)
        return f"form {fresh[0]['form']}, engine {fresh[0]['engine']}" if fresh else ""

    def _rate(self, name: str, done: int) -> float | None:
        """Samples per second since the oldest look of the last minute."""
        seen = self._seen.setdefault(name, deque())
        seen.append((time.monotonic(), done))
        while len(seen) > 2 and seen[0][0] < seen[-1][0] - RATE_SECONDS:
            seen.popleft()
        passed = seen[-1][0] - seen[0][0]
        return (seen[-1][1] - seen[0][1]) / passed if passed >= 1.0 else None


@dataclass
class Rendered:
    """A section, with the files that it was made from, its seconds of CPU, and when it was made."""

    files: str
    cost: float
    at: float
    body: Html


class Live:
    """The page of a warehouse, rendered again where it has changed since the last request."""

    def __init__(self, root: Path, traces: int = 60) -> None:
        self.warehouse, self.traces = Warehouse(root), traces
        self.progress = Progress(self.warehouse)
        self._sections: dict[str, Rendered] = {}
        self._shown: tuple[float, str, list[Section]] | None = None  # until when, and what
        self._spent = 0.0  # seconds that sections took so far
        self._closed = False
        self._lock = threading.Lock()

    def page(self, known: set[str] | None = None) -> str:
        """The whole page; sections whose version is `known` come without their content."""
        with self._lock:
            if self._closed:
                raise CurateError("curate watch has ended")
            if self._shown is None or time.monotonic() >= self._shown[0]:
                started, before = time.process_time(), self._spent
                subtitle, sections = self._render()
                # Sections rest on their own; what is done at each look must not fill the time.
                own = time.process_time() - started - (self._spent - before)
                until = time.monotonic() + max(SECONDS, REST * own)
                self._shown = (until, subtitle, sections)
            _, subtitle, sections = self._shown
        title = f"curate watch: {self.warehouse.root.name}"
        return page.document(title, subtitle, sections, live=known or set())

    def close(self) -> None:
        """Wait for the page that is being rendered, and render no more: a thread that DuckDB works
        in must not outlive the interpreter.
        """
        with self._lock:
            self._closed = True

    def _render(self) -> tuple[str, list[Section]]:
        root, traces = self.warehouse.root, self.traces
        sealed = _files(manifests(root))
        measured = _files([p for t in ("verdicts", "signals") for p in table_parts(root, t)])
        rollouts, rows = _files(table_parts(root, "rollouts")), _files(table_parts(root, "traces"))
        with connect(root) as con:
            con.execute("SET threads = 1")  # the jobs need the others
            chosen = cache(lambda: data.corpora(self.warehouse, con))

            def section(name: str, files: str, render: Callable[[], Html]) -> Section:
                return name, page.HEADINGS[name], self._cached(name, files, render)

            at = f"{now():%H:%M:%S} UTC"
            subtitle = f"read at {at}; read only; curate {code_version()}"
            return subtitle, [
                ("now", "In work", in_work(con, self.warehouse, self.progress)),
                section("training", rollouts + measured, lambda: page.curves(con)),
                section("evaluation", sealed, lambda: page.evaluations(con)),
                section("pipeline", sealed, lambda: page.origin(self.warehouse)),
                section("funnel", sealed, lambda: page.funnels(con, None)),
                section("signals", sealed, lambda: page.distributions(con, chosen())),
                section(
                    "traces",
                    rows + measured + sealed,
                    lambda: page.browser(con, chosen(), {"newest": "TRUE"}, traces, newest=True),
                ),
            ]

    def _cached(self, name: str, files: str, render: Callable[[], Html]) -> Html:
        """The section as it was, unless its files have changed and its time to rest is over."""
        old, started = self._sections.get(name), time.process_time()
        if old and (old.files == files or time.monotonic() - old.at < REST * old.cost):
            return old.body
        body = render()
        cost = time.process_time() - started
        self._sections[name] = Rendered(files, cost, time.monotonic(), body)
        self._spent += cost
        return body


def _files(paths: Sequence[Path]) -> str:
    """A hash of these names. Parts never change, so their names say what they hold."""
    return hashlib.sha256("\n".join(map(str, paths)).encode()).hexdigest()


# -- the section of what is in work ---------------------------------------------------------------


def in_work(con: duckdb.DuckDBPyConnection, warehouse: Warehouse, progress: Progress) -> Html:
    """Bars of open plans, curves of the newest runs, the newest samples, and finished jobs."""
    works = progress.works()
    sizes = [
        f"{number(sum(map(rows_of, table_parts(warehouse.root, table))))} {name}"
        for table, name in COUNTED.items()
    ]
    none = tag("p", "No sampling is planned or under way.", class_="empty")
    return tag(
        "div",
        tag("p", "In the tables: ", ", ".join(sizes), class_="note"),
        [_bar(work) for work in works] or none,
        _metrics(con, warehouse.root),
        _fresh([row for work in works for row in work.rows]),
        _jobs(con),
    )


def _bar(work: Work) -> Html:
    rate = f"{work.rate:.2g} samples per second" if work.rate is not None else "rate not known yet"
    most = "at most " if work.adaptive else ""
    text = f"{number(work.done)} of {most}{counted(work.planned, 'sample')}, {rate}{work.left()}"
    return tag(
        "p",
        tag("b", work.title),
        tag("progress", value=work.done, max=work.planned, aria_label=work.title),
        tag("span", text),
        class_="work",
    )


def _metrics(con: duckdb.DuckDBPyConnection, root: Path) -> Html | None:
    """Curves of the newest training runs, from the table `metrics`."""
    newest = con.sql(
        "SELECT run_id, max(step) FROM metrics GROUP BY run_id "
        f"ORDER BY max(created_at) DESC NULLS LAST LIMIT {RUNS}"
    ).fetchall()
    if not newest:
        return None
    called = {path.name: path.parent.name for path in version_directories(root, "metrics")}
    titles = {run: f"{called.get(run, 'run')} ({run[:8]}), step {step}" for run, step in newest}
    names = ", ".join(f"'{name}'" for name in CURVES)
    rows = con.sql(
        f"SELECT run_id, name, step, value FROM metrics WHERE name IN ({names}) "
        "ORDER BY name, run_id, step"
    ).pl()
    drawn = []
    for name in CURVES:
        own = rows.filter(pl.col("name") == name)
        series = [
            plots.Series(
                title,
                list(own.filter(pl.col("run_id") == run).select("step", "value").iter_rows()),
            )
            for run, title in titles.items()
        ]
        if any(one.points for one in series):
            drawn.append(tag("div", plots.lines(name.replace("_", " "), series, "step")))
    return tag(
        "div",
        tag("h3", "Training"),
        plots.legend(list(titles.values())),
        tag("div", drawn, class_="plots"),
    )


def _fresh(rows: Sequence[Mapping[str, Any]]) -> Html | None:
    """The newest samples of open chunks, which no table holds yet."""
    if not rows:
        return None
    newest = sorted(rows, key=lambda row: str(row.get("created_at")), reverse=True)[:FRESH]
    return tag(
        "div",
        tag("h3", "Newest samples, not yet in the tables"),
        [
            tag(
                "details",
                tag(
                    "summary",
                    f"{str(row.get('created_at'))[11:19]}, {number(row.get('completion_tokens'))} "
                    f"tokens, ended: {row.get('finish_reason')}",
                ),
                tag("div", render_text(_cut(row.get("prompt"))), class_="text"),
                tag("div", render_text(_cut(row.get("completion"))), class_="text"),
                open=True if i == 0 else None,
            )
            for i, row in enumerate(newest)
        ],
    )


def _cut(text: Any) -> str:
    text = str(text or "")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … {len(text) - LONGEST:,} more"


def _jobs(con: duckdb.DuckDBPyConnection) -> Html | None:
    """The last finished jobs."""
    rows = con.sql(
        "SELECT finished_at, kind, name, rows, seconds FROM jobs ORDER BY finished_at DESC LIMIT 8"
    ).fetchall()
    if not rows:
        return None
    lines: list[list[object]] = [
        [f"{at:%m-%d %H:%M}" if at else "", kind, name, number(count), duration(seconds or 0)]
        for at, kind, name, count, seconds in rows
    ]
    return tag(
        "details",
        tag("summary", "finished jobs"),
        page.table(["ended", "job", "name", "rows", "time"], lines, "finished jobs", numeric=3),
    )
