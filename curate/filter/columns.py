"""Columns that the steps of a decision hand to each other, and that no result shows.

Deciding (`decide.py`) computes them, `spill.py` keeps them, the funnel and the selection read them.
"""

from __future__ import annotations

# Computed in SQL, one value per trace.
RANK = "_by"  # by which traces of one problem are ranked, high first
SCORE = "_best"  # by which the best of several duplicates is kept, high first
WITHIN = "_within"  # text that two traces must share to be compared as duplicates
DIFFICULTY = "_band"  # difficulty of the problem, 0 to 1, by the selection's definition
BALANCE = "_balance"  # group that `balance` keeps level
SHAPE = "_shape"  # logarithms of steps, characters and reflections: distance between traces
DRAW = "_draw"  # hash of seed and trace: decides ties and everything random

# Added by the steps.
BAND = "_fifth"  # fifth of the range of difficulty, by which the funnel counts
PLACE = "_at"  # row of the trace in `Decisions.candidates`
SLICE = "_slice"  # number of the slice that the trace is in

_RULE = "rule:"


def rule_column(name: str) -> str:
    """The column that holds whether a trace passes the rule."""
    return f"{_RULE}{name}"


def is_hidden(name: str) -> bool:
    """Whether a column is one of these, or of a rule."""
    return name.startswith(("_", _RULE))
