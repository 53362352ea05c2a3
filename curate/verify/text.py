"""Verifiers for exact and for normalised text, and the comparison of words."""

from __future__ import annotations

import re
import unicodedata

from curate.records import Problem
from curate.verify.base import CORRECT, WRONG, Judgement, Verifier
from curate.verify.extract import (
    Extracted,
    after_reasoning,
    raw_answer,
    tidy,
    without_end_tokens,
)

_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|emph|operatorname)\s*\{([^{}]*)\}"
)
_ARTICLE = re.compile(r"^(?:the|a|an|el|la|le|der|die|das) +(?=\S)", re.I)
_THERE = re.compile(r"^(?:there (?:is|are|exists?|exist)|it is|it's) (?=\S)")
_QUOTES = str.maketrans(dict.fromkeys('"“”‘’«»「」『』`', None))
# Markdown marks are dropped in pairs around words; inside a word they are signs (foo_bar, 2*x).
_MARKDOWN = re.compile(r"(?<![\w*])(\*{1,3}|_{1,3})(?=\S)(.+?)(?<=\S)\1(?![\w*])", re.S)
# Answers that are the same word in another language; ours, small on purpose.
_SYNONYMS = {
    "是": "yes", "是的": "yes", "oui": "yes", "sí": "yes", "ja": "yes", "да": "yes", "はい": "yes",
    "否": "no", "不是": "no", "不": "no", "non": "no", "nein": "no", "нет": "no", "いいえ": "no",
    "对": "true", "正确": "true", "真": "true", "wahr": "true", "vrai": "true", "错": "false",
    "错误": "false", "假": "false",
    "falsch": "false", "faux": "false", "无解": "no solution", "no solutions": "no solution",
    "no solutions exist": "no solution", "no solution exists": "no solution",
    "no real solution": "no solution",
    "no real solutions": "no solution", "none": "no solution", "不存在": "does not exist",
    "dne": "does not exist",
    "doesn't exist": "does not exist", "undefined": "undefined", "无穷": "infinity",
    "偶数": "even", "奇数": "odd",
    "东": "east", "南": "south", "西": "west", "北": "north",
}  # fmt: skip
_DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_SYNONYMS |= {
    f"{week}{day}": name
    for week in ("星期", "周", "礼拜")
    for day, name in zip("一二三四五六日", _DAYS, strict=True)
}


def normal(text: str) -> str:
    """Casefold a text and drop everything that does not change an answer.

    Applies NFKC (superscripts stay separate) and drops LaTeX text commands, quotes, markdown, outer
    punctuation, "there is", a leading article and double spaces.
    """
    if "\\" in text:
        for _ in range(3):
            text = _COMMAND.sub(r"\1", text)
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _with_carets(text))
    text = text.casefold().replace("−", "-").replace("\\ ", " ").strip(" $\n\t")
    text = _MARKDOWN.sub(r"\2", text.translate(_QUOTES))
    text = " ".join(text.split()).strip(" .,;:?。，；：？")
    if text.endswith(("!", "！")) and len(text) > 4 and text[-2].isalpha():
        text = text.rstrip("!！ ")  # x! is a factorial, "yes indeed!" is an exclamation
    if len(text) > 2 and text[0] == "(" and text[-1] == ")" and text.count("(") == 1:
        text = text[1:-1].strip()
    text = _ARTICLE.sub("", _THERE.sub("", text))
    return _SYNONYMS.get(text, text)


_SCRIPT = re.compile(r"([⁰¹²³⁴⁵⁶⁷⁸⁹]+)|([₀₁₂₃₄₅₆₇₈₉]+)")


def _with_carets(text: str) -> str:
    """Write x² as x^2 and x₂ as x_2: NFKC would make them x2."""
    if text.isascii():
        return text
    return _SCRIPT.sub(lambda run: ("^" if run[1] else "_") + run.group(), text)


# Words that mean the same in any case; a short word in capitals may be a name or a product (NO, Aa,
# AA and aa).
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
    """Whether two texts are the same words. Case counts for single letters and abbreviations."""
    if "\\" in first or "\\" in second:
        for _ in range(3):
            first, second = _COMMAND.sub(r"\1", first), _COMMAND.sub(r"\1", second)
    if not (
        _WORDS_ONLY.fullmatch(first)
        and _WORDS_ONLY.fullmatch(second)
        and normal(first) == normal(second)
    ):
        return False
    if is_question(first) != is_question(second):
        return False
    if first.endswith("!") != second.endswith("!") and re.search(
        r"\b\w{1,3}!$", f"{first} {second}"
    ):
        return False  # n! is a factorial, not an exclamation
    pairs = zip(_WORD.findall(first), _WORD.findall(second), strict=False)
    return all(_equal_case(one, other) for one, other in pairs) or normal(first) in _ANY_CASE


