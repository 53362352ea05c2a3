"""Read plain data files part by part, and write them so that a file appears only when it is
complete.

    for part in read_parts(Path("traces.jsonl.gz")):
        ...

Files are JSON lines, JSON, CSV, TSV or Parquet, each also compressed by gzip or Zstandard. The
ending decides, in either case. Memory is bounded by the size of a part, which follows from the
`memory` setting, and by what one row may hold. A JSON file whose rows are inside an object, and a
compressed Parquet file, are read at once, up to a limit: a few bytes can decompress to gigabytes.

Nested values stay nested. Values whose types differ between rows become JSON text. A lone
surrogate (half of a character, which JSON can hold and UTF-8 cannot) becomes U+FFFD, and NaN
becomes null.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from curate.atomic import publish, temporary_path
from curate.errors import CurateError, UsageError
from curate.memory import DEFAULT, text_bytes

LINES, JSON, TABLES, PARQUET = (".jsonl", ".ndjson"), (".json",), (".csv", ".tsv"), (".parquet",)
KINDS = (*PARQUET, *LINES, *JSON, *TABLES)
COMPRESSED = (".gz", ".zst")
# Endings that can be written.
SUFFIXES = (*PARQUET, *LINES)
PART_ROWS = 20_000
# Limits against files built to exhaust memory. Ours; real data stays far below.
ROW_BYTES = 64 << 20  # of one row
WHOLE_BYTES = 256 << 20  # of a file that must be read at once, decompressed
COLUMNS = 10_000
_BATCH_ROWS = 256  # of Parquet at once: metadata can understate how large rows are


@dataclass
class Reading:
    """Options for reading files if their content does not decide, and the number of skipped
    rows.
    """

    header: bool | None = None  # of CSV and TSV: whether the first row holds names; null: detect
    rows: str | None = None  # the key of a JSON object that holds the rows; null: the only list
    skip_invalid: bool = False  # leave out lines that are not JSON objects instead of failing
    # Columns of JSON whose values are also given as JSON text, in columns called `json:NAME`, where
    # they are nested: Polars makes text of values whose types differ.
    exact: frozenset[str] = frozenset()
    skipped: int = 0


def kind_of(path: str | Path) -> str | None:
    """The ending that decides how a file is read, in lower case and without compression."""
    name = Path(path).name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    suffix = Path(name).suffix
    return suffix if suffix in KINDS else None


def stem_of(path: str | Path) -> str:
    """The name of a file without its endings: `a` for `a.jsonl.gz`."""
    name = Path(path).name
    for suffix in (*COMPRESSED, *KINDS):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name


def data_files(paths: Sequence[str | Path]) -> list[Path]:
    """List the data files that `paths` name, searching directories; raise `UsageError` for
    others.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if kind_of(p) and p.is_file())
            if not inside:
                raise UsageError(f"the directory {path} holds no {_endings()} file")
            files += inside
        elif not path.is_file():
            raise UsageError(f"no file {path}")
        elif kind_of(path) is None:
            raise UsageError(
                f"cannot read {path}: the name must end in {_endings()}; rename or convert it"
            )
        else:
            files.append(path)
    if not files:
        raise UsageError("no file was named")
    return files


def _endings() -> str:
    return f"{', '.join(KINDS)} (also with {' or '.join(COMPRESSED)})"


def read_parts(
    path: Path,
    size: int | None = None,
    columns: Sequence[str] | None = None,
    reading: Reading | None = None,
) -> Iterator[pl.DataFrame]:
    """Yield the rows of one file in order, in parts of about `size` bytes.

    `columns`: only these, from a Parquet file. A Parquet file without rows yields one empty part.
    Raises `UsageError` with the line for content that cannot be read.
    """
    for frame, _ in read_numbered(path, size, columns, reading):
        yield frame


