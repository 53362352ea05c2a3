"""Read the tests of a problem: the shapes used by data sets become `stdio`, `call` or `asserts`."""

from __future__ import annotations

import ast
import base64
import builtins
import contextlib
import io
import json
import pickle
import zlib
from typing import Any

Tests = dict[str, Any]


def read_tests(text: str, metadata: str | None = None) -> Tests:
    """Return tests in one of three shapes. Raises `ValueError` with the reason.

    {"type": "stdio", "cases": [{"input": str, "output": str}]} {"type": "call", "function": str |
    None, "cases": [{"args": list, "output": value}]} {"type": "asserts", "function": str | None,
    "code": str, "preamble": str, "functions": [str], "classes": [str]}

    Also accepted: APPS and TACO (`inputs`, `outputs`, `fn_name`, also inside `input_output`),
    CodeContests (`public_tests` and others, each with `input` and `output`), LiveCodeBench (a list
    with `testtype`, or its columns `public_test_cases` and `private_test_cases`), a list of cases
    with `input` and `output` (also as `test_cases`, with `fn_name`), MBPP (a list of
    assertions, or `test_list` with `test_imports`), HumanEval (`test` with `entry_point`), and
    plain test functions.
    """
    try:
        data = json.loads(text)
    except ValueError:
        if not text.strip() or "assert" not in text:
            raise ValueError("the problem has no tests, or they are not JSON") from None
        data = text  # test functions as Python
    if isinstance(data, str) and data.lstrip()[:1] in ("[", "{"):
        with contextlib.suppress(ValueError):
            data = json.loads(data)  # encoded twice
    return _asserts(_unpacked(data)) if isinstance(data, str) else _from_json(data, metadata)


def _from_json(data: Any, metadata: str | None) -> Tests:
    if isinstance(data, list) and data and all(isinstance(line, str) for line in data):
        return _asserts({"code": "\n".join(data)})
    if isinstance(data, list) and data and all(isinstance(case, dict) for case in data):
        return _from_cases(data, metadata)
    if not isinstance(data, dict):
        raise ValueError("the tests are neither an object nor a list")
    if isinstance(data.get("input_output"), str | dict):
        inner = data["input_output"]
        return _from_json(json.loads(inner) if isinstance(inner, str) else inner, metadata)
    if "type" not in data:
        if "inputs" in data and "outputs" in data:
            return _from_lists(data["inputs"], data["outputs"], data.get("fn_name"))
        if isinstance(data.get("input"), list) and isinstance(data.get("output"), list):
            return _from_lists(data["input"], data["output"], data.get("fn_name"))
        listed = _listed_cases(data)
        if listed:
            inner = data.get("metadata")
            return _from_cases(listed, inner if isinstance(inner, str) else metadata)
        groups = [data[key] for key in _CODE_CONTESTS if isinstance(data.get(key), dict)]
        if groups:
            inputs = [one for group in groups for one in group.get("input", ())]
            outputs = [one for group in groups for one in group.get("output", ())]
            return _from_lists(inputs, outputs, None)
    kind = data.get("type") or ("asserts" if _unpacked(data).get("code") else None)
    if kind == "asserts":
        return _asserts(_unpacked(data))
    cases = data.get("cases")
    if kind not in ("stdio", "call") or not isinstance(cases, list) or not cases:
        raise ValueError("the tests have no cases, or a type other than stdio, call and asserts")
    keys = ("input", "output") if kind == "stdio" else ("args", "output")
    if not all(isinstance(case, dict) and all(key in case for key in keys) for case in cases):
        raise ValueError(f"every case of type {kind} needs {' and '.join(keys)}")
    if kind == "call" and not isinstance(data.get("function"), str):
        raise ValueError("tests of type call need the name of the function")
    if kind == "stdio" and not all(isinstance(case[key], str) for case in cases for key in keys):
        raise ValueError("input and output of every case of type stdio must be text")
    return data


_CASE_LISTS = ("public_test_cases", "private_test_cases", "test_cases", "tests")


def _listed_cases(data: Tests) -> list[dict[str, Any]]:
    """Return the cases of LiveCodeBench's columns and of `test_cases`: lists, or JSON of them."""
    cases: list[dict[str, Any]] = []
    for key in _CASE_LISTS:
        value = data.get(key)
        if isinstance(value, str) and value.strip():
            value = _decoded(value)
        if isinstance(value, list) and all(isinstance(case, dict) for case in value):
            cases += value
        elif value:
            raise ValueError(f"{key} is not a list of cases")
    return cases


# Bytes of private tests after decompression; ours.
MAX_TESTS = 256 * 2**20


