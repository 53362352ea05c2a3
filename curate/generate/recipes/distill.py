"""Distillation corpora: traces of a larger model that a smaller one learns from (section 2.4).

They include prompts that are not reasoning problems: `simple.where` selects those that are answered
without a chain of thought, as the report does for simple queries (section 2.3.3).
"""

from curate.generate import Recipe

RECIPE = Recipe(
    name="distill",
    doc="sample from a teacher for a student; simple queries without a chain of thought",
    defaults={
        "template": "r1",
        "samples": 4,
        "sampling": {"temperature": 0.6, "top_p": 0.95, "max_tokens": 8192},
    },
)
