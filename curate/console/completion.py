"""Shell completion: names of recipes, rule sets, pipelines, and everything in a warehouse.

Every key press starts a new process, so nothing heavy is imported: names come from listings of
folders.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import typer

from curate.shipped import names


def recipes(incomplete: str) -> list[str]:
    """Recipes and YAML files that begin with what was typed."""
    from curate.generate import RECIPES

    return [*_beginning(RECIPES, incomplete), *_files(incomplete, ".yaml", ".yml")]


def rules(incomplete: str) -> list[str]:
    """Rule sets that ship and YAML files that begin with what was typed."""
    shipped = names("pipelines", "rules/*.yaml")
    return [*_beginning(shipped, incomplete), *_files(incomplete, ".yaml", ".yml")]


def pipelines(incomplete: str) -> list[str]:
    """Pipelines that ship and YAML files that begin with what was typed."""
    shipped = names("pipelines", "*.yaml")
    return [*_beginning(shipped, incomplete), *_files(incomplete, ".yaml", ".yml")]


def queries(incomplete: str) -> list[str]:
    """Saved queries and SQL files that begin with what was typed."""
    return [*_beginning(names("queries", "*.sql"), incomplete), *_files(incomplete, ".sql")]


def schemas(incomplete: str) -> list[str]:
    """Names of JSON Schemas that begin with what was typed."""
    from curate.pipeline.stages import KINDS

    return _beginning(["pipeline", "rules", *KINDS], incomplete)


def corpora(ctx: typer.Context, incomplete: str) -> list[str]:
    """Corpora of the warehouse that begin with what was typed."""
    return _beginning(_datasets(ctx, "corpora"), incomplete)


def problems(ctx: typer.Context, incomplete: str) -> list[str]:
    """Stored problems of the warehouse that begin with what was typed."""
    return _beginning(_datasets(ctx, "problems"), incomplete)


def anything(ctx: typer.Context, incomplete: str) -> list[str]:
    """Corpora, problems and evaluations that begin with what was typed."""
    tables = ("corpora", "problems", "evaluations")
    return _beginning([n for table in tables for n in _datasets(ctx, table)], incomplete)


def warehouses(incomplete: str) -> list[str]:
    """Folders, those that are warehouses without a slash."""
    return [
        name.rstrip("/") if Path(name, "traces", "_empty").is_dir() else name
        for name in _files(incomplete)
    ]


def _datasets(ctx: typer.Context, table: str) -> list[str]:
    chosen = ctx.params.get("warehouse") or os.environ.get("CURATE_WAREHOUSE") or "warehouse"
    folders = Path(str(chosen), table).glob("*")
    return sorted(p.name for p in folders if p.is_dir() and not p.name.startswith("_"))


def _beginning(words: Iterable[str], incomplete: str) -> list[str]:
    return sorted({word for word in words if word.startswith(incomplete)})


def _files(incomplete: str, *endings: str) -> list[str]:
    """Files, and folders with a slash, whose path begins with what was typed."""
    folder, _, beginning = incomplete.rpartition("/")
    inside = Path(folder or ("/" if incomplete.startswith("/") else "."))
    prefix = f"{folder}/" if "/" in incomplete else ""
    listed = []
    for path in sorted(inside.glob("*")):
        if path.name.startswith(beginning) and not path.name.startswith("."):
            if path.is_dir():
                listed.append(f"{prefix}{path.name}/")
            elif path.suffix in endings:
                listed.append(f"{prefix}{path.name}")
    return listed
