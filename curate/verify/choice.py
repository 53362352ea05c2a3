"""Multiple choice: the letter, the text of the choice, or both.

`problem.choices` are the texts in order A, B, C, …; `problem.reference` is a letter, an index written as one ("0"), or
the text of the right choice. Several different choices in one answer are wrong.
"""

from __future__ import annotations

import re
import string

from curate.records import Problem
from curate.verify.base import CORRECT, Judgement, Verifier
from curate.verify.extract import Extracted, find_answer
from curate.verify.text import leading_letter, normal, without_style


class ChoiceVerifier(Verifier):
    """Which of the choices was named."""

    name = "choice"
    version = "2"

    def extract(self, problem: Problem, completion: str, delimiters: tuple[str, str]) -> Extracted:
        return find_answer(completion, delimiters)

    def unverifiable(self, problem: Problem) -> str | None:
        if not (problem.reference or "").strip():
            return "no reference answer"
        return None if right_letter(problem) else "the reference names none of the choices"

    def quick(self, problem: Problem, answer: str) -> Judgement:
        right, named = right_letter(problem), named_letters(answer, problem.choices or [])
        if not named:
            return Judgement("wrong", "names no choice")
        if len(named) > 1:
            return Judgement("wrong", f"names several choices: {', '.join(sorted(named))}")
        return CORRECT if named == {right} else Judgement("wrong", f"names {min(named)}")


def right_letter(problem: Problem) -> str | None:
    """The letter of the right choice, or None where the reference names none."""
    reference, choices = (problem.reference or "").strip(), problem.choices or []
    named = named_letters(reference, choices)
    if len(named) == 1:
        letter = min(named)
        return (
            letter if not choices or string.ascii_uppercase.index(letter) < len(choices) else None
        )
    if reference.isdigit() and int(reference) < len(choices):
        return string.ascii_uppercase[int(reference)]
    return None


def named_letters(answer: str, choices: list[str]) -> set[str]:
    """Return the letters that an answer names, by letter or by the text of a choice."""
    if len(answer) > 10_000:
        return set()
    bare = without_style(answer)
    by_text = {
        string.ascii_uppercase[i]
        for i, text in enumerate(choices[:26])
        if matches_choice(text, bare)
    }
    if by_text:
        return by_text if len(by_text) == 1 else set()
    letters, rest = leading_letter(bare)
    if rest and len(letters) == 1:
        return _contradicted(min(letters), rest, choices)
    return letters


def _contradicted(letter: str, rest: str, choices: list[str]) -> set[str]:
    """The letter, and the choice whose text stands beside it where that is another one."""
    index = string.ascii_uppercase.index(letter)
    if choices and index >= len(choices):
        return set()
    named = {
        string.ascii_uppercase[i]
        for i, text in enumerate(choices[:26])
        if rest and matches_choice(text, rest)
    }
    return {letter} | named if letter not in named else {letter}


def matches_choice(choice: str, answer: str) -> bool:
    """Whether an answer is the text of a choice: the same words, or the same mathematical object."""
    if normal(choice) == normal(answer):
        return True
    if not re.search(r"\d|\\", choice) or not re.search(r"\d|\\", answer):
        return False
    from curate.verify.math.verifier import compare_answers

    judged = compare_answers(choice, answer) if len(choice) <= 300 and len(answer) <= 300 else None
    return judged is not None and judged.verdict == "correct"
