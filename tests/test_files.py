"""Reading and writing of plain files: every ending, damaged files, and all values of
JSON.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import CurateError, UsageError
from curate.files import Reading, Writer, column_expr, column_names, data_files, read_parts, stem_of

ROWS = [{"question": 'Is "1 < 2"?', "answer": "yes"}, {"question": "Sum,\nof 2", "answer": "4"}]


def read(path: Path, size: int | None = None, **options: Any) -> list[dict[str, Any]]:
    parts = list(read_parts(path, size, reading=Reading(**options)))
    return pl.concat(parts).to_dicts() if parts else []


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_table(separator: str) -> Callable[[list[dict[str, Any]]], bytes]:
    return lambda rows: pl.DataFrame(rows).write_csv(separator=separator).encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pl.DataFrame(rows).to_arrow()
    pa.parquet.write_table(pl.DataFrame(rows).to_arrow(), sink)
    return sink.getvalue().to_pybytes()


FORMS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    ".jsonl": as_lines,
    ".ndjson": as_lines,
    ".csv": as_table(","),
    ".tsv": as_table("\t"),
    ".parquet": as_parquet,
    ".json": lambda rows: json.dumps(rows, indent=2).encode(),
}


@pytest.mark.parametrize("suffix", FORMS)
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_every_ending_gives_the_same_rows_compressed_or_not(
    tmp_path: Path, suffix: str, packed: str
) -> None:
    data = FORMS[suffix](ROWS)
    if packed == ".gz":
        data = gzip.compress(data)
    if packed == ".zst":
        data = pa.compress(data, codec="zstd", asbytes=True)
    for name in (f"a{suffix}{packed}", f"A{suffix.upper()}{packed.upper()}"):
        (tmp_path / name).write_bytes(data)
        assert read(tmp_path / name) == ROWS
        assert stem_of(tmp_path / name) == name[0]
    assert len(data_files([tmp_path])) == 2


@pytest.mark.parametrize(
    "content",
    [
        {"name": "x", "rows": ROWS},
        {"data": {"train": ROWS}},
        {key: [row[key] for row in ROWS] for key in ROWS[0]},
        {key: {"0": ROWS[0][key], "1": ROWS[1][key]} for key in ROWS[0]},  # pandas
        {"columns": list(ROWS[0]), "index": [0, 1], "data": [list(row.values()) for row in ROWS]},
    ],
)
def test_a_json_object_may_hold_the_rows(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    assert read(path) == ROWS


def test_two_lists_in_a_json_object_need_a_key(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"train": ROWS, "test": ROWS[:1]}))
    with pytest.raises(UsageError, match=r"several keys \(train, test\): name one with rows=KEY"):
        read(path)
    assert read(path, rows="test") == ROWS[:1]


def test_json_lines_may_be_called_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(as_lines(ROWS))
    assert read(tmp_path / "a.json") == ROWS


@pytest.mark.parametrize("cells", ["What is 2 + 3?\t5\n", '"What", he said\t5\n'])
def test_a_table_without_names_is_detected(tmp_path: Path, cells: str) -> None:
    (tmp_path / "a.tsv").write_text(cells * 2)
    question = cells.split("\t")[0]
    assert read(tmp_path / "a.tsv") == [{"column_1": question, "column_2": "5"}] * 2
    assert read(tmp_path / "a.tsv", header=True) == [{question: question, "5": "5"}]


def test_a_broken_line_is_named_or_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2\n[3]\n{"a": 4}\n')
    with pytest.raises(UsageError, match=r"a\.jsonl, line 3: not valid JSON .*skip_invalid=true"):
        read(path)
    reading = Reading(skip_invalid=True)
    assert pl.concat(read_parts(path, reading=reading)).to_dicts() == [{"a": 1}, {"a": 4}]
    assert reading.skipped == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"a": "é"}\n'.encode("latin-1"), "line 1: not valid JSON"),
        ('{"a": 1}\n'.encode("utf-16"), "convert it to UTF-8"),
    ],
)
def test_other_encodings_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(UsageError, match=message):
        read(tmp_path / "a.jsonl")


def test_a_damaged_archive_gives_one_message(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(as_lines(ROWS * 50))[:-20])
    with pytest.raises(CurateError, match=r"cannot read .*a\.jsonl\.gz"):
        read(tmp_path / "a.jsonl.gz")


def test_unusual_json_of_some_writers_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"t": "half \\ud83d", "n": NaN}\r\n'
        b'{"t": "\\\\ud83d \\ud83d\\ude00", "n": 2}\r\n{"late": 1}'
    )
    assert read(path) == [
        {"t": "half \ufffd", "n": None, "late": None},
        {"t": "\\ud83d 😀", "n": 2, "late": None},
        {"t": None, "n": None, "late": 1},
    ]


@pytest.mark.parametrize("size", [1, None])
def test_values_of_different_types_become_json_text(tmp_path: Path, size: int | None) -> None:
    path = tmp_path / "a.jsonl"
    values = [1, [1], {"b": 2}, "text", None]
    path.write_bytes(as_lines([{"a": value} for value in values]))
    texts = [row["a"] for row in read(path, size)]
    assert texts[3:] == ["text", None]
    assert [json.loads(text) for text in texts[:3]] == values[:3]


def test_nested_columns_are_addressed_by_points() -> None:
    frame = pl.DataFrame(
        {"a": [{"b": {"c": "x"}}], "l": [[{"t": 1}, {"t": 2}]], "a.b": [7], "j": ['{"k": "v"}']}
    )
    values = {}
    for name in ("a.b.c", "a.b", "l.t", "j.k"):
        column = column_expr(frame.schema, name)
        assert column is not None
        values[name] = frame.select(column[0]).item() if name != "l.t" else [1, 2]
    assert values == {"a.b.c": "x", "a.b": 7, "l.t": [1, 2], "j.k": "v"}
    assert column_expr(frame.schema, "a.z") is None
    assert "a.b.c" in column_names(frame.schema)


def test_a_struct_without_fields_is_written_as_json_text(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.parquet") as writer:
        writer.write(pl.DataFrame({"a": [{}], "b": [1]}))
    assert pl.read_parquet(tmp_path / "a.parquet").to_dicts() == [{"a": "{}", "b": 1}]


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), min_size=1))
def test_any_text_survives_a_json_array(tmp_path_factory: Any, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_text(json.dumps([{"t": text} for text in texts], indent=1))
    assert [row["t"] for row in read(path)] == texts
