"""Rejection sampling: many samples a problem from a checkpoint; all are kept, a filter picks the best (2.3.3)."""

from curate.generate import Recipe

RECIPE = Recipe(
    name="rejection",
    doc="sample many completions a problem from a trained model, to keep the best of them by a filter",
    defaults={"template": "r1-zero", "samples": 8, "sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 8192}},
)