def read_numbered(
    path: Path,
    size: int | None = None,
    columns: Sequence[str] | None = None,
    reading: Reading | None = None,
) -> Iterator[tuple[pl.DataFrame, Sequence[int]]]:
    """Yield the parts of `read_parts`, each with the numbers of its rows: lines, or places from
    1.
    """
    size, reading, kind = size or text_bytes(DEFAULT), reading or Reading(), kind_of(path)
    try:
        if kind in PARQUET:
            yield from _parquet_parts(path, size, columns)
        elif kind in TABLES:
            yield from _table_parts(path, size, reading)
        elif kind in LINES or (kind in JSON and _is_json_lines(path)):
            yield from _json_parts(_Lines(path), size, reading)
        elif kind in JSON:
            yield from _json_parts(_Items(path, reading), size, reading)
        else:
            data_files([path])
    except (OSError, EOFError, zlib.error) as error:
        raise CurateError(f"cannot read {path}: {error}") from error
    except RecursionError:
        raise CurateError(f"cannot read {path}: its JSON is nested too deeply") from None


def column_expr(schema: pl.Schema, name: str) -> tuple[pl.Expr, pl.DataType] | None:
    """The column called `name`, or a field inside a struct or a list of structs (`a.b`), with its
    type.

    Inside JSON text a field is text. Returns None without such a column.
    """
    if name in schema:
        return pl.col(name), schema[name]
    # The longest prefix that is a column, since names may contain points themselves.
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        column = ".".join(parts[:count])
        if column in schema:
            field = _field(pl.col(column), schema[column], parts[count:], name)
            if field is not None:
                return field
    return None


def _field(
    value: pl.Expr, dtype: pl.DataType, path: list[str], name: str
) -> tuple[pl.Expr, pl.DataType] | None:
    if not path:
        return value.alias(name), dtype
    if isinstance(dtype, pl.Struct):
        fields = {field.name: field.dtype for field in dtype.fields}
        if path[0] not in fields:
            return None
        kind = fields[path[0]]
        return _field(value.struct.field(path[0]), kind, path[1:], name)  # type: ignore[arg-type]
    if isinstance(dtype, pl.List) and isinstance(dtype.inner, pl.Struct):
        inner = _field(pl.element(), dtype.inner, path, name)
        return None if inner is None else (value.list.eval(inner[0]).alias(name), pl.List(inner[1]))
    if dtype == pl.String:
        place = "$" + "".join(f"['{part}']" for part in path)
        return value.str.json_path_match(place).alias(name), pl.String()
    return None


def column_names(schema: pl.Schema) -> list[str]:
    """Names of columns, with the fields of structs after each (`reward_model.ground_truth`)."""
    names: list[str] = []
    for name, dtype in schema.items():
        names.append(name)
        inner = dtype.inner if isinstance(dtype, pl.List) else dtype
        if isinstance(inner, pl.Struct):
            fields = pl.Schema({field.name: field.dtype for field in inner.fields})
            names += [f"{name}.{field}" for field in column_names(fields)]
    return names


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    if suffix == ".zst":
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"), 1 << 20)
    return path.open("rb")


def _parquet_parts(
    path: Path, limit: int, columns: Sequence[str] | None
) -> Iterator[tuple[pl.DataFrame, Sequence[int]]]:
    source = path
    if path.suffix.lower() in COMPRESSED:
        with open_bytes(path) as compressed:
            source = pa.BufferReader(_whole(compressed, path))
    first = 1
    try:
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            check_columns(file.metadata.num_columns, path)
            if not file.metadata.num_rows:
                schema = file.schema_arrow
                if columns is not None:
                    schema = pa.schema([schema.field(name) for name in columns])
                yield pl.DataFrame(pl.from_arrow(schema.empty_table())), ()
            batches = file.iter_batches(
                batch_size=_batch_rows(file.metadata, limit),
                columns=None if columns is None else list(columns),
            )
            for table in _grouped(batches, limit):
                frame = pl.DataFrame(pl.from_arrow(table))
                yield frame, range(first, first + frame.height)
                first += frame.height
    except (pa.ArrowException, UnicodeDecodeError, MemoryError) as error:  # damaged bytes
        raise UsageError(f"{path} is not readable Parquet: {error}") from error


