"""Plain numbers, exactly: text to a `Fraction`, with what was written beside it (percent, unit, decimals).

Reads integers, decimals, fractions, mixed numbers, percent, thousands separators, scientific notation, repeating decimals,
full-width digits, Chinese numerals, units, currency and degrees. It knows no variables and never evaluates a power
beyond `10^k`, so its work is bounded by the length of the text.
"""
# ruff: noqa: E501 (tables and patterns: one thing, one line)

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

# Longer is no plain number. Characters; ours.
MAX_NUMBER = 120
MAX_EXPONENT = 400

# Numbers that are not equal agree within this relative error (the noise of floating point), or where a decimal with at
# least so many significant digits is the other number rounded or cut off. Ours; see docs/verify.md.
RELATIVE = Fraction(1, 10**9)
SIGNIFICANT = 6


@dataclass(frozen=True, slots=True)
class Number:
    """An exact value and how it was written. `value` has percent not applied; `unit` is a canonical name or ''."""

    value: Fraction
    percent: bool = False
    unit: str = ""
    decimals: int | None = None  # digits after the point where it was written as a decimal, else None
    significant: int = 0  # significant digits of a decimal


# name -> (dimension, factor): values in the same dimension compare after scaling.
_UNITS: dict[str, tuple[str, Fraction]] = {}


def _unit(dimension: str, **factors: str) -> None:
    for factor, names in factors.items():
        value = Fraction(factor.removeprefix("_").replace("_", "/"))
        for name in names.split():
            _UNITS[name] = (dimension, value)


_unit(
    "length",
    _1="m meter meters metre metres 米",
    _1_100="cm centimeter centimeters centimetre centimetres 厘米 公分",
    _1_1000="mm millimeter millimeters millimetre millimetres 毫米",
    _1000="km kilometer kilometers kilometre kilometres 千米 公里",
)
_unit("length-us", _1="in inch inches", _12="ft foot feet", _36="yd yard yards", _63360="mi mile miles")
_unit(
    "mass",
    _1="g gram grams 克",
    _1000="kg kilogram kilograms 千克 公斤",
    _1_1000="mg milligram milligrams",
    _1000000="t tonne tonnes 吨",
)
_unit("mass-us", _1="oz ounce ounces", _16="lb lbs pound pounds")
_unit(
    "time",
    _1="s sec secs second seconds 秒 秒钟",
    _60="min mins minute minutes 分钟",
    _3600="h hr hrs hour hours 小时",
    _86400="day days 天",
    _604800="week weeks 周",
)
_unit("year", _1="year years yr yrs 年 岁", _1_12="month months 个月")
_unit("volume", _1="L l liter liters litre litres 升", _1_1000="mL ml milliliter milliliters 毫升")
_unit("area", _1="m^2 平方米", _1_10000="cm^2 平方厘米", _1_1000000="mm^2", _1000000="km^2 平方千米 平方公里")
_unit("cube", _1="m^3 立方米", _1_1000000="cm^3 立方厘米", _1_1000000000="mm^3")
_unit("speed", _1="m/s mps", _5_18="km/h kmh kph 千米/时")
_unit("speed-us", _1="mph")
_unit("dollar", _1="$ dollar dollars usd 美元", _1_100="¢ cent cents")
_unit("euro", _1="€ euro euros eur 欧元")
_unit("sterling", _1="£ gbp")
_unit("yuan", _1="¥ 元 yuan rmb cny 人民币 圆")
_unit("rupee", _1="₹ rs rupee rupees inr")
_unit("won", _1="₩ won 원")
_unit("angle", _1="° degree degrees deg 度")
_unit("radian", _1="rad radian radians 弧度")
_unit("celsius", _1="°c ℃")
_unit("fahrenheit", _1="°f ℉")
_unit("force", _1="N newton newtons", _1000="kN")
_unit("energy", _1="J joule joules", _1000="kJ")
_unit("power", _1="W watt watts", _1000="kW")
_unit("voltage", _1="V volt volts")
_unit("frequency", _1="Hz hz hertz")

