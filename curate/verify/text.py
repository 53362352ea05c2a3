"""Exact and normalised text."""

from __future__ import annotations

import re
import unicodedata

from curate.records import Problem
from curate.verify.base import CORRECT, WRONG, Judgement, Verifier

_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|emph|operatorname)\s*\{([^{}]*)\}"
)
_ARTICLE = re.compile(r"^(?:the|a|an|el|la|le|der|die|das) +(?=\S)", re.I)
_THERE = re.compile(r"^(?:there (?:is|are|exists?|exist)|it is|it's) (?=\S)")
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
    f"{week}{day}": name
    for week in ("星期", "周", "礼拜")
    for day, name in zip("一二三四五六日", _DAYS, strict=True)
}


def normal(text: str) -> str:
    """NFKC, casefolded, without LaTeX text commands, quotes, outer punctuation, "there is", leading article and double spaces."""
    for _ in range(3):
        text = _COMMAND.sub(r"\1", text)
    text = unicodedata.normalize("NFKC", text).casefold().replace("\\ ", " ").strip(" $\n\t")
    text = text.translate(_PUNCTUATION)
    text = " ".join(text.split()).strip(" .,;:!?。，；：！？")
    if len(text) > 2 and text[0] == "(" and text[-1] == ")" and text.count("(") == 1:
        text = text[1:-1].strip()
    text = _ARTICLE.sub("", _THERE.sub("", text))
    return _SYNONYMS.get(text, text)


# Words that mean the same in any case; a short word in capitals may be a name or a product (NO, Aa, AA and aa).
_ANY_CASE = frozenset(
    [
        *_SYNONYMS,
        *_SYNONYMS.values(),
        "red",
        "sun",
        "mon",
        "tue",
        "wed",
        "thu",
        "fri",
        "sat",
        "odd",
        "all",
    ]
)
_WORDS_ONLY = re.compile(r"(?=.*[^\W\d_]{2})[\w\s.,;:'\"()?$&*`“”‘’。，、；：（）？-]+!?", re.S)
_WORD = re.compile(r"[^\W_]+")


def equal_words(first: str, second: str) -> bool:
    """Whether two texts are words (no formulas) and the same ones. Case counts where letters rather than words stand."""
    for _ in range(3):
        first, second = _COMMAND.sub(r"\1", first), _COMMAND.sub(r"\1", second)
    if not (
        _WORDS_ONLY.fullmatch(first)
        and _WORDS_ONLY.fullmatch(second)
        and normal(first) == normal(second)
    ):
        return False
    if first.endswith("!") != second.endswith("!") and re.search(
        r"\b\w{1,3}!$", f"{first} {second}"
    ):
        return False  # n! is no loud n
    pairs = zip(_WORD.findall(first), _WORD.findall(second), strict=False)
    return all(_equal_case(one, other) for one, other in pairs) or normal(first) in _ANY_CASE


def _equal_case(one: str, other: str) -> bool:
    """Paris, paris and PARIS are one word; AA and aa, AB and ab, CO and Co are not."""
    if one == other or one.casefold() != other.casefold() or one.casefold() in _ANY_CASE:
        return True
    letters = set(one.casefold())
    return len(letters) > 2 and (len(one) > 3 or one.title() in (one, other))


_STYLE = re.compile(
    r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|boxed)\s*\{([^{}]*)\}|\*\*|__|[$`]"
)
_CHOICE_WORD = r"(?:(?:option|choice|answer|选项|选择|选|答案|opción|choix|antwort|вариант|選択肢|보기)\s*[:：]?\s*)?"
# A letter that stands for a choice: alone, in brackets, or followed by a mark and the text of the choice.
_LETTER = re.compile(
    rf"^{_CHOICE_WORD}[(\[（【]?\s*([A-Za-z])\s*(?:[)\]）】]|[.:：、,，](?=\s|$|[^\d\w])|\s*[-–—]\s|\s*$|\s+(?=is\b|because\b))\s*(.*)$",
    re.I | re.S,
)
_JOINED = re.compile(r"\s*(?:,|;|/|&|\band\b|\bor\b|和|或|、|与)\s*", re.I)


def without_style(text: str) -> str:
    """Strip type commands, markdown and a full stop from around a short answer."""
    for _ in range(3):
        text = _STYLE.sub(lambda match: match.group(1) or "", text)
    return text.strip(" \n\t.。")


def bare_letters(text: str) -> set[str]:
    """Return the letters of choices that a text names, without knowing the choices."""
    return leading_letter(without_style(text))[0] if len(text) <= 10_000 else set()


def leading_letter(bare: str) -> tuple[set[str], str]:
    """Return the letters that an answer begins with, and the text after a single one."""
    match = _LETTER.match(bare)
    if match:
        letter, rest = match.group(1).upper(), match.group(2).strip(" \n\t.。")
        others = _others(rest)
        return ({letter}, rest) if not rest or others is None else ({letter} | others, "")
    parts = _JOINED.split(bare)
    if len(parts) > 1 and all(re.fullmatch(r"\(?[A-Za-z]\)?", part) for part in parts):
        return {part.strip("()").upper() for part in parts}, ""
    return (set(bare), "") if re.fullmatch(r"[A-H]{2,8}", bare) else (set(), "")


def _others(rest: str) -> set[str] | None:
    """Further letters after the first ("A or B"); None where the rest is something else."""
    rest = (
        re.sub(r"^(?:,|;|/|&|\band\b|\bor\b|和|或|、)\s*", "", rest, flags=re.I) if rest else rest
    )
    parts = _JOINED.split(rest) if rest else []
    if parts and all(re.fullmatch(r"[(（]?\s*[A-Z]\s*[)）]?", part) for part in parts):
        return {part.strip("()（） ").upper() for part in parts}
    return None


class ExactVerifier(Verifier):
    """The very same characters, but for white space around them."""

    name = "exact"
    version = "1"

    def quick(self, problem: Problem, answer: str) -> Judgement:
        return CORRECT if answer.strip() == (problem.reference or "").strip() else WRONG


class TextVerifier(Verifier):
    """The same text after `normal`. Where the reference offers several spellings, one a line, any of them is right."""

    name = "text"
    version = "2"

    def quick(self, problem: Problem, answer: str) -> Judgement:
        if len(answer) > 100_000:
            return Judgement("wrong", "the answer is longer than 100000 characters")
        wanted = {normal(line) for line in (problem.reference or "").splitlines() if normal(line)}
        whole = normal(problem.reference or "")
        if not wanted:
            return Judgement("unverifiable", "the reference has no text")
        return CORRECT if normal(answer) in wanted | {whole} else WRONG
