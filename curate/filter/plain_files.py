"""Apply rules to plain data files, without a warehouse.

The files are read twice: once for the narrow columns that the rules name (and to measure signals
that a rule reads and the file lacks), once to write the kept rows. The narrow columns wait in a
temporary folder; only one part of the text is in memory at a time.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import polars as pl

from curate.errors import UsageError
from curate.files import Writer, column_expr, data_files, read_parts
from curate.filter.clauses import macro_columns
from curate.filter.decide import FilterResult, apply_rules, columns_read, explain
from curate.filter.rules import RuleSet
from curate.memory import DEFAULT, limit_malloc_arenas, megabytes, text_bytes
from curate.signals import column_groups, derived_columns
from curate.signals.plain_files import annotate_part
from curate.warehouse.schemas import arrow_schema
from curate.warehouse.sql import quote


def filter_files(
    paths: Sequence[str | Path],
    rules: RuleSet,
    out: str | Path,
    text_column: str = "completion",
    form: str | None = None,
    where: str | None = None,
    memory: str = DEFAULT,
) -> FilterResult:
    """Write the rows kept by `rules`, with the columns of the input, to one Parquet or JSONL file.

    Problems that are in a benchmark are written next to it (see `overlaps_file`). Raises the errors
    of `apply_rules`, and `UsageError` if a rule reads a column that the files lack. `memory` limits
    the process.
    """
    limit_malloc_arenas()
    size = text_bytes(memory)
    with narrowed(paths, rules, text_column, form, where, memory) as narrow, Writer(out) as writer:
        result = apply_rules(narrow.con, rules, where, slices=narrow, memory=memory)
        everything = None if result.rows.parts == len(narrow.files) else result.kept
        parts = (part for path in data_files(paths) for part in read_parts(path, size))
        for number, part in enumerate(parts):
            kept = result.rows.kept(number) if everything is None else everything
            writer.write(
                part.filter(narrow.ids(number).is_in(kept.get_column("trace_id").implode()))
            )
    if result.overlaps.height:
        with Writer(overlaps_file(out)) as writer:
            writer.write(result.overlaps)
    return result


def overlaps_file(out: str | Path) -> Path:
    """Return where problems that are in a benchmark are written: `kept.contamination.jsonl` for
    `kept.jsonl`.
    """
    return Path(out).with_suffix(f".contamination{Path(out).suffix}")


def explain_files(
    paths: Sequence[str | Path],
    rules: RuleSet,
    trace_id: str,
    text_column: str = "completion",
    form: str | None = None,
    where: str | None = None,
    memory: str = DEFAULT,
) -> str:
    """Explain as text why one row was kept or dropped. Rows without a column `trace_id` are called
    `row-000000000`, …
    """
    for clauses in (True, False):
        try:
            with narrowed(paths, rules, text_column, form, where, memory, clauses) as narrow:
                return str(explain(narrow.con, rules, trace_id, where))
        except UsageError:
            if (
                not clauses
            ):  # files with a macro's column, but without all columns it is derived from
                raise
    raise AssertionError


class Narrow:
    """The columns of the files that the rules read, as one Parquet file per part, in order.

    The view `annotated` of `con` shows all parts; iterating points it at one part after another.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, files: list[Path]) -> None:
        self.con, self.files = con, files
        self._show(files)

    def __iter__(self) -> Iterator[int]:
        try:
            for number, file in enumerate(self.files):
                self._show([file])
                yield number
        finally:
            self._show(self.files)

    def _show(self, files: list[Path]) -> None:
        listed = ", ".join(quote(str(file)) for file in files)
        self.con.execute(
            f"CREATE OR REPLACE VIEW annotated AS SELECT * FROM read_parquet([{listed}])"
        )

    def ids(self, number: int) -> pl.Series:
        return pl.read_parquet(self.files[number], columns=["trace_id"], glob=False).get_column(
            "trace_id"
        )


