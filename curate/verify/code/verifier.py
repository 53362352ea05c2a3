"""Code: a program is right when it does what its tests say, in the sandbox.

`problem.tests` is JSON in one of these shapes:

    {"type": "stdio", "cases": [{"input": "1 2\\n", "output": "3\\n"}]}
    {"type": "call", "function": "add", "cases": [{"args": [1, 2], "output": 3}]}
    {"type": "asserts", "function": "add", "code": "def check(candidate): assert …", "preamble": "…"}
    {"inputs": [...], "outputs": [...], "fn_name": "add"}      # as APPS and TACO have them
    ["assert add(1, 2) == 3"]                                  # as MBPP has them

What the program prints or returns is compared outside of it. Assertions run in a second sandbox that knows the expected
values and talks to the program over a pipe; the program never sees them, so leaving early with status 0 passes nothing.
"""

from __future__ import annotations

import ast
import builtins
import json
import math
import os
import re
import secrets
import subprocess
import textwrap
import time
from dataclasses import replace
from typing import Any

from curate.errors import CurateError
from curate.records import Problem
from curate.verify.base import CORRECT, Judgement, Verifier
from curate.verify.code.sandbox import Limits, end, run, start, tools, watch
from curate.verify.extract import Extracted, after_reasoning

MAX_CODE = 200_000  # characters
_FENCE = re.compile(
    r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*\1[ \t]*$", re.S | re.M
)


class CodeVerifier(Verifier):
    """Runs the last Python block of a completion against the problem's tests."""

    name = "code"
    version = "1"
    runs_in = "thread"
    cacheable = False
    limits = Limits()
    total_seconds = 60.0  # for all cases of a problem

    def extract(self, problem: Problem, completion: str, delimiters: tuple[str, str]) -> Extracted:
        visible = after_reasoning(completion, delimiters)
        if visible is None:
            return Extracted(None, detail="no answer: the reasoning never ended")
        start_, end_ = visible.rfind("<answer>"), visible.rfind("</answer>")
        if 0 <= start_ < end_:
            visible = visible[start_ + 8 : end_]
        blocks = [
            match
            for match in _FENCE.finditer(visible)
            if match[2].lower() in ("", "python", "py", "python3")
        ]
        if blocks:
            return Extracted(blocks[-1][3], "fence")
        return (
            Extracted(visible, "bare") if visible.strip() else Extracted(None, detail="no answer")
        )

    def unverifiable(self, problem: Problem) -> str | None:
        try:
            read_tests(problem.tests or "")
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
        tests = read_tests(problem.tests or "")
        if tests["type"] == "stdio":
            return self.by_output(answer, tests["cases"])
        if tests["type"] == "call":
            return self.by_calls(answer, tests)
        return self.by_asserts(answer, tests)

    def by_output(self, program: str, cases: list[dict[str, Any]]) -> Judgement:
        """Every case in a sandbox of its own; what is printed is compared here."""
        until = time.monotonic() + self.total_seconds
        for i, case in enumerate(cases, 1):
            left = until - time.monotonic()
            if left <= 0:
                return Judgement(
                    "wrong", f"over the time limit of {self.total_seconds:g} s for all cases"
                )
            limits = replace(self.limits, seconds=min(self.limits.seconds, left))
            outcome = run(textwrap.dedent(program), case["input"], limits)
            if outcome.reason:
                return Judgement("wrong", f"case {i} of {len(cases)}: {outcome.reason}")
            if not same_output(case["output"], outcome.stdout.decode(errors="replace")):
                why = _last_line(outcome.stderr) or "another output"
                return Judgement("wrong", f"case {i} of {len(cases)}: {why}")
        return Judgement("correct", f"{len(cases)} of {len(cases)} cases")

    def by_calls(self, program: str, tests: dict[str, Any]) -> Judgement:
        """All calls in one sandbox; what is returned is compared here."""
        cases = tests["cases"]
        asked = "".join(
            json.dumps([tests["function"], encode(case["args"]), encode(case.get("kwargs", {}))])
            + "\n"
            for case in cases
        )
        files = {"/tmp/solution.py": whole(program, tests), "/tmp/serve.py": SERVE}
        process = start(self.limits, files, ["/tmp/serve.py"], *(3 * [subprocess.PIPE]))
        outcome = watch(process, asked.encode(), self.limits)
        lines = outcome.stdout.decode(errors="replace").splitlines()
        for i, case in enumerate(cases, 1):
            where = f"case {i} of {len(cases)}"
            if i > len(lines):
                return Judgement(
                    "wrong",
                    f"{where}: {outcome.reason or _last_line(outcome.stderr) or 'no result'}",
                )
            try:
                kind, value = json.loads(lines[i - 1])
                value = decode(value)
            except (ValueError, TypeError, RecursionError):
                return Judgement("wrong", f"{where}: no result")
            if kind != "value":
                return Judgement("wrong", f"{where}: raised {str(value)[:100]}")
            if not same_result(case["output"], value):
                return Judgement("wrong", f"{where}: another result")
        return Judgement("correct", f"{len(cases)} of {len(cases)} cases")

    def by_asserts(self, program: str, tests: dict[str, Any]) -> Judgement:
        """The program serves calls in one sandbox, the assertions make them from another."""
        word = secrets.token_hex(16)
        call, answer = (
            os.pipe(),
            os.pipe(),
        )  # each (read, write): from the tests to the program, and back
        served = asserting = None
        try:
            files = {"/tmp/solution.py": whole(program, tests), "/tmp/serve.py": SERVE}
            served = start(
                self.limits, files, ["/tmp/serve.py"], call[0], answer[1], subprocess.DEVNULL
            )
            body = json.dumps(
                {
                    "word": word,
                    "functions": tests["functions"],
                    **{k: tests[k] for k in ("preamble", "code", "function")},
                }
            )
            files = {"/tmp/tests.json": body, "/tmp/assert.py": ASSERT}
            asserting = start(
                self.limits, files, ["/tmp/assert.py"], answer[0], call[1], subprocess.PIPE
            )
        finally:
            for descriptor in (*call, *answer):
                os.close(descriptor)
            if asserting is None and served is not None:
                end(served)
        try:
            outcome = watch(asserting, b"", self.limits)
        finally:
            end(served)
        said = outcome.stderr.decode(errors="replace").strip()
        if said.endswith(f"passed {word}"):
            return CORRECT
        return Judgement(
            "wrong", outcome.reason or _last_line(outcome.stderr) or "an assertion failed"
        )


