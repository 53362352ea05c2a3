"""Judge procedural problems: `reasoning-gym` scores the answer, and only a full score counts.

Its default score gives partial credit for containing the answer, some of its generators reward any
text, some raise, and some run the answer as code (`eval`, `sympy.parse_expr`); so only the
generators in `ALLOWED` are judged: those whose stored answer scores 1.0, that give no constant
wrong answer a full score, that neither raise nor evaluate, and whose entries survive JSON (probed
in the tests). Generators whose answer is one integer are judged here, without importing
`reasoning_gym` (about two seconds).
"""

from __future__ import annotations

import json
import re
from functools import cache, lru_cache
from typing import Any

from curate.records import Problem
from curate.verify.base import CORRECT, WRONG, Judgement, Verifier
from curate.verify.math.numbers import parse_number
from curate.verify.math.units import FRACTION_WORDS

# The answer is one integer.
INTEGER = frozenset(
    [
        "aiw",
        "basic_arithmetic",
        "binary_alternation",
        "chain_sum",
        "count_bits",
        "count_primes",
        "gcd",
        "gsm_symbolic",
        "largest_island",
        "lcm",
        "leg_counting",
        "letter_counting",
        "maze",
        "products",
        "rectangle_count",
        "rotten_oranges",
    ]
)
# Scored by the generator's own verifier, in a worker.
SCORED = frozenset(
    [
        "ab",
        "acre",
        "arc_1d",
        "base_conversion",
        "bf",
        "bitwise_arithmetic",
        "caesar_cipher",
        "circuit_logic",
        "color_cube_rotation",
        "course_schedule",
        "cryptarithm",
        "decimal_arithmetic",
        "decimal_chain_sum",
        "dice",
        "family_relationships",
        "fraction_simplification",
        "isomorphic_strings",
        "jugs",
        "kakurasu",
        "knights_knaves",
        "letter_jumble",
        "list_functions",
        "manipulate_matrix",
        "mini_sudoku",
        "needle_haystack",
    ]
)
ALLOWED = INTEGER | SCORED


class ProceduralVerifier(Verifier):
    """Reads `problem.metadata`: JSON with `dataset` (generator name) and `entry` (the generator's
    entry).
    """

    name = "procedural"
    version = "4"

    def load(self) -> None:
        import reasoning_gym  # noqa: F401

    def unverifiable(self, problem: Problem) -> str | None:
        return _read(problem.metadata or "")[2]

    def quick(self, problem: Problem, answer: str) -> Judgement | None:
        dataset, entry, _ = _read(problem.metadata or "")
        if dataset not in INTEGER:
            return CORRECT if answer == entry["answer"] else None
        gold, number = parse_number(str(entry["answer"])), parse_number(answer)
        if FRACTION_WORDS.search(answer):
            return Judgement("wrong", "not an integer")
        if number is None or number.percent or number.unit or "/" in answer or "frac" in answer:
            return Judgement("wrong", "not an integer")
        if gold is None:
            return Judgement("unverifiable", "the stored answer is not an integer")
        return CORRECT if gold.value == number.value else WRONG

    def check(self, problem: Problem, answer: str) -> Judgement:
        dataset, entry, reason = _read(problem.metadata or "")
        if reason:
            return Judgement("unverifiable", reason)
        if _hedges(answer, entry["answer"], dataset):
            return Judgement("wrong", "offers more than one answer")
        scorer = _scorer(dataset)
        try:
            score = scorer(answer, entry)
        except Exception as error:
            return Judgement("wrong", f"the generator's verifier raised {type(error).__name__}")
        return CORRECT if score == 1.0 else Judgement("wrong", f"score {score:.3g}")


_HEDGE = re.compile(
    r"\b(?:or|maybe|perhaps|possibly|either|not|alternatively|otherwise|else)\b", re.I
)


def _hedges(answer: str, stored: str, dataset: str) -> bool:
    """Whether an answer offers several: some scorers stop reading at the first that is right."""
    if len(_HEDGE.findall(answer)) > len(_HEDGE.findall(stored)):
        return True
    if dataset == "fraction_simplification":
        return len(re.findall(r"frac|/", answer)) > 1
    return dataset in ("letter_jumble", "caesar_cipher") and len(answer.split()) != len(
        stored.split()
    )


@lru_cache(maxsize=4096)
def _read(metadata: str) -> tuple[str, dict[str, Any], str | None]:
    """Return the generator, its entry, and why the problem cannot be judged (or None)."""
    try:
        data = json.loads(metadata)
        dataset, entry = data["dataset"], data["entry"]
    except (ValueError, KeyError, TypeError):
        return "", {}, "metadata holds no generator name and entry"
    if (
        not isinstance(dataset, str)
        or not isinstance(entry, dict)
        or not isinstance(entry.get("answer"), str)
    ):
        return "", {}, "metadata holds no generator name and entry"
    if dataset not in ALLOWED:
        return dataset, entry, f"generator '{dataset}' is not in the allow-list"
    return dataset, entry, None


@cache
def _scorer(dataset: str) -> Any:
    from reasoning_gym.factory import get_score_answer_fn

    return get_score_answer_fn(dataset)
