"""Check the SQL expressions of rules with DuckDB's parser: the columns they read, and that they
only read.
"""

from __future__ import annotations

import atexit
import json
from functools import cache
from typing import Any

import duckdb

from curate.errors import UsageError


@cache
def check_expression(sql: str, name: str) -> tuple[str, ...]:
    """Return the names that a SQL expression reads; raise `UsageError` if it does more than read.

    A name is a column, or a part of one (`components.accuracy` gives both). DuckDB parses it;
    nothing is run.
    """
    tree = _parse(sql, name)
    columns: dict[str, None] = {}
    for node in _nodes(tree):
        kind = node.get("class")
        if kind == "SUBQUERY":
            raise UsageError(
                f"rule '{name}' holds a subquery: a rule is an expression over the columns of one "
                "trace"
            )
        if kind == "PARAMETER":
            raise UsageError(f"rule '{name}' holds a parameter (? or $1): write the value itself")
        if kind == "FUNCTION" and node.get("function_name", "").lower() in _PLANNERS:
            raise UsageError(
                f"rule '{name}' calls {node['function_name']}(), which plans another query and "
                "opens the files that it names"
            )
        if kind == "STAR":
            raise UsageError(f"rule '{name}' holds '*': name the columns it reads")
        if kind == "FUNCTION" and node.get("function_name", "").lower() in _unsteady():
            raise UsageError(
                f"rule '{name}' calls {node['function_name']}(), which answers differently each "
                "time"
            )
        if kind == "COLUMN_REF":
            if node["column_names"][-1].lower() in _CLOCKS:
                raise UsageError(
                    f"rule '{name}' reads {node['column_names'][-1]}, which is different each time"
                )
            columns.update(dict.fromkeys(node["column_names"]))
    return tuple(columns)


@cache
def columns_of(sql: str, name: str = "expression") -> tuple[str, ...]:
    """Return the columns that an expression reads: `labels` for `labels.score` and
    `annotated.labels`.
    """
    check_expression(sql, name)
    paths = [n["column_names"] for n in _nodes(_parse(sql, name)) if n.get("class") == "COLUMN_REF"]
    named = [path[1] if len(path) > 1 and path[0] == "annotated" else path[0] for path in paths]
    return tuple(dict.fromkeys(named))


@cache
def reads_other_rows(sql: str, name: str = "expression") -> bool:
    """Whether an expression holds a window function, which looks at other traces."""
    return any(node.get("class") == "WINDOW" for node in _nodes(_parse(sql, name)))


@cache
def conjuncts(sql: str, name: str = "expression") -> tuple[str, ...]:
    """Return the parts of an expression joined by AND at its top level, or inside a CASE there."""
    conjunction = _conjunction(_parse(sql, name))
    return (sql,) if conjunction is None else tuple(map(_as_sql, conjunction["children"]))


def _conjunction(node: dict[str, Any]) -> dict[str, Any] | None:
    if node.get("type") == "CONJUNCTION_AND":
        return node
    if node.get("class") == "CASE":
        branches = [check["then_expr"] for check in node["case_checks"]] + [node["else_expr"]]
        return next(filter(None, map(_conjunction, branches)), None)
    return None


def _as_sql(expression: dict[str, Any]) -> str:
    """Return the SQL text of a part of a parse tree."""
    row = _parser().execute("SELECT json_serialize_sql('SELECT 1')").fetchone()
    assert row is not None
    statement = json.loads(row[0])
    statement["statements"][0]["node"]["select_list"] = [expression]
    row = (
        _parser()
        .execute("SELECT json_deserialize_sql(?::JSON)", [json.dumps(statement)])
        .fetchone()
    )
    assert row is not None
    return str(row[0]).removeprefix("SELECT ")


def _parse(sql: str, name: str) -> dict[str, Any]:
    if not sql.strip():
        raise UsageError(f"rule '{name}' is empty: give a SQL expression")
    # The line break ends a comment at the end of the expression.
    query = f"SELECT (\n{sql}\n)"
    try:
        statements = duckdb.extract_statements(query)
    except duckdb.Error as error:
        raise UsageError(f"rule '{name}' is not valid SQL: {error}\n  {sql}") from error
    refused = UsageError(f"rule '{name}' must be one SQL expression, and nothing else: {sql}")
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise refused
    row = _parser().execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchone()
    parsed: dict[str, Any] = json.loads(row[0]) if row else {"error": True}
    if parsed.get("error"):
        raise UsageError(
            f"rule '{name}' is not valid SQL: {parsed.get('error_message', 'no parse')}\n  {sql}"
        )
    node = parsed["statements"][0]["node"]
    plain = (
        node.get("type") == "SELECT_NODE"
        and len(node["select_list"]) == 1
        and (node.get("from_table") or {}).get("type") == "EMPTY"
        and not any(
            node.get(part)
            for part in ("where_clause", "having", "qualify", "group_expressions", "modifiers")
        )
        and not (node.get("cte_map") or {}).get("map")
    )
    if not plain:
        raise refused
    expression: dict[str, Any] = node["select_list"][0]
    return expression


@cache
def _parser() -> duckdb.DuckDBPyConnection:
    """Return one connection for all expressions: opening one takes longer than parsing."""
    atexit.register(_parser.cache_clear)
    return duckdb.connect()


def _nodes(tree: Any) -> list[dict[str, Any]]:
    """Yield every mapping in a parse tree, top down, in order."""
    nodes: list[dict[str, Any]] = []
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            nodes.append(node)
            todo.extend(reversed(node.values()))
        elif isinstance(node, list):
            todo.extend(reversed(node))
    return nodes


# Scalar functions that bind a query from text: its plan tells what is in the files that it names.
_PLANNERS = ("json_serialize_plan",)
# Without brackets these are parsed as columns.
_CLOCKS = ("current_date", "current_time", "current_timestamp", "localtime", "localtimestamp")
_UNSTEADY: set[str] = set()
_ZONED = ("TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ_NS", "TIME WITH TIME ZONE")


def _unsteady() -> set[str]:
    """Return DuckDB's functions whose result for a row varies: random, now, nextval, getenv, ...

    A form of a function that takes times with a time zone also reads the setting TimeZone, and is
    marked for that since DuckDB 2.0.1, `-` and `+` among them. It does not make the function
    unsteady: most of its forms take no such time.
    """
    if not _UNSTEADY:
        with duckdb.connect() as connection:
            rows = connection.execute(
                "SELECT DISTINCT lower(function_name) FROM duckdb_functions() "
                "WHERE function_type = 'scalar' AND (stability = 'VOLATILE' OR has_side_effects OR "
                "(stability <> 'CONSISTENT' AND NOT list_has_any(parameter_types, ?)))",
                [list(_ZONED)],
            ).fetchall()
        _UNSTEADY.update(name for (name,) in rows)
        _UNSTEADY.update({"getenv", "current_setting", "age"})  # age(t) counts from today
    return _UNSTEADY
