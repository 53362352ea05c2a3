"""The meaning of each column of the views, from the comments of `schemas/*.sql`."""

from __future__ import annotations

import re
from functools import cache

import duckdb

from curate.warehouse import schemas

# internal views, on which the others build
INTERNAL = ("joined", "last_traces", "last_verdicts", "measured", "redone")
# Columns that the views make themselves.
_OWN = {
    "dataset": "data set that holds the row: for traces their family",
    "version": "version of the data set",
    "verified_by": "verifier that gave the verdict",
    "verdict": "verdict of the problem's own verifier: correct, wrong, unverifiable",
    "extracted": "the answer that was judged",
    "verdict_detail": "why, in a few words",
    "judge_verdict": "newest verdict of a model that judges answers",
    "coherence_verdict": "newest verdict of a model that judges the reasoning",
    "consensus_verdict": "newest verdict by the agreement of most samples",
    "pass_rate": "share of correct traces among those that could be judged",
    "samples": "number of traces",
    "rollouts": "number of rollouts",
    "readable": "can the person who asked read it? (schemas/macros.sql)",
    "mixed_language": "does the reasoning mix languages? (schemas/macros.sql)",
    "stray_script": "does another script break into a clause? (schemas/macros.sql)",
    "quality": "rank between 0 and 1 by which rejection sampling chooses (schemas/macros.sql)",
}


@cache
def of_view(view: str) -> dict[str, str]:
    """Column name to its meaning. A column of a derived view has that of the table it is from."""
    if view in schemas.TABLES:
        own = schemas.comments(view)
        return {**{k: v for k, v in _OWN.items() if k not in own}, **own}
    meanings: dict[str, str] = {}
    for table in (
        "influences",
        "rollouts",
        "signals",
        "problems",
        "traces",
    ):  # a later view explains its columns best
        meanings |= schemas.comments(table)
    meanings = {name: re.sub(r"^\[\w+\] ", "", text) for name, text in meanings.items()}
    return meanings | _OWN


def is_internal(view: str) -> bool:
    """Whether a view only serves other views."""
    return view in INTERNAL or view.startswith("signals_")


def views(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Names of the tables and views for users, in order."""
    rows = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
    return sorted(name for (name,) in rows if not is_internal(name))


def described(connection: duckdb.DuckDBPyConnection, view: str) -> list[tuple[str, str, str]]:
    """Name, type and meaning of each column of a view, in order."""
    quoted = '"' + view.replace('"', '""') + '"'
    rows = connection.execute(f"DESCRIBE {quoted}").fetchall()
    meanings = of_view(view)
    return [(str(row[0]), str(row[1]), meanings.get(str(row[0]), "")) for row in rows]
