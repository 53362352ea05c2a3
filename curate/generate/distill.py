"""Distillation corpora: the traces of a larger model, for a smaller one to learn from (section 2.4)."""

from curate.generate import Recipe

RECIPE = Recipe(
    name="distill",
    doc="sample from a teacher for a student",
    defaults={"template": "r1", "samples": 4, "sampling": {"temperature": 0.6, "top_p": 0.95, "max_tokens": 8192}},
)
