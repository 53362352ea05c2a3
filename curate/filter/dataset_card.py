"""The card of an exported data set: front matter that the Hugging Face Hub reads, then counts, the
funnel, how to train on it, and all its ancestors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from curate.progress import counted

if TYPE_CHECKING:
    from curate.warehouse import Version, Warehouse

# The Hub's classes of size: most rows of each.
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)


def card(
    warehouse: Warehouse,
    version: Version,
    format: str,
    files: str = "data/train-*",
    license: str | None = None,
    training: Sequence[str] = (),
    rows: int | None = None,
) -> str:
    """Text of the card. `files` are its data, relative to the card; `training` describes the use by
    another trainer; `rows` were written, if that differs from the corpus.
    """
    counts = (
        version.read(["source", "domain", "problem_id"])
        .group_by("source", "domain")
        .agg(pl.len().alias("rows"), pl.col("problem_id").n_unique().alias("problems"))
        .sort("source", "domain", nulls_last=True)
        .collect()
    )
    funnel = warehouse.sql(
        "SELECT position, rule, any_value(predicate) AS predicate, sum(traces)::BIGINT AS traces, "
        "sum(drops_alone)::BIGINT AS drops_alone, sum(drops_first)::BIGINT AS drops_first, "
        "sum(remaining)::BIGINT AS remaining FROM funnel WHERE corpus = ? AND corpus_version = ? "
        "GROUP BY position, rule ORDER BY position",
        [version.dataset, version.version],
    ).drop("position")
    manifest = version.manifest
    about = ((manifest.get("config") or {}).get("rule_set") or {}).get("about", "")
    total = int(counts["rows"].sum())
    written = "" if rows in (None, total) else f" ({rows:,} in this format)"
    lines = [
        *front_matter(warehouse, version, files, license, total if rows is None else rows),
        "",
        f"# {version.dataset}",
        "",
        about or f"The corpus `{version.dataset}`.",
        "",
        f"Version `{version.version}`, format `{format}`, {counted(total, 'row')}{written}, "
        "made by `curate`.",
        "",
        *([*training, ""] if training else []),
        "## Rows",
        "",
        *_table(counts),
        "",
        "## Funnel",
        "",
        "What each rule would drop alone, what it dropped first, and what remained after it.",
        "",
        *_table(funnel),
        "",
        "## Lineage",
        "",
        *[f"- made from `{ref}`" for ref in ancestors(warehouse, version)],
        f"- sealed {manifest.get('sealed_at', '')} by code version "
        f"{manifest.get('code_version', '')}",
        "",
    ]
    return "\n".join(lines)


def front_matter(
    warehouse: Warehouse, version: Version, files: str, license: str | None, rows: int
) -> list[str]:
    """YAML that the Hub shows and searches by. Texts are JSON strings, which YAML reads as they
    are.
    """
    config = version.manifest.get("config") or {}
    kind = (config.get("rule_set") or {}).get("kind", "sft")
    size = next((name for most, name in SIZES if rows < most), "n>10M")
    tags = [
        "curate",
        "reasoning",
        {"sft": "chain-of-thought", "rl": "reinforcement-learning"}[kind],
    ]
    lines = [
        "---",
        f"license: {json.dumps(license or 'unknown')}",
        f"pretty_name: {json.dumps(version.dataset)}",
        "task_categories:",
        "- text-generation",
        "size_categories:",
        f"- {size}",
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    if languages := _languages(warehouse, version):
        lines += ["language:", *(f"- {language}" for language in languages)]
    return [*lines, "configs:", "- config_name: default", f"  data_files: {files}", "---"]


def _languages(warehouse: Warehouse, version: Version) -> list[str]:
    """Languages that the problems of the corpus are to be solved in, as two-letter codes."""
    ids = version.read(["problem_id"]).unique().collect()["problem_id"]
    rows = warehouse.sql("SELECT problem_id, target_language FROM problems")
    named = rows.filter(pl.col("problem_id").is_in(ids.implode()))["target_language"]
    return sorted(code for code in named.drop_nulls().unique() if len(code) == 2 and code.isalpha())


def ancestors(warehouse: Warehouse, version: Version) -> list[str]:
    """Ancestors of the corpus, nearest first: traces, models, the models' training data,
    problems.
    """
    rows = warehouse.sql(
        "SELECT ancestor FROM ancestry WHERE ref = ? ORDER BY depth, ancestor", [version.ref]
    )
    return rows.get_column("ancestor").to_list()


def _table(frame: pl.DataFrame) -> list[str]:
    """A Markdown table."""

    def cell(value: Any) -> str:
        return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")

    head = [f"| {' | '.join(frame.columns)} |", f"|{'---|' * frame.width}"]
    return head + [f"| {' | '.join(map(cell, row))} |" for row in frame.iter_rows()]
