"""Split mathematical text into tokens; the many ways to write a sign become one.

Kinds of tokens: num, sym (one letter or a Greek one), fn (a function), cmd (a LaTeX command), op,
text (words), env, row.
"""

from __future__ import annotations

import re

from curate.verify.math.numbers import plain


class Unreadable(ValueError):
    """Notation that this parser does not know."""


class Excessive(Unreadable):
    """Longer, deeper or larger than any sensible answer."""


# Names are easier to read and to extend as a line of words.
FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp sqrt abs max min "
    "gcd lcm floor ceil "
    "asin acos atan re im cbrt".split()
)
GREEK = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi "
    "rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda "
    "Xi Pi Sigma Phi Psi Omega ell hbar".split()
)
_SIGNS = {
    "≤": "<=", "⩽": "<=", "≦": "<=", "≥": ">=", "⩾": ">=", "≧": ">=", "≠": "!=", "√": "\\sqrt",
    "∞": "\\infty", "π": "\\pi",
    "∪": "\\cup", "∩": "\\cap", "∅": "\\emptyset", "∈": "\\in", "±": "\\pm", "∓": "\\mp",
    "°": "^\\circ", "ℝ": "\\mathbb{R}",
    "∖": "\\setminus", "≈": "\\approx", "θ": "\\theta", "α": "\\alpha", "β": "\\beta",
    "λ": "\\lambda", "∧": " and ", "∨": " or ",
    "、": ",", "，": ",", "；": ";", "：": ":", "（": "(", "）": ")", "【": "[", "】": "]",
    "｛": "\\{", "｝": "\\}", "〈": "(",
    "∛": "\\sqrt[3]", "∜": "\\sqrt[4]", "…": "\\ldots", "⋯": "\\ldots",
    "〉": ")", "⟨": "(", "⟩": ")", "∠": "\\angle", "△": "\\triangle",
}  # fmt: skip
_ALIAS = {
    "\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\cfrac": "\\frac", "\\cdot": "*", "\\times": "*",
    "\\ast": "*", "\\div": "/",
    "\\leq": "<=", "\\le": "<=", "\\leqslant": "<=", "\\geq": ">=", "\\ge": ">=",
    "\\geqslant": ">=", "\\lt": "<", "\\gt": ">",
    "\\neq": "!=", "\\ne": "!=", "\\approx": "~", "\\lbrace": "\\{", "\\rbrace": "\\}",
    "\\lbrack": "[", "\\rbrack": "]",
    "\\langle": "(", "\\rangle": ")", "\\varnothing": "\\emptyset", "\\setminus": "\\minus",
    "\\backslash": "\\minus",
    "\\land": "and", "\\wedge": "and", "\\lor": "or", "\\vee": "or", "\\lvert": "|",
    "\\rvert": "|", "\\vert": "|", "\\mid": "|",
    "\\degree": "°", "\\colon": ":", "**": "^", "\\dbinom": "\\binom", "\\tbinom": "\\binom",
    "\\isin": "\\in", "==": "=",
    "\\arg": "\\operatorname", "\\iff": "\\unknown", "\\equiv": "≡", "\\mod": "\\bmod",
    "\\measuredangle": "\\angle",
}  # fmt: skip
_SKIP = re.compile(
    r"\s+|\\(?:left|right|[bB]ig+[lrm]?|displaystyle|textstyle|limits|nolimits|quad|qquad"
    r"|hspace\{[^{}]*\})(?![a-zA-Z])|\\[,;!:> ]|~|&nbsp;"
)
_TOKEN = re.compile(
    r"(?P<num>\d+(?:(?:\{,\}|\\,|\\!,|,\\!)\d{3})+(?:\.\d+)?(?!\d)|\d+\.\d*\\(?:overline|bar"
    r"|dot)\s*\{\d+\}|\d*\.\d+\(\d+\)(?!\()|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+(?![\da-zA-Z]))?)"
    r"|(?P<text>\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|boldsymbol|bm|mathit|mathsf"
    r"|mathcal|rm|bf|operatorname\*?)\s*\{(?P<inner>[^{}]*)\})"
    r"|(?P<env>\\(?:begin|end)\s*\{[a-zA-Z*]+\}(?:\{[clr|]*\})?)"
    r"|(?P<bb>\\mathbb\s*\{?\s*[A-Z]\s*\}?)"
    r"|(?P<row>\\\\)|(?P<cmd>\\[a-zA-Z]+|\\[{}|%$])|(?P<op><=|>=|(?<![\d)])!=|==|\*\*|=<"
    r"|[-+*/^_=<>()\[\]{}|,;:!'%°&≡])|(?P<word>[a-zA-Z]+)|(?P<han>[\u4e00-\u9fff]+)"
)
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])")
_WORDS = {
    "and": "and",
    "or": "or",
    "und": "and",
    "oder": "or",
    "et": "and",
    "ou": "or",
    "y": "sym",
    "和": "and",
    "或": "or",
    "或者": "or",
    "且": "and",
    "与": "and",
}


