"""Read plain numbers exactly: text to a `Fraction`, with its percent sign, unit and decimals.

Reads integers, decimals, fractions, mixed numbers, percent, thousands separators, scientific
notation, repeating decimals, full-width digits, Chinese numerals, units, currency and degrees. It
knows no variables and never evaluates a power beyond `10^k`, so its work is bounded by the length
of the text.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from curate.verify.math.number_words import HAN_NUMERAL, NumberWords, chinese, english, scaled
from curate.verify.math.units import (
    NO_CHANGE,
    counted,
    is_unit_after_number,
    measure,
    unit_factors,
    unit_named,
)

# A longer text is not a plain number. Characters; ours.
MAX_NUMBER = 120
MAX_EXPONENT = 400

# Numbers that are not equal agree within this relative error (the noise of floating point), or if a
# decimal with at least this many significant digits is the other number rounded or cut off. Ours;
# see docs/verify.md.
RELATIVE = Fraction(1, 10**9)
SIGNIFICANT = 6


@dataclass(frozen=True, slots=True)
class Number:
    """An exact value and how it was written. `value` is before the percent sign; `unit` is a
    canonical name or ''.
    """

    value: Fraction
    percent: bool = False
    unit: str = ""
    decimals: int | None = None  # digits after the point if it was written as a decimal, else None
    significant: int = 0  # significant digits of a decimal


_VULGAR = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5",
    "⅘": "4/5", "⅙": "1/6",
    "⅚": "5/6", "⅐": "1/7", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8", "⅑": "1/9", "⅒": "1/10",
}  # fmt: skip
_SUB = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SUB_RUN = re.compile(r"[₀₁₂₃₄₅₆₇₈₉]+")
_SUPER = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SUPER_RUN = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_PLAIN = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "—": "-",
        "‐": "-",
        "﹣": "-",
        "×": "*",
        "⋅": "*",
        "·": "*",
        "⁄": "/",
        "÷": "/",
        "∕": "/",
    }
)
_LATEX = (
    (
        re.compile(
            r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|textstyle|,|;|!|:|quad|qquad| "
            r")(?![a-zA-Z])"
        ),
        " ",
    ),
    (re.compile(r"\\(?:d|t|c)frac(?![a-zA-Z])"), r"\\frac"),
)
_INT = re.compile(r"[+-]?\d+\Z")
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)\Z")


def plain(text: str) -> str:
    """Normalise with NFKC, without its traps (½ after a digit, superscripts), to one minus, one
    times sign and one slash.
    """
    if text.isascii():
        return text
    for sign, fraction in _VULGAR.items():
        if sign in text:
            text = text.replace(sign, f" {fraction} ")
    text = _SUPER_RUN.sub(lambda run: "^{" + run.group().translate(_SUPER) + "}", text)
    text = _SUB_RUN.sub(lambda run: "_{" + run.group().translate(_SUB) + "}", text)
    return unicodedata.normalize("NFKC", text).translate(_PLAIN)


_THOUSANDS = re.compile(
    r"(?<![\d.])(\d{1,3})((?:(?:,|\{,\}|\\,|\\!,|,\\!|'|\u00a0|\u202f|[ ])\d{3})+)(?![\d,])"
)
_SEPARATOR = re.compile(r"\{,\}|\\,|\\!|,|'|\s")
_EUROPEAN = re.compile(r"([+-]?\d{1,3}(?:\.\d{3})+),(\d+)\Z")
_SCIENTIFIC = re.compile(
    r"(?P<m>[+-]?(?:\d+\.?\d*|\.\d+))(?:[eE](?P<e>[+-]?\d+)|\s*(?:\*|\\times|\\cdot"
    r"|x)\s*10\s*(?:\^|\*\*)\s*(?:\{\s*(?P<b>[+-]?\d+)\s*\}|(?P<c>[+-]?\d+)"
    r"|\((?P<p>[+-]?\d+)\)))\Z"
)
_TEN = re.compile(r"(?P<s>[+-]?)10\s*(?:\^|\*\*)\s*(?:\{\s*(?P<b>[+-]?\d+)\s*\}|(?P<c>[+-]?\d+))\Z")
_REPEAT = re.compile(
    r"(?P<s>[+-]?)(?P<i>\d*)\.(?P<d>\d*)(?:\\overline\s*\{?\s*(?P<r>\d+)\s*\}?"
    r"|\\bar\s*\{?\s*(?P<r2>\d+)\s*\}?|\((?P<r3>\d+)\)"
    r"|\\dot\s*\{?(?P<r4>\d)\}?(?:(?P<r4m>\d*)\\dot\s*\{?(?P<r5>\d)\}?)?)(?:\.\.\.|\\ldots"
    r"|\\dots)?\Z"
)
_DOTS = re.compile(
    r"(?P<s>[+-]?)(?P<i>\d*)\.(?P<d>\d{2,40})\s*(?:\.\.\.|\\ldots|\\dots|\\cdots|…)\Z"
)
_FRAC = re.compile(
    r"(?P<s>[+-]?)\s*(?P<w>\d+)?\s*(?:\\frac\s*(?:\{\s*(?P<a>[+-]?[\d.]+)\s*\}"
    r"|(?P<a1>\d))\s*(?:\{\s*(?P<b>[+-]?[\d.]+)\s*\}|(?P<b1>\d)))\Z"
)
_SLASH = re.compile(
    r"\(?(?P<s>[+-]?)\s*(?:(?P<w>\d+)(?:\s+|\s*-\s*"
    r"|\s+and\s+))?(?P<a>[\d.]+)\)?\s*/\s*\(?(?P<b>[+-]?[\d.]+)\)?\Z"
)
_UNIT_TAIL = re.compile(
    r"(?P<n>.*?[\d)}\]])(?P<gap>(?:\s|~|\\[ ,;!])*)(?:\\(?:text|mathrm|mbox|textrm|rm"
    r"|operatorname)\s*\{[\s~]*(?P<t>[^{}]*)\}(?P<te>\s*\^\s*\{?\s*-?[23]\s*\}?)?"
    r"|(?P<w>[^\W\d_](?:[^\d{}\\()\[\],;=+*<>^]|\^\s*\{?-?[23]\}?)*)|(?P<d>\^?\s*\{?\s*(?:°|\\circ"
    r"|\\degree)\s*\}?\s*(?:\\?(?:text|mathrm)?\s*\{?[CF]\}?)?))\.?\s*\Z",
    re.S,
)
# 17\,m\,s^{-1}, 9.8 \mathrm{kg\cdot m^2/s^2}: units multiplied or raised to a power.
_UNIT_PRODUCT = re.compile(
    r"(?P<n>[-+]?[\d.,]*\d(?:\s*(?:\*|\\times|\\cdot)\s*10\s*\^\s*\{?\s*[-+]?\d+\s*\}?)?)"
    r"(?:(?:\s|~|\\[ ,;:!])+|(?=\\(?:mathrm|text|textrm|rm|mbox)\b))(?P<u>\\?[A-Za-zμΩ].*)\Z",
    re.S,
)
_UNIT_FRACTION = re.compile(r"\\d?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_UNIT_STYLE = re.compile(r"\\(?:mathrm|text|textrm|rm|mbox|operatorname)(?![a-zA-Z])\s*|[{}]")
_UNIT_TIMES = re.compile(r"\\(?:cdot|times)(?![a-zA-Z])|\\[,;:! ]|[~*]")
_CURRENCY = re.compile(
    r"(?P<s>[+-]?)\s*(?P<c>\\\$|\$|€|£|¥|¢|₹|₩|\\pounds|\\euro|(?:Rs|USD|US\$|EUR"
    r"|GBP)\.?(?=\s*\d))\s*(?P<n>[-+.\d].*)\Z",
    re.S,
)
_CURRENCY_TAIL = re.compile(r"(?P<n>.*\d)\s*(?P<c>\\\$|\$|€|£|¥|¢|₹|₩)\Z", re.S)
_NAMES = {"\\$": "$", "us$": "$", "\\pounds": "£", "\\euro": "€"}
_ABOUT = re.compile(
    r"(?:\\approx|\\simeq|\\sim|≈|≃|~|about|approximately(?: equal to)?|approx\.|roughly|around"
    r"|circa"
    r"|ca\.|etwa|ungefähr|rund|environ|à peu près|aproximadamente|примерно|около|приблизительно"
    r"|大约|大約|约为|约|約|およそ|약)\s*(?=[-+.$\\\d])",
    re.I,
)
_WORDS_IN_TEXT = re.compile(r"\\text(?:bf|it|rm)?\s*\{([a-zA-Z -]+)\}")  # \\text{six apples}
# 26 (twenty-six)
_RESTATED = re.compile(r"([^()]*[^()\s])\s+\(\s*([^()]+?)\s*\)")
_PERCENT = (
    *("\\%", "%", "％", " percent", " per cent", "\\text{percent}", "\\text{ percent}", "percent"),
    *(
        " pct",
        " pct.",
        " Prozent",
        " pour cent",
        " por ciento",
        "パーセント",
        " percents",
        " percentage",
    ),
)
_CLASSIFIERS = "个個只隻本人次名位条張张支台件块种頭头匹枚명개"


def parse_number(text: str) -> Number | None:
    """Parse a text that is one plain number; None for anything else. Bounded work; never raises."""
    if _INT.match(text) and len(text) <= MAX_NUMBER:
        return Number(Fraction(int(text)))
    return None if len(text) > MAX_NUMBER else _read(text)


# These commands occur neither in numbers nor in units.
_FORMULA = re.compile(r"\\(?:sqrt|pi|sin|cos|tan|ln|log|infty|left|cup)(?![a-zA-Z])")


@lru_cache(maxsize=8192)
def _read(text: str) -> Number | None:
    """Parse a short text that is one number; None for anything else."""
    if _FORMULA.search(text):
        return None
    try:
        return _parse(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _parse(text: str) -> Number | None:
    text = plain(text)
    if whole := _WORDS_IN_TEXT.fullmatch(text):
        text = whole[1].strip()
    for pattern, replacement in _LATEX[1:]:
        text = pattern.sub(replacement, text)
    text = text.strip()
    while len(text) > 1 and (
        text[0] == text[-1] == "$" or (text[:2], text[-2:]) in (("\\(", "\\)"), ("\\[", "\\]"))
    ):
        text = text.strip("$").strip() if text[0] == "$" else text[2:-2].strip()
    text = _braces(text)
    if text.endswith(")") and (restated := _RESTATED.fullmatch(text)):
        first, second = _read(restated[1]), _read(restated[2])
        if first and not second and not first.unit and unit_named(restated[2]):
            return _read(f"{restated[1]} {restated[2]}")  # 26 (dollars)
        return first if first and second and first.value == second.value else None
    if about := _ABOUT.match(text):
        text = text[about.end() :]
    percent = text.endswith(_PERCENT)
    if percent:
        sign = next(sign for sign in _PERCENT if text.endswith(sign))
        text = text[: -len(sign)].rstrip()
    if text.startswith("百分之"):
        text, percent = text[3:], True
    unit = ""
    if money := _CURRENCY.match(text) or _CURRENCY_TAIL.match(text):
        name = money["c"].lower().rstrip(".")
        unit = _NAMES.get(name, name)
        text = (money["s"] if "s" in money.groupdict() else "") + money["n"].strip()
    value = _bare(text)
    if value is None and not percent:
        read = _with_unit(text)
        if read is None:
            return None if unit else _compound(text)
        value = read
        unit = unit or read.unit
    if value is None:
        return None
    return Number(value.value, percent, unit, value.decimals, value.significant)


def _with_unit(text: str) -> Number | None:
    """Read a number followed by a scale or a unit: 2 million dollars, 5 cm^2, 45°, 五个."""
    if large := scaled(text):
        before, times, rest = large
        value, unit = _bare(before), unit_named(rest)
        if value is None or unit is None:
            return None
        whole = times.denominator == 1 and times % 10 == 0
        places = len(str(times)) - 1
        decimals = value.decimals - places if value.decimals is not None and whole else None
        return Number(
            value.value * times, unit=unit, decimals=decimals, significant=value.significant
        )
    if (han := HAN_NUMERAL.match(text)) and (
        unit_after := counted(text[han.end() :].strip())
    ) is not None:
        value = _bare(han.group())
        return None if value is None else replace(value, unit=unit_after)
    tail = _UNIT_TAIL.match(text)
    value = _bare(tail["n"].strip()) if tail else None
    if tail is None or value is None:
        return _with_unit_product(text)
    bare = tail["w"] or ""
    if bare.isascii() and 0 < len(bare) <= 3 and not is_unit_after_number(bare, tail["gap"]):
        return None  # 2ab, 5m, 3 x: a product; left to the parser of expressions
    if tail["d"]:
        letter = re.search(r"[CF]", tail["d"])
        return replace(value, unit=f"°{letter.group().lower()}" if letter else "°")
    name = (tail["t"] or bare) + (tail["te"] or "")
    if len(name) == 1 and measure(name) is None and name not in _CLASSIFIERS:
        return None  # 3\mathrm{i}
    unit_ = unit_named(name, value.value == 1)
    return None if unit_ is None else replace(value, unit=unit_)


def _with_unit_product(text: str) -> Number | None:
    """Read a number followed by a product of known units: 17 m s^{-1}."""
    match = _UNIT_PRODUCT.match(text)
    if match is None:
        return None
    written = _UNIT_FRACTION.sub(r"\1/\2", match["u"])
    unit = " ".join(_UNIT_TIMES.sub(" ", _UNIT_STYLE.sub("", written)).split())
    if measure(unit) is None:
        return None
    value = _bare(match["n"])
    return None if value is None else replace(value, unit=unit)


_FEET = re.compile(r"(\d+)\s*(?:'|\^\{?\\prime\}?|ft|feet)\s*(\d+)\s*(?:\"|''|in|inches)\Z")
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([^\W\d_]+)\s*(?:,|and)?\s*")


def _compound(text: str) -> Number | None:
    """Read amounts in one dimension, 2 hours 30 minutes or 5'6", in the unit of the first."""
    if feet := _FEET.match(text):
        return Number(Fraction(feet[1]) + Fraction(feet[2]) / 12, unit="feet")
    parts: list[tuple[Fraction, str]] = []
    at = 0
    while match := _PART.match(text, at):
        if measure(match[2]) is None:
            return None
        parts.append((Fraction(match[1]), match[2]))
        at = match.end()
    if len(parts) < 2 or at < len(text):
        return None
    total, first = Fraction(0), parts[0][1]
    for amount, unit in parts:
        times = unit_factors(first, unit)
        if times is None:
            return None
        total += amount * times[1] / times[0]
    return Number(total, unit=first)


