"""Rules that no trace can pass, by construction.

Whether a random model's traces pass says nothing about a rule. So a row that passes all rules is
searched for: columns that a stage fixes (recipe, form, the token limit) keep its values, and every
other one may take any value near the constants of the rules. If the search finds no row, the rules
contradict themselves, or the stages that give them traces.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb

from curate.filter.expressions import columns_of
from curate.filter.rules import RuleSet
from curate.warehouse.sql import quote

TRIES = 4  # restarts of the search
STEPS = 60  # columns changed in each
NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?(?!\w)", re.I)
_TEXT = re.compile(r"'((?:[^']|'')*)'")
# Functions of texts: values that make them true cannot be read off their constants.
_UNSEARCHABLE = re.compile(
    r"(?i)\b(?:regexp\w*|i?like|glob|similar|contains|length|strlen|\w+_with|split\w*|substr\w*|"
    r"list_\w+|position|instr)\b|~"
)


def impossible(
    connection: duckdb.DuckDBPyConnection,
    rules: RuleSet,
    where: str | None = None,
    fixed: Mapping[str, Sequence[Any]] | None = None,
    most: Mapping[str, float] | None = None,
    view: str = "annotated",
) -> list[str] | None:
    """Names of rules that no row can pass together; empty if there is such a row. None if it
    cannot be decided, since a rule reads lists or JSON, or matches texts.

    fixed: the only values of some columns. most: the highest values of others.
    """
    expressions = {rule.name: rule.keep for rule in rules.rules}
    if rules.where:
        expressions["where"] = rules.where
    if where:
        expressions["(where)"] = where
    types = {str(row[0]): str(row[1]) for row in connection.sql(f"DESCRIBE {view}").fetchall()}
    names = sorted({name for sql in expressions.values() for name in columns_of(sql)})
    values = {
        name: _values(types.get(name, ""), " ".join(expressions.values()), name, fixed, most)
        for name in names
    }
    if any(options is None for options in values.values()):
        return None
    search = _Search(connection, expressions, {n: v or [None] for n, v in values.items()}, types)
    if search.satisfiable(list(expressions)):
        return []
    alone = (name for name in expressions if not search.satisfiable([name]))
    found = [name] if (name := next(alone, None)) else _smallest(search, list(expressions))
    return None if any(_UNSEARCHABLE.search(expressions[name]) for name in found) else found


def _values(
    dtype: str,
    text: str,
    name: str,
    fixed: Mapping[str, Sequence[Any]] | None,
    most: Mapping[str, float] | None,
) -> list[Any] | None:
    """Values to try for a column; None if its type is not a plain one."""
    if fixed is not None and name in fixed:
        return list(fixed[name])
    if dtype == "BOOLEAN":
        return [True, False, None]
    if dtype == "VARCHAR":
        constants = [found.replace("''", "'") for found in _TEXT.findall(text)]
        return [*dict.fromkeys(constants), "some other text", "", None]
    if dtype.partition("(")[0] in NUMBERS:
        numbers = {float(found) for found in _NUMBER.findall(text)} | {0.0, 1.0, 0.5}
        steps = (-1.0, -1e-3, 0.0, 1e-3, 1.0)
        options = sorted({number + step for number in numbers for step in steps} | {1e9})
        highest = (most or {}).get(name)
        if dtype not in ("FLOAT", "DOUBLE") and not dtype.startswith("DECIMAL"):
            options = sorted({float(round(option)) for option in options})
        if highest is not None:
            options = [o for o in options if o <= highest] or [highest]
        return [*options, None]
    return None


class _Search:
    """Looks for a row by changing the column that makes most expressions true."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        expressions: Mapping[str, str],
        values: Mapping[str, list[Any]],
        types: Mapping[str, str],
    ) -> None:
        self.connection, self.expressions = connection, expressions
        self.values, self.types = values, types
        self.random = random.Random(0)

    def satisfiable(self, names: Sequence[str]) -> bool:
        columns = sorted({c for name in names for c in columns_of(self.expressions[name])})
        if not columns:
            return self._scores(names, [], [()])[0] == len(names)
        for _ in range(TRIES):
            row = {c: self.random.choice(self.values[c]) for c in columns}
            best = -1
            for _ in range(STEPS):
                rows = [row] + [row | {c: v} for c in columns for v in self.values[c]]
                scores = self._scores(names, columns, [tuple(r[c] for c in columns) for r in rows])
                top = max(scores)
                if top == len(names):
                    return True
                if top <= best:  # a plateau: move sideways
                    column = self.random.choice(columns)
                    row = row | {column: self.random.choice(self.values[column])}
                    best = -1
                    continue
                best, row = top, rows[scores.index(top)]
        return False

    def _scores(
        self, names: Sequence[str], columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
    ) -> list[int]:
        """Number of expressions that each row makes true."""
        parts = " + ".join(f"coalesce((({self.expressions[n]}\n) IS TRUE)::INT, 0)" for n in names)
        if not columns:
            return [int(self.connection.sql(f"SELECT {parts}").fetchall()[0][0])]
        cells = ", ".join(
            "(" + ", ".join([str(number), *map(_literal, row)]) + ")"
            for number, row in enumerate(rows)
        )
        listed = ", ".join(['"_row"', *(f'"{c}"' for c in columns)])
        typed = ", ".join(f'"{c}"::{self.types[c]} AS "{c}"' for c in columns)
        query = (
            f"SELECT {parts} FROM (SELECT _row, {typed} FROM (VALUES {cells}) AS v({listed})) "
            "AS annotated ORDER BY _row"
        )
        return [int(found[0]) for found in self.connection.sql(query).fetchall()]


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    return quote(value) if isinstance(value, str) else json.dumps(value)


def _smallest(search: _Search, names: list[str]) -> list[str]:
    """A smallest set of the expressions that no row passes together."""
    kept = list(names)
    for name in names:
        without = [other for other in kept if other != name]
        if without and not search.satisfiable(without):
            kept = without
    return kept
