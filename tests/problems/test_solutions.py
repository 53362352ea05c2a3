"""Worked solutions: every step is true, the last one is the answer, in the requested
language.
"""

import json
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.problems.solutions import SOLVERS, contradicted, same_number, worked_solution

reasoning_gym = pytest.importorskip("reasoning_gym")

CALLS = {"gcd": __import__("math").gcd, "lcm": __import__("math").lcm}


def true_steps(solution: str) -> list[tuple[str, str]]:
    """Steps `computed = result` of a solution; fails on one that is not true."""
    steps_text = solution.partition(":")[2] or solution.partition("：")[2]
    steps_text = re.split(r"\. So the result is|。所以结果是", steps_text)[0]
    steps = []
    for step in re.split(r", then |，然后 ", steps_text):
        sides = [side.strip() for side in step.split(" = ")]
        values = [value(side) for side in sides]
        assert len(set(values)) == 1, step
        steps.append((sides[0], sides[-1]))
    return steps


def value(text: str) -> Fraction:
    """Exact value of an arithmetic expression: numbers become fractions."""
    # The only names are those of CALLS; the text is made by the package itself.
    exact = (
        re.sub(r"(?<![\w.])(\d+(?:\.\d+)?)", r"F('\1')", text)
        if not re.search(r"gcd|lcm", text)
        else text
    )
    return Fraction(eval(exact, {"__builtins__": {}, "F": Fraction, **CALLS}))


def entry(dataset: str, seed: int, **params) -> dict:
    item = reasoning_gym.create_dataset(dataset, size=1, seed=seed, **params)[0]
    # as read from the column `metadata`
    return json.loads(json.dumps(item, default=str))


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("dataset", sorted(SOLVERS))
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_every_step_is_true_and_the_last_result_is_the_reference(dataset, language, seed):
    sample = entry(dataset, seed)
    if contradicted(dataset, sample):
        assert dataset == "basic_arithmetic"  # the only one of them known to err
        return
    solution = worked_solution(dataset, sample, language)
    assert solution is not None
    steps = true_steps(solution)
    assert same_number(steps[-1][1], sample["answer"])
    assert solution.rstrip(".。").endswith(sample["answer"])


def test_a_solution_to_the_letter():
    sample = {"answer": "-4", "metadata": {"expression": "4 - 1 - 7"}}
    assert worked_solution("chain_sum", sample) == (
        "Step by step: 4 - 1 = 3, then 3 - 7 = -4. So the result is -4."
    )
    assert (
        worked_solution("chain_sum", sample, "zh")
        == "逐步计算：4 - 1 = 3，然后 3 - 7 = -4。所以结果是 -4。"
    )
    sample = {"answer": "22", "metadata": {"expression": "2 * ( 3 + 4 * 2 )"}}
    assert "4 * 2 = 8, then 3 + 8 = 11, then 2 * 11 = 22" in worked_solution(
        "basic_arithmetic", sample
    )
    sample = {"answer": "-9", "metadata": {"expression": "-( 41 / 1 + -32 )"}}
    assert "41 / 1 = 41, then 41 + (-32) = 9, then -(9) = -9." in worked_solution(
        "basic_arithmetic", sample
    )
    sample = {"answer": "171790", "metadata": {"expression": "205 * 838"}}
    assert "164000 + 6150 + 1640 = 171790" in worked_solution("products", sample)


def test_a_solution_that_misses_the_answer_is_dropped():
    sample = {"answer": "5", "metadata": {"expression": "4 - 1 - 7"}}
    assert worked_solution("chain_sum", sample) is None
    assert worked_solution("chain_sum", sample | {"metadata": {}}) is None
    assert (
        worked_solution("chain_sum", {"answer": "1", "metadata": {"expression": "1 / 0"}}) is None
    )
    assert (
        worked_solution(
            "chain_sum", {"answer": "1", "metadata": {"expression": "__import__('os')"}}
        )
        is None
    )


def test_a_wrong_reference_of_a_generator_is_detected():
    wrong = {"answer": "-118", "metadata": {"expression": "-118 + 142 / -( -592 - 143 + -734 )"}}
    assert contradicted("basic_arithmetic", wrong)
    assert not contradicted(
        "basic_arithmetic", {"answer": "-16", "metadata": {"expression": "-( 2 + 14 )"}}
    )
    assert not contradicted("maze", {"answer": "3", "metadata": {}})
    assert not contradicted("basic_arithmetic", {"answer": "3", "metadata": {"expression": "1 +"}})


def test_no_solution_without_a_solver_or_words():
    sample = {"answer": "-4", "metadata": {"expression": "4 - 1 - 7"}}
    assert worked_solution("maze", sample) is None
    assert worked_solution("chain_sum", sample, "fr") is None


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("7.140", "7.14", True),
        ("-4", " -4 ", True),
        ("1/2", "0.5", True),
        ("4", "5", False),
        ("x", "x", False),
    ],
)
def test_same_number(left, right, same):
    assert same_number(left, right) is same
