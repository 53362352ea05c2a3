"""Exact and normalised text."""
# ruff: noqa: E501 (tables and patterns: one thing, one line)

from __future__ import annotations

import re
import unicodedata

from curate.records import Problem
from curate.verify.base import CORRECT, WRONG, Judgement, Verifier

_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|emph|operatorname)\s*\{([^{}]*)\}")
_ARTICLE = re.compile(r"^(?:the|a|an|el|la|le|der|die|das) +(?=\S)", re.I)
_PUNCTUATION = str.maketrans(dict.fromkeys('"“”‘’«»「」『』`*_', None))
# Answers that are the same word in another language; ours, small on purpose.
_SYNONYMS = {
    "是": "yes", "是的": "yes", "oui": "yes", "sí": "yes", "ja": "yes", "да": "yes", "はい": "yes",
    "否": "no", "不是": "no", "不": "no", "non": "no", "nein": "no", "нет": "no", "いいえ": "no",
    "对": "true", "正确": "true", "真": "true", "wahr": "true", "vrai": "true", "错": "false", "错误": "false", "假": "false",
    "falsch": "false", "faux": "false", "无解": "no solution", "no solutions": "no solution", "no real solution": "no solution",
    "no real solutions": "no solution", "none": "no solution", "不存在": "does not exist", "dne": "does not exist",
    "doesn't exist": "does not exist", "undefined": "undefined", "无穷": "infinity", "偶数": "even", "奇数": "odd",
    "东": "east", "南": "south", "西": "west", "北": "north",
}  # fmt: skip
_DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_SYNONYMS |= {
    f"{week}{day}": name for week in ("星期", "周", "礼拜") for day, name in zip("一二三四五六日", _DAYS, strict=True)
}


def normal(text: str) -> str:
    """NFKC, casefolded, without LaTeX text commands, quotes, outer punctuation, leading article and double spaces."""
    for _ in range(3):
        text = _COMMAND.sub(r"\1", text)
    text = unicodedata.normalize("NFKC", text).casefold().replace("\\ ", " ").strip(" $\n\t")
    text = text.translate(_PUNCTUATION)
    text = " ".join(text.split()).strip(" .,;:!?。，；：！？")
    if len(text) > 2 and text[0] == "(" and text[-1] == ")" and text.count("(") == 1:
        text = text[1:-1].strip()
    text = _ARTICLE.sub("", text)
    return _SYNONYMS.get(text, text)


class ExactVerifier(Verifier):
    """The very same characters, but for white space around them."""

    name = "exact"
    version = "1"

    def quick(self, problem: Problem, answer: str) -> Judgement:
        return CORRECT if answer.strip() == (problem.reference or "").strip() else WRONG


class TextVerifier(Verifier):
    """The same text after `normal`. Where the reference offers several spellings, one a line, any of them is right."""

    name = "text"
    version = "1"

    def quick(self, problem: Problem, answer: str) -> Judgement:
        if len(answer) > 100_000:
            return Judgement("wrong", "the answer is longer than 100000 characters")
        wanted = {normal(line) for line in (problem.reference or "").splitlines() if normal(line)}
        whole = normal(problem.reference or "")
        if not wanted:
            return Judgement("unverifiable", "the reference has no text")
        return CORRECT if normal(answer) in wanted | {whole} else WRONG
