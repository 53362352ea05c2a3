"""The report job: one self-contained HTML page over a warehouse."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from curate.atomic import write_whole
from curate.config import Config, validate
from curate.errors import UsageError
from curate.job import Context, JobResult, StageKind
from curate.progress import duration
from curate.version import code_version
from curate.warehouse.files import now


class ReportConfig(Config):
    """What the page holds. `where` names sets of the trace browser: a label and a SQL condition
    over `annotated`."""

    out: str | None = None  # file; by default report.html in the warehouse
    title: str = "curate report"
    corpora: list[str] | None = (
        None  # name or name@version; all by default, each in its newest version
    )
    where: dict[str, str] = {}
    traces: int = Field(120, ge=0, le=5000)  # at most so many a set
    annotate: bool = True  # measure first what rollouts and other traces lack
    label: str | None = None


def run(config: ReportConfig, context: Context) -> JobResult:
    """Write the page, whole or not at all. UsageError where there is no warehouse or a condition is
    wrong."""
    from curate.annotate import job as annotate
    from curate.report.page import document, sections
    from curate.warehouse.sql import connect

    started = time.monotonic()
    wh = context.warehouse
    if not wh.exists():
        raise UsageError(f"no warehouse at {wh.root}: name one with --warehouse")
    if config.annotate:
        annotate.run(annotate.AnnotateConfig(verify=False, label="signals"), context)
    target = Path(config.out) if config.out else wh.root / "report.html"
    if target.is_dir():
        raise UsageError(f"{target} is a folder: name a file, such as {target / 'report.html'}")
    conditions = dict(config.where) or {"all traces": "TRUE"}
    with connect(wh.root) as con:
        parts = sections(wh, con, config.corpora, conditions, config.traces)
        made = document(config.title, _subtitle(con), parts)
    write_whole(target, made)
    result = JobResult(seconds=time.monotonic() - started)
    result.facts = {"value": str(target), "report": str(target)}
    result.summary = f"{target} ({len(made.encode()) / 1e6:.1f} MB) in {duration(result.seconds)}"
    return result


def _subtitle(con: Any) -> str:
    traces, problems = con.sql(
        "SELECT count(*), count(DISTINCT problem_id) FROM last_traces"
    ).fetchall()[0]
    return f"{traces:,} traces of {problems:,} problems; made {now():%Y-%m-%d %H:%M} UTC by curate {code_version()}"


STAGE = StageKind(
    config=partial(validate, ReportConfig), run=run, takes=frozenset({"label"}), gives="page"
)
