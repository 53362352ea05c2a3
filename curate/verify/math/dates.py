"""Read dates and times of day: 14 March is March 14, and 2020-03-14 is not a subtraction."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

_FIRST = ("january", "february", "march", "april", "may", "june")
_MONTHS = (*_FIRST, "july", "august", "september", "october", "november", "december")
_NUMBER = {name[:size]: i for i, name in enumerate(_MONTHS, 1) for size in (3, len(name))} | {
    "sept": 9
}
_MONTH = rf"(?P<m>{'|'.join(sorted(_NUMBER, key=len, reverse=True))})\.?"
_DAY = r"(?P<d>\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?:,?\s*(?P<y>\d{4}))?"
_WEEKDAY = r"(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day,?\s+)?"
_DATES = [
    re.compile(rf"{_WEEKDAY}{_MONTH}\s+{_DAY}{_YEAR}"),
    re.compile(rf"{_WEEKDAY}(?:the\s+)?{_DAY}(?:\s+of)?\s+{_MONTH}{_YEAR}"),
    re.compile(r"(?P<y>\d{4})-(?P<m>\d{1,2})-(?P<d>\d{1,2})"),
    re.compile(r"(?P<y>\d{4})/(?P<m>\d{1,2})/(?P<d>\d{1,2})"),
    re.compile(r"(?:(?P<y>\d{4})年)?(?P<m>\d{1,2})月(?P<d>\d{1,2})[日号]"),
]
_TIME = re.compile(
    r"(?P<h>\d{1,2})(?::(?P<min>[0-5]\d)(?::(?P<s>[0-5]\d))?)?\s*(?P<half>[ap])?\.?\s*(?(half)m\.?)"
)


_TEXT_OR_SPACE = re.compile(r"\\(?:text|mathrm|[ ,;])")


class DateOrTime(NamedTuple):
    """A date (year 0 if none is given) or a time of day; `half` is "a", "p", or "" if it is not
    given.
    """

    year: int = 0
    month: int = 0
    day: int = 0
    seconds: int = 0
    half: str = ""


def parse_date_or_time(text: str) -> DateOrTime | None:
    """Parse a date or time of day; None for any other text, a bare number included."""
    if "\\" in text and not _TEXT_OR_SPACE.search(text):
        return None  # no date contains another command
    text = unicodedata.normalize(
        "NFKC", re.sub(r"\\(?:text|mathrm|textbf)\s*\{([^{}]*)\}", r"\1", text)
    )
    text = " ".join(re.sub(r"\\[ ,;]|[$~]", " ", text).lower().split()).rstrip(".")
    if len(text) > 40:
        return None
    for pattern in _DATES:
        if match := pattern.fullmatch(text):
            month = int(match["m"]) if match["m"].isdigit() else _NUMBER[match["m"]]
            day = int(match["d"])
            return (
                DateOrTime(int(match["y"] or 0), month, day)
                if 1 <= month <= 12 and 1 <= day <= 31
                else None
            )
    match = _TIME.fullmatch(text)
    if match is None or not (match["min"] or match["half"]):
        return None
    hour, half = int(match["h"]), match["half"] or ""
    if hour > 23 or (half and not 1 <= hour <= 12):
        return None
    if half:
        hour = hour % 12 + (12 if half == "p" else 0)
    return DateOrTime(
        seconds=hour * 3600 + int(match["min"] or 0) * 60 + int(match["s"] or 0), half=half
    )


def equal_dates(gold: DateOrTime, answer: DateOrTime) -> bool:
    """Whether two dates or times are equal; a missing year or a missing a.m. or p.m. is
    forgiven.
    """
    if gold.month or answer.month:
        years = {gold.year, answer.year} - {0}
        return gold[1:] == answer[1:] and len(years) < 2
    if gold.seconds == answer.seconds:
        return True
    one_sided = bool(gold.half) != bool(answer.half)  # 3:30 for 3:30 p.m., yet not 3:30 for 15:30
    return (
        one_sided
        and gold.half + answer.half == "p"
        and abs(gold.seconds - answer.seconds) == 12 * 3600
        and (min(gold.seconds, answer.seconds) == (answer if gold.half else gold).seconds)
    )
