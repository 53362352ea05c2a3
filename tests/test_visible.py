"""Untrusted text stays text on a terminal."""

from __future__ import annotations

import io
import re
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from curate import progress
from curate.console import query as console
from curate.filter.funnel import print_funnel
from curate.visible import guard_formula, one_line, visible

HOSTILE = "\x1b]0;title\x07 \x1b[2J\x9b31m \u202eevil\u2066 \x1b]8;;http://x\x1b\\link \x00\r\x7f"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@given(st.text())
def test_control_sequences_are_removed_and_plain_text_stays(text: str) -> None:
    shown = visible(text)
    assert not CONTROL.search(shown)
    assert "\n" not in one_line(text)
    if text.isascii() and text.isprintable():
        assert shown == text


def test_each_escape_is_named_by_its_code_point() -> None:
    assert visible("a\x1b[31m\u202eb") == "a⟨U+001B⟩[31m⟨U+202E⟩b"
    assert visible("two\nlines\tand a tab") == "two\nlines\tand a tab"


def test_progress_and_errors_pass_on_no_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    progress.say(f"error: {HOSTILE}")
    progress.output(HOSTILE)
    with progress.task(HOSTILE, 1) as bar:
        bar.update(1, HOSTILE)
    streams = capsys.readouterr()
    assert not CONTROL.search(streams.out + streams.err)
    assert streams.err.count("⟨U+001B⟩") >= 3


def test_a_bar_on_a_terminal_takes_no_markup_from_names(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", stream)
    with progress.task("[/nope] rules", 2) as bar:
        bar.update(2, "[red]note[/red]")
    assert "[/nope] rules" in stream.getvalue()
    assert "[red]note[/red]" in stream.getvalue()


def test_a_cell_of_a_table_cannot_forge_a_row_or_a_control_sequence() -> None:
    frame = pl.DataFrame({"a\x1b[1m": [HOSTILE, "x\n| forged |"], "b": [[HOSTILE], ["y"]]})
    text = console.table(frame)
    assert not CONTROL.search(text)
    assert "\n| forged |" not in text


def test_rule_names_in_brackets_are_printed_as_they_are() -> None:
    names = ["no [think] tag", "x[/nope]", "[red]r[/red]", "\x1b[31m"]
    funnel = pl.DataFrame(
        {
            "rules": ["set [bold]"] * 4,
            "position": range(4),
            "rule": names,
            "source": "s",
            "difficulty": "unknown",
            "traces": 4,
            "drops_alone": 1,
            "drops_first": 1,
            "remaining": [4, 3, 2, 1],
        }
    )
    stream = io.StringIO()
    print_funnel(funnel, Console(file=stream, width=200))
    printed = stream.getvalue()
    assert all(name in printed for name in names[:3])
    assert "set [bold]" in printed
    assert "\x1b[31m" not in printed


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_formula_gets_an_apostrophe_in_csv_on_request(text: str) -> None:
    assert guard_formula(text) == "'" + text
    frame = pl.DataFrame({"a": [text, "plain"]})
    assert console._flat(frame, guard_formulas=True)["a"].to_list() == ["'" + text, "plain"]
    assert console._flat(frame)["a"].to_list() == [text, "plain"]


def test_a_binary_query_file_gives_one_message(tmp_path: Path) -> None:
    path = tmp_path / "q.sql"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(console.UsageError, match="not a text file"):
        console.saved_query(path)