_VULGAR = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5", "⅙": "1/6",
    "⅚": "5/6", "⅐": "1/7", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8", "⅑": "1/9", "⅒": "1/10",
}  # fmt: skip
_SUPER = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SUPER_RUN = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_PLAIN = str.maketrans(
    {"−": "-", "–": "-", "—": "-", "‐": "-", "﹣": "-", "×": "*", "⋅": "*", "·": "*", "⁄": "/", "÷": "/", "∕": "/"}
)
_LATEX = (
    (re.compile(r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|textstyle|,|;|!|:|quad|qquad| )(?![a-zA-Z])"), " "),
    (re.compile(r"\\(?:d|t|c)frac(?![a-zA-Z])"), r"\\frac"),
)
_INT = re.compile(r"[+-]?\d+\Z")
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)\Z")


def plain(text: str) -> str:
    """NFKC without its traps (½ after a digit, superscripts), and one minus, one times sign, one slash."""
    if text.isascii():
        return text
    for sign, fraction in _VULGAR.items():
        if sign in text:
            text = text.replace(sign, f" {fraction} ")
    text = _SUPER_RUN.sub(lambda run: "^{" + run.group().translate(_SUPER) + "}", text)
    return unicodedata.normalize("NFKC", text).translate(_PLAIN)


_THOUSANDS = re.compile(r"(?<![\d.])(\d{1,3})((?:(?:,|\{,\}|\\,|\\!,|,\\!|'|\u00a0|\u202f|[ ])\d{3})+)(?![\d,])")
_SEPARATOR = re.compile(r"\{,\}|\\,|\\!|,|'|\s")
_EUROPEAN = re.compile(r"([+-]?\d{1,3}(?:\.\d{3})+),(\d+)\Z")
_SCIENTIFIC = re.compile(
    r"(?P<m>[+-]?(?:\d+\.?\d*|\.\d+))(?:[eE](?P<e>[+-]?\d+)|\s*(?:\*|\\times|\\cdot|x)\s*10\s*(?:\^|\*\*)\s*(?:\{\s*(?P<b>[+-]?\d+)\s*\}|(?P<c>[+-]?\d+)|\((?P<p>[+-]?\d+)\)))\Z"
)
_TEN = re.compile(r"(?P<s>[+-]?)10\s*(?:\^|\*\*)\s*(?:\{\s*(?P<b>[+-]?\d+)\s*\}|(?P<c>[+-]?\d+))\Z")
_REPEAT = re.compile(
    r"(?P<s>[+-]?)(?P<i>\d*)\.(?P<d>\d*)(?:\\overline\s*\{?\s*(?P<r>\d+)\s*\}?|\\bar\s*\{?\s*(?P<r2>\d+)\s*\}?|\((?P<r3>\d+)\)|\\dot\s*\{?(?P<r4>\d)\}?(?:(?P<r4m>\d*)\\dot\s*\{?(?P<r5>\d)\}?)?)(?:\.\.\.|\\ldots|\\dots)?\Z"
)
_DOTS = re.compile(r"(?P<s>[+-]?)(?P<i>\d*)\.(?P<d>\d{2,40})\s*(?:\.\.\.|\\ldots|\\dots|\\cdots|…)\Z")
_FRAC = re.compile(
    r"(?P<s>[+-]?)\s*(?P<w>\d+)?\s*(?:\\frac\s*(?:\{\s*(?P<a>[+-]?[\d.]+)\s*\}|(?P<a1>\d))\s*(?:\{\s*(?P<b>[+-]?[\d.]+)\s*\}|(?P<b1>\d)))\Z"
)
_SLASH = re.compile(
    r"\(?(?P<s>[+-]?)\s*(?:(?P<w>\d+)(?:\s+|\s*-\s*|\s+and\s+))?(?P<a>[\d.]+)\)?\s*/\s*\(?(?P<b>[+-]?[\d.]+)\)?\Z"
)
_UNIT_TAIL = re.compile(
    r"(?P<n>.*?[\d)}\]])(?P<gap>\s*)(?:\\(?:text|mathrm|mbox|textrm|rm|operatorname)\s*\{\s*(?P<t>[^{}]*)\}(?P<te>\s*\^\s*\{?\s*[23]\s*\}?)?"
    r"|(?P<w>[^\W\d_][^\d{}\\()\[\],;=+*<>]*?(?:\^\s*\{?[23]\}?)?)|(?P<d>\^?\s*\{?\s*(?:°|\\circ|\\degree)\s*\}?\s*(?:\\?(?:text|mathrm)?\s*\{?[CF]\}?)?))\.?\s*\Z",
    re.S,
)
_CURRENCY = re.compile(
    r"(?P<s>[+-]?)\s*(?P<c>\\\$|\$|€|£|¥|₹|₩|\\pounds|\\euro|(?:Rs|USD|US\$|EUR|GBP)\.?(?=\s*\d))\s*(?P<n>[-+.\d].*)\Z",
    re.S,
)
_NAMES = {"\\$": "$", "us$": "$", "\\pounds": "£", "\\euro": "€"}


