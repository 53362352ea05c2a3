"""The test formats of public data sets, programs in real fences, and equal outputs."""

from __future__ import annotations

import base64
import json
import pickle
import zlib

import pytest

from curate.errors import CurateError
from curate.records import Problem
from curate.verify import VerifierPool
from curate.verify.code import sandbox
from curate.verify.code.program import find_program
from curate.verify.code.tests import read_tests
from curate.verify.code.verifier import equal_output, equal_result

try:
    sandbox.tools()
    REASON = ""
except CurateError as error:
    REASON = str(error)
needs_sandbox = pytest.mark.skipif(bool(REASON), reason=REASON or "there is a sandbox")

ADD = "def add(a, b):\n    return a + b\n"
STDIO = "a, b = map(int, input().split())\nprint(a + b)\n"
CASES = (["1 2\n", "5 7\n"], ["3\n", "12\n"])
STACK = (
    "class Stack:\n    def __init__(self): self.items = []\n"
    "    def push(self, x): self.items.append(x)\n    def pop(self): return self.items.pop()\n"
)


def packed(cases: object) -> str:
    """Return cases as LiveCodeBench packs its private ones."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


FORMATS: list[tuple[str, object, str]] = [
    ("APPS", {"inputs": CASES[0], "outputs": CASES[1]}, STDIO),
    ("APPS", {"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}, ADD),
    ("APPS", {"input_output": json.dumps({"inputs": CASES[0], "outputs": CASES[1]})}, STDIO),
    ("TACO", {"fn_name": "add", "inputs": [[1, 2]], "outputs": [[3]]},
     f"class Solution:\n    {ADD.replace('(a', '(self, a').replace(chr(10), chr(10) + '    ')}"),
    ("CodeContests",
     {"public_tests": {"input": CASES[0], "output": CASES[1]},
      "private_tests": {"input": ["4 4"], "output": ["8"]}},
     STDIO),
    ("CodeContests", {"input": CASES[0], "output": CASES[1]}, STDIO),
    ("LiveCodeBench", [{"input": "1 2", "output": "3", "testtype": "stdin"}], STDIO),
    ("LiveCodeBench", [{"input": "1\n2", "output": "3", "testtype": "functional"}],
     "class Solution:\n    def add(self, a: int, b: Optional[int]) -> List[int]:\n"
     "        return a + b\n"),
    ("LiveCodeBench",
     {"public_test_cases": json.dumps([{"input": "1 2", "output": "3", "testtype": "stdin"}]),
      "private_test_cases": packed([{"input": "5 7", "output": "12", "testtype": "stdin"}])},
     STDIO),
    ("LiveCodeBench",
     {"public_test_cases": '[{"input": "1\\n2", "output": "3", "testtype": "functional"}]',
      "metadata": '{"func_name": "add"}'}, ADD),
    ("encoded twice", json.dumps([{"input": "1 2", "output": "3", "testtype": "stdin"}]), STDIO),
    ("list of cases", {"test_cases": [{"input": "1 2", "output": "3"}]}, STDIO),
    ("list of cases", [{"input": "1 2", "expected_output": "3"}], STDIO),
    ("list of cases", {"test_cases": [{"fn_name": "add", "input": [1, 2], "output": 3}]}, ADD),
    ("arguments as text", {"fn_name": "add", "inputs": ["1\n2"], "outputs": ["3"]}, ADD),
    ("MBPP", ["assert add(1, 2) == 3", "assert add(5, 7) == 12"], ADD),
    ("MBPP", {"test_list": ["assert math.isclose(add(1, 2), 3)"], "test_imports": ["import math"]},
     ADD),
    ("HumanEval",
     {"prompt": "def add(a, b):\n", "entry_point": "add",
      "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n"},
     "    return a + b\n"),
    ("functional",
     {"functional": "def check(candidate):\n    assert candidate(a=1, b=2) == 3\n\n"
                    "check(Solution().add)"},
     "class Solution:\n    def add(self, a: List[int], b):\n        return a + b\n"),
    ("pytest",
     {"test_code": "from solution import add\n\ndef test_add():\n    assert add(1, 2) == 3\n"}, ADD
    ),
    ("class", ["s = Stack()", "s.push(4)", "assert s.pop() == 4", "assert s.items == []"], STACK),
    ("in place", ["x = [3, 1, 2]", "arrange(x)", "assert x == [1, 2, 3]"],
     "def arrange(x): x.sort()"),
    ("type", ["assert isinstance(make(), Node)"], "class Node: pass\ndef make(): return Node()"),
    ("Fraction", ["assert third() == Fraction(1, 3)"],
     "from fractions import Fraction\ndef third(): return Fraction(1, 3)"),
    ("Decimal", ["from decimal import Decimal", "assert price() == Decimal('1.5')"],
     "from decimal import Decimal\ndef price(): return Decimal('1.5')"),
    ("generator", ["g = count()", "assert next(g) == 0", "assert next(g) == 1"],
     "def count():\n    n = 0\n    while True:\n        yield n\n        n += 1"),
    ("closure", ["assert adder(2)(3) == 5"], "def adder(a):\n    return lambda b: a + b"),
    ("exception", ["try:\n    fail()\n    assert False\nexcept ValueError: pass"],
     "def fail(): raise ValueError('no')"),
]  # fmt: skip


@needs_sandbox
@pytest.mark.parametrize(("name", "tests", "program"), FORMATS)
def test_a_right_program_passes_and_a_broken_one_does_not(
    pool: VerifierPool, name: str, tests: object, program: str
) -> None:
    problem = Problem("", None, "code", tests=json.dumps(tests))
    verdict = pool.verify(problem, f"```python\n{program}\n```")
    assert verdict.verdict == "correct", (name, verdict.detail)
    for broken in ("def nothing(): pass", "import os; os._exit(0)", "print('passed')"):
        assert pool.verify(problem, f"```python\n{broken}\n```").verdict == "wrong", name


def test_a_program_between_the_marks_of_mbpp() -> None:
    assert find_program(f"Sure.\n[BEGIN]\n{ADD}[DONE]\nMore text.") == ADD.rstrip("\n")
    assert find_program(f"[BEGIN]\n{ADD}") == ADD


class Caller:
    """Pickles as a call of `print`."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("called",)


