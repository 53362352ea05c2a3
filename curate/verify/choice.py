"""Multiple choice: the letter, the text of the choice, or both.

`problem.choices` are the texts in order A, B, C, …; `problem.reference` is a letter, an index written as one ("0"), or
the text of the right choice. Several different choices in one answer are wrong.
"""

from __future__ import annotations

import re
import string

from curate.records import Problem
from curate.verify.base import CORRECT, Judgement, Verifier
from curate.verify.extract import Found, find_answer
from curate.verify.text import normal

_STYLE = re.compile(
    r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|boxed)\s*\{([^{}]*)\}|\*\*|__|[$`]"
)
_WORD = r"(?:(?:option|choice|answer|选项|选择|选|答案|opción|choix|antwort|вариант|選択肢|보기)\s*[:：]?\s*)?"
# A letter that stands for a choice: alone, in brackets, or followed by a mark and the text of the choice.
_LETTER = re.compile(
    rf"^{_WORD}[(\[（【]?\s*([A-Za-z])\s*(?:[)\]）】]|[.:：、,，](?=\s|$|[^\d\w])|\s*[-–—]\s|\s*$|\s+(?=is\b|because\b))\s*(.*)$",
    re.I | re.S,
)
_JOINED = re.compile(r"\s*(?:,|;|/|&|\band\b|\bor\b|和|或|、|与)\s*", re.I)


class ChoiceVerifier(Verifier):
    """Which of the choices was named."""

    name = "choice"
    version = "2"

    def extract(self, problem: Problem, completion: str, delimiters: tuple[str, str]) -> Found:
        return find_answer(completion, delimiters)

    def unverifiable(self, problem: Problem) -> str | None:
        if not (problem.reference or "").strip():
            return "no reference answer"
        return None if right_letter(problem) else "the reference names none of the choices"

    def quick(self, problem: Problem, answer: str) -> Judgement:
        right, named = right_letter(problem), letters(answer, problem.choices or [])
        if not named:
            return Judgement("wrong", "names no choice")
        if len(named) > 1:
            return Judgement("wrong", f"names several choices: {', '.join(sorted(named))}")
        return CORRECT if named == {right} else Judgement("wrong", f"names {min(named)}")


def right_letter(problem: Problem) -> str | None:
    """The letter of the right choice, or None where the reference names none."""
    reference, choices = (problem.reference or "").strip(), problem.choices or []
    named = letters(reference, choices)
    if len(named) == 1:
        letter = min(named)
        return (
            letter if not choices or string.ascii_uppercase.index(letter) < len(choices) else None
        )
    if reference.isdigit() and int(reference) < len(choices):
        return string.ascii_uppercase[int(reference)]
    return None


def letters(answer: str, choices: list[str]) -> set[str]:
    """The letters an answer names, by letter or by text."""
    if len(answer) > 10_000:
        return set()
    bare = answer
    for _ in range(3):
        bare = _STYLE.sub(lambda match: match.group(1) or "", bare)
    bare = bare.strip(" \n\t.。")
    by_text = {
        string.ascii_uppercase[i] for i, text in enumerate(choices[:26]) if alike(text, bare)
    }
    if by_text:
        return by_text if len(by_text) == 1 else set()
    match = _LETTER.match(bare)
    if match:
        letter, rest = match.group(1).upper(), match.group(2).strip(" \n\t.。")
        others = _others(rest)
        if not rest or others is None:
            return _contradicted(letter, rest, choices)
        return {letter} | others
    parts = _JOINED.split(bare)
    if len(parts) > 1 and all(re.fullmatch(r"\(?[A-Za-z]\)?", part) for part in parts):
        return {part.strip("()").upper() for part in parts}
    if re.fullmatch(r"[A-H]{2,8}", bare):
        return set(bare)
    return set()


def _others(rest: str) -> set[str] | None:
    """Further letters after the first ("A or B"); None where the rest is something else."""
    rest = (
        re.sub(r"^(?:,|;|/|&|\band\b|\bor\b|和|或|、)\s*", "", rest, flags=re.I) if rest else rest
    )
    parts = _JOINED.split(rest) if rest else []
    if parts and all(re.fullmatch(r"[(（]?\s*[A-Z]\s*[)）]?", part) for part in parts):
        return {part.strip("()（） ").upper() for part in parts}
    return None


def _contradicted(letter: str, rest: str, choices: list[str]) -> set[str]:
    """The letter, and the choice whose text stands beside it where that is another one."""
    index = string.ascii_uppercase.index(letter)
    if choices and index >= len(choices):
        return set()
    named = {
        string.ascii_uppercase[i]
        for i, text in enumerate(choices[:26])
        if rest and alike(text, rest)
    }
    return {letter} | named if letter not in named else {letter}


def alike(choice: str, answer: str) -> bool:
    """Whether an answer is the text of a choice: the same words, or the same mathematical object."""
    if normal(choice) == normal(answer):
        return True
    if not re.search(r"\d|\\", choice) or not re.search(r"\d|\\", answer):
        return False
    from curate.verify.math.verifier import compared

    judged = compared(choice, answer) if len(choice) <= 300 and len(answer) <= 300 else None
    return judged is not None and judged.verdict == "correct"
