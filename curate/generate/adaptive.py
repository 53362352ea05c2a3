"""Number of samples of each problem: more for hard problems, none once it is solved.

Samples are requested in rounds, always the lowest indices that are missing. When all samples of a
round have finished they are verified, and the next round is a function of the verdicts so far. So
the decisions of a job follow from its rows: a process that resumes it, or works alongside, requests
the same samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from curate.generate.config import AdaptiveConfig

Row = dict[str, Any]


def next_round(
    requested: int, good: int, verified: int, budget: int, config: AdaptiveConfig
) -> int:
    """Number of further samples to request for a problem of which `requested` have
    finished.

    The chance that a sample is good is estimated as (good + 1) / (requested + 2), Laplace's rule of
    succession. The number requested fills the rest at that rate, but never exceeds the number so
    far. A problem of which nothing could be verified (no verifier, no reference that parses, every
    request failed) gets the first round only.
    """
    if good >= config.keep or requested >= budget:
        return 0
    if requested == 0:
        return min(config.first, budget)
    if verified == 0 and requested >= min(config.first, budget):
        return 0
    wanted = math.ceil((config.keep - good) * (requested + 2) / (good + 1))
    return min(wanted, max(requested, config.first), budget - requested)


@dataclass
class UnitProgress:
    """One problem of an open chunk.

    requested: samples requested so far; `stop`: the maximum. good, verified: verdicts of
    the finished rounds. logged: samples below this are in the log already and must be completed
    without a gap. waiting: samples of the current round that have not finished; `round` holds its
    rows that have. settled: no further round follows.
    """

    requested: int
    stop: int
    good: int = 0
    verified: int = 0
    logged: int = 0
    waiting: set[int] = field(default_factory=set)
    round: list[Row] = field(default_factory=list)
    settled: bool = False

    def advance(self, config: AdaptiveConfig) -> range:
        """The samples of the next round; empty once the problem is settled."""
        count = next_round(self.requested, self.good, self.verified, self.stop, config)
        # Another job may have requested more samples of this chunk and died: a committed chunk
        # has no gaps.
        count = count or max(0, min(self.logged, self.stop) - self.requested)
        self.settled = count == 0
        following = range(self.requested, self.requested + count)
        self.requested += count
        return following
