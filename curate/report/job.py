"""The report job: one self-contained HTML page about a warehouse."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from curate.annotate import job as annotate
from curate.config import Config, validate
from curate.errors import UsageError
from curate.job import Context, JobResult, StageKind
from curate.progress import counted, duration
from curate.report.page import document, sections
from curate.store import is_remote, url_of
from curate.store.paths import write
from curate.version import code_version
from curate.warehouse.names import now
from curate.warehouse.sql import connect


class ReportConfig(Config):
    """Contents of the page."""

    out: str | None = None
    """File to write; by default report.html in the warehouse."""
    title: str = "curate report"
    """Title of the page."""
    corpora: list[str] | None = None
    """Corpora as name or name@version; by default the newest version of each."""
    where: dict[str, str] = {}
    """Sets of the trace browser: a label, and a SQL condition over the view `annotated`."""
    traces: int = Field(120, ge=0, le=5000)
    """Most traces per set."""
    annotate: bool = True
    """First measure signals that rollouts and other traces lack."""
    label: str | None = None
    """Name in the progress display."""


def run(config: ReportConfig, context: Context) -> JobResult:
    """Write the page atomically. UsageError without a warehouse or for a wrong condition."""
    started = time.monotonic()
    wh = context.warehouse
    if not wh.exists():
        raise UsageError(f"no warehouse at {url_of(wh.root)}: name one with --warehouse")
    if config.annotate:
        annotate.run(annotate.AnnotateConfig(verify=False, label="signals"), context)
    target = Path(config.out) if config.out else wh.root / "report.html"
    if not is_remote(target) and target.is_dir():
        raise UsageError(f"{target} is a folder: name a file, such as {target / 'report.html'}")
    conditions = dict(config.where) or {"all traces": "TRUE"}
    with connect(wh.root) as con:
        parts = sections(wh, con, config.corpora, conditions, config.traces)
        page = document(config.title, _subtitle(con), parts)
    write(target, page)
    result = JobResult(seconds=time.monotonic() - started)
    result.facts = {"value": url_of(target), "report": url_of(target)}
    result.summary = (
        f"{url_of(target)} ({len(page.encode()) / 1e6:.1f} MB) in {duration(result.seconds)}"
    )
    return result


def _subtitle(con: Any) -> str:
    traces, problems = con.sql(
        "SELECT count(*), count(DISTINCT problem_id) FROM last_traces"
    ).fetchall()[0]
    return (
        f"{counted(traces, 'trace')} of {counted(problems, 'problem')}; "
        f"made {now():%Y-%m-%d %H:%M} UTC by curate {code_version()}"
    )


STAGE = StageKind(
    config=partial(validate, ReportConfig), run=run, takes=frozenset({"label"}), gives="page"
)