@contextmanager
def narrowed(
    paths: Sequence[str | Path],
    rules: RuleSet,
    text_column: str = "completion",
    form: str | None = None,
    where: str | None = None,
    memory: str = DEFAULT,
    clauses: bool = False,
) -> Iterator[Narrow]:
    """Return one row per row of the files, in order, with the columns that the rules read.

    Without a column `trace_id`, rows are named by their number over all files (`row-000000000`).
    Without `problem_id`, rows with the same `question` share a problem; any other row is a
    separate problem. Columns of traces and problems that the files lack are null; a missing
    verdict, or an unknown column, is a `UsageError` naming the rule.
    """

    folder = Path(tempfile.mkdtemp(prefix="curate-"))
    try:
        needed = columns_read(rules, where)
        if clauses:  # the columns that the macros of the rules read
            read = {
                name
                for macro in needed
                if macro in derived_columns()
                for name in macro_columns(macro)
            }
            needed |= dict.fromkeys(read & set(column_groups()), "--explain")
        files, named = _write_parts(paths, needed, text_column, form, text_bytes(memory), folder)
        with duckdb.connect() as con:
            con.execute("SET enable_progress_bar = false")
            con.execute(f"SET temp_directory = {quote(str(folder / 'spill'))}")
            con.execute(f"SET memory_limit = '{round(megabytes(memory, 200) / 2)}MB'")
            narrow = Narrow(con, files)
            twice = "SELECT 1 FROM annotated GROUP BY trace_id HAVING count(*) > 1 LIMIT 1"
            if named and con.execute(twice).fetchone():
                raise UsageError(
                    "the column trace_id holds some ids twice: make them distinct, or rename the "
                    "column"
                )
            yield narrow
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_parts(
    paths: Sequence[str | Path],
    needed: dict[str, str],
    text_column: str,
    form: str | None,
    size: int,
    folder: Path,
) -> tuple[list[Path], bool]:
    """Write the files of `Narrow`, all with one schema; return them and whether a part has ids of
    its own.
    """
    measured = (set(column_groups()) | set(derived_columns())) & set(needed)
    files: list[Path] = []
    shapes: list[pl.DataFrame] = []
    rows, named = 0, False
    for path in data_files(paths):
        for part in read_parts(path, size):
            named |= "trace_id" in part.columns
            if measured - set(part.columns):
                part = annotate_part(part, text_column, form, None, str(path))
            narrow = _keys(part, rows, text_column).select(
                _column(part, name, needed) for name in needed
            )
            files.append(folder / f"part-{len(files):05d}.parquet")
            narrow.write_parquet(files[-1], compression="lz4")
            shapes.append(narrow.clear())
            rows += part.height
    whole = pl.concat(shapes, how="vertical_relaxed").schema
    for file, shape in zip(files, shapes, strict=True):
        if shape.schema != whole:  # another file has a wider type for the column
            pl.read_parquet(file, glob=False).cast(whole).write_parquet(file, compression="lz4")
    return files, named


def _keys(part: pl.DataFrame, first: int, text_column: str) -> pl.DataFrame:
    """Add trace_id, attempt, problem_id and completion to `part`."""
    text = column_expr(part.schema, text_column)
    row = pl.int_range(first, first + part.height, dtype=pl.Int64).cast(pl.String).str.zfill(9)
    keys: dict[str, pl.Expr] = (
        {"completion": text[0]} if text is not None and not text[1].is_nested() else {}
    )
    if "trace_id" not in part.columns:
        keys["trace_id"] = pl.lit("row-") + row
    else:
        keys["trace_id"] = pl.col("trace_id").cast(pl.String)
    if "attempt" not in part.columns:
        keys["attempt"] = pl.lit(0, dtype=pl.Int64)
    if "problem_id" not in part.columns:
        keys["problem_id"] = (
            pl.col("question") if part.schema.get("question") == pl.String else keys["trace_id"]
        )
    return part.with_columns(**keys)


def _column(part: pl.DataFrame, name: str, needed: dict[str, str]) -> pl.Expr:
    """Return the column, or nulls of its type if a plain file need not have it."""
    if name in part.columns or name in ("trace_id", "attempt", "problem_id", "completion"):
        return pl.col(name)
    types = _optional_types()
    if name in types:
        return pl.lit(None, dtype=types[name]).alias(name)
    hint = "(correct, wrong or unverifiable) " if name == "verdict" else ""
    raise UsageError(
        f"rule '{needed[name]}' reads the column '{name}', which the files lack: add it {hint}"
        "or use rules without it"
    )


def _optional_types() -> dict[str, pl.DataType]:
    """Return the types of columns that files may lack: traces, problems, verdicts of judges and
    consensus.
    """

    verdicts = ("judge_verdict", "coherence_verdict", "consensus_verdict")
    types: dict[str, pl.DataType] = {name: pl.String() for name in verdicts}
    for table in ("traces", "problems"):
        types |= dict(pl.DataFrame(pl.from_arrow(arrow_schema(table).empty_table())).schema)
    return types
