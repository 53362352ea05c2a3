"""R1-Zero harvest: a base model or checkpoint in the report's template, temperature 1 (2.2)."""

from curate.generate import Recipe

RECIPE = Recipe(
    name="r1-zero",
    doc="sample from a model with the R1-Zero template at temperature 1",
    defaults={
        "template": "r1-zero",
        "samples": 16,
        # A base model continues with the next turn after its answer: it may never sample an end
        # token.
        "sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 8192, "stop": ["</answer>"]},
    },
)
