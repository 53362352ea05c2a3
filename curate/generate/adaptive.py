"""How many samples a problem gets: more for hard ones, none for those that are solved.

Samples are asked in rounds, always the first ones that are not there yet. When all of a round have finished they are
judged, and the next round is a function of what all rounds so far gave. So the decisions of a job follow from the rows
it has: whoever goes on with it, after a kill or beside it, asks the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from curate.generate.config import AdaptiveConfig

Row = dict[str, Any]


def next_round(asked: int, good: int, judged: int, budget: int, config: AdaptiveConfig) -> int:
    """How many more samples to ask of a problem of which `asked` finished; 0: no more.

    The chance that a sample is good is taken to be (good + 1) / (asked + 2), Laplace's rule of succession, and as many
    are asked as make up the rest at that rate, but never more than were asked already. A problem of which nothing could
    be judged (no verifier, no reference that parses, every request failed) gets the first round only.
    """
    if good >= config.keep or asked >= budget:
        return 0
    if asked == 0:
        return min(config.first, budget)
    if judged == 0 and asked >= min(config.first, budget):
        return 0
    wanted = math.ceil((config.keep - good) * (asked + 2) / (good + 1))
    return min(wanted, max(asked, config.first), budget - asked)


@dataclass
class Steered:
    """One problem of an open chunk: how far it was asked, and what came of it."""

    asked: int
    stop: int
    good: int = 0
    judged: int = 0
    beyond: int = 0  # samples below this are in the log already, and have to be made whole
    waiting: set[int] = field(default_factory=set)
    round: list[Row] = field(default_factory=list)
    settled: bool = False

    def advance(self, config: AdaptiveConfig) -> range:
        """The samples of the next round; empty once the problem is settled."""
        count = next_round(self.asked, self.good, self.judged, self.stop, config)
        count = count or max(0, min(self.beyond, self.stop) - self.asked)
        self.settled = count == 0
        following = range(self.asked, self.asked + count)
        self.asked += count
        return following