def is_question(text: str) -> bool:
    """Whether a text asks: "Paris?" is not an answer, unless the reference is a question too."""
    return text.rstrip(" \"'”’*_`$)").endswith(("?", "？"))


def _equal_case(one: str, other: str) -> bool:
    """Whether case makes no difference: Paris is PARIS, but AA is not aa and CO is not Co."""
    if one == other or one.casefold() != other.casefold() or one.casefold() in _ANY_CASE:
        return True
    letters = set(one.casefold())
    return len(letters) > 2 and (len(one) > 3 or one.title() in (one, other))


_STYLE = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|boxed)\s*\{([^{}]*)\}|\*{1,3}|__"
    r"|[$`\"“”「」『』]|\\[()\[\]]"
)
_CHOICE_WORD = (
    r"(?:both |(?:la|le|el|the|die|der|das) (?=[A-J]\b))?(?:故|所以|因此|本题|应)*"
    r"(?:(?:the |our )?(?:(?:correct|right|best|final) )*(?:options?|choices?|answers?|letters?"
    r"|选项"
    r"|选择|选|答案|opción"
    r"|choix|antwort|вариант|選択肢|보기)(?: is| are)?\s*[:：]?\s*)?"
)
_JOIN = r"\s*(?:[,;/&、，]\s*(?:and\s+)?|\band\b|和|与|と|\s)\s*"
# One letter, or several joined letters: (B), A and C, A、C, [A, C].
_LETTERS = re.compile(
    rf"{_CHOICE_WORD}[(\[（【]?\s*(?P<letters>(?-i:[A-Z]|[a-z](?![A-Za-z]))(?:[)\]）】]?{_JOIN}[(\[（【]"
    rf"?(?-i:[A-Z])(?![A-Za-z]))*)"
    r"(?:\s*(?P<close>[)\]）】]))?(?P<rest>.*)",
    re.I | re.S,
)
_RUN = re.compile(rf"{_CHOICE_WORD}[(（]?([A-J]{{2,8}})[)）]?(?:です|である|입니다)?")
# A mark and the text of the choice ("B. Meiosis"), the end, or a reason.
_TEXT_OF_CHOICE = re.compile(r"\s*[.:：)、]\s*(?P<text>.*)|\s*[-–—]\s+(?P<dashed>.*)", re.S)
_REASON = re.compile(
    r"\s*[,;，]?\s*(?:because|since|as|for|weil|porque|因为"
    r"|which is (?:the )?(?:right|correct))\b.*"
    r"|(?:\s*[,;，]\s*(?:and )?not|\s+and not|\s*[,;，]?\s*(?:rather than|instead of))"
    r"\s+\(?[A-Z]\)?\s*"
    r"|\s*(?:is|are)\s+(?:the\s+)?(?:(?:right|correct|best|final)\s*)+(?:answers?|options?"
    r"|choices?|ones?)?\s*"
    r"|\s*(?:です|だ|である|입니다|이다|选项|選項|项|項|。|．)+\s*",
    re.I | re.S,
)
_OTHER_OFFER = re.compile(
    r"(?-i:\b[B-HJ-Z]\b|\(A\))|\b(?:or|maybe|perhaps|possibly|unless|otherwise|else|wrong"
    r"|incorrect|not|no|false|if|then"
    r"|only|either|neither|doubt\w*|could|might)\b|n['’]t\b|不|错|或|吗|非",
    re.I,
)


def without_style(text: str) -> str:
    """Strip type commands, markdown, quotes and a full stop from a short answer."""
    text = text.replace("\\ ", " ")
    for _ in range(3):
        text = _STYLE.sub(lambda match: match.group(1) or "", text)
    text = text.strip()
    if len(text) > 2 and text[0] == text[-1] == "'":
        text = text[1:-1].strip()
    stops = (".", "。", "．")
    return text[:-1].rstrip() if text.endswith(stops) and not text.endswith("..") else text


def bare_letters(text: str) -> set[str]:
    """Return the letters of choices that a text names, without knowing the choices; empty if it
    says anything more.
    """
    if len(text) > 10_000:
        return set()
    letters, rest = leading_letters(without_style(text))
    return letters if not rest or text_of_choice(rest) is not None else set()


