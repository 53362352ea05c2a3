"""Rejection sampling: many samples a problem from a checkpoint; all are kept, a filter picks the
best (2.3.3).

The report says neither how many it samples nor how many it keeps. Ours: a problem is asked until
four of its samples are right, as many as the rule set `rejection` keeps of a problem, and at most
16 times, as often as a group of its RL.
"""

from curate.generate import Recipe

RECIPE = Recipe(
    name="rejection",
    doc="sample each problem from a trained model until enough are right; a filter keeps the best",
    defaults={
        "template": "r1-zero",
        "samples": 16,
        "adaptive": {"keep": 4, "first": 4},
        "sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 8192},
    },
)
