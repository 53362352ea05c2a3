"""Signals for plain Parquet and JSONL files, without a warehouse: read part by part, measured, written part by part.

    annotate_files(["traces.jsonl"], "annotated.parquet", text_column="completion")

Memory is bounded by the size of a part, which follows from a setting, not by the size of the data. A file is written
beside its target and renamed when it is whole.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from curate.errors import CurateError, UsageError
from curate.memory import DEFAULT, keep_level, text_bytes
from curate.signals import annotate_frame, column_groups, derived_columns, with_macros

SUFFIXES = (".parquet", ".jsonl", ".ndjson")
PART_ROWS = 20_000


def data_files(paths: Sequence[str | Path]) -> list[Path]:
    """The Parquet and JSONL files that `paths` name, directories searched; `UsageError` for what is not there."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
            if not inside:
                raise UsageError(f"the directory {path} holds no {', '.join(SUFFIXES)} file")
            found += inside
        elif not path.is_file():
            raise UsageError(f"no file {path}")
        elif path.suffix not in SUFFIXES:
            raise UsageError(
                f"{path} is neither Parquet nor JSONL: it must end in {', '.join(SUFFIXES)}"
            )
        else:
            found.append(path)
    if not found:
        raise UsageError("no file was named")
    return found


def read_parts(
    path: Path, size: int | None = None, columns: Sequence[str] | None = None
) -> Iterator[pl.DataFrame]:
    """The rows of one file in order, parts of about `size` bytes; `CurateError` with the line for malformed JSON.

    `columns`: only these, of a Parquet file. A file without rows gives one empty part if it is Parquet.
    """
    size = size or text_bytes(DEFAULT)
    if path.suffix == ".parquet":
        yield from _parquet_parts(path, size, columns)
    else:
        yield from _json_parts(path, size)


def _parquet_parts(path: Path, limit: int, columns: Sequence[str] | None) -> Iterator[pl.DataFrame]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            meta = file.metadata
            size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)) / max(
                meta.num_rows, 1
            )
            rows = int(max(1, min(PART_ROWS, limit / max(size, 1))))
            if not meta.num_rows:
                schema = file.schema_arrow
                wanted = (
                    schema
                    if columns is None
                    else pa.schema([schema.field(name) for name in columns])
                )
                yield pl.DataFrame(pl.from_arrow(wanted.empty_table()))
            for batch in file.iter_batches(
                batch_size=rows, columns=None if columns is None else list(columns)
            ):
                yield pl.DataFrame(pl.from_arrow(pa.Table.from_batches([batch])))
    except (pa.ArrowInvalid, OSError) as error:
        raise CurateError(f"{path} is not readable Parquet: {error}") from error


def _json_parts(path: Path, limit: int) -> Iterator[pl.DataFrame]:
    schema = _json_schema(path)
    line = 1
    with path.open("rb") as file:
        # whole lines: what follows the last line break is left for the next part
        while chunk := file.readlines(limit):
            for start in range(0, len(chunk), PART_ROWS):
                lines = chunk[start : start + PART_ROWS]
                try:
                    yield pl.read_ndjson(io.BytesIO(b"".join(lines)), schema=schema)
                except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
                    raise _bad_line(path, lines, line + start, error) from error
            line += len(chunk)


def _json_schema(path: Path) -> pl.Schema:
    """Names and types over the whole file: a column that comes late, or is null for long, is found too."""
    try:
        return pl.scan_ndjson(path, infer_schema_length=None).collect_schema()
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        with path.open("rb") as file:
            raise _bad_line(path, file, 1, error) from error


def _bad_line(path: Path, lines: Iterable[bytes], first: int, error: Exception) -> CurateError:
    """Which line is no JSON object."""
    for number, line in enumerate(lines, first):
        if not line.strip():
            continue
        try:
            if not isinstance(json.loads(line), dict):
                return CurateError(f"{path}, line {number}: not a JSON object")
        except ValueError as wrong:
            return CurateError(f"{path}, line {number}: not valid JSON ({wrong})")
    return CurateError(f"{path} is not readable JSONL: {error}")


