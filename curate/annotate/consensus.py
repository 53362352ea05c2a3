"""Verdicts of kind `consensus`: the answer that most samples of a problem agree on is its
reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl
from pydantic import Field

from curate.annotate.verdicts import NO_VERIFIER, verifier_version
from curate.config import Config
from curate.prompts.forms import with_opener_expr
from curate.verify.consensus import consensus_frame
from curate.warehouse import Version
from curate.warehouse.annotations import joint_address

if TYPE_CHECKING:
    from curate.job import Context

# Columns of `traces` that are read.
COLUMNS = (
    "trace_id",
    "attempt",
    "problem_id",
    "model_hash",
    "policy_step",
    "prompt",
    "completion",
    "form",
    "finish_reason",
)


class ConsensusConfig(Config):
    """Conditions for agreement among the samples of a problem. The defaults are ours."""

    share: float = Field(0.5, gt=0, le=1)
    """Share of the samples of one model that must give the same answer."""
    samples: int = Field(4, ge=2)
    """Minimum number of samples of a problem."""
    every: bool = False
    """Also judge problems that have a reference."""
    verifier: str = "math"
    """Verifier that compares the answers to problems without one."""


def annotate_consensus(
    config: ConsensusConfig,
    sources: Sequence[Version],
    problems: pl.DataFrame,
    targets: dict[str, list[Version]],
    context: Context,
) -> int:
    """Cluster the answers to each problem and store verdicts by the largest cluster. Returns the
    number of traces.

    More samples can change a consensus. So each set of traces has its own version, and
    `verifier_version` ends with the number of traces it saw: the newest one counts.
    """
    families: dict[str, list[Version]] = {}  # further samples are further versions of one dataset
    for source in sources:
        if source.parts() and len(problems):
            families.setdefault(source.dataset, []).append(source)
    rows = 0
    for versions in families.values():
        frame = _answers(versions, problems, config.every)
        if frame.is_empty():
            continue
        key = [
            config.model_dump(),
            frame["trace_id"].to_list(),
            frame["attempt"].to_list(),
            verifier_version("math"),
        ]
        target = joint_address(context.warehouse, "verdicts", versions, "consensus", 1, key)
        targets[versions[-1].ref].append(target)
        if target.sealed:
            continue
        frame = frame.with_columns(
            verifier=pl.col("verifier").replace(NO_VERIFIER, config.verifier)
        )
        target.publish("0", consensus_frame(frame, config.share, config.samples, context.pool))
        target.seal()
        rows += len(frame)
    return rows


def _answers(versions: Sequence[Version], problems: pl.DataFrame, every: bool) -> pl.DataFrame:
    """The last attempt of each trace that did not fail, with the columns of its problem."""
    text = with_opener_expr(pl.col("completion"), pl.col("prompt"), pl.col("form"))
    last = pl.col("attempt") == pl.col("attempt").max().over("trace_id")
    frame = (
        pl.concat([v.read(COLUMNS) for v in versions])
        .filter(pl.col("finish_reason") != "error")
        .filter(last)
        .with_columns(text=text)
        .drop("prompt", "completion")
        .collect()
        .join(problems, on="problem_id", how="inner", maintain_order="left")
        .sort("trace_id")
    )
    if every:
        return frame
    return frame.filter(pl.col("reference").fill_null("").str.strip_chars() == "")
