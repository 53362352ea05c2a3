"""Stages of a pipeline: the kinds that ship, one stage as written, and the result of a stage.

Adding a kind of stage is a `StageKind` in the module that owns the job, one line here, and one
test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from curate.job import StageKind
from curate.registry import resolve
from curate.warehouse.identity import digest

KINDS = {
    "problems": "curate.problems.store:STAGE",
    "generate": "curate.generate.job:STAGE",
    "import": "curate.imports.job:STAGE",
    "annotate": "curate.annotate.job:STAGE",
    "filter": "curate.filter.job:STAGE",
    "base": "curate.train.stages:BASE",
    "sft": "curate.train.stages:SFT",
    "distill": "curate.train.stages:DISTILL",
    "dpo": "curate.train.stages:DPO",
    "grpo": "curate.train.stages:GRPO",
    "evaluate": "curate.evaluate.job:STAGE",
    "report": "curate.report.job:STAGE",
}


def stage_kind(name: str) -> StageKind:
    """Return the kind of stage `name`. UsageError for an unknown one."""
    kind = resolve("stage", name, KINDS)
    assert isinstance(kind, StageKind)
    return kind


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline.

    config: its keys as written, with variables and the pipeline's defaults filled in and names of
    outputs left alone. checked: the same, validated by the kind of stage. needs: stages that it
    names or has to follow. processes: ranks that train together under torchrun, on each
    of `nodes` machines. Their number does not change the result.
    """

    name: str
    do: str
    config: dict[str, Any]
    checked: Any
    needs: tuple[str, ...]
    processes: int = 1
    nodes: int = 1

    @property
    def kind(self) -> StageKind:
        return stage_kind(self.do)


@dataclass(frozen=True)
class Done:
    """Result of a finished stage, read back when the stage is skipped.

    rate: samples per second, if it sampled. How fast the machine was is not part of the digest.
    """

    key: str
    value: str
    facts: dict[str, Any]
    refs: list[str]
    summary: str
    seconds: float
    rate: float | None = None

    @property
    def digest(self) -> str:
        """Hash of everything that a later stage can name."""
        return digest(self.value, self.facts, sorted(self.refs))
