"""A chunk that this process has claimed and not committed yet.

Its state in memory only. Claims, logs and what is recovered from them after a kill are in
curate/warehouse/chunks.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import polars as pl

from curate.generate.adaptive import UnitProgress
from curate.warehouse.chunks import ChunkLog, Key, key_of

Row = dict[str, Any]

# Columns that a verifier reads of a row: all but the tokens.
VERIFIED_COLUMNS = (
    "trace_id",
    "attempt",
    "problem_id",
    "sample_index",
    "prompt",
    "completion",
    "form",
    "finish_reason",
)


@dataclass
class OpenChunk:
    """The log of a claimed chunk, the rows of its units, and the progress of each unit.

    units: columns of `problems` (or of the trace to rewrite) by unit.
    wanted: keys that complete the chunk, if its size is fixed.
    progress: of each unit, if verdicts decide how many samples it gets.
    """

    log: ChunkLog
    units: dict[str, Row]
    wanted: int = 0
    progress: dict[str, UnitProgress] = field(default_factory=dict)
    verdicts: list[pl.DataFrame] = field(default_factory=list)
    prompts: dict[str, str] = field(default_factory=dict)

    @property
    def chunk_id(self) -> str:
        return self.log.chunk.chunk_id

    @property
    def complete(self) -> bool:
        if self.progress:
            return all(unit.settled for unit in self.progress.values())
        return len(self.log.done) >= self.wanted

    def logged_samples(self) -> dict[str, int]:
        """For each unit with rows in the log: the number of samples up to the last of them."""
        ends: dict[str, int] = {}
        for unit, sample, _ in self.log.done:
            ends[unit] = max(ends.get(unit, 0), sample + 1)
        return ends

    def logged_rows(self) -> dict[Key, Row]:
        """The rows in the log, without their tokens."""
        return {key_of(row): without_tokens(row) for row in self.log.rows()}


def without_tokens(row: Row) -> Row:
    """The columns of a row that verifiers read."""
    return {name: row[name] for name in VERIFIED_COLUMNS}
