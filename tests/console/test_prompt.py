"""The SQL prompt: commands without a semicolon, meaning of columns, history between sessions."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import duckdb
import pytest

from curate.console import prompt, query
from curate.warehouse import comments, schemas
from curate.warehouse.sql import connect_read_only


def session(warehouse: Path, typed: str, capsys: pytest.CaptureFixture[str], monkeypatch) -> str:
    lines = iter(typed.splitlines())

    def answer(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    prompt.interactive(warehouse)
    return capsys.readouterr().out


@pytest.mark.parametrize("word", ["exit", "quit", ".exit", "exit;", "EXIT"])
def test_the_prompt_is_left_by_a_word(warehouse, word, capsys, monkeypatch) -> None:
    printed = session(warehouse, f"{word}\nselect 41 + 1 as never;", capsys, monkeypatch)
    assert "42" not in printed


def test_a_statement_takes_several_lines_and_an_error_does_not_end_it(
    warehouse, capsys, monkeypatch
) -> None:
    printed = session(
        warehouse, "select 41\n + 1 as n;\nselect nope;\nselect 7 as m;", capsys, monkeypatch
    )
    assert "42" in printed
    assert "error: the query failed" in printed
    assert "| 7" in printed


@pytest.mark.parametrize("word", [".tables", "show tables;", "SHOW TABLES;"])
def test_tables_are_listed_without_internals(warehouse, word, capsys, monkeypatch) -> None:
    printed = session(warehouse, word, capsys, monkeypatch)
    assert {"annotated", "traces", "problem_rates", "latest_corpora"} <= set(
        re.findall(r"\w+", printed)
    )
    for hidden in ("joined", "redone", "last_traces", "signals_shape", "measured"):
        assert hidden not in printed


@pytest.mark.parametrize("word", ["describe annotated", "desc annotated;", ".schema annotated"])
def test_columns_are_described_with_their_meaning(warehouse, word, capsys, monkeypatch) -> None:
    printed = session(warehouse, word, capsys, monkeypatch)
    assert "hash of everything that determines the text" in printed
    assert "characters of the text" in printed
    assert "(100" not in printed  # all rows are shown


def test_saved_queries_run_by_name(warehouse, capsys, monkeypatch) -> None:
    printed = session(warehouse, ".queries\n.run recipes\n.run recipez\nhelp", capsys, monkeypatch)
    assert "hardest" in printed
    assert "r1-zero" in printed
    assert "did you mean 'recipes'" in printed
    assert "saved queries" in printed


def test_every_public_column_has_a_meaning(warehouse: Path) -> None:
    with connect_read_only(warehouse) as connection:
        for view in ["annotated", *schemas.TABLES]:
            missing = [n for n, _, meaning in comments.described(connection, view) if not meaning]
            assert not missing, (view, missing)


def test_describe_on_the_command_line_shows_meanings_too(warehouse: Path, capsys) -> None:
    query.run_query(warehouse, "DESCRIBE traces", "csv")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "column_name,column_type,comment"
    assert len(lines) == 1 + len(schemas.types("traces")) + 2  # dataset and version


def test_other_clients_see_the_meaning_as_comments(warehouse: Path) -> None:
    from curate.warehouse.sql import write_database

    with duckdb.connect(str(write_database(warehouse)), read_only=True) as connection:
        rows = connection.sql(
            "SELECT column_name, comment FROM duckdb_columns() WHERE table_name = 'annotated'"
        ).fetchall()
    meanings = dict(rows)
    assert meanings["words"].startswith("words of the CoT")
    assert len([m for m in meanings.values() if m]) > 100


def test_history_and_completion_on_a_terminal(warehouse: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "CURATE_CACHE": str(tmp_path / "cache"), "TERM": "dumb"}

    def talk(*typed: bytes) -> bytes:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        command = [sys.executable, "-m", "curate", "sql", "-w", str(warehouse)]
        process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)
        printed, pending, deadline = b"", list(typed), time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if pending and printed.count(b"curate> ") + printed.count(b"...> ") > len(typed) - len(
                pending
            ):
                os.write(ours, pending.pop(0))
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    printed += os.read(ours, 65536)
                except OSError:
                    break
        process.wait(10)
        os.close(ours)
        return printed

    assert b"1234321" in talk(b"select 1111 *\n", b"1111;\n", b"exit\n")
    history = (tmp_path / "cache" / "sql_history").read_text().splitlines()
    assert history[0] == "select 1111 * 1111;"
    # The key for the previous line brings a statement back whole.
    assert b"1234321" in talk(b"\x10" * len(history) + b"\n", b"exit\n")
