"""R1-Zero harvest: any base model or checkpoint, the report's template, temperature 1 (report,
section 2.2).
"""

from curate.generate import Recipe

RECIPE = Recipe(
    name="r1-zero",
    doc="sample from a model with the R1-Zero template at temperature 1",
    defaults={
        "template": "r1-zero",
        "samples": 16,
        # A base model goes on with the next turn after its answer: its own end token is not to be
        # relied on.
        "sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 8192, "stop": ["</answer>"]},
    },
)