def _batch_rows(metadata: pq.FileMetaData, limit: int) -> int:
    size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    each = max(size / max(metadata.num_rows, 1), 1)
    return int(max(1, min(_BATCH_ROWS, PART_ROWS, limit / each)))


def _grouped(batches: Iterable[pa.RecordBatch], limit: int) -> Iterator[pa.Table]:
    """Put batches together up to `limit` bytes or PART_ROWS rows."""
    waiting: list[pa.RecordBatch] = []
    size = rows = 0
    for batch in batches:
        if waiting and (size + batch.nbytes > limit or rows + batch.num_rows > PART_ROWS):
            yield pa.Table.from_batches(waiting)
            waiting, size, rows = [], 0, 0
        waiting.append(batch)
        size += batch.nbytes
        rows += batch.num_rows
    if waiting:
        yield pa.Table.from_batches(waiting)


def check_columns(count: int, path: Path) -> None:
    """UsageError for a file with more columns than any data set has."""
    if count > COLUMNS:
        raise UsageError(
            f"{path} has {count:,} columns, and at most {COLUMNS:,} are read: if they are keys of "
            "a mapping, store that as JSON text"
        )


def _whole(file: IO[bytes], path: Path) -> bytes:
    """All of a file that cannot be read part by part. UsageError beyond WHOLE_BYTES."""
    data = file.read(WHOLE_BYTES + 1)
    if len(data) > WHOLE_BYTES:
        raise UsageError(
            f"{path} holds more than {WHOLE_BYTES >> 20} MB, and such a file is read at once: "
            "decompress Parquet, or write JSON as one object per line (.jsonl)"
        )
    return data


def _too_large(path: Path, row: str) -> UsageError:
    return UsageError(f"{path}, {row}: more than {ROW_BYTES >> 20} MB in one row")


class _Lines:
    """The lines of a file: numbers and bytes, without blank ones."""

    unit = "line"

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        with open_bytes(self.path) as file:
            lines = iter(lambda: file.readline(ROW_BYTES + 1), b"")
            for number, line in enumerate(lines, 1):
                if len(line) > ROW_BYTES:
                    raise _too_large(self.path, f"line {number}")
                if number == 1:
                    line = _without_mark(line, self.path)
                if line.strip():
                    yield number, line


class _Items:
    """The rows of a JSON array, or of the list inside a JSON object: places and bytes of one
    line.
    """

    unit = "row"

    def __init__(self, path: Path, reading: Reading) -> None:
        self.path, self.reading = path, reading

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        with open_bytes(self.path) as file:
            head = _without_mark(file.read(1 << 16), self.path)
            if head.lstrip().startswith(b"["):
                items = _array_items(head, file, self.path)
            else:
                items = self._object_items(head + _whole(file, self.path))
            for number, item in enumerate(items, 1):
                yield number, item.encode("utf-8", "surrogatepass") + b"\n"

    def _object_items(self, data: bytes) -> Iterator[str]:
        try:
            content = json.loads(data)
        except ValueError as error:
            raise UsageError(f"{self.path} is not valid JSON: {error}") from error
        for row in _rows_inside(content, self.reading.rows, self.path):
            yield json.dumps(row, ensure_ascii=False)


