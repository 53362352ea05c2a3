from __future__ import annotations

import subprocess
import sys

import pytest

from curate.verify.extract import find_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think> <answer> 7 </answer>", "7"),
        (r"<think>\boxed{1}</think> so \boxed{2}", "2"),
        (r"\boxed{1} no, \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{x = \fbox{3}}", "x = 3"),
        (r"So $\sqrt{\boxed{7}}$.", r"\sqrt{7}"),
        (r"So \boxed{7}x.", "7x"),
        (r"So \boxed{7} years.", "7"),
        (r"\boxed{35 \boxed{33}}", r"35 \boxed{33}"),
        (r"\boxed{35} \boxed{4, \boxed{33}}", r"35, 4, \boxed{33}"),
        (r"\boxed{1} and $\boxed{2}$", "1, 2"),
        (r"\boxed{1} or \boxed{2}", "1 or 2"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"the answer is 5. <answer>6</answer>", "6"),
        (r"\boxed{5} Wait. The final answer is $6$.", "$6$"),
        ("The answer is 5 because 2 + 3 = 5.", "5"),
        ("The answer is 3.5.", "3.5"),
        ("**Answer:** 12 cm", "12 cm"),
        ("### Final Answer\n\n**x = 2**", "x = 2"),
        ("最终答案是 12。", "12"),
        ("答案：十二", "十二"),
        ("La respuesta es 12.", "12"),
        ("La réponse finale est $12$.", "$12$"),
        ("Die Antwort ist 12.", "12"),
        ("Ответ: 12", "12"),
        ("정답: 12", "12"),
        ("Đáp án là 12.", "12"),
        ("الجواب هو 12", "12"),
        ("#### 12", "12"),
        ("<answer>x</answer><answer> x </answer>", "x"),
        (r"<answer>so \boxed{4}</answer>", "4"),
        ("12", "12"),
    ],
)
def test_the_answer_is_found(text: str, answer: str) -> None:
    assert find_answer(text).answer == answer


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no answer"),
        ("<think>so it is 5", "the reasoning never ended"),
        (r"<think>\boxed{5}</think>", "no answer"),
        (r"There are 5 of them, so \boxed{}.", "the box is empty"),
        ("<answer> </answer>", "block is empty"),
        ("<answer>5</answer> <answer>6</answer>", "two different"),
        ("First line with 5.\nSecond line with 6.", "no answer"),
        (r"\boxed{5", "no answer"),
    ],
)
def test_no_answer_says_why(text: str, why: str) -> None:
    extracted = find_answer(text)
    assert extracted.answer is None
    assert why in extracted.detail


def test_own_delimiters_end_the_reasoning() -> None:
    text = r"[[ it is \boxed{1} ]] \boxed{2}"
    assert find_answer(text, ("[[", "]]")).answer == "2"
    assert find_answer(r"[[ it is \boxed{1}", ("[[", "]]")).answer is None


# A megabyte of each of these, from a process with a minute of processor time: work that grew with
# the square of the length would take hours.
REPEATED = """
import resource
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
from curate.verify.extract import find_answer
openers = (
    r"\\boxed{", "<answer>8</answer>", "the answer is ", "</think>", "{", "####\\n",
    r"\\boxed{8} and ",
)
for unit in openers:
    find_answer(unit * (1_000_000 // len(unit)))
print(len(openers))
"""


def test_work_on_a_megabyte_is_not_quadratic() -> None:
    done = subprocess.run([sys.executable, "-c", REPEATED], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "7"), done.stderr