def _braces(text: str) -> str:
    while text.startswith("{") and text.endswith("}") and text.count("{") == 1:
        text = text[1:-1].strip()
    return text


def _bare(text: str) -> Number | None:
    """Read a number with nothing around it."""
    if not text:
        return None
    if text[0] == "(" and text[-1] == ")" and text.count("(") == 1:
        text = text[1:-1].strip()
    if text and text[0] in "+-" and len(text) > 1 and text[1] == " ":
        text = text[0] + text[1:].lstrip()
    if not text:
        return None
    if _INT.match(text):
        return Number(Fraction(int(text)))
    if not _DECIMAL.match(text):
        text = _THOUSANDS.sub(lambda m: m.group(1) + _SEPARATOR.sub("", m.group(2)), text)
    if _INT.match(text):
        return Number(Fraction(int(text)))
    if _DECIMAL.match(text):
        return _decimal(text)
    if match := _EUROPEAN.match(text):
        return _decimal(match.group(1).replace(".", "") + "." + match.group(2))
    if match := _SLASH.match(text):
        return _quotient(match["s"], match["w"], match["a"], match["b"])
    if match := _FRAC.match(text):
        return _quotient(
            match["s"], match["w"], match["a"] or match["a1"], match["b"] or match["b1"]
        )
    if match := _SCIENTIFIC.match(text):
        exponent = int(match["e"] or match["b"] or match["c"] or match["p"])
        base = _decimal(match["m"])
        if base is None or abs(exponent) > MAX_EXPONENT:
            return None
        return Number(
            base.value * Fraction(10) ** exponent,
            decimals=(base.decimals or 0) - exponent,
            significant=base.significant,
        )
    if match := _TEN.match(text):
        exponent = int(match["b"] or match["c"])
        return (
            None
            if abs(exponent) > MAX_EXPONENT
            else Number(Fraction(10) ** exponent * (-1 if match["s"] == "-" else 1))
        )
    return _repeating(text) or _from_words(chinese(text) or english(text))


