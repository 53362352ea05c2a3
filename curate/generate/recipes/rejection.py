"""Rejection sampling: many samples per problem from a checkpoint, of which a filter picks the best
(2.3.3). All of them are stored.

The report says neither how many it samples nor how many it keeps. Ours: a problem is sampled until
four samples are right, which is what the rule set `rejection` keeps per problem, and at most 16
times, the group size of the report's RL.
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