def test_packed_tests_call_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = base64.b64encode(zlib.compress(pickle.dumps(Caller()))).decode()
    with pytest.raises(ValueError, match="cannot be read"):
        read_tests(json.dumps({"private_test_cases": hostile}))
    assert "called" not in capsys.readouterr().out


@needs_sandbox
@pytest.mark.parametrize("tests", [["x = 1"], ["assert True"], ["f = lambda: 1", "assert f()"]])
def test_tests_that_do_not_use_the_program_are_unverifiable(
    pool: VerifierPool, tests: list[str]
) -> None:
    problem = Problem("", None, "code", tests=json.dumps(tests))
    assert pool.verify(problem, f"```python\n{ADD}```").verdict == "unverifiable"


@needs_sandbox
def test_a_program_does_not_judge_its_own_values(pool: VerifierPool) -> None:
    liar = (
        "class V:\n    def __init__(self, *a): pass\n    def __eq__(self, other): return True\n"
        "    def __add__(self, other): return self\ndef value(): return V()\n"
    )
    plain = Problem("", None, "code", tests='["assert value() == 3"]')
    assert pool.verify(plain, f"```python\n{liar}```").verdict == "wrong"
    own = Problem("", None, "code", tests='["assert V(1) + V(2) == V(3)"]')
    assert pool.verify(own, f"```python\n{liar}```").verdict == "unverifiable"


