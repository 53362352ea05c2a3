"""Hidden columns that the steps of a decision pass to each other; no result shows them.

Deciding (`decide.py`) computes them, `spill.py` keeps them, the funnel and the selection read them.
"""

from __future__ import annotations

# Computed in SQL, one value per trace.
RANK = "_by"  # rank of traces within a problem, high first
SCORE = "_best"  # the duplicate with the highest value is kept
WITHIN = "_within"  # text that two traces must share to be compared as duplicates
TOP = "_top"  # rank of traces among all that remain, high first
DIFFICULTY = "_band"  # difficulty of the problem, 0 to 1, as the selection defines it
BALANCE = "_balance"  # group whose size `balance` limits
SHAPE = "_shape"  # logarithms of steps, characters and reflections: distance between traces
DRAW = "_draw"  # hash of seed and trace, for ties and random choices

# Added by the steps.
BAND = "_fifth"  # fifth of the range of difficulty that the funnel counts by
PLACE = "_at"  # row of the trace in `Decisions.candidates`
SLICE = "_slice"  # number of the slice that the trace is in

_RULE = "rule:"


def rule_column(name: str) -> str:
    """Return the name of the column that says whether a trace passes the rule."""
    return f"{_RULE}{name}"


def is_hidden(name: str) -> bool:
    """Whether a column is one of these or belongs to a rule."""
    return name.startswith(("_", _RULE))