def read_tests(text: str) -> dict[str, Any]:
    """Tests in one shape. Raises `ValueError` that says what is wrong."""
    try:
        data = json.loads(text)
    except ValueError:
        raise ValueError("the problem has no tests, or they are no JSON") from None
    if isinstance(data, list) and data and all(isinstance(line, str) for line in data):
        data = {"type": "asserts", "code": "\n".join(data)}
    if not isinstance(data, dict):
        raise ValueError("the tests are neither an object nor a list of assertions")
    if "inputs" in data and "outputs" in data:
        data = _from_lists(data)
    kind = data.get("type")
    if kind == "asserts" and isinstance(data.get("code"), str) and data["code"].strip():
        function = data.get("function") or data.get("entry_point")
        data = {"preamble": "", **data, "function": function}
        data["functions"] = [function] if function else called(data["code"])
        return data
    cases = data.get("cases")
    if kind not in ("stdio", "call") or not isinstance(cases, list) or not cases:
        raise ValueError("the tests have no cases, or their type is none of stdio, call, asserts")
    wanted = ("input", "output") if kind == "stdio" else ("args", "output")
    if not all(isinstance(case, dict) and all(key in case for key in wanted) for case in cases):
        raise ValueError(f"every case of type {kind} needs {' and '.join(wanted)}")
    if kind == "call" and not isinstance(data.get("function"), str):
        raise ValueError("tests of type call need the name of the function")
    return data


def _from_lists(data: dict[str, Any]) -> dict[str, Any]:
    pairs = list(zip(data["inputs"], data["outputs"], strict=False))
    if data.get("fn_name"):
        cases = [
            {"args": one, "output": out[0] if isinstance(out, list) and len(out) == 1 else out}
            for one, out in pairs
        ]
        return {"type": "call", "function": data["fn_name"], "cases": cases}
    text = [
        ["\n".join(map(str, side)) if isinstance(side, list) else str(side) for side in pair]
        for pair in pairs
    ]
    return {"type": "stdio", "cases": [{"input": one, "output": out} for one, out in text]}