# A number or a sign in another typeface is the number or the sign.
_STYLED = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf|mathit|bf|rm|boldsymbol|bm"
    r"|displaystyle)\s*\{\s*([-+.,/\d]+)\s*\}"
)


_FUNCTION_HEAD = re.compile(r"(sin|cos|tan|cot|sec|csc|ln|log|lg|exp)([a-z])")


def unwrap(text: str) -> str:
    """Strip dollar signs, `\\(…\\)` and `\\boxed{…}` from around a whole text."""
    text = text.strip()
    for _ in range(4):
        before = text
        if len(text) > 1 and text[0] == text[-1] == "$" and not text.endswith("\\$"):
            text = text[1:-1].strip()
        if text[:2] in ("\\(", "\\[") and text[-2:] in ("\\)", "\\]"):
            text = text[2:-2].strip()
        if text.startswith("\\boxed{") and text.endswith("}") and _closes_at_end(text):
            text = text[7:-1].strip()
        if styled := _STYLED.fullmatch(text):
            text = styled[1].strip()
        if text == before:
            break
    return text.removeprefix("=").strip() if text[:2] != "==" else text


def _closes_at_end(text: str) -> bool:
    """Whether the first brace of a text closes with its last character: not so in \\boxed{2},
    \\boxed{3}.
    """
    depth = 0
    for at, sign in enumerate(text):
        depth += (sign == "{") - (sign == "}")
        if sign == "}" and not depth:
            return at == len(text) - 1
    return False


_ASCII_DOTS = re.compile(r"(?:^|(?<=[,\s]))\.{3,}(?=\s|,|$)")
# A root sign takes all digits behind it: √12. In LaTeX, \\sqrt12 takes the first.
_ROOT_OF_DIGITS = re.compile(r"([√∛∜])\s*(\d+)(?![\d.])")


def tokens(text: str) -> list[tuple[str, str]]:
    """Return (kind, text) of each token; kinds: num, sym, fn, cmd, op, text, env, row."""
    if "..." in text:
        text = _ASCII_DOTS.sub(r" \\ldots ", text)
    if not text.isascii():
        text = _ROOT_OF_DIGITS.sub(r"\1{\2}", plain(text))
        for sign, meaning in _SIGNS.items():
            if sign in text:
                text = text.replace(sign, f" {meaning} " if meaning[0] == "\\" else meaning)
    parts: list[tuple[str, str]] = []
    at, depth = 0, 0
    while at < len(text):
        skip = _SKIP.match(text, at)
        if skip:
            at = skip.end()
            continue
        if text[at] == "$":
            at += 1
            continue
        if depth == 0 and (thousands := _THOUSANDS.match(text, at)):
            parts.append(("num", thousands.group().replace(",", "")))
            at = thousands.end()
            continue
        match = _TOKEN.match(text, at)
        if not match:
            raise Unreadable(f"unknown sign {text[at]!r}")
        at = match.end()
        kind = match.lastgroup or ""
        kind = "text" if kind == "inner" else kind
        value = match.group(kind)
        if kind == "text":
            parts.extend(_words(match["inner"], command=value))
        elif kind in ("word", "han"):
            parts.extend(_words(value, command=""))
        elif kind == "cmd":
            parts.append(_command(value))
        elif kind == "bb":
            parts.append(("cmd", "\\" + re.sub(r"[^A-Z]", "", value) * 2))
        else:
            if kind == "op":
                value = _ALIAS.get(value, "<=" if value == "=<" else value)
                depth += (value in "([") - (value in ")]") if value in ("(", "[", ")", "]") else 0
            parts.append((kind, value))
        if parts and parts[-1] in (("cmd", "\\{"), ("cmd", "\\}")):
            depth += 1 if parts[-1][1] == "\\{" else -1
    if len(parts) > 400:
        raise Excessive("an expression that is too long")
    return _outward(parts) if ("op", "]") in parts or ("op", "[") in parts else parts