def parse_number(text: str) -> Number | None:
    """The number a text is, or None where it is something else. Bounded work; never raises."""
    if _INT.match(text) and len(text) <= MAX_NUMBER:
        return Number(Fraction(int(text)))
    if len(text) > MAX_NUMBER:
        return None
    try:
        return _parse(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _parse(text: str) -> Number | None:
    text = plain(text)
    for pattern, replacement in _LATEX[1:]:
        text = pattern.sub(replacement, text)
    text = text.strip()
    while len(text) > 1 and (text[0] == text[-1] == "$" or (text[:2], text[-2:]) in (("\\(", "\\)"), ("\\[", "\\]"))):
        text = text.strip("$").strip() if text[0] == "$" else text[2:-2].strip()
    text = _braces(text)
    percent = False
    for sign in ("\\%", "%", " percent", " per cent", "\\text{percent}", "\\text{ percent}", "percent"):
        if text.endswith(sign):
            text, percent = text[: -len(sign)].rstrip(), True
            break
    if text.startswith("百分之"):
        text, percent = text[3:], True
    text = text.strip("$").strip() if text.endswith("$") else text
    unit = ""
    money = _CURRENCY.match(text)
    if money:
        name = money["c"].lower().rstrip(".")
        unit = _NAMES.get(name, name)
        text = money["s"] + money["n"].strip()
    value = _bare(text)
    if value is None and not percent:
        tail = _UNIT_TAIL.match(text)
        if tail:
            value = _bare(tail["n"].strip())
            bare = tail["w"] or ""
            if bare.isascii() and 0 < len(bare) <= 3 and not _known(bare, tail["gap"]):
                return None  # 2ab, 5m, 3 x: a product; left to the parser of expressions
            word = unit_name(tail["t"] or tail["w"] or ("°" if tail["d"] else ""), tail["te"] or "", tail["d"] or "")
            unit = unit or word
    if value is None:
        return _compound(text)
    return Number(value.value, percent, unit, value.decimals, value.significant)


_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([^\W\d_]+)\s*(?:,|and)?\s*")


def _compound(text: str) -> Number | None:
    """2 hours 30 minutes: amounts in one dimension, in the unit of the first."""
    parts: list[tuple[Fraction, tuple[str, Fraction], str]] = []
    at = 0
    while match := _PART.match(text, at):
        known = _UNITS.get(match[2])
        if known is None or (parts and known[0] != parts[0][1][0]):
            return None
        parts.append((Fraction(match[1]), known, match[2]))
        at = match.end()
    if len(parts) < 2 or at < len(text):
        return None
    return Number(sum(amount * known[1] for amount, known, _ in parts) / parts[0][1][1], unit=parts[0][2])


def _known(word: str, gap: str) -> bool:
    """Whether a short word after a number is a unit: a known one, apart from it where it is one letter."""
    if word in ("st", "nd", "rd", "th"):
        return True
    return (word in _UNITS or word.lower() in _UNITS) and (len(word) > 1 or bool(gap))


def unit_name(word: str, power: str = "", degree: str = "") -> str:
    """A unit as the table spells it."""
    if degree:
        letter = re.search(r"[CF]", degree)
        return f"°{letter.group().lower()}" if letter else "°"
    word = " ".join(word.split()).strip(". ")
    if word in ("st", "nd", "rd", "th"):
        return ""
    squared = re.match(r"(?:square|sq\.?) (.+)", word) or re.match(r"(.+?) ?squared", word)
    cubed = re.match(r"(?:cubic|cu\.?) (.+)", word) or re.match(r"(.+?) ?cubed", word)
    digit = re.search(r"[23]", power) or re.search(r"\^\s*\{?([23])", word)
    stem = re.sub(r"\s*\^\s*\{?[23]\}?", "", word)
    if squared or cubed or digit:
        name = (squared or cubed).group(1) if (squared or cubed) else stem  # type: ignore[union-attr]
        short = {
            "meter": "m",
            "metre": "m",
            "centimeter": "cm",
            "centimetre": "cm",
            "kilometer": "km",
            "inche": "in",
            "feet": "ft",
            "foot": "ft",
        }
        name = short.get(name.removesuffix("s"), name)
        return f"{name}^{'2' if squared or (digit and digit.group()[-1] == '2') else '3'}"
    return word if word in _UNITS or word.lower() not in _UNITS else word.lower()


def _braces(text: str) -> str:
    while text.startswith("{") and text.endswith("}") and text.count("{") == 1:
        text = text[1:-1].strip()
    return text


def _bare(text: str) -> Number | None:
    """A number with nothing around it."""
    if not text:
        return None
    if text[0] == "(" and text[-1] == ")" and text.count("(") == 1:
        text = text[1:-1].strip()
    if text[0] in "+-" and len(text) > 1 and text[1] == " ":
        text = text[0] + text[1:].lstrip()
    if not text:
        return None
    if _INT.match(text):
        return Number(Fraction(int(text)))
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
        return _quotient(match["s"], match["w"], match["a"] or match["a1"], match["b"] or match["b1"])
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
    return _repeating(text) or _chinese(text) or _english(text)


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
            return None  # "3 7/2" is no mixed number
        value += int(whole)
    return Number(-value if sign == "-" else value)


def _repeating(text: str) -> Number | None:
    match = _REPEAT.match(text)
    if match:
        whole, digits = match["i"] or "0", match["d"]
        cycle = match["r"] or match["r2"] or match["r3"] or (match["r4"] + (match["r4m"] or "") + (match["r5"] or ""))
    else:
        match = _DOTS.match(text)
        if not match:
            return None
        whole, written = match["i"] or "0", match["d"]
        for size in range(1, len(written) // 2 + 1):
            cycle = written[-size:]
            times = 2 if size > 1 else 3
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
    value = Fraction(f"{whole}.{digits or 0}") + Fraction(int(cycle), (10 ** len(cycle) - 1) * 10 ** len(digits))
    return Number(-value if match["s"] == "-" else value)


_HAN = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"两": 2, "兩": 2, "〇": 0}
_HAN_UNITS = {"十": 10, "百": 100, "千": 1000}


def _chinese(text: str) -> Number | None:
    """Chinese numerals up to 万亿: 三分之二, 负十二, 一千零五, 三点一四."""
    if text.isascii():
        return None
    sign = -1 if text[0] in "负負" else 1
    text = text.lstrip("负負")
    if "分之" in text:
        under, _, over = text.partition("分之")
        whole, has, under = under.partition("又") if "又" in under else ("", "", under)
        parts = [_han_integer(part) for part in (under, over)] + [_han_integer(whole) if has else 0]
        if any(part is None for part in parts) or not parts[0]:
            return None
        return Number(sign * (Fraction(parts[1] or 0, parts[0]) + (parts[2] or 0)))
    whole, point, digits = text.partition("点")
    value = _han_integer(whole)
    if value is None or (point and not all(c in _HAN for c in digits)):
        return None
    if not point:
        return Number(Fraction(sign * value))
    written = "".join(str(_HAN[c]) for c in digits)
    return Number(
        sign * Fraction(f"{value}.{written or 0}"),
        decimals=len(written),
        significant=len(f"{value}{written}".lstrip("0")),
    )


def _han_integer(text: str) -> int | None:
    if re.fullmatch(r"\d{1,15}", text):
        return int(text)
    total, section, digit = 0, 0, 0
    if not text or not all(c in _HAN or c in _HAN_UNITS or c in "万亿" for c in text):
        return None
    if len(text) > 1 and all(c in _HAN for c in text):
        return int("".join(str(_HAN[c]) for c in text))
    for char in text:
        if char in _HAN:
            digit = _HAN[char]
        elif char in _HAN_UNITS:
            section, digit = section + (digit or (1 if char == "十" else 0)) * _HAN_UNITS[char], 0
        else:
            total, section, digit = (total + section + digit) * (10**4 if char == "万" else 10**8), 0, 0
    return total + section + digit


_ENGLISH = {
    word: i
    for i, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
        ]
    )
} | {
    word: 10 * i
    for i, word in enumerate(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], 2)
}
_WORD = re.compile(r"[a-z]+")


