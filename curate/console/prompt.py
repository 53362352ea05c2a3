"""A prompt for SQL over the warehouse: history, completion, tables and columns with their meaning.

A statement ends with `;` and may take several lines. Commands of the prompt itself (`exit`,
`help`, `.tables`, `describe TABLE`, `.queries`, `.run NAME`) need none.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import duckdb

from curate.console.query import result_of, saved_query, special, table
from curate.engines.models import default_cache
from curate.errors import CurateError
from curate.progress import output
from curate.shipped import names
from curate.warehouse import Warehouse
from curate.warehouse.comments import described, views
from curate.warehouse.sql import check_read_only, connect_read_only

HISTORY = 1000  # statements that are kept between sessions
LEAVE = {"exit", "quit", ".exit", ".quit", "\\q"}
HELP = """\
SELECT …;             a query; it ends with ; and may take several lines
.tables               tables and views
describe TABLE        its columns, with types and meaning
.queries              saved queries; .run NAME runs one
exit                  leave (or Ctrl-D); Ctrl-C drops a statement"""
WORDS = (
    "select from where group by all order limit join left using on and or not null is in as "
    "count avg sum min max distinct case when then else end filter having qualify describe exit "
    "help .tables .queries .run"
).split()


def interactive(root: Path, *, allow_files: bool = False) -> None:
    """Read and run statements until `exit` or the end of the input."""
    root = Warehouse(root).root
    with connect_read_only(root, allow_files) as connection, _line_editing(connection) as keep:
        output("SQL over the warehouse, read-only. End with ; — `help` lists what else there is.")
        lines: list[str] = []
        while True:
            try:
                lines.append(input("curate> " if not lines else "   ...> "))
            except EOFError:
                output()
                return
            except KeyboardInterrupt:
                lines.clear()
                output()
                continue
            text = "\n".join(lines).strip()
            word = text.rstrip("; \n")
            if word.lower() in LEAVE:
                return
            if not text:
                lines.clear()
            elif text.endswith(";") or (len(lines) == 1 and _is_command(word)):
                keep(lines)
                lines.clear()
                try:
                    output(_answer(connection, word, text, root))
                except (CurateError, duckdb.Error) as error:
                    output(f"error: {error}")


def _is_command(word: str) -> bool:
    """Whether a line is complete without a semicolon."""
    return word.lower() in ("help", ".help", "?", ".queries") or bool(
        re.match(r"(?i)\.tables$|show\s+tables$|(describe|desc|\.schema)\s+\w+$|\.run\s+\S+$", word)
    )


def _answer(connection: duckdb.DuckDBPyConnection, word: str, text: str, root: Path) -> str:
    if word.lower() in ("help", ".help", "?"):
        return HELP
    if word.lower() == ".queries":
        return "\n".join(names("queries", "*.sql"))
    if run := re.match(r"(?i)\.run\s+(\S+)$", word):
        text = saved_query(Path(run.group(1)))
    elif (frame := special(connection, word)) is not None:
        return table(frame, whole=True)
    check_read_only(text)
    return table(result_of(connection, text, root))


@contextlib.contextmanager
def _line_editing(connection: duckdb.DuckDBPyConnection) -> Iterator[Callable[[list[str]], None]]:
    """Enable line editing, completion, and a history that the next session shares.

    Yields a function that replaces the lines of a statement by one entry of the history.
    """
    readline = _readline()
    if readline is None or not sys.stdin.isatty():
        yield lambda lines: None
        return
    path = default_cache() / "sql_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY)
    readline.set_completer_delims(" \t\n,()=<>;")
    readline.set_completer(_completer(connection))
    readline.parse_and_bind("tab: complete")

    def keep(lines: list[str]) -> None:
        for _ in lines:
            length = readline.get_current_history_length()
            if length and readline.get_history_item(length) in lines:
                readline.remove_history_item(length - 1)
        readline.add_history(" ".join(line.strip() for line in lines))

    try:
        yield keep
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
            os.chmod(path, 0o600)  # a query may quote the data


def _readline() -> ModuleType | None:
    try:
        import readline
    except ImportError:  # some builds of Python
        return None
    return readline


def _completer(connection: duckdb.DuckDBPyConnection) -> Callable[[str, int], str | None]:
    """Complete names of tables and columns, SQL keywords and saved queries."""
    tables = views(connection)
    columns = {name for view in tables for name, _, _ in described(connection, view)}
    words = sorted({*tables, *columns, *WORDS, *names("queries", "*.sql")})

    def complete(beginning: str, number: int) -> str | None:
        fitting = [word for word in words if word.startswith(beginning.lower())]
        return fitting[number] if number < len(fitting) else None

    return complete