def leading_letters(bare: str) -> tuple[set[str], str]:
    """Return the letters that an answer begins with, and the text after them."""
    if run := _RUN.fullmatch(bare):
        letters = set(run.group(1))
        return (letters, "") if len(letters) == len(run.group(1)) else (set(), "")
    match = _LETTERS.fullmatch(bare)
    if match is None:
        return set(), ""
    named = re.findall(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", match["letters"])
    letters, rest = {letter.upper() for letter in named}, match["rest"]
    if rest[:1].isalnum() and rest[:1].isascii():
        return set(), ""  # "Be careful", "A2"
    # "(B) Meiosis": the bracket separates the letter from its text.
    return letters, f"){rest}" if match["close"] and rest[:1].isspace() else rest


def text_of_choice(rest: str) -> str | None:
    """Return the text after a letter ("B. Meiosis"), "" for a reason; None if it says something
    else.
    """
    if not rest.strip(" .。") and not rest.strip().startswith(".."):
        return ""
    if _REASON.fullmatch(rest.removeprefix(")")):
        return ""
    match = _TEXT_OF_CHOICE.fullmatch(rest)
    if match is None:
        return None
    text = (match["text"] if match["text"] is not None else match["dashed"]).strip()
    return None if _OTHER_OFFER.search(text) or text.startswith("..") else text


_ITEM = re.compile(r"(?:[-*•+]|\(?\d{1,3}[.):]|\(?[a-zA-Z][.):]|[^\W\d_]+:)\s+\S")


def _rows(text: str) -> list[str]:
    """Return the lines of a text that are not empty or a fence, without extra white space."""
    lines = (" ".join(line.replace("`", " ").split()).casefold() for line in text.splitlines())
    return [line for line in lines if line]


def are_rows(lines: list[str]) -> bool:
    """Whether several lines are one answer together: a grid of signs or of short cells, a table, or
    a list with marks, so that a single line does not match it.
    """
    if len(lines) < 2:
        return False
    if all("|" in line or "\t" in line for line in lines) or all(map(_ITEM.match, lines)):
        return True
    cells = [re.split(r"\s*,\s*|\s+", line) for line in lines]
    if len(set(map(len, cells))) == 1 and len(cells[0]) > 1:
        return all(len(cell) <= 3 for row in cells for cell in row)
    if len(set(map(len, lines))) > 1 or len(cells[0]) > 1 or len(lines[0]) < 2:
        return False
    signs = "".join(lines)
    return signs.isdigit() or not signs.isalpha() or 2 * len(set(signs)) <= len(signs)


class ExactVerifier(Verifier):
    """Accepts exactly the same characters, apart from white space around them."""

    name = "exact"
    version = "5"

    def extract(self, problem: Problem, completion: str, delimiters: tuple[str, str]) -> Extracted:
        extracted = raw_answer(completion, delimiters)
        if extracted.answer is None:
            return extracted
        raw = extracted.answer.strip()
        if extracted.where in ("announced", "bare"):
            # The full stop and the marks of a sentence are not part of the answer, unless the
            # reference has them.
            text = after_reasoning(without_end_tokens(completion), delimiters) or ""
            whole = text.strip() if extracted.where == "bare" else raw
            reference = (problem.reference or "").strip()
            return extracted._replace(answer=whole if reference in (whole, raw) else tidy(raw))
        return extracted._replace(answer=raw)

    def quick(self, problem: Problem, answer: str) -> Judgement:
        return CORRECT if answer.strip() == (problem.reference or "").strip() else WRONG


class TextVerifier(Verifier):
    """Accepts the same text after `normal`. A reference may offer several spellings, one per
    line, unless its lines are the rows of one answer (a grid, a table, a numbered list).
    """

    name = "text"
    version = "6"

    def quick(self, problem: Problem, answer: str) -> Judgement:
        if len(answer) > 100_000:
            return Judgement("wrong", "the answer is longer than 100000 characters")
        rows = _rows(problem.reference or "")
        if are_rows(rows):
            return CORRECT if _rows(answer) == rows else WRONG
        if is_question(answer) and not is_question(problem.reference or ""):
            return Judgement("wrong", "a question")
        spellings = {normal(line) for line in (problem.reference or "").splitlines()} - {""}
        if not spellings:
            return Judgement("unverifiable", "the reference has no text")
        is_whole = [normal(row) for row in _rows(answer)] == [normal(row) for row in rows]
        return CORRECT if is_whole or normal(answer) in spellings else WRONG