# An expression begins after one of these.
_BEFORE = frozenset(
    [
        "(",
        "[",
        "{",
        ",",
        ";",
        "=",
        "<",
        ">",
        "<=",
        ">=",
        "+",
        "-",
        "*",
        "/",
        "|",
        "and",
        "or",
        "\\cup",
        "\\cap",
        "\\in",
    ]
)


def _outward(parts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Rewrite ]1, 2] and [1, 2[ (open ends in some languages) as (1, 2] and [1, 2)."""
    depth, result = 0, list(parts)
    for i, (kind, value) in enumerate(parts):
        if kind != "op" or value not in ("[", "]", "(", ")"):
            continue
        begins = i == 0 or parts[i - 1][1] in _BEFORE
        if value == "]" and begins and not depth:
            result[i], value = ("op", "("), "("
        elif (
            value == "["
            and not begins
            and depth
            and (i + 1 == len(parts) or parts[i + 1][1] in _BEFORE)
        ):
            result[i], value = ("op", ")"), ")"
        depth += 1 if value in ("(", "[") else -1
    return result


def _command(value: str) -> tuple[str, str]:
    alias = _ALIAS.get(value)
    if alias is not None:
        return ("cmd" if alias[0] == "\\" else "op", alias)
    name = value[1:]
    if name in FUNCTIONS and name != "sqrt":
        return ("fn", name)
    if name in GREEK:
        return ("sym", name)
    return ("cmd", value)


def _words(value: str, command: str) -> list[tuple[str, str]]:
    """Return the tokens of a run of letters: a connective, function, constant, symbols, or text."""
    word = value.strip()
    if not word or re.fullmatch(r"[\s.,]*", word):
        return []
    lowered = word.lower().strip(" ,")
    if lowered in _WORDS and _WORDS[lowered] != "sym":
        return [("op", _WORDS[lowered])]
    if lowered in FUNCTIONS:
        return [("fn", lowered)]
    if lowered in ("pi", "inf", "infty", "infinity", "oo"):
        return [("cmd", "\\pi" if lowered == "pi" else "\\infty")]
    if lowered in ("in", "mod"):
        return [("cmd", "\\in" if lowered == "in" else "\\bmod")]
    if re.fullmatch(r"[a-zA-Z]", word):
        if re.match(r"\\(?:mathbf|boldsymbol|bm)", command) and word in "ijk":
            return [("sym", "\\vec" + word)]  # a unit vector
        return [("sym", word)]
    if lowered in GREEK and command == "":
        return [("sym", lowered)]
    if function := _FUNCTION_HEAD.fullmatch(word):  # sinx, lnx; log2 is two tokens already
        return [("fn", function[1]), ("sym", function[2])]
    if (command and re.match(r"\\(?:text|mbox|operatorname)", command)) or not re.fullmatch(
        r"[a-zA-Z]{2,3}", word
    ):
        return [("text", word)]
    return [("sym", letter) for letter in word]
