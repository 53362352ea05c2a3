"""Implement `curate verify`: judge one pair, or every row of a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from curate.atomic import disk_errors, whole_file
from curate.errors import UsageError
from curate.files import data_files, read_parts, stem_of
from curate.progress import counted
from curate.records import Problem, Verdict
from curate.verify.registry import verifier_named
from curate.verify.workers.pool import default_pool

SUFFIXES = (".parquet", ".csv", ".jsonl", ".ndjson")


def cli_verify(
    gold: str | None = None,
    answer: str | None = None,
    verifier: str = "math",
    file: str | Path | None = None,
    out: str | Path | None = None,
) -> str:
    """Return the text to print: the verdict of one pair, or the counts of a file written to `out`.

    A file (any that `curate.files` reads) has the columns `gold` and `prediction`; a column
    `verifier` overrides the argument, `choices` (a list, or JSON of one), `metadata` and `tests`
    give what a verifier needs in addition to the gold. The output is the file with `verdict`,
    `extracted`, `detail`, `verifier`, `verifier_version` and `seconds`.
    """
    verifier_named(verifier)
    if file is not None:
        if gold is not None or answer is not None:
            raise UsageError(
                "give either --gold and --answer, or a file with the columns gold and prediction"
            )
        return _file(Path(file), verifier, Path(out) if out else None)
    if gold is None or answer is None:
        raise UsageError("give --gold and --answer, or a file with the columns gold and prediction")
    return line(default_pool().verify(_problem(gold, verifier), answer))


def line(verdict: Verdict) -> str:
    """Return one verdict as a line to read."""
    parts = [f"answer: {verdict.extracted!r}" if verdict.extracted is not None else "no answer"]
    parts += [verdict.detail] if verdict.detail and verdict.detail != parts[0] else []
    parts += [f"{verdict.verifier} {verdict.verifier_version}", f"{1000 * verdict.seconds:.1f} ms"]
    return f"{verdict.verdict}  ({'; '.join(parts)})"


def _problem(
    gold: str | None,
    verifier: str,
    choices: object = None,
    metadata: str | None = None,
    tests: str | None = None,
) -> Problem:
    """Return the problem of a row. Without a column `tests`, a code problem's gold is its tests."""
    if isinstance(choices, str) and choices.strip():
        try:
            choices = json.loads(choices)
        except (ValueError, RecursionError):
            choices = None
        if not isinstance(choices, list):
            raise UsageError(
                'the column choices must hold lists of texts, or JSON of them: ["dogs", "cats"]'
            )
    texts = [str(choice) for choice in choices] if isinstance(choices, list) else None
    tests = tests or (gold if verifier == "code" else None)
    return Problem(
        "",
        None if verifier == "code" else gold,
        verifier,
        choices=texts,
        tests=tests,
        metadata=metadata,
    )


def _file(path: Path, verifier: str, out: Path | None) -> str:
    frame = _read(path)
    missing = [name for name in ("gold", "prediction") if name not in frame.columns]
    if missing:
        has = ", ".join(frame.columns) or "none"
        raise UsageError(
            f"{path} has no column {' and no column '.join(missing)} (it has {has}): rename yours"
        )
    names = (
        frame["verifier"].fill_null(verifier).to_list()
        if "verifier" in frame.columns
        else [verifier] * len(frame)
    )
    for name in sorted(set(names)):
        verifier_named(name)
    golds = frame["gold"].cast(pl.String).to_list()
    predictions = frame["prediction"].cast(pl.String).fill_null("").to_list()
    extra = frame.select(name for name in ("choices", "metadata", "tests") if name in frame.columns)
    rows = extra.iter_rows(named=True) if extra.width else [{}] * len(frame)
    problems = [
        _problem(gold, name, **row) for gold, name, row in zip(golds, names, rows, strict=True)
    ]
    verdicts = default_pool().verify_batch(problems, predictions)
    columns = ("verdict", "extracted", "detail", "verifier", "verifier_version")
    judged = frame.with_columns(
        *(
            pl.Series(name, [getattr(v, name) for v in verdicts], dtype=pl.String)
            for name in columns
        ),
        pl.Series("seconds", [v.seconds for v in verdicts], dtype=pl.Float64),
    )
    suffix = path.suffix if path.suffix in SUFFIXES else ".jsonl"
    target = out or path.with_name(f"{stem_of(path)}.verdicts{suffix}")
    _write(judged, target)
    counts = Counter(verdict.verdict for verdict in verdicts)
    summary = ", ".join(f"{counts[name]} {name}" for name in ("correct", "wrong", "unverifiable"))
    return f"{counted(len(verdicts), 'row')}: {summary}; written to {target}"


def _read(path: Path) -> pl.DataFrame:
    parts = list(read_parts(data_files([path])[0]))
    return pl.concat(parts, how="vertical_relaxed") if parts else pl.DataFrame()


def _write(frame: pl.DataFrame, path: Path) -> None:
    """Write a whole file or nothing, in the format that its name asks for."""
    writers: dict[str, Callable[[str], Any]] = {
        ".parquet": frame.write_parquet,
        ".csv": frame.write_csv,
        ".jsonl": frame.write_ndjson,
        ".ndjson": frame.write_ndjson,
    }
    if path.suffix not in writers:
        raise UsageError(f"{path}: verify writes {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a directory: create it first")
    with disk_errors(path), whole_file(path) as staged:
        writers[path.suffix](str(staged))