def _english(text: str) -> Number | None:
    """Number words: twelve, twenty-five, three hundred and two, minus one, one half, two thirds."""
    if not text.isascii() or not text[0].isalpha() or "\\" in text:
        return None
    words = _WORD.findall(text.lower())
    if not words or "".join(words) != re.sub(r"[\s-]", "", text.lower()):
        return None
    sign = -1 if words[0] in ("minus", "negative") else 1
    words = words[1:] if sign < 0 else words
    total, section = 0, 0
    for i, word in enumerate(words):
        if word in _ENGLISH:
            section += _ENGLISH[word]
        elif word == "hundred":
            section = (section or 1) * 100
        elif word in ("thousand", "million", "billion"):
            total, section = total + (section or 1) * {"t": 10**3, "m": 10**6, "b": 10**9}[word[0]], 0
        elif (
            word.removesuffix("s") in ("half", "halve", "third", "quarter", "fourth", "fifth")
            and i == len(words) - 1
            and i
        ):
            under = {"hal": 2, "thi": 3, "qua": 4, "fou": 4, "fif": 5}[word[:3]]
            return Number(sign * Fraction(total + section, under))
        elif word != "and" or i == 0:
            return None
    return Number(Fraction(sign * (total + section))) if words else None


def equal(gold: Number, answer: Number) -> tuple[bool, str]:
    """Whether two numbers are the same answer, and why not."""
    scaled = _same_unit(gold, answer)
    if scaled is None:
        return False, f"unit {answer.unit} instead of {gold.unit}"
    g, a = scaled
    if gold.percent == answer.percent:
        return close(g, a, gold, answer), ""
    if answer.percent:  # 50% for 0.5, and for 50 where the question asked for percent
        return close(g, a / 100, gold, answer) or (abs(g) >= 1 and close(g, a, gold, answer)), ""
    return close(g / 100, a, gold, answer) or close(g, a, gold, answer), ""


