"""Code: a program is right if it does what its tests say, in the sandbox.

`tests.read_tests` lists the shapes of `problem.tests`. What the program prints or returns is
compared outside of it. Assertions run in a second sandbox that knows the expected values and talks
to the program over a pipe; the program never sees them, so leaving early with status 0 passes
nothing.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import subprocess
import textwrap
import time
from typing import Any

from curate.errors import CurateError
from curate.records import Problem
from curate.verify.base import CORRECT, Judgement, Verifier
from curate.verify.code.harness import ASSERT, PRELUDE, SERVE, decode, encode
from curate.verify.code.program import find_program
from curate.verify.code.sandbox import Limits, Outcome, Process, end, run, start, tools, watch
from curate.verify.code.tests import Tests, read_tests
from curate.verify.extract import Extracted, after_reasoning, without_end_tokens

MAX_CODE = 200_000  # characters


class CodeVerifier(Verifier):
    """Runs the Python program of a completion against the problem's tests."""

    name = "code"
    version = "3"
    runs_in = "thread"
    cacheable = False
    limits = Limits()

    def extract(self, problem: Problem, completion: str, delimiters: tuple[str, str]) -> Extracted:
        visible = after_reasoning(without_end_tokens(completion), delimiters)
        if visible is None:
            return Extracted(None, detail="no answer: the reasoning never ended")
        opening, closing = visible.rfind("<answer>"), visible.rfind("</answer>")
        if 0 <= opening < closing:
            visible = visible[opening + 8 : closing]
        try:
            tests = read_tests(problem.tests or "", problem.metadata)
        except ValueError:
            tests = {}
        names = (tests.get("function"), *tests.get("functions", ()), *tests.get("classes", ()))
        program = find_program(visible, tuple(name for name in names if name))
        if program is None or not program.strip():
            return Extracted(None, detail="no answer: no program")
        return Extracted(program, "fence" if program is not visible else "bare")

    def unverifiable(self, problem: Problem) -> str | None:
        try:
            read_tests(problem.tests or "", problem.metadata)
        except ValueError as error:
            return str(error)
        return None

    def check(self, problem: Problem, answer: str) -> Judgement:
        if len(answer) > MAX_CODE:
            return Judgement("wrong", f"the program is longer than {MAX_CODE} characters")
        try:
            tools()
        except CurateError as error:
            return Judgement("unverifiable", str(error))
        tests = read_tests(problem.tests or "", problem.metadata)
        if tests["type"] == "stdio":
            return self.by_output(answer, tests["cases"])
        judge = self.by_calls if tests["type"] == "call" else self.by_asserts
        judgement = judge(answer, tests)
        if judgement.verdict == "unverifiable" and judgement.detail.startswith("limit:"):
            judgement = judge(answer, tests)  # the machine was too busy: try once more
        return judgement

    def by_output(self, program: str, cases: list[dict[str, Any]]) -> Judgement:
        """Run every case in a separate sandbox; compare the outputs here."""
        for i, case in enumerate(cases, 1):
            where = f"case {i} of {len(cases)}"
            outcome = run(textwrap.dedent(program), case["input"], self.limits)
            if outcome.failure:
                return Judgement("unverifiable", f"limit: {where}: {outcome.failure}")
            if outcome.reason:
                return Judgement("wrong", f"{where}: {outcome.reason}")
            if outcome.status:
                why = _last_line(outcome.stderr) or f"exit status {outcome.status}"
                return Judgement("wrong", f"{where}: {why}")
            if not equal_output(case["output"], outcome.stdout.decode(errors="replace")):
                return Judgement("wrong", f"{where}: another output")
        return Judgement("correct", f"{len(cases)} of {len(cases)} cases")

    def by_calls(self, program: str, tests: Tests) -> Judgement:
        """Make all calls in one sandbox; compare the results here."""
        cases = tests["cases"]
        calls = "".join(
            json.dumps(
                [
                    "call",
                    tests["function"],
                    encode(case["args"] if isinstance(case["args"], list) else [case["args"]]),
                    encode(case.get("kwargs", {})),
                    False,
                ]
            )
            + "\n"
            for case in cases
        )
        try:
            process = self._serve(program, tests, *(3 * [subprocess.PIPE]))
        except OSError as error:
            return Judgement("unverifiable", f"limit: the sandbox did not start: {error}")
        outcome = watch(process, calls.encode(), self.limits)
        if outcome.failure:
            return Judgement("unverifiable", f"limit: {outcome.failure}")
        lines = outcome.stdout.decode(errors="replace").splitlines()
        for i, case in enumerate(cases, 1):
            where = f"case {i} of {len(cases)}"
            if i > len(lines):
                why = outcome.reason or _last_line(outcome.stderr) or "no result"
                return Judgement("wrong", f"{where}: {why}")
            try:
                kind, value, _ = json.loads(lines[i - 1])
                value = decode(value) if kind == "value" else value[0]
            except (ValueError, TypeError, RecursionError, LookupError):
                return Judgement("wrong", f"{where}: no result")
            if kind != "value":
                return Judgement("wrong", f"{where}: raised {str(value)[:100]}")
            if not equal_result(case["output"], value):
                return Judgement("wrong", f"{where}: another result")
        return Judgement("correct", f"{len(cases)} of {len(cases)} cases")

    def by_asserts(self, program: str, tests: Tests) -> Judgement:
        """Let the program answer calls in one sandbox, and the assertions make them in another."""
        word = secrets.token_hex(16)
        # Each (read, write): calls from the tests to the program, replies back.
        calls, replies = os.pipe(), os.pipe()
        served: Process | None = None
        asserting: Process | None = None
        try:
            served = self._serve(program, tests, calls[0], replies[1], subprocess.DEVNULL)
            fields = ("preamble", "code", "function", "functions", "classes")
            body = json.dumps({"word": word, **{key: tests[key] for key in fields}})
            files = {
                "/tmp/tests.json": body,
                "/tmp/assert.py": ASSERT,
                "/tmp/prelude.py": PRELUDE,
            }
            program_end = (replies[0], calls[1], subprocess.PIPE)
            asserting = start(self.limits, files, ["/tmp/assert.py"], *program_end)
        except OSError as error:
            return Judgement("unverifiable", f"limit: the sandbox did not start: {error}")
        finally:
            for descriptor in (*calls, *replies):
                os.close(descriptor)
            if asserting is None and served is not None:
                end(served)
        try:
            outcome = watch(asserting, b"", self.limits, served)
            started = _wait_for_start(served)
        finally:
            end(served)
        return _judge_asserts(outcome, word, started)

    def _serve(self, program: str, tests: Tests, stdin: int, stdout: int, stderr: int) -> Process:
        files = {
            "/tmp/solution.py": with_preamble(program, tests),
            "/tmp/serve.py": SERVE,
            "/tmp/prelude.py": PRELUDE,
        }
        return start(self.limits, files, ["/tmp/serve.py"], stdin, stdout, stderr)


