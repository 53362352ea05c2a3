"""Units: what stands beside a number, as powers of dimensions and an exact factor.

A known unit converts (5 km/h, 12 square feet, $5). Any other noun only says what is counted (7 apples). Words that say
more than that (a negation, a comparison, a second answer) are no unit: then the text is no number.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

Measure = tuple[
    tuple[tuple[str, int], ...], Fraction
]  # ((dimension, power), …) and the factor to its base unit

# Dimension (or powers of several), factor, names.
_TABLE = """
length 1 m meter meters metre metres 米
length 1/100 cm centimeter centimeters centimetre centimetres 厘米 公分
length 1/1000 mm millimeter millimeters millimetre millimetres 毫米
length 1000 km kilometer kilometers kilometre kilometres 千米 公里
length 127/5000 in inch inches
length 381/1250 ft foot feet
length 1143/1250 yd yard yards
length 201168/125 mi mile miles
length:2 10000 ha hectare hectares 公顷
length:3 1/1000 L l liter liters litre litres 升
length:3 1/1000000 mL ml milliliter milliliters 毫升
mass 1 g gram grams 克
mass 1000 kg kilogram kilograms 千克 公斤
mass 1/1000 mg milligram milligrams 毫克
mass 1000000 tonne tonnes 吨
mass 45359237/100000 lb lbs pound pounds
mass 45359237/1600000 oz ounce ounces
time 1 s sec secs second seconds 秒 秒钟
time 60 min mins minute minutes 分钟
time 3600 h hr hrs hour hours 小时
time 86400 day days 天
time 604800 week weeks 周
year 1 year years yr yrs 年 岁
year 1/12 month months 个月
length:1,time:-1 1397/3125 mph
length:1,time:-1 5/18 kmh kph 千米/时
length:1,time:-1 1 mps
mass:1,length:1,time:-2 1000 N newton newtons
mass:1,length:2,time:-2 1000 J joule joules
mass:1,length:2,time:-2 3600000 Wh
mass:1,length:2,time:-3 1000 W watt watts
mass:1,length:-1,time:-2 1000 Pa pascal pascals
electronvolt 1 eV
amount 1 mol mole moles
temperature 1 K kelvin kelvins
time:-1 1 Hz hz hertz
voltage 1 V volt volts
current 1 A amp amps ampere amperes
resistance 1 Ω ohm ohms
dollar 1 $ dollar dollars usd 美元
dollar 1/100 ¢ cent cents
euro 1 € euro euros eur 欧元
sterling 1 £ gbp
yuan 1 元 yuan rmb cny 人民币
yen 1 円 yen jpy 日元 圆
¥ 1 ¥
rupee 1 ₹ rs rupee rupees inr
won 1 ₩ won 원
angle 1 ° degree degrees deg 度
radian 1 rad radian radians 弧度
celsius 1 °c ℃
fahrenheit 1 °f ℉
"""


_PREFIXES = {
    "G": Fraction(10**9),
    "M": Fraction(10**6),
    "k": Fraction(10**3),
    "m": Fraction(1, 10**3),
}
_PREFIXES |= {"μ": Fraction(1, 10**6), "n": Fraction(1, 10**9)}


def _read_table() -> dict[str, Measure]:
    found: dict[str, Measure] = {}
    for line in _TABLE.split("\n"):
        if not line:
            continue
        dimensions, factor, *names = line.split()
        powers = sorted(
            (one.partition(":")[0], int(one.partition(":")[2] or 1))
            for one in dimensions.split(",")
        )
        found.update(dict.fromkeys(names, (tuple(powers), Fraction(factor))))
    for name in ("N", "J", "Wh", "W", "Pa", "Hz", "V", "A", "Ω", "eV", "mol"):
        dimensions_, factor_ = found[name]
        found.update(
            {prefix + name: (dimensions_, factor_ * times) for prefix, times in _PREFIXES.items()}
        )
    return found


_UNITS = _read_table()
_SQUARED = re.compile(r"(?:square|sq\.?)\s+([^\W\d_]+)|([^\W\d_]+)\s+squared|平方([^\W\d_]+)")
_CUBED = re.compile(r"(?:cubic|cu\.?)\s+([^\W\d_]+)|([^\W\d_]+)\s+cubed|立方([^\W\d_]+)")
_POWER = re.compile(r"\s*\^\s*\{?\s*(-?\d)\s*\}?")
_PIECE = re.compile(r"\s*(?:(/)|\*?\s*([^\s/*^]+)(?:\^(-?\d))?)")

# A noun phrase is up to so many words. Ours.
MAX_WORDS = 4
# Words that no counted thing has beside it: what follows one of them says something about the number.
_NO_NOUN = frozenset(
    "is are was were be isn't aren't not no non nor or but and either neither maybe perhaps possibly probably wrong incorrect "
    "impossible false right correct true minus plus times divided over more less fewer greater smaller than if when where "
    "unless mod modulo to through until between least most only squared cubed percent half hundred hundreds thousand thousands "
    "million millions billion billions trillion trillions dozen dozens hence so then because since wait actually rather instead "
    "ist nicht oder und kein keine mal est pas ou et ne n'est y o es ni è e и или не нет это dan atau bukan".split()
)
# 5 feet tall is 5 feet.
_DIMENSION_WORDS = frozenset(
    "tall long wide high deep thick old each away apart altogether total left remaining".split()
)
_NO_HAN = re.compile(r"[不非或没无未是否和与错对倍百千万亿]")
_SHORT = frozenset(
    "ant ants bag bags bar bat bed bee bees bird book box boy boys bus cab can cap car cars cat cats cow cows cup cups dog dogs "
    "egg eggs fox hat hats hen hens jar job jug key keys kid kids log man men mug nut nuts pan pea pen pens pie pies pig pigs pot "
    "rat row rows set sets toy toys way ways win wins sq".split()
)
_CLASSIFIER = frozenset(
    "个個只隻本人次名位条條张張支辆輛棵台件块塊种種頭头匹架朵片颗粒页頁票班组組套対つ枚冊명개"
)
_POLITE = re.compile(r"\s*(?:です|である|だ|となります|になります|입니다|이다|이에요|예요)$")


@lru_cache(maxsize=4096)
def measure(unit: str) -> Measure | None:
    """The powers of dimensions and the factor of a unit: km/h, m/s^2, square feet; None where it is not known."""
    text = re.sub(r"\bper\b|每", "/", unit)
    text = _SQUARED.sub(lambda m: f"{next(filter(None, m.groups()))}^2", text)
    text = _CUBED.sub(lambda m: f"{next(filter(None, m.groups()))}^3", text)
    text = _POWER.sub(r"^\1", text).strip()
    powers: dict[str, int] = {}
    factor, at, sign = Fraction(1), 0, 1
    while at < len(text):
        piece = _PIECE.match(text, at)
        if piece is None:
            return None
        at = piece.end()
        if piece[1]:
            sign = -1
            continue
        known = _UNITS.get(piece[2]) or (
            _UNITS.get(piece[2].lower()) if len(piece[2]) > 1 else None
        )
        if known is None:
            return None
        times = sign * int(piece[3] or 1)
        for dimension, power in known[0]:
            powers[dimension] = powers.get(dimension, 0) + power * times
        factor, sign = factor * known[1] ** times, 1
    return (tuple(sorted((d, p) for d, p in powers.items() if p)), factor) if powers else None


@lru_cache(maxsize=4096)
def unit_named(text: str) -> str | None:
    """A unit or a counted noun, as it is compared; "" for what says nothing (12th); None where it is neither."""
    text = _POLITE.sub("", " ".join(text.split()).strip(". "))
    if text in ("", "st", "nd", "rd", "th"):
        return ""
    if measure(text) is not None:
        return text
    words = _POWER.sub("", text.lower()).replace("/", " ").split()
    while len(words) > 1 and words[-1] in _DIMENSION_WORDS:
        words = words[:-1]
        if measure(" ".join(words)) is not None:
            return " ".join(words)
    if len(words) > MAX_WORDS or _NO_NOUN.intersection(words) or not all(map(_is_word, words)):
        return None
    if any("\u4e00" <= sign <= "\u9fff" for sign in text) and (
        _NO_HAN.search(text) or len(text) > MAX_WORDS
    ):
        return None
    if any("\u3040" <= sign <= "\u30ff" for sign in text) and text not in _CLASSIFIER:
        return None  # Japanese endings turn a meaning around
    return None if re.search(r"아니|아닙|없", text) else text.lower()


def _is_word(word: str) -> bool:
    return re.fullmatch(r"[^\W\d_]+(?:[-'.][^\W\d_]+)*\.?", word) is not None


def is_unit_after_number(word: str, gap: str) -> bool:
    """Whether a short word after a number is a unit and no factor: 5 cm and 3 m, not 3m and not 2ab."""
    if word in ("st", "nd", "rd", "th") or word.lower() in _SHORT:
        return True
    return measure(word) is not None and (len(word) > 1 or bool(gap))


def counted(text: str) -> str | None:
    """The unit after a number in Chinese characters (五个, 三小时): only a known one, or a classifier."""
    return text if text in _CLASSIFIER or measure(text) is not None else None


def unit_factors(gold: str, answer: str) -> tuple[Fraction, Fraction] | None:
    """What to multiply two values with so that they compare; None where the units are not of one kind."""
    if not gold or not answer or gold == answer:
        return Fraction(1), Fraction(1)
    first, second = measure(gold), measure(answer)
    if first is None or second is None:
        # Two nouns say nothing about the value; a noun beside a real unit is another thing.
        return (Fraction(1), Fraction(1)) if first is None and second is None else None
    if first[0] == second[0]:
        return first[1], second[1]
    dimensions = {first[0], second[0]}
    if (("¥", 1),) in dimensions and dimensions & {(("yuan", 1),), (("yen", 1),)}:
        return Fraction(1), Fraction(1)  # one sign for two currencies
    return None