class _Plain(pickle.Unpickler):
    """Reads text and numbers; no names, so that data selects no code."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"private tests name {module}.{name}")


def _decoded(text: str) -> Any:
    """Read cases from JSON, or as LiveCodeBench packs its private ones: JSON, pickled as text,
    compressed, in base 64.
    """
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        unpacker = zlib.decompressobj()
        packed = unpacker.decompress(base64.b64decode(text, validate=True), MAX_TESTS)
        if not unpacker.eof:
            raise ValueError("larger than expected")
        return json.loads(_Plain(io.BytesIO(packed)).load())
    except (ValueError, TypeError, EOFError, zlib.error, pickle.UnpicklingError) as error:
        raise ValueError(f"private test cases cannot be read: {error}") from error


_CODE_CONTESTS = ("public_tests", "private_tests", "generated_tests")


def _unpacked(data: Any) -> Tests:
    """Return code, function and preamble of assertions, whatever the data set calls them."""
    if isinstance(data, str):
        return {"code": data}
    code = data.get("code") or data.get("functional") or data.get("test") or data.get("test_code")
    if code is None and isinstance(data.get("test_list"), list):
        imports = data.get("test_imports") or []
        code = "\n".join([*imports, data.get("test_setup_code") or "", *data["test_list"]])
    function = data.get("function") or data.get("entry_point")
    preamble = data.get("preamble") or (data.get("prompt") if "test" in data else "") or ""
    return {"code": code, "function": function, "preamble": preamble}


def _asserts(data: Tests) -> Tests:
    code, function = data.get("code"), data.get("function")
    if not isinstance(code, str) or not code.strip():
        raise ValueError("the tests have no assertions")
    names, classes = names_under_test(code)
    functions = [function] if function else names
    if not functions and not classes and "solution" not in code:
        raise ValueError("the assertions do not use the program, so they test nothing")
    return {
        "type": "asserts",
        "function": function,
        "code": code,
        "preamble": data.get("preamble") or "",
        "functions": functions,
        "classes": [name for name in classes if name not in functions],
    }


def _from_lists(inputs: Any, outputs: Any, function: Any) -> Tests:
    if isinstance(inputs, str) or isinstance(outputs, str) or len(inputs) != len(outputs):
        raise ValueError("the tests need one output per input")
    pairs = list(zip(inputs, outputs, strict=True))
    if not pairs:
        raise ValueError("the tests have no cases")
    if function:
        pairs = [
            (_lines_of_json(one), [_value_of_json(out)]) if isinstance(one, str) else (one, out)
            for one, out in pairs
        ]
        cases = [
            {"args": one, "output": out[0] if isinstance(out, list) and len(out) == 1 else out}
            for one, out in pairs
        ]
        return {"type": "call", "function": str(function), "cases": cases}
    text = [
        ["\n".join(map(str, side)) if isinstance(side, list) else str(side) for side in pair]
        for pair in pairs
    ]
    return {"type": "stdio", "cases": [{"input": one, "output": out} for one, out in text]}


def _lines_of_json(text: str) -> list[Any]:
    """Return arguments written as text, one per line."""
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"the arguments of a function are not JSON: {error}") from error


def _value_of_json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _from_cases(cases: list[dict[str, Any]], metadata: str | None) -> Tests:
    """Read a list of cases, each with its input and output (LiveCodeBench and others)."""
    cases = [
        {**case, "output": case.get("expected_output")} if "output" not in case else case
        for case in cases
    ]
    names = {case.get("fn_name") for case in cases}
    if len(names) == 1 and (name := next(iter(names))):
        return _from_lists([c.get("input") for c in cases], [c["output"] for c in cases], name)
    if not all(isinstance(case.get("input"), str) for case in cases) or any(
        case["output"] is None for case in cases
    ):
        raise ValueError("every case needs an input and an output")
    if any(case.get("testtype") == "functional" for case in cases):
        try:
            return {
                "type": "call",
                "function": _function_name(cases, metadata),
                "cases": [
                    {
                        "args": [json.loads(line) for line in case["input"].splitlines() if line],
                        "output": json.loads(case["output"]),
                    }
                    for case in cases
                ],
            }
        except (TypeError, ValueError) as error:
            raise ValueError(f"the arguments of a functional test are not JSON: {error}") from error
    return {
        "type": "stdio",
        "cases": [{"input": case["input"], "output": str(case["output"])} for case in cases],
    }


def _function_name(cases: list[dict[str, Any]], metadata: str | None) -> str | None:
    """Return the name of the function under test; None for the only method of `Solution`."""
    for source in (cases[0], cases[0].get("metadata"), metadata):
        try:
            data = json.loads(source) if isinstance(source, str) else source
        except ValueError:
            continue
        if isinstance(data, dict):
            for key in ("func_name", "fn_name", "function", "entry_point"):
                if isinstance(data.get(key), str):
                    return str(data[key])
    return None


def names_under_test(code: str) -> tuple[list[str], list[str]]:
    """Return the names that assertions use without defining or importing them: those they
    call, and the others.
    """
    try:
        tree = ast.parse(code)
    except SyntaxError:
        raise ValueError("the assertions are not Python") from None
    nodes = list(ast.walk(tree))
    called = {n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    used = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    defined = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    defined |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    defined |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    defined |= {
        a.asname or a.name.partition(".")[0]
        for n in nodes
        if isinstance(n, ast.Import | ast.ImportFrom)
        for a in n.names
    }
    defined |= {n.name for n in nodes if isinstance(n, ast.ExceptHandler) and n.name}
    available = defined | set(dir(builtins)) | PROVIDED
    return sorted(called - available), sorted(used - called - available)


# Names that the harness makes available to assertions.
PROVIDED = frozenset(
    "math re string random itertools functools operator heapq bisect copy collections sys "
    "Fraction Decimal date "
    "Counter OrderedDict defaultdict deque List Dict Set Tuple Optional Union Any Callable "
    "Iterable Iterator inf gcd sqrt "
    "floor ceil comb reduce".split()
)
