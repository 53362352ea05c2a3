from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.verify.math.dates import equal_dates, parse_date_or_time


def same(gold: str, answer: str) -> bool:
    first, second = parse_date_or_time(gold), parse_date_or_time(answer)
    assert first is not None, gold
    assert second is not None, answer
    return equal_dates(first, second)


@given(st.dates(min_value=dt.date(1000, 1, 1)))
def test_a_day_is_the_same_however_it_is_written(day: dt.date) -> None:
    month = day.strftime("%B")
    spellings = [
        f"{month} {day.day}, {day.year:04}",
        f"{day.day} {month} {day.year:04}",
        f"{day.year:04}-{day.month:02}-{day.day:02}",
        f"{day.year:04}年{day.month}月{day.day}日",
        f"the {day.day}th of {month[:3]} {day.year:04}",
    ]
    assert all(same(spellings[0], other) for other in spellings)
    assert same(f"{month} {day.day}", spellings[1])  # a missing year is forgiven
    other = day + dt.timedelta(days=1) if day < dt.date.max else day - dt.timedelta(days=1)
    assert not same(spellings[0], f"{other.year:04}-{other.month:02}-{other.day:02}")


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("10:30 AM", "10:30 a.m.", True),
        ("10:30 AM", "10:30 PM", False),
        ("3:30 PM", "15:30", True),
        ("3:30 PM", "3:30", True),
        ("3:30", "3:30 PM", True),
        ("3:30", "15:30", False),
        ("12:00 AM", "0:00", True),
        ("5 pm", "17:00", True),
        ("3:30", "3:03", False),
    ],
)
def test_times_of_day(gold: str, answer: str, expected: bool) -> None:
    assert same(gold, answer) == expected


@pytest.mark.parametrize(
    "text", ["", "5", "3:4", "25:00", "March", "February 40", "2020-13-01", "x", "1/2", "9" * 50]
)
def test_anything_else_is_none(text: str) -> None:
    assert parse_date_or_time(text) is None


@given(st.text(max_size=60))
def test_no_text_raises(text: str) -> None:
    parse_date_or_time(text)
