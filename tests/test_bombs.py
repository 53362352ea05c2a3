"""Files built to exhaust memory or the stack end in one message."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

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


def test_aliases_of_a_person_are_read() -> None:
    assert parse_yaml("a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}", "x")["d"] == {"b": 1, "e": 2}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


FILES = {
    "deep.jsonl": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "deep.json": b"[" * 100_000 + b"]" * 100_000,
    "bomb.jsonl.gz": gzip.compress(b'{"a": "' + b"x" * 30_000_000 + b'"}\n'),
    "half.jsonl.gz": gzip.compress(b'{"a": 1}\n' * 1000)[:40],
    "wide.jsonl": json.dumps(dict.fromkeys(map(str, range(30_000)))).encode() + b"\n",
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
