"""Distillation corpora: the traces of a larger model, for a smaller one to learn from (section
2.4).

Prompts that are no reasoning problems belong to it, too: `simple.where` names those that are
answered without a chain of thought, as the report does for simple queries (section 2.3.3,
non-reasoning data).
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