def _without_mark(head: bytes, path: Path) -> bytes:
    """The first bytes of a file without a byte order mark; `UsageError` for UTF-16."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UsageError(f"{path} is UTF-16: convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)")
    return head.removeprefix(b"\xef\xbb\xbf")


def _is_json_lines(path: Path) -> bool:
    """Whether a file called .json holds one object per line, as many data sets have it."""
    rows = 0
    for _, line in islice(_Lines(path), 2):
        try:
            rows += isinstance(json.loads(line), dict)
        except ValueError:
            return False
    return rows == 2


def _array_items(head: bytes, file: IO[bytes], path: Path) -> Iterator[str]:
    """The elements of a JSON array as text, reading on only as far as each one needs."""
    decoder = json.JSONDecoder()
    reader = io.TextIOWrapper(io.BufferedReader(_Chained(head, file)), encoding="utf-8")
    try:
        text, at, size, number = reader.read(1 << 20), 0, 1 << 20, 1
        at = text.index("[") + 1
        while True:
            at = _skip(text, at, " \t\r\n,")
            if at >= len(text):
                more = reader.read(size)
                if not more:
                    raise UsageError(f"{path} ends within its JSON array, after row {number - 1}")
                text, at = more, 0
                continue
            if text[at] == "]":
                return
            try:
                _, end = decoder.raw_decode(text, at)
            except ValueError as error:
                more = reader.read(size)
                if not more:
                    raise UsageError(f"{path}, row {number}: not valid JSON ({error})") from error
                if len(text) - at > ROW_BYTES:
                    raise _too_large(path, f"row {number}") from error
                # Doubled, so that one large element is not parsed again for each small piece.
                text, at, size = text[at:] + more, 0, min(size * 2, 1 << 28)
                continue
            if end == len(text) and (more := reader.read(size)):  # a number may continue
                text, at = text[at:] + more, 0
                continue
            # Line breaks occur only between values: inside a string JSON escapes them.
            yield text[at:end].replace("\r", " ").replace("\n", " ")
            at, number = end, number + 1
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error}") from error


def _skip(text: str, at: int, blank: str) -> int:
    while at < len(text) and text[at] in blank:
        at += 1
    return at


class _Chained(io.RawIOBase):
    """Bytes that were read already, then the rest of their file."""

    def __init__(self, head: bytes, file: IO[bytes]) -> None:
        self._head, self._file = head, file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head[: len(buffer)] or self._file.read(len(buffer))
        self._head = self._head[len(data) :] if self._head else b""
        buffer[: len(data)] = data
        return len(data)


def _rows_inside(content: Any, key: str | None, path: Path) -> list[dict[str, Any]]:
    """The rows that a JSON object holds: a list of objects, columns of equal length, or objects by
    name.
    """
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds neither rows nor an object with rows")
    if key is not None:
        if key not in content:
            raise UsageError(f"{path} has no key '{key}': it has {', '.join(map(str, content))}")
        content = {key: content[key]}
    columns, data = content.get("columns"), content.get("data")
    if isinstance(columns, list) and isinstance(data, list) and all(map(_is_list, data)):
        return [dict(zip(columns, row, strict=False)) for row in data]  # `orient="split"` of pandas
    lists = {
        name: value
        for name, value in content.items()
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
    }
    if len(lists) > 1:
        raise UsageError(
            f"{path} holds rows under several keys ({', '.join(lists)}): name one with rows=KEY"
        )
    if lists:
        return next(iter(lists.values()))
    values = list(content.values())
    if values and all(isinstance(value, dict) and value for value in values):
        keys = [list(value) for value in values]
        if all(key == [str(i) for i in range(len(keys[0]))] for key in keys):
            cells = zip(*(value.values() for value in values), strict=True)
            return [dict(zip(content, row, strict=True)) for row in cells]  # pandas, by column
    if len(values) == 1 and isinstance(values[0], dict):
        return _rows_inside(values[0], None, path)
    lengths = {len(value) if isinstance(value, list) else -1 for value in values}
    if len(lengths) == 1 and -1 not in lengths:
        return [dict(zip(content, row, strict=True)) for row in zip(*values, strict=True)]
    if len(values) > 1 and all(isinstance(value, dict) for value in values):
        names = [set(value) for value in values]
        if set.intersection(*names):
            return [{"id": name, **value} for name, value in content.items()]
    return [content]


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _json_parts(
    source: _Lines | _Items, limit: int, reading: Reading
) -> Iterator[tuple[pl.DataFrame, Sequence[int]]]:
    """Parts of rows that are JSON objects, all of one schema: two passes, since a column may come
    late.
    """
    schema = pl.Schema()
    for lines, numbers in _chunks(source, limit):
        schema = _union(schema, _chunk_schema(source, lines, numbers, reading))
        check_columns(len(schema), source.path)
    reading.skipped = 0
    for lines, numbers in _chunks(source, limit):
        data = _whole_characters(b"".join(lines))
        try:
            frame = pl.read_ndjson(io.BytesIO(data), schema=schema)
        except (pl.exceptions.PolarsError, UnicodeDecodeError):
            lines, numbers = _repaired(source, lines, numbers, reading)
            if not lines:
                continue
            frame = pl.read_ndjson(io.BytesIO(b"".join(lines)), schema=schema)
        yield frame.with_columns(_exact_values(lines, schema, reading.exact)), numbers


def _exact_values(
    lines: Sequence[bytes], schema: pl.Schema, names: Iterable[str]
) -> list[pl.Series]:
    data = b"".join(lines)
    nested = [
        name
        for name in names
        if name in schema
        and (
            schema[name].is_nested()
            or re.search(rb'"%s"\s*:\s*[\[{]' % re.escape(name.encode()), data)
        )
    ]
    if not nested:
        return []
    rows = [json.loads(_whole_characters(line), parse_constant=lambda _: None) for line in lines]
    return [
        pl.Series(
            f"json:{name}",
            [None if row.get(name) is None else json.dumps(row[name]) for row in rows],
            dtype=pl.String,
        )
        for name in nested
    ]


def _chunks(source: _Lines | _Items, limit: int) -> Iterator[tuple[list[bytes], list[int]]]:
    lines: list[bytes] = []
    numbers: list[int] = []
    size = 0
    for number, line in source:
        if lines and (size + len(line) > limit or len(lines) >= PART_ROWS):
            yield lines, numbers
            lines, numbers, size = [], [], 0
        lines.append(line if line.endswith(b"\n") else line + b"\n")
        numbers.append(number)
        size += len(line)
    if lines:
        yield lines, numbers


def _chunk_schema(
    source: _Lines | _Items, lines: list[bytes], numbers: list[int], reading: Reading
) -> pl.Schema:
    data = _whole_characters(b"".join(lines))
    try:
        return _inferred(data)
    except (pl.exceptions.PolarsError, UnicodeDecodeError):
        lines, _ = _repaired(source, lines, numbers, reading)
    try:
        return _inferred(b"".join(lines)) if lines else pl.Schema()
    except pl.exceptions.PolarsError:
        return _schema_by_column(lines)


def _inferred(data: bytes) -> pl.Schema:
    """The types that Polars finds, once it has read the data by them: not all that it infers
    holds.
    """
    schema = pl.scan_ndjson(io.BytesIO(data), infer_schema_length=None).collect_schema()
    if any(dtype.is_nested() for dtype in schema.values()):
        pl.read_ndjson(io.BytesIO(data), schema=schema)
    return schema


def _schema_by_column(lines: list[bytes]) -> pl.Schema:
    """Types column by column; a column that Polars has no common type for is JSON text."""
    rows = [json.loads(line) for line in lines]
    schema: dict[str, pl.DataType] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        one = "".join(json.dumps({name: row.get(name)}) + "\n" for row in rows)
        try:
            schema |= _inferred(one.encode())
        except pl.exceptions.PolarsError:
            schema[name] = pl.String()
    return pl.Schema(schema)


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_PAIR = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)


def _whole_characters(data: bytes) -> bytes:
    """JSON in which an escape for half of a character is one for U+FFFD; Polars would read
    U+0000.
    """
    if b"\\ud" not in data and b"\\uD" not in data:  # quicker than the pattern
        return data
    if not _SURROGATE.search(data):
        return data
    lone = 6  # bytes: a pair has twelve, an escaped backslash two
    return _PAIR.sub(lambda m: rb"\ufffd" if len(m.group()) == lone else m.group(), data)


def _repaired(
    source: _Lines | _Items, lines: Sequence[bytes], numbers: Sequence[int], reading: Reading
) -> tuple[list[bytes], list[int]]:
    """The lines that are JSON objects, in strict JSON; `UsageError` names the first that is not."""
    good: list[bytes] = []
    places: list[int] = []
    for number, line in zip(numbers, lines, strict=True):
        try:
            # NaN and Infinity are what json.dumps writes, and no JSON.
            row = json.loads(_whole_characters(line).strip(), parse_constant=lambda name: None)
            problem = "" if isinstance(row, dict) else "not a JSON object"
        except ValueError as error:
            problem = f"not valid JSON ({error})"
        if not problem:
            good.append(json.dumps(row).encode() + b"\n")
            places.append(number)
        elif reading.skip_invalid:
            reading.skipped += 1
        else:
            raise UsageError(
                f"{source.path}, {source.unit} {number}: {problem}; mend it, or leave such rows "
                "out with skip_invalid=true"
            )
    return good, places


def _union(left: pl.Schema, right: pl.Schema) -> pl.Schema:
    names = dict.fromkeys([*left, *right])
    return pl.Schema(
        {name: _common(left.get(name, pl.Null()), right.get(name, pl.Null())) for name in names}
    )


def _common(left: Any, right: Any) -> pl.DataType:
    """A type for both; text where one is a list or a struct and the other is not."""
    if left == right or right == pl.Null:
        return left
    if left == pl.Null:
        return right
    if isinstance(left, pl.List) and isinstance(right, pl.List):
        return pl.List(_common(left.inner, right.inner))
    if isinstance(left, pl.Struct) and isinstance(right, pl.Struct):
        fields = _union(
            pl.Schema({f.name: f.dtype for f in left.fields}),
            pl.Schema({f.name: f.dtype for f in right.fields}),
        )
        return pl.Struct(fields)
    if left.is_numeric() and right.is_numeric():
        return pl.Float64()
    return pl.String()


def _table_parts(
    path: Path, limit: int, reading: Reading
) -> Iterator[tuple[pl.DataFrame, Sequence[int]]]:
    """Rows of CSV or TSV, all columns text; empty cells are null."""
    csv.field_size_limit(ROW_BYTES)
    tabs = kind_of(path) == ".tsv"
    with open_bytes(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        rows = csv.reader(
            _text_lines(text, path),
            delimiter="\t" if tabs else ",",
            quoting=csv.QUOTE_NONE if tabs and not _tabs_are_quoted(path) else csv.QUOTE_MINIMAL,
        )
        try:
            first = next(rows, None)
            if first is None:
                return
            check_columns(len(first), path)
            header = _is_header(first) if reading.header is None else reading.header
            width = len(first)
            names = _distinct(first) if header else [f"column_{i}" for i in range(1, width + 1)]
            waiting: list[list[str]] = [] if header else [first]
            numbers = [] if header else [1]
            size = 0
            for row in rows:
                number = rows.line_num
                if not row:
                    continue
                if len(row) > width:
                    if not reading.skip_invalid:
                        raise UsageError(
                            f"{path}, line {number}: {len(row)} cells, but the first row has "
                            f"{width}; quote cells that hold the separator, or leave such rows "
                            "out with skip_invalid=true"
                        )
                    reading.skipped += 1
                    continue
                cells = sum(map(len, row))
                if waiting and (size + cells > limit or len(waiting) >= PART_ROWS):
                    yield _table(waiting, names), numbers
                    waiting, numbers, size = [], [], 0
                waiting.append(row + [""] * (width - len(row)))
                numbers.append(number)
                size += cells
            yield _table(waiting, names), numbers
        except (csv.Error, UnicodeDecodeError) as error:
            raise UsageError(f"{path}, line {rows.line_num}: {error}") from error


def _text_lines(text: IO[str], path: Path) -> Iterator[str]:
    lines = iter(lambda: text.readline(ROW_BYTES + 1), "")
    for number, line in enumerate(lines, 1):
        if len(line) > ROW_BYTES:
            raise _too_large(path, f"line {number}")
        yield line


def _table(rows: list[list[str]], names: list[str]) -> pl.DataFrame:
    frame = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")
    return frame.with_columns(pl.when(pl.all() != "").then(pl.all()))


def _is_header(cells: list[str]) -> bool:
    """Whether a first row holds names: short, distinct, not empty, no numbers and no sentences."""
    stripped = [cell.strip() for cell in cells]
    return len(set(stripped)) == len(stripped) and all(
        cell and len(cell) <= 40 and not re.fullmatch(r"[-+\d.,%\s]+", cell) and cell.count(" ") < 4
        for cell in stripped
    )


def _distinct(names: list[str]) -> list[str]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    if doubled := [name for name, count in counts.items() if count > 1]:
        raise UsageError(
            f"the column name '{doubled[0]}' occurs twice; if the first row holds no names, say "
            "header=false"
        )
    return names


def _tabs_are_quoted(path: Path) -> bool:
    """Whether quotation marks in a TSV file enclose cells: read so, the head of the file is a
    table.
    """
    with open_bytes(path) as file:
        head = file.read(1 << 20)
        whole = not file.read(1)
    text = head.decode("utf-8-sig", "replace")
    if not re.search(r'(?m)(^|\t)"', text):
        return False
    widths: set[int] = set()
    try:
        widths.update(len(row) for row in csv.reader(io.StringIO(text), "excel-tab", strict=True))
    except csv.Error as error:
        if whole or "unexpected end" not in str(error):
            return False
    return len(widths - {0}) <= (1 if whole else 2)


class Writer:
    """Rows written to one Parquet or JSONL file, which appears under its name once it is
    complete.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in SUFFIXES:
            raise UsageError(f"cannot write {path}: the name must end in {', '.join(SUFFIXES)}")
        self.rows = 0
        self._staged = temporary_path(self.path)
        self._parquet: Any = None

    def __enter__(self) -> Writer:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._staged.unlink(missing_ok=True)
        return self

    def write(self, frame: pl.DataFrame) -> None:
        self.rows += frame.height
        try:
            if self.path.suffix.lower() == ".parquet":
                table = _storable(frame).to_arrow()
                if self._parquet is None:
                    self._parquet = pq.ParquetWriter(self._staged, table.schema, compression="zstd")
                writer: pq.ParquetWriter = self._parquet
                writer.write_table(table.cast(writer.schema), row_group_size=PART_ROWS)
            else:
                with self._staged.open("ab") as file:
                    frame.write_ndjson(file)
        except OSError as error:
            raise CurateError(f"cannot write {self.path}: {error}") from error

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._parquet is not None:
            self._parquet.close()
        if kind is None and self._staged.exists():
            publish(self._staged, self.path)
        self._staged.unlink(missing_ok=True)


def _storable(frame: pl.DataFrame) -> pl.DataFrame:
    """Replace columns that hold structs without fields, which Parquet has no type for, by JSON
    text.
    """
    return frame.with_columns(
        pl.Series(
            column.name,
            [None if value is None else json.dumps(value) for value in column.to_list()],
            dtype=pl.String,
        )
        for column in frame.iter_columns()
        if _has_empty_struct(column.dtype)
    )


def _has_empty_struct(dtype: Any) -> bool:
    if isinstance(dtype, pl.List):
        return _has_empty_struct(dtype.inner)
    if isinstance(dtype, pl.Struct):
        return not dtype.fields or any(_has_empty_struct(field.dtype) for field in dtype.fields)
    return False