def _decimal(text: str) -> Number | None:
    if text.count(".") > 1:
        return None
    whole, _, digits = text.lstrip("+-").partition(".")
    value = Fraction(text if digits or not text.endswith(".") else text[:-1])
    return Number(value, decimals=len(digits), significant=len((whole + digits).lstrip("0")))


def _quotient(sign: str, whole: str | None, over: str, under: str) -> Number | None:
    value = Fraction(over) / Fraction(under)
    if whole is not None:
        if value < 0 or value >= 1:
            return None  # "3 7/2" is not a mixed number
        value += int(whole)
    return Number(-value if sign == "-" else value)


def _repeating(text: str) -> Number | None:
    match = _REPEAT.match(text)
    if match:
        whole, digits = match["i"] or "0", match["d"]
        cycle = (
            match["r"]
            or match["r2"]
            or match["r3"]
            or (match["r4"] + (match["r4m"] or "") + (match["r5"] or ""))
        )
    else:
        match = _DOTS.match(text)
        if not match:
            return None
        whole, written = match["i"] or "0", match["d"]
        for size in range(1, len(written) // 2 + 1):
            cycle = written[-size:]
            # Two repetitions make a cycle if nothing else was written; a single digit in a longer
            # tail needs three.
            times = 3 if size == 1 and written.strip(cycle) else 2
            if len(written) >= size * times and written.endswith(cycle * times):
                digits = written
                while digits.endswith(cycle):
                    digits = digits[:-size]
                break
        else:
            value = Fraction(f"{whole}.{written}")  # 3.14159…: a truncation
            return Number(
                -value if match["s"] == "-" else value,
                decimals=len(written),
                significant=len((whole + written).lstrip("0")),
            )
    value = Fraction(f"{whole}.{digits or 0}") + Fraction(
        int(cycle), (10 ** len(cycle) - 1) * 10 ** len(digits)
    )
    return Number(-value if match["s"] == "-" else value)


def _from_words(word: NumberWords | None) -> Number | None:
    if word is None or word.digits is None:
        return None if word is None else Number(word.value)
    return Number(
        word.value, decimals=len(word.digits), significant=len(str(abs(word.value.numerator)))
    )


def equal_numbers(gold: Number, answer: Number) -> tuple[bool, str]:
    """Return whether two numbers are the same answer, and the reason if they are not."""
    times = unit_factors(gold.unit, answer.unit)
    if times is None:
        return False, f"unit {answer.unit} instead of {gold.unit}"
    g, a = gold.value, answer.value
    if times is not NO_CHANGE:
        g, a = g * times[0], a * times[1]
    if gold.percent == answer.percent:
        return close_values(g, a, gold, answer), ""
    if answer.percent:  # 50% for 0.5, and for 50 where the question asked for percent
        return close_values(g, a / 100, gold, answer) or (
            abs(g) >= 1 and close_values(g, a, gold, answer)
        ), ""
    return close_values(g / 100, a, gold, answer) or close_values(g, a, gold, answer), ""


def close_values(g: Fraction, a: Fraction, gold: Number, answer: Number) -> bool:
    """Whether two scaled values agree: exactly, within `RELATIVE`, or as one rounded or cut off to
    the other.
    """
    if g == a:
        return True
    if gold.decimals is None and answer.decimals is None:
        return False  # both exact
    over, given = g.numerator, a.numerator
    if not over or not given or (over > 0) != (given > 0):
        return False
    if g.denominator == a.denominator == 1 and abs(over) < 10**15:
        return False  # whole numbers of ordinary size must match exactly, however they are written
    # |g - a| <= |g| * RELATIVE, with everything multiplied by both denominators.
    gap = abs(over * a.denominator - given * g.denominator)
    if gap * RELATIVE.denominator <= abs(over) * a.denominator:
        return True
    if max(gold.significant, answer.significant) < SIGNIFICANT:
        return False  # no decimal is long enough to have been rounded
    # The value of one unit in the last place of each decimal; that of the one with fewer decimals
    # counts.
    places = [
        (Fraction(1, 10) ** n.decimals * abs(scaled / n.value), n.significant)
        for n, scaled in ((answer, a), (gold, g))
        if n.decimals is not None
    ]
    unit, significant = max(places)
    return significant >= SIGNIFICANT and abs(g - a) < unit
