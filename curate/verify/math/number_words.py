"""Numbers in words: Chinese numerals, English number words, and scales after digits (2 million,
3.5万).

Values are exact fractions. A decimal in words keeps its number of digits.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple


class NumberWords(NamedTuple):
    """A value; `digits` are the decimals if it was written as a decimal, else None."""

    value: Fraction
    digits: str | None = None


_HAN = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"两": 2, "兩": 2, "〇": 0}
_HAN_UNITS = {"十": 10, "百": 100, "千": 1000}
HAN_NUMERAL = re.compile(r"[负負]?[零〇一二两兩三四五六七八九十百千万亿点]+")


def chinese(text: str) -> NumberWords | None:
    """Read Chinese numerals up to 万亿: 三分之二, 负十二, 一千零五, 三点一四."""
    if not text or text.isascii():
        return None
    sign = -1 if text[0] in "负負" else 1
    text = text.lstrip("负負")
    if "分之" in text:
        under, _, over = text.partition("分之")
        whole, has, under = under.partition("又") if "又" in under else ("", "", under)
        parts = [_han_integer(part) for part in (under, over)] + [_han_integer(whole) if has else 0]
        if any(part is None for part in parts) or not parts[0]:
            return None
        return NumberWords(sign * (Fraction(parts[1] or 0, parts[0]) + (parts[2] or 0)))
    whole, point, digits = text.partition("点")
    value = _han_integer(whole)
    if value is None or (point and not (digits and all(c in _HAN for c in digits))):
        return None
    if not point:
        return NumberWords(Fraction(sign * value))
    written = "".join(str(_HAN[c]) for c in digits)
    return NumberWords(sign * Fraction(f"{value}.{written}"), written)


def _han_integer(text: str) -> int | None:
    if re.fullmatch(r"[0-9]{1,15}", text):
        return int(text)
    total, section, digit = 0, 0, 0
    if not text or not all(c in _HAN or c in _HAN_UNITS or c in "万亿" for c in text):
        return None
    if len(text) > 1 and all(c in _HAN for c in text):
        return int("".join(str(_HAN[c]) for c in text))
    for char in text:
        if char in _HAN:
            digit = _HAN[char]
        elif not digit and not (char == "十" or (char in "万亿" and section)):
            return None  # 百 and 千米 are words
        elif char in _HAN_UNITS:
            section, digit = section + (digit or (1 if char == "十" else 0)) * _HAN_UNITS[char], 0
        else:
            total, section, digit = (
                (total + section + digit) * (10**4 if char == "万" else 10**8),
                0,
                0,
            )
    return total + section + digit


_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_ENGLISH = {word: i for i, word in enumerate(f"{_UNITS} eighteen nineteen".split())}
_ENGLISH |= {word: 10 * i for i, word in enumerate(_TENS.split(), 2)}
_LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5}
_ALONE = {
    "half": Fraction(1, 2),
    "a half": Fraction(1, 2),
    "a third": Fraction(1, 3),
    "a quarter": Fraction(1, 4),
}
_ALONE |= {"a dozen": Fraction(12)}
_WORD = re.compile(r"[a-z]+")


def english(text: str) -> NumberWords | None:
    """Read number words: twelve, twenty-five, three hundred and two, minus one, two thirds."""
    if not text.isascii() or not text[:1].isalpha() or "\\" in text:
        return None
    words = _WORD.findall(text.lower())
    if not words or "".join(words) != re.sub(r"[\s-]", "", text.lower()):
        return None
    sign = -1 if words[0] in ("minus", "negative") else 1
    words = words[1:] if sign < 0 else words
    if " ".join(words) in _ALONE:
        return NumberWords(sign * _ALONE[" ".join(words)])
    total, section = 0, 0
    for i, word in enumerate(words):
        if word in _ENGLISH:
            tens = section % 100
            if tens and not (tens >= 20 and tens % 10 == 0 and _ENGLISH[word] < 10):
                return None  # "one two" and "ten five" are not numbers
            section += _ENGLISH[word]
        elif word == "hundred":
            section = (section or 1) * 100
        elif word in _LARGE:
            total, section = total + (section or 1) * _LARGE[word], 0
        elif word.removesuffix("s") in _PARTS and i == len(words) - 1 and i:
            return NumberWords(Fraction(sign * (total + section), _PARTS[word.removesuffix("s")]))
        elif word != "and" or i == 0:
            return None
    return NumberWords(Fraction(sign * (total + section))) if words else None


_ORDINALS = "third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
_SCALES: dict[str, Fraction] = {
    **{name: Fraction(times) for name, times in _LARGE.items()},
    **{
        "hundred": Fraction(100),
        "dozen": Fraction(12),
        "lakh": Fraction(10**5),
        "crore": Fraction(10**7),
    },
    **{"百": Fraction(100), "千": Fraction(1000), "万": Fraction(10**4), "萬": Fraction(10**4)},
    **{"亿": Fraction(10**8), "億": Fraction(10**8)},
    **{name: Fraction(1, under) for under, name in enumerate(_ORDINALS, 3)},
    **{"half": Fraction(1, 2), "halve": Fraction(1, 2), "quarter": Fraction(1, 4)},
    **{
        "hundredth": Fraction(1, 100),
        "thousandth": Fraction(1, 1000),
        "millionth": Fraction(1, 10**6),
    },
}
_NAMES = "|".join(sorted((name for name in _SCALES if name.isascii()), key=len, reverse=True))
_SCALED = re.compile(
    r"(?P<n>.*?[\d}])\s*(?:\\(?:text|mathrm)\s*\{\s*)?"
    rf"(?P<w>(?:{_NAMES})s?(?![^\W\d_])|[百千万萬亿億](?![米克瓦]))\s*(?P<rest>.*)\Z",
    re.S | re.I,
)


def scaled(text: str) -> tuple[str, Fraction, str] | None:
    """Return the number before a scale, the scale, and what follows: 2 million dollars -> ("2",
    1000000, "dollars").
    """
    match = _SCALED.match(text)
    if match is None:
        return None
    rest = match["rest"].strip()
    if "\\" in text[match.end("n") : match.start("w")]:
        rest = rest.replace("}", "", 1).strip()
    name = match["w"].lower()
    return match["n"].strip(), _SCALES.get(name) or _SCALES[name.removesuffix("s")], rest
