"""Files built to exhaust memory or the stack end in one message."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import files
from curate.config import override, parse_yaml, read_yaml
from curate.errors import CurateError, UsageError
from curate.files import read_parts


def aliases(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


YAML = {
    "nesting": ("[" * 5000 + "]" * 5000, "nested too deeply"),
    "nested keys": ("{a: " * 3000 + "1" + "}" * 3000, "nested too deeply"),
    "aliases": (aliases(9), "aliases make it more than"),
    "a value that holds itself": ("a: &a [*a]", "aliases make it more than"),
    "a number of 10,000 digits": ("a: " + "9" * 10_000, "not valid YAML"),
    "length": ("a: b\n" * 3_000_000, "at most"),
    "an object of Python": ("a: !!python/object/apply:os.system [id]", "not valid YAML"),
}


@pytest.mark.parametrize("name", YAML)
def test_a_yaml_bomb_is_one_message(tmp_path: Path, name: str) -> None:
    text, message = YAML[name]
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_yaml(path)


def test_a_bomb_in_an_override_is_one_message() -> None:
    with pytest.raises(UsageError, match="nested too deeply"):
        override({}, ["a=" + "[" * 5000])


def test_ordinary_aliases_are_read() -> None:
    assert parse_yaml("a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}", "x")["d"] == {"b": 1, "e": 2}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


FILES = {
    "deep.jsonl": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "deep.json": b"[" * 100_000 + b"]" * 100_000,
    "bomb.jsonl.gz": gzip.compress(b'{"a": "' + b"x" * 30_000_000 + b'"}\n'),
    "half.jsonl.gz": gzip.compress(b'{"a": 1}\n' * 1000)[:40],
    "wide.jsonl": json.dumps(dict.fromkeys(map(str, range(9_000)))).encode() + b"\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_data_bomb_is_one_message_or_is_read(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, FILES[name])
    message = ""
    rows = 0
    try:
        rows = sum(len(part) for part in read_parts(path, 1_000_000))
    except CurateError as error:
        message = str(error)
    assert rows == 1 or name in message


# Content whose row or whole is larger than the limits, which are lowered here; name: content.
LARGE = {
    "line.jsonl": b'{"a": "' + b"x" * 20_000 + b'"}\n',
    "line.jsonl.gz": gzip.compress(b'{"a": "' + b"x" * 20_000 + b'"}\n'),
    "no_end.jsonl": b"\0" * 20_000,
    "row.json": b'[{"a": "' + b"x" * 3_000_000 + b'"}]',
    "object.json": b'{"rows": [' + b'{"a": 1},' * 10_000 + b'{"a": 1}]}',
    "object.json.gz": gzip.compress(b'{"rows": [' + b'{"a": 1},' * 10_000 + b'{"a": 1}]}'),
    "parquet.parquet.gz": gzip.compress(b"PAR1" + b"\0" * 50_000),
    "line.csv": b"a,b\n1," + b"x" * 20_000 + b"\n",
    "cell.csv": b'a,b\n1,"' + b"x\n" * 10_000 + b'"\n',
}


@pytest.mark.parametrize("name", LARGE)
def test_too_much_after_decompression_or_parsing_gives_one_message(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "ROW_BYTES", 10_000)
    monkeypatch.setattr(files, "WHOLE_BYTES", 40_000)
    path = write(tmp_path / name, LARGE[name])
    with pytest.raises(UsageError, match=r"more than|larger than field limit") as caught:
        list(read_parts(path, 1_000_000))
    assert name in str(caught.value)


def test_endless_columns_give_one_message(tmp_path: Path) -> None:
    row = dict.fromkeys(map(str, range(10_001)), 1)
    table = pa.table({name: [1] for name in row})
    pq.write_table(table, tmp_path / "wide.parquet")
    write(tmp_path / "wide.jsonl", json.dumps(row).encode() + b"\n")
    write(tmp_path / "wide.csv", ",".join(row).encode() + b"\n" + ",".join(row).encode())
    for name in ("wide.parquet", "wide.jsonl", "wide.csv"):
        with pytest.raises(UsageError, match="10,001 columns"):
            list(read_parts(tmp_path / name, 1_000_000))


def test_a_dictionary_that_names_one_long_text_often_is_read_in_small_parts(
    tmp_path: Path,
) -> None:
    """20,000 times the same 100 KB: 2 GB, in a file of 30 KB whose metadata says 0.1 MB."""
    text = pa.array(["x" * 100_000])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), text)
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"text": column}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 50_000
    sizes = [(len(part), part.estimated_size()) for part in read_parts(path, 1_000_000)]
    assert sum(rows for rows, _ in sizes) == 20_000
    assert max(size for _, size in sizes) < 30_000_000
