"""Export a sealed corpus in the formats of other trainers, with a card that documents its origin.

messages           TRL: {"messages": [{"role", "content"}, …]}
prompt-completion  TRL: {"prompt", "completion"}
sharegpt           {"conversations": [{"from": "human" | "gpt", "value"}, …]}
verl               {"data_source", "prompt": [message], "ability", "reward_model", …}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from curate.atomic import SUFFIX as PARTIAL
from curate.atomic import is_abandoned, write_whole
from curate.errors import CurateError, UsageError
from curate.files import SUFFIXES, Writer
from curate.store import is_remote
from curate.store.paths import scan
from curate.warehouse.parts import verify

if TYPE_CHECKING:
    from curate.warehouse import Version, Warehouse


def _messages(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select("messages")


def _prompt_completion(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select("prompt", "completion")


def _sharegpt(rows: pl.DataFrame) -> pl.DataFrame:
    turn = pl.element()
    speaker = turn.struct.field("role").replace_strict(
        {"user": "human", "assistant": "gpt"}, default="system"
    )
    turns = pl.col("messages").list.eval(
        pl.struct(speaker.alias("from"), turn.struct.field("content").alias("value"))
    )
    return rows.select(conversations=turns)


def _verl(rows: pl.DataFrame) -> pl.DataFrame:
    requests = pl.col("messages").list.filter(pl.element().struct.field("role") == "user")
    return rows.select(
        data_source=pl.col("source"),
        prompt=requests,
        ability=pl.col("domain"),
        reward_model=pl.struct(
            pl.lit("rule").alias("style"), pl.col("reference").alias("ground_truth")
        ),
        extra_info=pl.struct(
            pl.col("problem_id"), pl.col("trace_id"), pl.col("verifier"), pl.col("split")
        ),
    )


FORMATS: dict[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
    "messages": _messages,
    "prompt-completion": _prompt_completion,
    "sharegpt": _sharegpt,
    "verl": _verl,
}


def export_corpus(
    warehouse: Warehouse,
    corpus: str,
    out: str | Path,
    format: str = "messages",
    suffix: str = ".parquet",
    push: str | None = None,
) -> int:
    """Write a corpus (`name` or `name@version`) with its card; return the number of rows.

    If `out` ends in .parquet or .jsonl it is one file, with the card next to it (`x.jsonl`,
    `x.md`). Otherwise it is a folder with `data/train-00000.parquet`, … (or .jsonl, by `suffix`)
    and `README.md`, the layout of the Hub. `push` names a data set on the Hugging Face Hub
    (owner/name) and needs a folder; the token comes from the environment. Raises `UsageError` for
    an unknown corpus or format, and for a folder with other content.
    """
    if format not in FORMATS:
        raise UsageError(f"unknown format '{format}': choose from {', '.join(FORMATS)}")
    if suffix not in (".parquet", ".jsonl"):
        raise UsageError(f"unknown kind of file '{suffix}': choose .parquet or .jsonl")
    version = warehouse.latest("corpora", corpus)
    verify(version.parts())  # before an older export is touched
    target = Path(out)
    if is_remote(target):
        raise UsageError(f"--out {out}: a corpus is exported to this machine: name a folder here")
    if target.suffix in SUFFIXES and not target.is_dir():
        if push is not None:
            raise UsageError(f"--push sends a folder: give --out a folder instead of {target}")
        with Writer(target) as writer:
            for rows in _rows(warehouse, version, format):
                writer.write(rows)
        write_whole(target.with_suffix(".md"), card(warehouse, version, format, target.name))
        return writer.rows
    if target.suffix in (".json", ".csv", ".txt"):
        raise UsageError(f"{target} cannot be written: use .parquet or .jsonl, or name a folder")
    for partial in [*target.glob(f".*{PARTIAL}"), *target.glob(f"data/.*{PARTIAL}")]:
        if is_abandoned(partial):  # of an export that was killed
            partial.unlink(missing_ok=True)
    if target.exists() and (
        not target.is_dir() or any(p.name not in ("data", "README.md") for p in target.iterdir())
    ):
        raise UsageError(f"{target} has other content: export into a new folder")
    for stale in (target / "data").glob("train-*"):
        stale.unlink()
    total = 0
    for number, rows in enumerate(_rows(warehouse, version, format)):
        with Writer(target / "data" / f"train-{number:05d}{suffix}") as writer:
            writer.write(rows)
        total += rows.height
    write_whole(target / "README.md", card(warehouse, version, format))
    if push is not None:
        _push(target, push)
    return total


def _rows(warehouse: Warehouse, version: Version, format: str) -> Iterator[pl.DataFrame]:
    """Yield the corpus in the shape of a format, part by part."""
    problems = (
        warehouse.sql("SELECT problem_id, reference, verifier, split FROM problems")
        if format == "verl"
        else None
    )
    for path in version.parts():
        rows = scan([path]).collect()
        if problems is not None:
            rows = rows.join(problems, on="problem_id", how="left", maintain_order="left")
        yield FORMATS[format](rows)


def card(warehouse: Warehouse, version: Version, format: str, files: str = "data/train-*") -> str:
    """Return the data set's card: counts, funnel, lineage. `files` are relative to the card."""
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
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        f"  data_files: {files}",
        "---",
        "",
        f"# {version.dataset}",
        "",
        about or f"The corpus `{version.dataset}`.",
        "",
        f"Version `{version.version}`, format `{format}`, {int(counts['rows'].sum()):,} rows, "
        "made by `curate`.",
        "",
        "## Rows",
        "",
        *_table(counts),
        "",
        "## Funnel",
        "",
        "What each rule would drop alone, what it was first to drop, and what remained after it.",
        "",
        *_table(funnel),
        "",
        "## Lineage",
        "",
        *[f"- made from `{ref}`" for ref in _ancestors(warehouse, version)],
        f"- sealed {manifest.get('sealed_at', '')} by code version "
        f"{manifest.get('code_version', '')}",
        "",
    ]
    return "\n".join(lines)


def _ancestors(warehouse: Warehouse, version: Version) -> list[str]:
    """Return everything the corpus was made from, nearest first: traces, models and their training
    data, problems.
    """
    rows = warehouse.sql(
        "SELECT ancestor FROM ancestry WHERE ref = ? ORDER BY depth, ancestor", [version.ref]
    )
    return rows.get_column("ancestor").to_list()


def _table(frame: pl.DataFrame) -> list[str]:
    """Format a Markdown table."""

    def cell(value: Any) -> str:
        return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")

    head = [f"| {' | '.join(frame.columns)} |", f"|{'---|' * frame.width}"]
    return head + [f"| {' | '.join(map(cell, row))} |" for row in frame.iter_rows()]


def _push(folder: Path, name: str) -> None:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise UsageError("pushing needs huggingface_hub: pip install 'curate[hub]'") from error
    try:
        api = HfApi()
        api.create_repo(name, repo_type="dataset", exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=name, repo_type="dataset")
    except Exception as error:  # network, rights, names: the library's errors say which
        raise CurateError(f"{folder} could not be pushed to {name}: {error}") from error
