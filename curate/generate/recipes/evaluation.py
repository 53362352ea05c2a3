"""Samples for an evaluation: temperature 0.6 and top_p 0.95, as in the report (section 3)."""

from curate.generate import Recipe

RECIPE = Recipe(
    name="evaluate",
    doc="sample from a model on held-out problems, to measure it",
    defaults={
        "template": "r1-zero",
        "split": "held-out",
        "samples": 16,
        "sampling": {"temperature": 0.6, "top_p": 0.95, "max_tokens": 8192},
    },
)
