"""Units next to a number, as powers of dimensions and an exact factor.

A known unit converts (5 km/h, 12 square feet, $5). Any other noun names counted things (7
apples). Words with more meaning (a negation, a comparison, a second answer) are not a unit: then
the text is not a number.
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
time 1 sekunde sekunden seconde secondes segundo segundos секунд секунды
time 60 min mins minute minutes 分钟 minuten minuto minutos минут минуты 분
time 3600 h hr hrs hour hours 小时 stunde stunden heure heures hora horas час часа часов 時間 시간
time 86400 day days 天 tag tage tagen jour jours día días дней дня день 日間 일
time 604800 week weeks 周 woche wochen semaine semaines semana semanas недель недели 週間
year 1 year years yr yrs 年 岁 jahr jahre années año años лет года
length 1 mètre mètres metro metros метр метра метров м
length 1/100 zentimeter centimètre centimètres centímetro centímetros см
length 1000 kilomètre kilomètres kilómetro kilómetros км
mass 1 gramm gramme grammes gramo gramos
mass 1000 kilogramm kilogramme kilogrammes kilogramo kilogramos кг
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
    table: dict[str, Measure] = {}
    for line in _TABLE.split("\n"):
        if not line:
            continue
        dimensions, factor, *names = line.split()
        powers = sorted(
            (one.partition(":")[0], int(one.partition(":")[2] or 1))
            for one in dimensions.split(",")
        )
        table.update(dict.fromkeys(names, (tuple(powers), Fraction(factor))))
    for name in ("N", "J", "Wh", "W", "Pa", "Hz", "V", "A", "Ω", "eV", "mol"):
        dimensions_, factor_ = table[name]
        table.update(
            {prefix + name: (dimensions_, factor_ * times) for prefix, times in _PREFIXES.items()}
        )
    return table


_UNITS = _read_table()
_SQUARED = re.compile(r"(?:square|sq\.?)\s+([^\W\d_]+)|([^\W\d_]+)\s+squared|平方([^\W\d_]+)")
_CUBED = re.compile(r"(?:cubic|cu\.?)\s+([^\W\d_]+)|([^\W\d_]+)\s+cubed|立方([^\W\d_]+)")
_POWER = re.compile(r"\s*\^\s*\{?\s*(-?\d)\s*\}?")
_PIECE = re.compile(r"\s*(?:(/)|\*?\s*([^\s/*^]+)(?:\^(-?\d))?)")

# Longest noun phrase, in words. Ours.
MAX_WORDS = 5
# Words that do not name a counted thing: they change the number.
_NO_NOUN = frozenset(
    "among amongst alongside also too tens "
    "is are was were be isn't aren't not no non nor or but and either neither maybe perhaps "
    "possibly probably wrong "
    "incorrect impossible false right correct true minus plus times divided over more less fewer "
    "greater smaller than if "
    "when where unless mod modulo to through until between least most only squared cubed percent "
    "percents percentage half "
    "hundred hundreds thousand thousands million millions billion billions trillion trillions "
    "dozen dozens hence so then "
    "because since wait actually rather instead fold double doubled triple tripled halved "
    "factorial factorials reciprocal "
    "reciprocals inverse inverses negative negatives opposite below above under beyond excluded "
    "excluding including never "
    "always sometimes besides across towards versus vs this thus its us as has does yes minus "
    "plus lakh lakhs crore crores "
    "infinity infinities zero power powers exponent root-of cube-root square-root base bases "
    "digit-sum nan none null "
    "ist nicht oder und kein keine mal est pas ou et ne n'est y o es ni è e и или не нет это dan "
    "atau bukan "
    # Verbs that end like plurals: "7 fails".
    "follows equals satisfies gives fails exists appears suffices divides means yields makes seems "
    "becomes contradicts remains happens occurs says holds differs".split()
)
# Names of symbols and functions: "2 log n" and "5 alpha" are products.
_MATHEMATICS = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho "
    "sigma tau upsilon phi chi psi "
    "omega sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan log ln lg exp sqrt cbrt "
    "max min gcd lcm mod det "
    "inf infty sins logs".split()
)
_FRACTION_WORD = re.compile(
    r"(?:hal(?:f|ves)|thirds?|quarters?|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|hundred"
    r"|thousand|million|billion"
    r"|twentie|thirtie|fortie|fiftie)ths?)$"
)
# Anywhere in a text: "0 halves", "two thirds".
FRACTION_WORDS = re.compile(rf"(?i)\b{_FRACTION_WORD.pattern[:-1]}\b")
# Plurals that do not end in s, and counted things in languages whose plurals do not.
_IRREGULAR = frozenset(
    "people men women children feet teeth mice geese sheep fish deer oxen dice data persons-of "
    "firemen policemen fishermen "
    "ways wins sq series species cattle staff dollars-per unit units "
    "äpfel stunden minuten sekunden tage wochen monate jahre personen kinder schüler meter "
    "kilometer zentimeter euro bücher "
    "stück punkte seiten möglichkeiten mele ore giorni mesi anni persone libri punti modi metri "
    "рублей рубля яблок яблока часов часа дней дня метров человек книг минут штук раз см км кг м "
    "jabłek godzin dni minut osób".split()
)
# 5 feet tall is 5 feet.
_DIMENSION_WORDS = frozenset(
    "tall long wide high deep thick old each away apart altogether total left remaining in-total "
    "overall".split()
)
_NO_HAN = re.compile(
    r"[不非或没无未是否和与错对倍百千万亿以上下多余内外的方幂约左右几半之负至到折成]"
)
_SHORT = frozenset(
    "ant ants bag bags bar bars bat bats bed beds bee bees bird book box boy boys bus buses cab "
    "cabs can cans cap caps car "
    "cars cat cats cow cows cup cups day days dog dogs egg eggs fox hat hats hen hens jar jars "
    "job jobs jug jugs key keys "
    "kid kids log man mug mugs nut nuts pan pans pea peas pen pens pie pies pig pigs pot pots rat "
    "rats row rows set sets "
    "toy toys way ways win wins".split()
)
_CLASSIFIER = frozenset(
    "个個只隻本人次名位条條张張支辆輛棵台件块塊种種头頭匹架朵片颗粒页頁票班组組套対つ枚冊명개마리권分岁步回場场"
)
_POLITE = re.compile(r"\s*(?:です|である|だ|となります|になります|입니다|이다|이에요|예요)$")


@lru_cache(maxsize=4096)
def measure(unit: str) -> Measure | None:
    """Return the powers of dimensions and the factor of a unit (km/h, m/s^2, square feet); None if
    it is unknown.
    """
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
        entry = _UNITS.get(piece[2]) or (
            _UNITS.get(piece[2].lower()) if len(piece[2]) > 1 else None
        )
        if entry is None:
            return None
        times = sign * int(piece[3] or 1)
        for dimension, power in entry[0]:
            powers[dimension] = powers.get(dimension, 0) + power * times
        factor, sign = factor * entry[1] ** times, 1
    return (tuple(sorted((d, p) for d, p in powers.items() if p)), factor) if powers else None


@lru_cache(maxsize=4096)
def unit_named(text: str, one: bool = False) -> str | None:
    """Return a unit or a counted noun in canonical form; None if the words may change the number.

    "" for words that say nothing (12th). `one`: the number is 1, so a singular noun is a counted
    thing.
    """
    text = _POLITE.sub("", " ".join(text.split()).strip(". "))
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip()
    if text in ("", "st", "nd", "rd", "th"):
        return ""
    if measure(text) is not None:
        return text
    if any("\u4e00" <= sign <= "\u9fff" for sign in text):
        return text if _is_counted_han(text) else None
    words = _POWER.sub("", text.lower()).replace("/", " per ").split()
    words = [word for word in words if word != "in" or words[-1] != "total"]
    while len(words) > 1 and words[-1] in _DIMENSION_WORDS:
        words = words[:-1]
        if measure(" ".join(words)) is not None:
            return " ".join(words)
    if words in (["of", "them"], ["times"]):
        return text.lower()
    if not words or len(words) > MAX_WORDS or not all(map(_is_word, words)):
        return None
    if any(len(word) == 1 and word != "a" and word not in _CLASSIFIER for word in words):
        return None  # 7 K people, 6 π cm
    if _NO_NOUN.intersection(words) or _MATHEMATICS.intersection(words):
        return None
    return text.lower() if _is_counted(words, one) else None


def _is_counted(words: list[str], one: bool) -> bool:
    """Whether the head of a noun phrase is a plural or a unit: "red balls", "cups of flour",
    "dollars per day".
    """
    head = words[-1]
    for i, word in enumerate(words):
        if i and word in ("of", "per", "a", "an", "in", "from", "for", "on"):
            head = words[i - 1]
            break
    if _FRACTION_WORD.match(head):
        return False
    if head in _IRREGULAR or head in _CLASSIFIER or head in _SHORT or measure(head) is not None:
        return True
    if one and head.isascii() and len(head) > 2:
        return True
    return (
        len(head) > 3
        and head.endswith(("s", "s'"))
        and not head.endswith(("ss", "us", "is", "ous"))
    )


def _is_counted_han(text: str) -> bool:
    """Whether Chinese or Japanese words are a classifier, perhaps with its noun: 个苹果."""
    if text in _CLASSIFIER:
        return True
    if any("\u3040" <= sign <= "\u30ff" for sign in text):
        return False  # Japanese endings can reverse the meaning
    return text[0] in _CLASSIFIER and len(text) <= 5 and not _NO_HAN.search(text)


def _is_word(word: str) -> bool:
    return re.fullmatch(r"[^\W\d_]+(?:[-'.][^\W\d_]+)*\.?", word) is not None


def is_unit_after_number(word: str, gap: str) -> bool:
    """Whether a short word after a number is a unit and not a factor: 5 cm and 3 m, but not 3m or
    2ab.
    """
    if word in ("st", "nd", "rd", "th") or word.lower() in _SHORT:
        return True
    return measure(word) is not None and (len(word) > 1 or bool(gap))


def counted(text: str) -> str | None:
    """Return the unit after a number in Chinese characters (五个, 三小时) if it is known or a
    classifier.
    """
    return text if text in _CLASSIFIER or measure(text) is not None else None


NO_CHANGE = (Fraction(1), Fraction(1))


def unit_factors(gold: str, answer: str) -> tuple[Fraction, Fraction] | None:
    """Return the factors that make two values comparable; None if their units are of different
    kinds.
    """
    if not gold or not answer or gold == answer:
        return NO_CHANGE
    first, second = measure(gold), measure(answer)
    if first is None or second is None:
        # Two nouns do not affect the value; a noun and a real unit are not comparable.
        return NO_CHANGE if first is None and second is None else None
    if first[0] == second[0]:
        return first[1], second[1]
    dimensions = {first[0], second[0]}
    if (("¥", 1),) in dimensions and dimensions & {(("yuan", 1),), (("yen", 1),)}:
        return NO_CHANGE  # one sign for two currencies
    return None
