"""Remove typesetting that changes nothing: one spelling for the many of LaTeX, Unicode and
markdown.

`clean` is applied to a reference and to an answer before they are read. It drops colour, size and
invisible characters, but nothing that hides or adds something on the page (`\\phantom`, `\\cancel`,
white text).
"""

from __future__ import annotations

import re
from functools import lru_cache

from curate.verify.extract import ANNOTATION, Extracted, announced, labelled, last_boxes, tidy

_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_SIZE = re.compile(
    r"\\(?:tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|Huge|bf|rm|it|sf"
    r"|tt|bfseries|itshape"
    r"|displaystyle|textstyle|scriptstyle|hfill|hfil|boldmath|limits|nolimits|strut"
    r"|noindent)(?![a-zA-Z])"
)
_COLOUR = re.compile(r"\\(?:text)?color\s*\{(?!\s*(?:white|transparent))[^{}]*\}")
_LINE = re.compile(r"\\(?:underline|uline|ensuremath)\s*(?=\{)")
_TEXT = re.compile(
    r"\\(?:textbf|textit|textrm|textsf|texttt|textsl|textup|textmd|textnormal|emph|mbox"
    r"|hbox)(?=\s*\{)"
)
_STYLED_SIGN = re.compile(
    r"\\(?:mathbf|mathrm|mathit|mathsf|boldsymbol|bm)\s*(?:\{\s*([-+.,/\d]+)\s*\}|(\d))"
)
_NUMBER_TEXT = re.compile(r"\\(?:text|operatorname)\s*\{\s*([-+.,/\d]+)\s*\}")
_FRACTION = re.compile(r"\\(?:nicefrac|sfrac|xfrac|flatfrac)(?![a-zA-Z])")
_OVER = re.compile(r"\{\s*([^{}]+?)\s*\\over(?![a-zA-Z])\s*([^{}]+?)\s*\}")
_BARE_OVER = re.compile(r"^\s*([^{}\\]+?)\s*\\over(?![a-zA-Z])\s*([^{}\\]+?)\s*$")
_RAISED = re.compile(r"\^\s*\{?(\d+)\}?\s*/\s*_\s*\{?(\d+)\}?")
# 11,\! 111,\! 100 and 1\ 234\ 567: a thousands separator with some space.
_THOUSANDS = re.compile(
    r"(?<=\d)(?:,\s*\\[!,;:]\s*|\\[!,;:]\s*,?\s*|\{,\}\s*|,~|\\ |~)(?=\d{3}(?!\d))"
)
_GROUPS = re.compile(r"(?<![\d.,])(\d{1,2}(?:,\d{2})+,\d{3}|\d{1,3}(?:\.\d{3}){2,})(?![\d.,])")
_DOLLARS = re.compile(r"(?<!\\)\$\$?\s*((?:\\.|[^$\\])*?[^\s$\\])\s*(?<!\\)\$\$?", re.S)
_BRACKETS = re.compile(r"\\[()]|\\\[|\\\](?!\s*\\\\)")
_SINGLE_COMMAND = re.compile(r"(?<!\\)\\(?![\\\s])")
_SYSTEM = re.compile(
    r"\\left\s*\\\{\s*\\begin\{(?:array|aligned|matrix)\}(?:\{[lcr|]*\})?(.*?)\\end\{(?:array"
    r"|aligned|matrix)\}\s*\\right\s*\.",
    re.S,
)
_QUAD = re.compile(r"(\\q?quad)(?=[a-zA-Z])")  # \\quadx: a space that was lost
# \text{17 apples}
_WHOLE_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox)\s*\{\s*([^{}\\]*\d[^{}\\]*)\}")
# Lines of one derivation, set one below the other.
_ALIGNED = re.compile(
    r"\\begin\s*\{(aligned|align\*?|alignedat|split|gathered|gather\*?|eqnarray\*?|equation\*?)\}"
    r"(?:\[[a-z]\]|\{[\dlcr]+\})?(.*?)\\end\s*\{\1\}",
    re.S,
)
_ROW_END = re.compile(r"\\\\(?:\s*\[[^\]]*\])?")
_CONTINUES = re.compile(
    r"\s*(?:=|<|>|\\(?:approx|le|leq|ge|geq|lt|gt|equiv|sim|simeq)(?![a-zA-Z]))"
)
# siunitx: \SI{5}{m/s}, \qty{5}{\metre\per\second}
_QUANTITY = re.compile(r"\\(?:SI|qty)\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_UNIT_COMMAND = re.compile(r"\\(?:si|unit)\s*\{([^{}]*)\}")
_COMBINATION = re.compile(
    r"(?<![\w.])(?:\{\}\s*_\s*|\{\}\s*\^\s*|\^\s*)?\{?(\d+)\}?\s*(?:\\mathrm\s*\{([CP])\}"
    r"|([CP]))\s*_?\s*\{?(\d+)\}?(?![\w.])"
)
# The expectation and the probability are functions in square brackets too: E[X^2].
_EXPECTED = re.compile(r"(?<![A-Za-z\\])([EP])\s*\[([^\[\]]*)\]")
_CHINESE_COMBINATION = re.compile(r"\\(?:mathrm|text|rm)\s*\{([CA])\}(?=\s*[_^])")
_CHOOSE = re.compile(r"\{\s*([^{}]+?)\s*\\choose(?![a-zA-Z])\s*([^{}]+?)\s*\}")
_QUOTES = tuple('"“‘«「')
_QUOTED = re.compile(r"\"([^\"]+)\"|“([^“”]+)”|‘([^‘’]+)’|«([^«»]+)»|「([^「」]+)」")


_INVISIBLE_BRACKET = re.compile(r"\\(?:left|right)\s*\.(?!\d)")
_BEFORE_DIGIT = re.compile(r"(?<!\\)\\(?=\d)")
_SPACE_AT_END = re.compile(r"(?<!\\)(?:\\[,;:!>]|\\ |~|\\+|\s)+$")
_DOUBLED = re.compile(r"\\\\[a-zA-Z{}]")
_NAME = re.compile(r"\\([a-zA-Z]+)")
# Commands that `_without_style` does not touch; most texts have no others.
_ORDINARY = frozenset(
    "frac dfrac tfrac sqrt pi left right cdot times infty sin cos tan ln log alpha theta quad "
    "leq le geq ge neq pm cup in circ".split()
)


_UNIT_POWER = re.compile(r"(?<=[a-z]{2})[²³](?=\s*[.)]?$)")  # 6π cm²
_ABOUT = re.compile(r"^\\text\s*\{\s*(about|approximately|roughly|around)\s*\}")
_QED = re.compile(r"\s*\\(?:checkmark|blacksquare|square|Box|qed)\s*$")
_CONSTANT = re.compile(r"(?<=\+)\s*\\text\s*\{\s*(?:a )?const(?:ant|\.)?\s*\}$")


@lru_cache(maxsize=16384)
def clean(text: str) -> str:
    """Return the text without typesetting that changes nothing."""
    if not text.isascii():
        text = _UNIT_POWER.sub(lambda m: "^2" if m[0] == "²" else "^3", _INVISIBLE.sub("", text))
    text = text.strip().replace("{:}", ":")
    if "\\" in text:
        text = _clean_commands(text)
    if "_" in text:
        text = _RAISED.sub(r"\1/\2", text)
    text = text.replace("`", "")
    if "$" in text:
        text = _DOLLARS.sub(r" \1 ", text)
    if "C" in text or "P" in text:
        text = _COMBINATION.sub(lambda m: f"{m[2] or m[3]}({m[1]},{m[4]})", text)
    if text[:1] in _QUOTES and (quoted := _QUOTED.fullmatch(text)):
        text = next(filter(None, quoted.groups())).strip()
    if "[" in text:
        text = _EXPECTED.sub(r"\1(\2)", text)
    if "," in text or "." in text:
        text = _GROUPS.sub(lambda m: re.sub(r"[.,]", "", m.group()), text)
    if "*" in text:
        text = text.replace("**", "^") if re.search(r"\w\*\*[\w(]", text) else text.strip("*")
    return _without_full_stop(" ".join(text.split()))


# x=3 \\\\ y=-2: a system without its environment
_ROWS = re.compile(r"\s*,?\s*\\\\\s*(?=[a-zA-Z](?:_\{?\w+\}?)?\s*=)")
# \\{2k\\pi \\mid k\\in\\mathbb{Z}\\}
_MEMBER = re.compile(r"\\in\s*\\mathbb\s*\{?\s*Z\s*\}?\s*(?:\\right\s*)?\\\}\$*$")
_FAMILY = re.compile(
    r"(?:\\left\s*)?\\\{\s*([^|:=<>]+?)\s*(?:\\mid(?![a-z])|\\middle\s*\||\||:)\s*([a-z])\s*"
    r"\\in\s*\\mathbb\s*\{?\s*Z\s*\}?\s*(?:\\right\s*)?\\\}"
)


def _clean_commands(text: str) -> str:
    if "\\\\" in text and "\\begin" not in text:
        text = _ROWS.sub(", ", text)
    if (
        _MEMBER.search(text)
        and (family := _FAMILY.fullmatch(text.strip("$ ")))
        and family[2] in family[1]
    ):
        text = f"{family[1]}, {family[2]}\\in\\mathbb{{Z}}"
    doubled = _DOUBLED.search(text)
    if doubled and ("\\begin" not in text or not _SINGLE_COMMAND.search(text.replace("\\\\", ""))):
        # Every backslash was doubled, or some were where no row can end.
        text = text.replace("\\\\", "\\")
    if whole := _WHOLE_TEXT.fullmatch(text):
        text = whole[1].strip()
    is_ordinary = _ORDINARY.issuperset(_NAME.findall(text))
    text = _THOUSANDS.sub("", text) if is_ordinary else _without_style(text)
    text = _QUAD.sub(r"\1 ", text)
    text = _BRACKETS.sub(" ", text)
    text = _INVISIBLE_BRACKET.sub(" ", text)
    text = text.replace("\\_", "_")
    text = _BEFORE_DIGIT.sub("", text)
    return _SPACE_AT_END.sub("", text)


def _without_style(text: str) -> str:
    text = _SYSTEM.sub(r"\\begin{cases}\1\\end{cases}", text)
    if "\\begin" in text:
        text = _ALIGNED.sub(_as_chain, text)
    if "\\SI" in text or "\\qty" in text or "\\si" in text or "\\unit" in text:
        text = _QUANTITY.sub(lambda m: f"{m[1]}\\ \\text{{{_unit_words(m[2])}}}", text)
        text = _UNIT_COMMAND.sub(lambda m: f"\\text{{{_unit_words(m[1])}}}", text)
    for pattern, replacement in (
        (_COLOUR, ""),
        (_SIZE, " "),
        (_LINE, ""),
        (_TEXT, r"\\text"),
        (_CHINESE_COMBINATION, r"\1"),
        (_FRACTION, r"\\frac"),
        (_THOUSANDS, ""),
    ):
        text = pattern.sub(replacement, text)
    text = _STYLED_SIGN.sub(lambda m: m[1] or m[2], text)
    text = _NUMBER_TEXT.sub(r"\1", text)
    text = _QED.sub("", _ABOUT.sub(r"\1 ", _CONSTANT.sub(" C", text)))
    text = text.replace("\\text{\\$}", "\\$").replace("\\text{$}", "\\$")
    if "\\choose" in text:
        text = _CHOOSE.sub(r"\\binom{\1}{\2}", text)
    for _ in range(3):
        text = _OVER.sub(r"\\frac{\1}{\2}", text)
    return _BARE_OVER.sub(r"\\frac{\1}{\2}", text)


def _as_chain(match: re.Match[str]) -> str:
    """Write the lines of one derivation as a chain (x = 8 + 9 = 17), others as a system."""
    rows = [" ".join(row.replace("&", " ").split()) for row in _ROW_END.split(match[2])]
    rows = [row.rstrip(",") for row in rows if row and row != "."]
    if len(rows) == 1 or (rows and all(map(_CONTINUES.match, rows[1:]))):
        return " ".join(rows)
    return "\\begin{cases}" + r" \\ ".join(rows) + "\\end{cases}"


def _unit_words(written: str) -> str:
    """Write the unit of siunitx in words: \\metre\\per\\second as "metre per second"."""
    return " ".join(re.sub(r"\\([a-zA-Z]+)", r" \1 ", written).split())


def _without_full_stop(text: str) -> str:
    if text.endswith(("...", "…", "\\.", "\\,", "\\;")):
        return text
    bare = text.rstrip(".,;:。，；： ")
    return bare or text


# -- references

_WORKED = re.compile(
    r"####|\\boxed|\\fbox|(?i:answer|答案|solution is|result is|antwort|réponse|respuesta|ответ)"
)


@lru_cache(maxsize=8192)
def final_answer(reference: str) -> str | None:
    """Return the answer that a reference states; None if it is a worked solution without a readable
    final answer.
    """
    reference = reference.strip()
    if "####" in reference:
        reference = ANNOTATION.sub("", reference)
        reference = re.sub(r"(?<=\S)[ \t]+(?=####)", "\n", reference)
    if not _WORKED.search(reference):
        value = labelled(reference.rpartition("\n")[2].strip()) if ":" in reference else None
        if value and ":" not in value:
            return tidy(value)  # "A: 26"
        return reference if not _is_prose(reference) else None
    box = last_boxes(reference)
    # Boxes belong together if the text is nothing but a list of them: \boxed{2}, \boxed{3}
    if box is not None:
        return box.answer or None
    extracted: Extracted | None = announced(reference)
    if extracted is not None:
        if not extracted.answer or not re.search(r"\d|\\|^\W*[A-Za-z]\W*$", extracted.answer):
            return None
        return tidy(extracted.answer)
    return reference if not _is_prose(reference) else None


def _is_prose(text: str) -> bool:
    """Whether a text is an explanation: several sentences, or one with more words than an answer
    has.
    """
    bare = re.sub(r"\$[^$]*\$|\\[a-zA-Z]+", " ", text)
    sentences = re.findall(r"[^.!?。！？]*[^\W\d_]{2,}[^.!?。！？]*[.!?。！？](?=\s|$)", bare)
    return len(sentences) > 1 or len(re.findall(r"[^\W\d_]{2,}", bare)) > 12
