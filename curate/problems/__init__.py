"""Problems: from sources to one frame in the columns of `schemas/problems.sql`, with stable ids
and disjoint splits.

    source = {"source": "files", "path": "mine.jsonl", "verifier": "math"}
    frame, report = load_problems({"sources": [source]})

A source is a class derived from `Source`. Its name is in `SOURCES`, an entry point of the group
`curate.source`, or a dotted path in the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import polars as pl
from pydantic import Field, field_validator

from curate.config import Config, validate
from curate.errors import UsageError
from curate.problems.base import SCHEMA, Source, to_schema
from curate.problems.identity import HELD_OUT, SPLIT_NAMES, TRAIN, add_problem_id, add_split
from curate.progress import counted
from curate.records import Problem
from curate.registry import check, resolve
from curate.verify.registry import REGISTRY

__all__ = [
    "SOURCES",
    "LoadReport",
    "Loaded",
    "ProblemsConfig",
    "Source",
    "from_rows",
    "load_problems",
    "prepare",
    "rows_as_problems",
]

SOURCES = {
    "procedural": "curate.problems.procedural:Procedural",
    "files": "curate.problems.files:Files",
    "hub": "curate.problems.hub:Hub",
    "benchmark": "curate.problems.benchmarks:BenchmarkSource",
}


class ProblemsConfig(Config):
    """The sources of problems, and the part that is held out."""

    sources: list[dict[str, Any]] = Field(
        min_length=1, description="each has `source: NAME` and that source's own keys"
    )
    held_out: float | int = Field(
        0.1,
        description="share of the questions (below 1) or their number per source, for evaluation",
    )
    split_salt: str = Field("", description="change it to draw another split")

    @field_validator("held_out")
    @classmethod
    def _share_or_count(cls, value: float | int) -> float | int:
        if value < 0 or (isinstance(value, float) and value >= 1 and not value.is_integer()):
            raise ValueError(
                "must be a share from 0 up to (not including) 1, or a whole number of questions"
            )
        return int(value) if value >= 1 else float(value)

    def built(self, where: str = "") -> list[Source]:
        """The sources, each checked against its own config class, so that a mistake is found
        before anything loads.
        """
        prefix = f"{where}: " if where else ""
        return [_build(dict(s), f"{prefix}sources[{i}]") for i, s in enumerate(self.sources)]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Counts of rows."""

    loaded: int  # rows from the sources
    duplicates: int  # dropped: the same problem came before
    problems: int  # after duplicates are dropped
    train: int
    held_out: int
    without_verifier: int  # without a verifier
    moved_to_held_out: int  # meant for training, but the same question is held out elsewhere
    sources: dict[str, int] = field(default_factory=dict)  # problems by source

    def lines(self) -> list[str]:
        """The report as text."""
        by_source = ", ".join(
            f"{name or 'without a source'} {count:,}" for name, count in self.sources.items()
        )
        out = [
            f"{counted(self.problems, 'problem')} ({self.train:,} train, {self.held_out:,} "
            f"held-out): {by_source}"
        ]
        if self.duplicates:
            rows = counted(self.duplicates, "row was a duplicate", "rows were duplicates")
            out.append(f"{rows} of a problem and left out")
        if self.moved_to_held_out:
            out.append(
                counted(
                    self.moved_to_held_out,
                    "training row asks a held-out question and was moved to held-out",
                    "training rows ask a held-out question and were moved to held-out",
                )
            )
        if self.without_verifier:
            out.append(
                counted(self.without_verifier, "problem names", "problems name")
                + " no verifier: nothing can judge their answers"
            )
        return out


class Loaded(NamedTuple):
    """Problems in the columns of `schemas/problems.sql`, and a report on loading them."""

    frame: pl.DataFrame
    report: LoadReport


def load_problems(config: ProblemsConfig | Mapping[str, Any]) -> Loaded:
    """Load every source, drop duplicates (the first one stays), and assign ids and splits.

    Rows keep the order of the sources. UsageError for a wrong config, wrong input, or no problem
    at all.
    """
    config = (
        config
        if isinstance(config, ProblemsConfig)
        else validate(ProblemsConfig, config, "problems")
    )
    return prepare(pl.concat([_loaded(source) for source in config.built()]), config)


