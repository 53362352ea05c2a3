"""Synthetic traces: what a good model might have written, in the place of what a random one did.

A random model's traces pass no filter, so later stages would have no input. These are right by the
problem's own reference and readable; the real verifiers, signals and rules judge them.
"""

from __future__ import annotations

import polars as pl

from curate.prompts.forms import Form
from curate.prompts.render import load_template
from curate.warehouse import Version, Warehouse
from curate.warehouse.identity import digest
from curate.warehouse.names import now
from curate.warehouse.traces import trace_types, with_parts

PER_PROBLEM = 2
# Two ways to say that a question is worked on, by language.
_TEXTS = {
    "en": (
        "Let me read the question carefully and write down what is given. Then I work through it "
        "step by step, and I keep an eye on what is asked.",
        "First I look at what the question wants to know. I take the parts one after another and "
        "put them together at the end.\n\nLet me check this once more from the other side. Both "
        "ways lead to the same result, so I am confident that it holds.",
    ),
    "zh": (
        "我们先看题目要求什么，写下已知的条件，然后一步一步地计算。",
        "首先看清楚题目问的是什么，再把每一部分依次算出来，最后合在一起。\n\n我们再检查一遍，"
        "两种方法得到的结果是一样的，所以答案是对的。",
    ),
}


def add_traces(
    warehouse: Warehouse, family: str, problems: pl.DataFrame, form: str, template: str, recipe: str
) -> Version:
    """Store synthetic traces of the problems in a family, as a version of their own."""
    rows = [
        {
            "trace_id": digest("rehearsal", family, row["problem_id"], number),
            "attempt": 0,
            "job_id": "rehearsal",
            "problem_id": row["problem_id"],
            "sample_index": 1000 + number,
            "recipe": recipe,
            "form": form,
            "template": load_template(template, form).label(),
            "model": "rehearsal",
            "engine": "rehearsal",
            "completion": (text := completion(row, form, number)),
            "finish_reason": "stop",
            "prompt_tokens": len(row["question"]) // 4,
            "completion_tokens": len(text) // 4,
            "created_at": now(),
        }
        for row in problems.iter_rows(named=True)
        for number in range(PER_PROBLEM)
    ]
    types = {name: dtype for name, dtype in trace_types().items() if name in rows[0]}
    frame = pl.DataFrame(rows, schema=types).with_columns(prompt=pl.lit(None, pl.String))
    return warehouse.write(
        "traces", family, with_parts(frame).drop("prompt"), key=["rehearsal", family, len(rows)]
    )


def completion(problem: dict[str, object], form: str, number: int) -> str:
    """A completion in a form, with the problem's reference as its answer."""
    language = str(problem.get("target_language") or "en")
    reasoning = _TEXTS.get(language, _TEXTS["en"])[number % 2]
    reference = str(problem.get("reference") or "").strip()
    solution = str(problem.get("solution") or "").strip()
    shape = Form.of(form)
    if not reference:
        return shape.compose(reasoning, solution or reasoning)
    if shape.name == "r1-zero":
        return shape.compose(reasoning, reference)
    said = "答案是" if language == "zh" else "The answer is"
    boxed = reference if problem.get("verifier") == "procedural" else f"\\boxed{{{reference}}}"
    return shape.compose(reasoning, f"{said} {boxed}.".replace("$.", "$"))
