"""Find the program in a completion: choose among its code blocks, in any style of fence."""

from __future__ import annotations

import ast
import re
import textwrap
from typing import NamedTuple

PYTHON = ("python", "py", "python3", "ipython", "pycon3")
_OPENING = re.compile(r"(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+#.-]*)[^\n`]*\n")
# The few-shot prompts of MBPP ask for a program between these marks.
_MARKED = re.compile(r"\[BEGIN\]\s*\n(?P<code>.+?)(?:\n\s*\[DONE\]|\Z)", re.S)
_READS_INPUT = re.compile(
    r"\binput\s*\(|sys\.stdin|\bstdin\b|open\(0\)|fileinput|os\.read\(0|/dev/stdin"
)
_OUTPUT_HEADING = re.compile(
    r"(?i)(?:output|input|example|sample|result|prints?|run|console"
    r"|expected)s?\b[^\n]{0,60}[:：.]?[*_\s]*$"
)


class Block(NamedTuple):
    """A code block: its language in lower case, its text, and the line of prose before it."""

    language: str
    code: str
    before: str


def find_program(text: str, functions: tuple[str, ...] = ()) -> str | None:
    """Return the Python program of a text, or None. `functions` are names that the tests call.

    Of several blocks: the last that defines one of `functions`; for programs that read their input,
    the last that does so; otherwise the last that is more than a usage example. Without a fence the
    whole text is the program.
    """
    blocks = code_blocks(text)
    if not blocks and (marked := _MARKED.search(text)):
        return marked["code"]
    candidates = [block for block in blocks if block.language in PYTHON]
    if not candidates:
        candidates = [
            block
            for block in blocks
            if not block.language
            and (not _OUTPUT_HEADING.search(block.before) or _is_substantial(block.code))
        ]
    if not candidates:
        return text if text.strip() and not blocks else None
    for wanted in (
        lambda code: any(_defines(code, name) for name in functions),
        (lambda code: not functions and bool(_READS_INPUT.search(code))),
        _is_substantial,
    ):
        chosen = [block for block in candidates if wanted(block.code)]
        if chosen:
            return chosen[-1].code
    return candidates[-1].code


def code_blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a text; the last may lack its closing fence."""
    blocks: list[Block] = []
    at = 0
    while opening := _OPENING.search(text, at):
        fence = opening["fence"]
        # At the start of a line, or after the last line of code: print(x)```
        closing = re.compile(
            rf"^[ \t]*{re.escape(fence)}[`~]*[ \t]*(?=\n|$|\W)|{re.escape(fence)}[ \t]*$", re.M
        )
        end = closing.search(text, opening.end())
        code = text[opening.end() : end.start() if end else len(text)]
        before = text[: opening.start()].rstrip().rpartition("\n")[2]
        blocks.append(Block(opening["language"].lower(), textwrap.dedent(code), before))
        if end is None:
            break
        at = end.end()
    return blocks


def _defines(code: str, name: str) -> bool:
    return bool(
        re.search(
            rf"^\s*(?:(?:async\s+)?def|class)\s+{re.escape(name)}\b|^{re.escape(name)}\s*=",
            code,
            re.M,
        )
    )


def _is_substantial(code: str) -> bool:
    """Whether code does more than show a value or check an assertion."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return bool(re.search(r"^\s*(?:def|class|import|from|for|while)\s", code, re.M))
    plain = (ast.Expr, ast.Assert)
    prints = any(isinstance(n, ast.Name) and n.id == "print" for n in ast.walk(tree))
    if len(tree.body) == 1 and isinstance(tree.body[0], ast.Expr):
        return prints
    return any(not isinstance(statement, plain) for statement in tree.body) or prints
