"""Explain a decision: the clauses of a rule, or of a macro that it reads, that failed for a trace.

failed_clauses(con, "annotated", "trace_id = '…'", "readable")
# ["readable fails: NOT (words >= 20 AND abbreviated_share > 0.35): words = 33, …"]
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import duckdb

from curate.filter.expressions import columns_of, conjuncts
from curate.signals.macros import derived_columns, macro_sql


def failed_clauses(con: duckdb.DuckDBPyConnection, view: str, one: str, keep: str) -> list[str]:
    """Return why the expression `keep` is not true for the trace that the condition `one` selects.

    Each clause of `keep` that is not true gets a line. If the clause is a macro, so does each
    clause of the macro that is not true. A macro that is true but must not be (`NOT
    mixed_language`) is shown with all its clauses.
    """
    macros, columns = derived_columns(), columns_in(con, view)
    con.execute(macro_sql())
    lines: list[str] = []
    clauses = conjuncts(keep)
    for clause in clauses:
        if _value(con, view, one, clause) is True:
            continue
        if len(clauses) > 1:
            lines.append(f"fails: {_shown(con, view, one, clause, columns)}")
        for name in columns_of(clause):
            if name in macros and name in columns:
                lines += _macro_lines(con, view, one, name, columns)
    return lines


def _macro_lines(
    con: duckdb.DuckDBPyConnection, view: str, one: str, name: str, columns: set[str]
) -> list[str]:
    holds = _value(con, view, one, f'"{name}"')
    if holds is not None and not isinstance(holds, bool):
        return []  # a number is its own explanation
    lines = []
    for clause in macro_clauses(name):
        if not set(columns_of(clause)) <= columns:
            continue
        value = _value(con, view, one, clause)
        if holds is True or value is not True:
            verb = "holds" if holds is True else "fails" if value is False else "is null"
            lines.append(f"{name} {verb}: {_shown(con, view, one, clause, columns)}")
    return lines


def macro_clauses(name: str) -> tuple[str, ...]:
    """Return the clauses of a shipped macro that are joined by AND, as SQL over signal columns."""
    return _macro_clauses()[name]


def macro_columns(name: str) -> set[str]:
    """Return the columns that a shipped macro reads."""
    return {column for clause in macro_clauses(name) for column in columns_of(clause)}


@cache
def _macro_clauses() -> dict[str, tuple[str, ...]]:
    with duckdb.connect() as con:
        con.execute(macro_sql())
        rows = con.execute(
            "SELECT function_name, macro_definition FROM duckdb_functions() "
            "WHERE function_type = 'macro' AND NOT internal"
        ).fetchall()
    return {name: conjuncts(body) for name, body in rows}


def _value(con: duckdb.DuckDBPyConnection, view: str, one: str, sql: str) -> Any:
    rows = con.execute(f"SELECT ({sql}\n) FROM {view} WHERE {one} LIMIT 1").fetchall()
    return rows[0][0] if rows else None


def _shown(
    con: duckdb.DuckDBPyConnection, view: str, one: str, clause: str, columns: set[str]
) -> str:
    """Format a clause without its coalesce(), and the values of its columns."""
    text = re.sub(r"(?i)coalesce\(([\w.]+), [^()]+\)", r"\1", clause)
    # DuckDB puts every comparison in brackets.
    text = re.sub(r"\(([^()]* (?:[<>=]+|IS) [^()]*)\)", r"\1", text)
    if text.startswith("(") and text.endswith(")") and text.count("(") == 1:
        text = text[1:-1]
    names = [name for name in columns_of(clause) if name in columns]
    values = [
        f"{name} = {show(_value(con, view, one, f'{chr(34)}{name}{chr(34)}'))}" for name in names
    ]
    return f"{text}: {', '.join(values)}"


def columns_in(con: duckdb.DuckDBPyConnection, view: str) -> set[str]:
    """Return the names of a view's columns."""
    return {str(row[0]) for row in con.sql(f"DESCRIBE {view}").fetchall()}


def show(value: Any) -> str:
    """Format a value as short text."""
    if value is None:
        return "null"
    text = f"{value:.4g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