@needs_sandbox
@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (f"{STDIO}raise ValueError", "wrong"),
        (f"{STDIO}import sys; sys.exit(1)", "wrong"),
        (f"{STDIO}import sys; sys.exit(0)", "correct"),
        ("import os, io\nsource = io.BytesIO(os.read(0, os.fstat(0).st_size))\n"
         "a, b = map(int, source.readline().split())\nprint(a + b)",
         "correct"),
        ("import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))", "correct"),
        ("a, b = map(int, open(0).read().split())\nprint(a + b)", "correct"),
        ("print(sum(map(int, input().split())) + 0.0000001)", "wrong"),
    ],
)  # fmt: skip
def test_exit_status_and_input_as_a_file(pool: VerifierPool, program: str, expected: str) -> None:
    tests = json.dumps({"inputs": CASES[0], "outputs": CASES[1]})
    verdict = pool.verify(Problem("", None, "code", tests=tests), f"```python\n{program}\n```")
    assert verdict.verdict == expected, verdict.detail


@pytest.mark.parametrize(
    ("text", "functions", "program"),
    [
        (f"```python\n{STDIO}```\nOutput:\n```\n3\n```", (), STDIO),
        (f"```python\n{STDIO}```\n\nExample input:\n\n```\n1 2\n```", (), STDIO),
        (f"```python\n{ADD}```\nUsage:\n```python\nprint(add(1, 2))\n```", ("add",), ADD),
        (f"```python\n{ADD}```\nTests:\n```python\nassert add(1, 2) == 3\n```", (), ADD),
        (f"First try:\n```python\n{ADD}```\nBetter:\n```python\n{STDIO}```", (), STDIO),
        (f"```py\n{STDIO.rstrip()}```", (), STDIO.rstrip()),
        (f"```python\n{STDIO}", (), STDIO),
        (f"Here it is: ```python\n{STDIO}```", (), STDIO),
        (f"~~~python\n{STDIO}~~~", (), STDIO),
        (f"```\n{STDIO}```\nprints\n```\n3\n```", (), STDIO),
        (f"1. Code:\n\n   ```python\n   {STDIO.rstrip().replace(chr(10), chr(10) + '   ')}\n   ```",
         (), STDIO),
        (STDIO, (), STDIO),
        ("```bash\npython main.py\n```", (), None),
    ],
)  # fmt: skip
def test_the_program_is_taken_from_the_right_block(
    text: str, functions: tuple[str, ...], program: str | None
) -> None:
    extracted = find_program(text, functions)
    assert (extracted and extracted.rstrip()) == (program and program.rstrip())


@pytest.mark.parametrize(
    ("expected", "printed", "equal"),
    [
        ("3\n", "3", True), ("3", "3 \n\n", True), ("a b", "a  b", True),
        ("0.5", "0.5000001", True),
        ("1000000", "1000000.0", True), ("1e-9", "1e-09", True), ("5.00", "5", True),
        ("-0.0", "0.0", True),
        ("10000000", "10000001.0", False), ("1000000", "1000000.4", False), ("1\n2", "1 2", False),
        ("1 2", "1\n2", False), ("  *\n ***", "*\n***", False), ("  *\n ***", "  *\n ***", True),
        ("Yes", "YES", False), ("3", "003", False), ("1 2", "2 1", False), ("nan", "nan", True),
        ("100000000000000000000", "1e+20", False), ("0.5", "0.51", False), ("", "\n", True),
    ],
)  # fmt: skip
def test_outputs_are_compared_line_by_line_and_whole_numbers_exactly(
    expected: str, printed: str, equal: bool
) -> None:
    assert equal_output(expected, printed) is equal


def test_results_keep_their_types() -> None:
    assert equal_result([1, 2], (1, 2))
    assert equal_result(0.1 + 0.2, 0.3)
    assert equal_result({"1": 2}, {1: 2})
    assert not equal_result([1, 2], {1, 2})
    assert not equal_result(1, True)
    assert not equal_result(10**7, 10**7 + 0.5)


def test_a_function_name_comes_from_the_tests_or_the_metadata() -> None:
    case = {"input": "1\n2", "output": "3", "testtype": "functional"}
    assert read_tests(json.dumps([case]))["function"] is None
    assert read_tests(json.dumps([case]), '{"func_name": "add"}')["function"] == "add"
    with pytest.raises(ValueError, match="not JSON"):
        read_tests(json.dumps([{**case, "input": "one"}]))