def rows_as_problems(rows: pl.DataFrame, config: ProblemsConfig) -> Loaded:
    """Problems from rows in columns of `schemas/problems.sql`, of which only `question` is needed.

    `config` says what is held out; its sources are not read.
    """
    frame = to_schema(rows)
    for name in frame["verifier"].drop_nulls().unique().sort():
        check("verifier", name, REGISTRY, data=True)
    return prepare(frame, config)


def prepare(loaded: pl.DataFrame, config: ProblemsConfig) -> Loaded:
    """Drop duplicates of loaded rows, and assign ids and splits."""
    if loaded.is_empty():
        raise UsageError("the sources hold no problems: check their paths, sizes and limits")
    if blank := loaded.filter(
        pl.col("question").is_null() | (pl.col("question").str.strip_chars() == "")
    ).height:
        raise UsageError(
            f"the sources gave {blank:,} rows without a question: leave them out, or give them one"
        )
    frame = add_problem_id(loaded.with_columns(_split_names(loaded)))
    # Before duplicates go: a held-out copy must hold its question out, even if it is the second
    # one.
    frame, moved = add_split(frame, config.held_out, config.split_salt)
    frame = frame.unique("problem_id", keep="first", maintain_order=True).select(list(SCHEMA))
    held = int((frame["split"] == HELD_OUT).sum())
    report = LoadReport(
        loaded=loaded.height,
        duplicates=loaded.height - frame.height,
        problems=frame.height,
        train=frame.height - held,
        held_out=held,
        without_verifier=frame["verifier"].null_count(),
        moved_to_held_out=moved,
        sources=dict(frame.group_by("source", maintain_order=True).len().iter_rows()),
    )
    return Loaded(frame, report)


def _loaded(source: Source) -> pl.DataFrame:
    """The rows of a source, each with a verifier that exists or none. A row never selects code by
    a dotted path.
    """
    frame = to_schema(source.load())
    trusted = {getattr(source, "verifier", None)}
    for name in frame["verifier"].drop_nulls().unique().sort():
        # A source of the user's own is code that the config named: it may name its own verifier.
        if name in trusted or ":" in source.source:
            check("verifier", name, REGISTRY)
            continue
        try:
            check("verifier", name, REGISTRY, data=True)
        except UsageError as error:
            raise UsageError(
                f"{source.source}: a row names a verifier that cannot be used: {error}. Set "
                "`verifier` on the source, "
                "which may be a path to your own, and map the column to something else or "
                "leave it out"
            ) from error
    return frame


def from_rows(frame: pl.DataFrame) -> list[Problem]:
    """Rows of the table `problems` as records, in order. Other columns are ignored."""
    names = [name for name in SCHEMA if name in frame.columns]
    wanted = frame.select(names).with_columns(
        pl.col(name).fill_null(default)
        for name, default in (("source", ""), ("domain", ""), ("split", TRAIN), ("problem_id", ""))
        if name in names
    )
    return [Problem(**row) for row in wanted.iter_rows(named=True)]


def _split_names(frame: pl.DataFrame) -> pl.Expr:
    """The split that a source names, as `train` or `held-out`. UsageError for a name that means
    neither.
    """
    given = frame["split"].drop_nulls().unique().to_list()
    if unknown := sorted(name for name in given if name.strip().lower() not in SPLIT_NAMES):
        raise UsageError(
            f"unknown split '{unknown[0]}': a problem is in one of "
            f"{', '.join(sorted(SPLIT_NAMES))} "
            "(all but train and training are held out), or has no split and gets one by its hash"
        )
    return (
        pl.col("split")
        .str.strip_chars()
        .str.to_lowercase()
        .replace_strict(SPLIT_NAMES, default=None)
    )


def _build(config: dict[str, Any], where: str) -> Source:
    name = config.get("source")
    if not isinstance(name, str):
        raise UsageError(f"{where} must say which source it is: `source: {' | '.join(SOURCES)}`")
    model = resolve("source", name, SOURCES)
    if not (isinstance(model, type) and issubclass(model, Source)):
        raise UsageError(f"the source '{name}' is not a curate.problems.Source")
    return validate(model, config, f"{where} ({name})")