def called(code: str) -> list[str]:
    """Names that assertions call and neither define nor find among the builtins: the functions under test."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        raise ValueError("the assertions are no Python") from None
    names = {
        n.func.id
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    }
    known = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)} | set(dir(builtins))
    known |= {
        a.asname or a.name
        for n in ast.walk(tree)
        if isinstance(n, ast.Import | ast.ImportFrom)
        for a in n.names
    }
    return sorted(names - known)


def whole(program: str, tests: dict[str, Any]) -> str:
    """The program with what comes before it: helpers, or the head of the function that it completes."""
    preamble, function = tests.get("preamble") or "", tests.get("function")
    if not preamble:
        return textwrap.dedent(program)
    defines = bool(function) and re.search(
        rf"^\s*(?:async\s+)?def\s+{re.escape(str(function))}\b", program, re.M
    )
    return (
        f"{preamble}\n{textwrap.dedent(program)}" if defines or not function else preamble + program
    )


def same_output(expected: str, printed: str) -> bool:
    """The same lines but for white space at their ends; numbers with a point within 1e-6."""
    first, second = expected.split(), printed.split()
    if len(first) != len(second):
        return False
    lines = [line.split() for line in expected.strip().splitlines() if line.strip()]
    if lines != [line.split() for line in printed.strip().splitlines() if line.strip()]:
        return all(
            one == other or _near(one, other) for one, other in zip(first, second, strict=True)
        )
    return True


def _near(one: str, other: str) -> bool:
    if "." not in one and "." not in other:
        return False
    try:
        return math.isclose(float(one), float(other), rel_tol=1e-6, abs_tol=1e-9)
    except ValueError:
        return False


def same_result(expected: Any, given: Any) -> bool:
    """Equal values; a tuple is a list (JSON has no tuples), floats agree within 1e-6."""
    if isinstance(expected, bool) or isinstance(given, bool) or expected is None or given is None:
        return expected is given
    if isinstance(expected, int | float) and isinstance(given, int | float):
        return expected == given or (
            (isinstance(expected, float) or isinstance(given, float))
            and math.isclose(expected, given, rel_tol=1e-6, abs_tol=1e-9)
        )
    if isinstance(expected, list | tuple) and isinstance(given, list | tuple):
        return len(expected) == len(given) and all(map(same_result, expected, given))
    if isinstance(expected, dict) and isinstance(given, dict):
        given = {str(key): value for key, value in given.items()}
        return {str(k) for k in expected} == set(given) and all(
            same_result(v, given[str(k)]) for k, v in expected.items()
        )
    if isinstance(expected, list) and isinstance(given, set | frozenset):
        return len(expected) == len(given) and all(
            any(same_result(e, g) for g in given) for e in expected
        )
    return type(expected) is type(given) and bool(expected == given)


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


# Values cross the pipe as JSON with the types that Python has and JSON lacks; nothing is ever unpickled.
CODEC = """
def encode(v):
    if v is None or isinstance(v, (bool, str)): return v
    if isinstance(v, int): return v if abs(v) < 2**53 else {"i": hex(v)}
    if isinstance(v, float): return {"f": repr(v)}
    if isinstance(v, complex): return {"c": [repr(v.real), repr(v.imag)]}
    if isinstance(v, (bytes, bytearray)): return {"b": bytes(v).hex()}
    if isinstance(v, list): return [encode(x) for x in v]
    if isinstance(v, tuple): return {"t": [encode(x) for x in v]}
    if isinstance(v, (set, frozenset)): return {"s": [encode(x) for x in v]}
    if isinstance(v, dict): return {"d": [[encode(k), encode(x)] for k, x in v.items()]}
    if hasattr(v, "__next__"): return encode(list(v))
    raise TypeError("a value of type " + type(v).__name__ + " cannot cross the sandbox")

def decode(v):
    if isinstance(v, list): return [decode(x) for x in v]
    if not isinstance(v, dict): return v
    (k, x), = v.items()
    if k == "i": return int(x, 16)
    if k == "f": return float(x)
    if k == "c": return complex(float(x[0]), float(x[1]))
    if k == "b": return bytes.fromhex(x)
    if k == "t": return tuple(decode(y) for y in x)
    if k == "s": return set(decode(y) for y in x)
    if k == "d": return {decode(a): decode(b) for a, b in x}
    raise TypeError(k)
"""
_codec: dict[str, Any] = {}
exec(CODEC, _codec)
encode, decode = _codec["encode"], _codec["decode"]

# In the program's sandbox: load it, then answer calls. Its own prints go nowhere.
SERVE = (
    CODEC
    + """
import json, os, sys
calls, results = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
null = os.open(os.devnull, os.O_RDWR)
os.dup2(null, 0); os.dup2(null, 1)
sys.path.insert(0, "/tmp")
space = {"__name__": "solution"}
source = open("/tmp/solution.py").read()
exec(compile(source, "solution.py", "exec"), space)
def target(name):
    if name in space: return space[name]
    return getattr(space["Solution"](), name)
for line in calls:
    name, args, kwargs = json.loads(line)
    try:
        reply = ["value", encode(target(name)(*decode(args), **decode(kwargs)))]
    except BaseException as error:
        reply = ["error", type(error).__name__]
    results.write(json.dumps(reply) + "\\n")
    results.flush()
"""
)

# In the tests' sandbox: functions under test are calls over the pipe; says the secret word when all assertions held.
ASSERT = (
    CODEC
    + """
import builtins, json, os, sys
data = json.load(open("/tmp/tests.json"))
replies, calls = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
null = os.open(os.devnull, os.O_RDWR)
os.dup2(null, 0); os.dup2(null, 1)
def remote(name):
    def call(*args, **kwargs):
        calls.write(json.dumps([name, encode(list(args)), encode(kwargs)]) + "\\n")
        calls.flush()
        line = replies.readline()
        if not line: raise SystemExit("the program ended early")
        kind, value = json.loads(line)
        if kind == "value": return decode(value)
        known = getattr(builtins, str(value), None)
        raise known() if isinstance(known, type) and issubclass(known, Exception) else RuntimeError(value)
    return call
space = {"__name__": "tests"}
if data["preamble"]:
    try: exec(compile(data["preamble"], "preamble.py", "exec"), space)
    except SyntaxError: pass
for name in data["functions"]: space[name] = remote(name)
exec(compile(data["code"], "tests.py", "exec"), space)
if data["function"] and "check" in space: space["check"](space[data["function"]])
sys.stderr.write("passed " + data["word"])
"""
)
