"""Output forms: where the reasoning ends, what the answer is, and whether a completion keeps the form it was asked for.

A form is named in a column, so that one frame may hold several. What a form means is defined once, by the three Polars
expressions below; `parse` applies them to one text.

    r1-zero         <think> reasoning </think> <answer> answer </answer>         (DeepSeek-R1 report, table 1)
    r1              <think> reasoning </think> summary                           (report, section 2.3.1)
    r1[open|close]  the same with delimiters of one's own
    plain           the whole text is the answer

Text that a rule could be tricked with has no answer rather than a lenient one: a second answer, reasoning that is
opened again after it was closed, tags that were never closed. The form is judged from the text alone; whether a text
was cut off by a token limit is `finish_reason`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import polars as pl

from curate.errors import UsageError

OPEN, CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
NAMES = ("r1-zero", "r1", "plain")

# Counted leniently, so that a variant such as `<THINK>` or `< /answer>` breaks the form instead of hiding a second tag.
_ANY_TAG = r"(?i)<\s*/?\s*(?:think|answer)\s*>"
_ONE_ANSWER = r"(?s)\A\s*<answer>.*</answer>\s*\z"


@dataclass(frozen=True, slots=True)
class Form:
    """One output form. `open` and `close` delimit the reasoning; both are empty for `plain`."""

    name: str
    open: str = ""
    close: str = ""

    @classmethod
    def of(cls, name: str | Form) -> Form:
        """The form called `name`; raises `UsageError` for a name that is none.

        In `r1[open|close]` the two are divided at `>|<` where that occurs, else at the only `|`: delimiters such as
        `<|begin_of_thought|>` may hold bars themselves.
        """
        if isinstance(name, Form):
            return name
        opening, closing = _own_delimiters(name)
        if name == "plain":
            return cls(name)
        if opening is None or closing is None:
            raise UsageError(
                f"unknown form '{name}': choose r1-zero, r1, plain, or r1[open|close] with your delimiters"
            )
        if opening.lower() in closing.lower() or closing.lower() in opening.lower():
            raise UsageError(f"the delimiters of form '{name}' must not contain one another")
        return cls(name, opening, closing)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Parsed:
    """Parts of one completion; None where the text has no such part."""

    reasoning: str | None
    answer: str | None
    well_formed: bool


def reasoning_expr(text: pl.Expr, form: pl.Expr | Form) -> pl.Expr:
    """The reasoning: from after the first opener to the next closer, or to the end of a text that never closes it.

    Null without an opener, and for `plain`. Surrounding white space is left out. `form` is a column of names, or a
    `Form` that all texts share (which is faster).
    """
    kind = _kind(form)
    return _before(_after(text, kind.open), kind.close).str.strip_chars()


def answer_expr(text: pl.Expr, form: pl.Expr | Form) -> pl.Expr:
    """The answer without surrounding white space: null where there is none, where it is blank, or where it is not one.

    It stands after the first closer (in the whole text, where no delimiter occurs), and no delimiter may follow there.
    For `r1-zero` it is what the only pair of answer tags in that part holds; else it is all of that part.
    """
    kind = _kind(form)
    tail = (
        pl.when(kind.plain)
        .then(text)
        .when(text.str.contains(kind.close, literal=True))
        .then(_after(text, kind.close))
        .when(~text.str.contains(kind.open, literal=True))
        .then(text)
    )
    reopened = tail.str.contains(kind.open, literal=True) | tail.str.contains(
        kind.close, literal=True
    )
    tagged = pl.when(
        tail.str.count_matches(ANSWER_OPEN, literal=True) == 1,
        tail.str.count_matches(ANSWER_CLOSE, literal=True) == 1,
    ).then(tail.str.extract(r"(?s)<answer>(.*?)</answer>", 1))
    found = pl.when(kind.tagged).then(tagged).otherwise(tail).str.strip_chars()
    return pl.when((found != "") & ~reopened.fill_null(False)).then(found)


def well_formed_expr(text: pl.Expr, form: pl.Expr | Form) -> pl.Expr:
    """Whether the completion keeps its form: every tag once, in order, closed; an answer; only white space outside.

    Reasoning may be empty (a rule on its length decides about that). Null where text or form is null or unknown.
    """
    kind = _kind(form)
    lower = text.str.to_lowercase()
    delimited = (
        text.str.strip_chars_start().str.starts_with(kind.open)
        & (lower.str.count_matches(kind.open.str.to_lowercase(), literal=True) == 1)
        & (lower.str.count_matches(kind.close.str.to_lowercase(), literal=True) == 1)
    )
    tags = (text.str.count_matches(_ANY_TAG) == 4) & _after(text, kind.close).str.contains(
        _ONE_ANSWER
    )
    shape = kind.plain | (delimited & (~kind.tagged | tags.fill_null(False))).fill_null(False)
    known = text.is_not_null() & (kind.plain | kind.open.is_not_null())
    return pl.when(known).then(shape & answer_expr(text, form).is_not_null())


def with_opener_expr(text: pl.Expr, prompt: pl.Expr, form: pl.Expr | Form) -> pl.Expr:
    """The completion with the opening delimiter in front where its prompt already ended with that.

    Parse this, not the bare completion, when a chat template opens the reasoning itself.
    """
    opening = _kind(form).open
    opened = prompt.str.strip_chars_end().str.ends_with(opening).fill_null(False)
    # What the prompt has after the opener is white space, which the parse does not look at.
    return pl.when(opened).then(opening + text).otherwise(text)


def parse(text: str, form: str | Form = "r1-zero") -> Parsed:
    """One completion taken apart; `UsageError` for an unknown form. For columns use the expressions."""
    t, form = pl.lit(text, dtype=pl.String), Form.of(form)
    reasoning, answer, well_formed = pl.select(
        reasoning_expr(t, form).alias("reasoning"),
        answer_expr(t, form).alias("answer"),
        well_formed_expr(t, form).alias("well_formed"),
    ).row(0)
    return Parsed(reasoning, answer, bool(well_formed))


class _Kind(NamedTuple):
    """What the expressions ask of a form."""

    open: pl.Expr  # null for `plain`, and for names that are no form
    close: pl.Expr
    plain: pl.Expr
    tagged: pl.Expr  # the answer stands in tags


def _kind(form: pl.Expr | Form) -> _Kind:
    if isinstance(form, Form):
        opening, closing = (
            pl.lit(mark or None, dtype=pl.String) for mark in (form.open, form.close)
        )
        return _Kind(opening, closing, pl.lit(form.name == "plain"), pl.lit(form.name == "r1-zero"))
    return _Kind(*_delimiters(form), (form == "plain").fill_null(False), form == "r1-zero")


def _delimiters(form: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    """Opening and closing delimiter of each form name; null for `plain` and for names that are no form."""
    body = form.str.extract(r"(?s)\Ar1\[(.+)\]\z", 1)
    angled = body.str.extract_groups(r"(?s)\A(?<open>.*?>)\|(?<close><.*)\z")
    barred = body.str.extract_groups(r"(?s)\A(?<open>[^|]+)\|(?<close>[^|]+)\z")
    default = form.is_in(["r1", "r1-zero"])

    def of(default_tag: str, field: str) -> pl.Expr:
        own = pl.coalesce(angled.struct.field(field), barred.struct.field(field))
        return pl.when(default).then(pl.lit(default_tag)).otherwise(own)

    return of(OPEN, "open").alias("open"), of(CLOSE, "close").alias("close")


@cache
def _own_delimiters(name: str) -> tuple[str | None, str | None]:
    opening, closing = pl.select(*_delimiters(pl.lit(name, dtype=pl.String))).row(0)
    return opening, closing


def _after(text: pl.Expr, mark: pl.Expr) -> pl.Expr:
    """What follows the first `mark`; null where it does not occur."""
    return text.str.splitn(mark, 2).struct.field("field_1")


def _before(text: pl.Expr, mark: pl.Expr) -> pl.Expr:
    """What stands before the first `mark`; all of it where it does not occur."""
    return text.str.splitn(mark, 2).struct.field("field_0")