def _same_unit(gold: Number, answer: Number) -> tuple[Fraction, Fraction] | None:
    g, a = gold.value, answer.value
    if not gold.unit or not answer.unit or gold.unit == answer.unit:
        return g, a
    first, second = _UNITS.get(gold.unit), _UNITS.get(answer.unit)
    if first is None or second is None:
        # A counted noun beside a real unit, or two nouns: the noun says nothing about the value.
        return (g, a) if first is None and second is None else None
    return (g * first[1], a * second[1]) if first[0] == second[0] else None


def close(g: Fraction, a: Fraction, gold: Number, answer: Number) -> bool:
    if g == a:
        return True
    if gold.decimals is None and answer.decimals is None:
        return False  # both exact
    if not g or not a or (g > 0) != (a > 0):
        return False
    if g.denominator == a.denominator == 1 and abs(g) < 10**15:
        return False  # whole numbers of ordinary size are meant exactly, however they are written
    difference = abs(g - a)
    if difference <= abs(g) * RELATIVE:
        return True
    # The value of one unit in the last place of each decimal; that of the one with fewer decimals counts.
    places = [
        (Fraction(1, 10) ** n.decimals * abs(scaled / n.value), n.significant)
        for n, scaled in ((answer, a), (gold, g))
        if n.decimals is not None
    ]
    unit, significant = max(places)
    return significant >= SIGNIFICANT and difference < unit