class Writer:
    """Rows to one Parquet or JSONL file that appears under its name when it is whole."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix not in SUFFIXES:
            raise UsageError(f"the output {path} must end in {', '.join(SUFFIXES)}")
        self.rows = 0
        self._staged = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        self._parquet: Any = None

    def __enter__(self) -> Writer:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._staged.unlink(missing_ok=True)
        return self

    def write(self, frame: pl.DataFrame) -> None:
        import pyarrow.parquet as pq

        self.rows += frame.height
        try:
            if self.path.suffix == ".parquet":
                table = frame.to_arrow()
                if self._parquet is None:
                    self._parquet = pq.ParquetWriter(self._staged, table.schema, compression="zstd")
                writer: pq.ParquetWriter = self._parquet
                writer.write_table(table.cast(writer.schema), row_group_size=PART_ROWS)
            else:
                with self._staged.open("ab") as file:
                    frame.write_ndjson(file)
        except OSError as error:
            raise CurateError(f"{self.path} could not be written: {error}") from error

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._parquet is not None:
            self._parquet.close()
        if kind is None and self._staged.exists():
            with self._staged.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(self._staged, self.path)
        self._staged.unlink(missing_ok=True)


def annotate_files(
    paths: Sequence[str | Path],
    out: str | Path,
    text_column: str = "completion",
    form: str | None = None,
    groups: Iterable[str] | None = None,
    progress: Callable[[int], None] | None = None,
    memory: str = DEFAULT,
) -> int:
    """Write the input's columns, the signals and the macros' columns; returns the number of rows written.

    `out` that ends in .parquet or .jsonl is one file; any other is a directory with a Parquet file for each input,
    where those that are there already are left as they are. Without `form` a text is reasoning as a whole; `r1`,
    `r1-zero` or `plain` say which tags are required. The columns `target_language`,
    `question`, `finish_reason` and `prompt` are used where they are there. `memory` bounds what is held at once.
    Raises `UsageError` for a missing column or one that a signal would overwrite.
    """
    files = data_files(paths)
    chosen = None if groups is None else list(groups)
    keep_level()
    size = text_bytes(memory)
    total = 0
    if Path(out).suffix in SUFFIXES:
        with Writer(out) as writer:
            for path in files:
                for part in read_parts(path, size):
                    writer.write(annotate_part(part, text_column, form, chosen, str(path)))
                    if progress is not None:
                        progress(writer.rows)
            return writer.rows
    if Path(out).suffix and not Path(out).is_dir():
        raise UsageError(f"the output {out} must end in {', '.join(SUFFIXES)}, or be a directory")
    for target, path in _targets(files, Path(out)).items():
        if target.exists():
            continue
        with Writer(target) as writer:
            for part in read_parts(path, size):
                writer.write(annotate_part(part, text_column, form, chosen, str(path)))
                if progress is not None:
                    progress(total + writer.rows)
            total += writer.rows
    return total


def _targets(files: list[Path], out: Path) -> dict[Path, Path]:
    """Output file to input file. Inputs of one name would overwrite each other."""
    targets: dict[Path, Path] = {}
    for path in files:
        target = out / f"{path.stem}.parquet"
        if target in targets:
            raise UsageError(
                f"{path} and {targets[target]} would both become {target}: annotate them one at a time"
            )
        targets[target] = path
    return targets


def annotate_part(
    part: pl.DataFrame,
    text_column: str,
    form: str | None,
    groups: list[str] | None = None,
    place: str = "the data",
) -> pl.DataFrame:
    """One part with the signals (and, with all groups, the macros) as columns after its own."""
    from curate.prompts.forms import Form

    if text_column not in part.columns:
        raise UsageError(
            f"{place} has no column '{text_column}': name the text with --text-column, one of {', '.join(part.columns)}"
        )
    taken = [name for name in (*column_groups(), *derived_columns()) if name in part.columns]
    if taken and not set(column_groups()) <= set(part.columns):
        raise UsageError(
            f"{place} has columns that signals are called too ({', '.join(taken[:5])}): rename them first; only data "
            "that has every signal, as an earlier annotation leaves it, is annotated anew"
        )
    inputs = {"completion": pl.col(text_column).cast(pl.String)}
    if form is not None:
        inputs["form"] = pl.lit(Form.of(form).name)
    elif "form" in part.columns:
        inputs["form"] = pl.col("form").cast(pl.String)
    for name in ("target_language", "question", "finish_reason", "prompt"):
        if name != text_column and part.schema.get(name) == pl.String:
            inputs[name] = pl.col(name)
    measured = annotate_frame(part.select(**inputs), groups).drop(inputs)
    if groups is None:
        measured = with_macros(measured)
    return part.drop(taken).hstack(measured)
