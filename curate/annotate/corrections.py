"""Corrected references: a new version of the problems, and old traces judged against it.

    curate sql --file suspicious_references -f csv > corrections.csv     # read it, delete lines
    curate correct corrections.csv

A corrected problem keeps its id, and therefore its traces. The column `correction` marks its new
row, and the newest row counts. Nothing is sampled again: the verifiers judge the stored traces, and
their new verdicts are stored next to the old ones.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from curate.annotate import job as annotate
from curate.errors import UsageError
from curate.files import read_parts
from curate.job import Context, JobResult
from curate.progress import counted, duration
from curate.warehouse.identity import digest, frame_digest

# Verifiers that judge by metadata or tests: another reference would change no verdict.
WITHOUT_REFERENCE = ("procedural", "code")
LOOSE = "corrections"  # dataset for corrected problems that are in the newest version of no dataset

VERDICTS = "SELECT trace_id, attempt, verdict FROM annotated WHERE problem_id IN (SELECT unnest(?))"


def read_corrections(path: Path) -> pl.DataFrame:
    """Return `problem_id, reference` of a file (CSV, JSONL or Parquet).

    The reference is in a column `proposed`, as `suspicious_references` writes it, or else in
    `reference`. UsageError for missing columns, blank references and a problem named twice.
    """
    if not path.is_file():
        raise UsageError(f"no file {path}")
    frame = pl.concat(list(read_parts(path)), how="vertical_relaxed")
    column = "proposed" if "proposed" in frame.columns else "reference"
    if missing := {"problem_id", column} - set(frame.columns):
        raise UsageError(
            f"{path}: no column {', '.join(sorted(missing))}: corrections have the columns "
            "problem_id and proposed"
        )
    rows = frame.select("problem_id", pl.col(column).cast(pl.String).alias("reference"))
    blank = rows.filter(pl.col("reference").fill_null("").str.strip_chars() == "")
    if blank.height:
        raise UsageError(f"{path}: {counted(blank.height, 'row')} without {column}")
    if twice := rows.filter(pl.col("problem_id").is_duplicated())["problem_id"].to_list():
        raise UsageError(f"{path}: problem {twice[0]} occurs more than once")
    return rows


def correct(corrections: pl.DataFrame, context: Context) -> JobResult:
    """Write new references (`problem_id, reference`), and judge the traces of their problems.

    Corrections that change nothing are left out. UsageError for an unknown problem, and for one
    whose verifier reads no reference.
    """
    started, wh = time.monotonic(), context.warehouse
    stored = wh.sql("SELECT problem_id, reference AS old, verifier FROM problems")
    unknown = corrections.join(stored, on="problem_id", how="anti")["problem_id"]
    if len(unknown):
        raise UsageError(
            f"{counted(len(unknown), 'unknown problem')}, the first is {unknown[0]}: "
            "corrections name problems by problem_id"
        )
    judged = corrections.join(stored, on="problem_id")
    for name in WITHOUT_REFERENCE:
        if (count := judged.filter(pl.col("verifier") == name).height) > 0:
            raise UsageError(
                f"{counted(count, 'problem')} judged by the verifier '{name}', which reads no "
                "reference: leave them out, and correct their source"
            )
    changed = corrections.join(stored, on="problem_id", how="inner").filter(
        pl.col("reference").ne_missing(pl.col("old"))
    )
    if changed.is_empty():
        return JobResult(summary="nothing to correct: the problems have these references already")
    number = 1 + (wh.sql("SELECT max(correction) FROM problems").item() or 0)
    before = _verdicts(context, changed["problem_id"])
    result = JobResult(refs=_write(changed, number, context), rows=changed.height)
    datasets = wh.sql(
        "SELECT DISTINCT dataset FROM traces WHERE problem_id IN (SELECT unnest(?))",
        [changed["problem_id"].to_list()],
    )["dataset"].to_list()
    if datasets:
        annotate.run(annotate.AnnotateConfig(traces=datasets, signals=[]), context)
    after = _verdicts(context, changed["problem_id"])
    flipped = before.join(after, on=["trace_id", "attempt"], suffix="_after").filter(
        pl.col("verdict").ne_missing(pl.col("verdict_after"))
    )
    result.seconds = time.monotonic() - started
    result.facts = {"correction": number, "traces": after.height, "changed": flipped.height}
    result.summary = (
        f"{counted(changed.height, 'reference')} corrected ({', '.join(result.refs)}); "
        f"{counted(after.height, 'trace')} judged again in {duration(result.seconds)}, "
        f"{counted(flipped.height, 'verdict')} changed"
    )
    context.record(
        digest("correct", number, frame_digest(changed))[:24],
        "correct",
        f"correction {number}",
        dict(changed.select("problem_id", "reference").iter_rows()),
        result,
    )
    return result


def _verdicts(context: Context, problems: pl.Series) -> pl.DataFrame:
    return context.warehouse.sql(VERDICTS, [problems.to_list()])


def _write(changed: pl.DataFrame, number: int, context: Context) -> list[str]:
    """Write a new version of every dataset whose newest version holds a corrected problem."""
    wh = context.warehouse
    new = changed.select("problem_id", pl.col("reference").alias("new"))
    written: list[str] = []
    held: set[str] = set()
    for dataset in dict.fromkeys(v.dataset for v in wh.versions("problems", sealed=True)):
        version = wh.latest("problems", dataset)
        frame = version.read().collect()
        own = new.filter(pl.col("problem_id").is_in(frame["problem_id"].implode()))
        if own.is_empty():
            continue
        held |= set(own["problem_id"])
        rows = _corrected(frame, own, number)
        facts = {"parents": [version.ref], "config": {"correction": number, "rows": own.height}}
        written.append(wh.write("problems", dataset, rows, key=frame_digest(rows), **facts).ref)
    loose = new.filter(~pl.col("problem_id").is_in(sorted(held)))
    if loose.height:
        frame = wh.sql("SELECT * FROM problems").join(loose, on="problem_id", how="semi")
        rows = _corrected(frame, loose, number)
        facts = {"config": {"correction": number, "rows": loose.height}}
        written.append(wh.write("problems", LOOSE, rows, key=frame_digest(rows), **facts).ref)
    return written


def _corrected(frame: pl.DataFrame, new: pl.DataFrame, number: int) -> pl.DataFrame:
    """Return rows of problems with the references of `new` (problem_id, new)."""
    if "correction" not in frame.columns:
        frame = frame.with_columns(correction=pl.lit(None, pl.Int32))
    joined = frame.join(new, on="problem_id", how="left", maintain_order="left")
    corrected = pl.col("new").is_not_null()
    return joined.with_columns(
        reference=pl.coalesce("new", "reference"),
        correction=pl.when(corrected).then(pl.lit(number, pl.Int32)).otherwise("correction"),
    ).drop("new")


def pairs(given: Sequence[str]) -> pl.DataFrame:
    """Return corrections given as `PROBLEM_ID=REFERENCE`."""
    rows = {}
    for item in given:
        problem_id, sign, reference = item.partition("=")
        if not sign or not reference.strip():
            raise UsageError(f"correction '{item}': write PROBLEM_ID=REFERENCE, or give a file")
        rows[problem_id] = reference
    return frame_of(rows)


def frame_of(references: Mapping[str, str]) -> pl.DataFrame:
    """Return corrections as the frame that `correct` takes."""
    schema = {"problem_id": pl.String, "reference": pl.String}
    return pl.DataFrame(list(references.items()), schema=schema, orient="row")
