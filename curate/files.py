"""Read plain data files part by part, and write them so that a file appears only when it is whole.

Memory is bounded by the size of a part, which follows from the `memory` setting, not by the size of the file.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from curate.errors import CurateError, UsageError
from curate.memory import DEFAULT, text_bytes

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