def _wait_for_start(process: Process) -> bool:
    """Whether a sandbox got as far as running its program."""
    until = time.monotonic() + 5.0
    while not process.started() and process.popen.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    return process.started()


def _judge_asserts(outcome: Outcome, word: str, started: bool) -> Judgement:
    report = outcome.stderr.decode(errors="replace").strip()
    if outcome.failure or not started:
        why = outcome.failure or "the sandbox of the program did not start"
        return Judgement("unverifiable", f"limit: {why}")
    if report.endswith(f"passed {word}"):
        return CORRECT
    if report.endswith(f"untested {word}"):
        return Judgement("unverifiable", "the assertions do not use the program")
    undecided, mark, why = report.rpartition(f"undecided {word}")
    if mark:
        return Judgement("unverifiable", why.strip() or undecided)
    return Judgement("wrong", outcome.reason or _last_line(outcome.stderr) or "an assertion failed")


def with_preamble(program: str, tests: Tests) -> str:
    """Return the program with what comes before it: helpers, or the head of the function that it
    completes.
    """
    preamble, function = tests.get("preamble") or "", tests.get("function")
    if not preamble:
        return textwrap.dedent(program)
    defines = bool(function) and re.search(
        rf"^\s*(?:async\s+)?def\s+{re.escape(str(function))}\b", program, re.M
    )
    if defines or not function:
        return f"{preamble}\n{textwrap.dedent(program)}"
    body = program if re.match(r"[ \t]", program) else textwrap.indent(program, "    ")
    return preamble + body


# -- comparing


def equal_output(expected: str, printed: str) -> bool:
    """Whether two outputs have the same lines; numbers written with a point agree within 1e-6.

    White space at the ends of lines, empty lines at the end and the amount of white space between
    words are ignored. White space at the start of lines counts if the expected output has any.
    """
    first, second = _lines(expected), _lines(printed)
    if len(first) != len(second):
        return False
    indented = any(line[:1].isspace() for line in first)
    for one, other in zip(first, second, strict=True):
        if indented and one != other and _indent(one) != _indent(other):
            return False
        tokens = one.split(), other.split()
        if len(tokens[0]) != len(tokens[1]) or not all(map(_equal_tokens, *tokens)):
            return False
    return True


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.rstrip().splitlines()]
    while lines and not lines[0]:
        lines = lines[1:]
    return lines


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


_INTEGER = re.compile(r"[+-]?\d+")
_FLOAT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


def _equal_tokens(expected: str, printed: str) -> bool:
    if expected == printed:
        return True
    if _INTEGER.fullmatch(expected):
        # Whole numbers must be exact: 1000000 may be printed as 1000000.0 but not as 1000000.4.
        whole, point, rest = printed.partition(".")
        return bool(point) and not rest.strip("0") and whole == expected
    if not (_FLOAT.fullmatch(expected) and _FLOAT.fullmatch(printed)):
        return False
    return math.isclose(float(expected), float(printed), rel_tol=1e-6, abs_tol=1e-9)


def equal_result(expected: Any, given: Any) -> bool:
    """Whether two values are equal; a tuple is a list (JSON has no tuples), floats agree within
    1e-6.
    """
    if isinstance(expected, bool) or isinstance(given, bool) or expected is None or given is None:
        return expected is given
    if isinstance(expected, int | float) and isinstance(given, int | float):
        if isinstance(expected, int):
            return expected == given
        return expected == given or math.isclose(expected, given, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(expected, list | tuple) and isinstance(given, list | tuple):
        return len(expected) == len(given) and all(map(equal_result, expected, given))
    if isinstance(expected, dict) and isinstance(given, dict):
        given = {str(key): value for key, value in given.items()}
        return {str(key) for key in expected} == set(given) and all(
            equal_result(value, given[str(key)]) for key, value in expected.items()
        )
    return type(expected) is type(given) and bool(expected == given)


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""
