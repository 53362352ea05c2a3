"""Output forms: compose a completion from reasoning and answer, parse it again, and judge its
form.

A column names the form, so that one frame may hold several. A form is defined once, by the Polars
expressions below; `parse` applies them to one text, and `Form.compose` writes a text that they
take apart into the same parts.

    r1-zero         <think> reasoning </think> <answer> answer </answer>     (R1 report, table 1)
    r1              <think> reasoning </think> summary                       (section 2.3.1)
    r1[open|close]  the same with your own delimiters
    plain           the whole text is the answer

A text that could trick a rule has no answer rather than a lenient one: a second answer, reasoning
that is opened again after it was closed, tags that were never closed. The form is judged from the
text alone; `finish_reason` says whether a token limit cut the text off.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Annotated, NamedTuple

import polars as pl
from pydantic import AfterValidator

from curate.errors import UsageError

OPEN, CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
NAMES = ("r1-zero", "r1", "plain")

# Counted leniently, so that a variant such as `<THINK>` or `< /answer>` breaks the form instead of
# hiding a second tag.
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
        """Return the form `name`. UsageError for an unknown one.

        `r1[open|close]` is split at `>|<` if that occurs, else at the only `|`, since delimiters
        such as `<|begin_of_thought|>` may contain bars.
        """
        if isinstance(name, Form):
            return name
        opening, closing = _own_delimiters(name)
        if name == "plain":
            return cls(name)
        if opening is None or closing is None:
            raise UsageError(
                f"unknown form '{name}': choose r1-zero, r1, plain, or r1[open|close] with "
                "your delimiters"
            )
        if opening.lower() in closing.lower() or closing.lower() in opening.lower():
            raise UsageError(f"the delimiters of form '{name}' must not contain one another")
        return cls(name, opening, closing)

    def __str__(self) -> str:
        return self.name

    def compose(self, reasoning: str, answer: str) -> str:
        """Compose the completion that `parse` splits into this reasoning and this answer.

        `plain` has no place for reasoning: it becomes a paragraph of the answer, if it is not
        empty.
        """
        if self.name == "plain":
            return f"{reasoning}\n\n{answer}" if reasoning else answer
        if self.name == "r1-zero":
            return f"{self.open} {reasoning} {self.close} {ANSWER_OPEN} {answer} {ANSWER_CLOSE}"
        return f"{self.open}\n{reasoning}\n{self.close}\n\n{answer}"


def _existing_form(name: str) -> str:
    try:
        return Form.of(name).name
    except UsageError as error:
        raise ValueError(str(error)) from error


FormName = Annotated[str, AfterValidator(_existing_form)]
"""A field of a config that names a form."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """Parts of one completion; None if the text has no such part."""

    reasoning: str | None
    answer: str | None
    well_formed: bool


def compose_expr(reasoning: pl.Expr, answer: pl.Expr, form: pl.Expr | Form) -> pl.Expr:
    """`Form.compose` over columns. A null part counts as empty; the result is null for an unknown
    form.
    """
    kind = _kind(form)
    reasoning, answer = reasoning.fill_null(""), answer.fill_null("")
    plain = pl.when(reasoning == "").then(answer).otherwise(reasoning + "\n\n" + answer)
    tags = (f" {ANSWER_OPEN} ", f" {ANSWER_CLOSE}")
    tagged = kind.open + " " + reasoning + " " + kind.close + tags[0] + answer + tags[1]
    marked = kind.open + "\n" + reasoning + "\n" + kind.close + "\n\n" + answer
    return pl.when(kind.plain).then(plain).when(kind.tagged).then(tagged).otherwise(marked)


def reasoning_expr(text: pl.Expr, form: pl.Expr | Form) -> pl.Expr:
    """The reasoning: the text after the first opener up to the next closer, or up to the end if it
    is never closed.

    Null without an opener, and for `plain`. Surrounding white space is removed. `form` is a column
    of names, or a `Form` that all texts share, which is faster.
    """
    kind = _kind(form)
    return _before(_after(text, kind.open), kind.close).str.strip_chars()


def answer_expr(text: pl.Expr, form: pl.Expr | Form) -> pl.Expr:
    """The answer without surrounding white space: null if it is missing or blank, or if there are
    several.

    It comes after the first closer (anywhere, if no delimiter occurs), and no delimiter may
    follow. For `r1-zero` it is the content of the only pair of answer tags in that part; for the
    other forms it is all of that part.
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
    answer = pl.when(kind.tagged).then(tagged).otherwise(tail).str.strip_chars()
    return pl.when((answer != "") & ~reopened.fill_null(False)).then(answer)


def well_formed_expr(text: pl.Expr, form: pl.Expr | Form) -> pl.Expr:
    """Whether the completion keeps its form: every tag once, in order, closed; an answer; only
    white space outside.

    Reasoning may be empty; a rule on its length decides about that. Null if the text or the form
    is null or unknown.
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
    judged = text.is_not_null() & (kind.plain | kind.open.is_not_null())
    return pl.when(judged).then(shape & answer_expr(text, form).is_not_null())


def with_opener_expr(text: pl.Expr, prompt: pl.Expr, form: pl.Expr | Form) -> pl.Expr:
    """The completion, preceded by the opening delimiter if its prompt already ended with that.

    Parse this, not the bare completion, when a chat template opens the reasoning itself.
    """
    opening = _kind(form).open
    opened = prompt.str.strip_chars_end().str.ends_with(opening).fill_null(False)
    # The prompt may have white space after the opener, which the parse ignores.
    return pl.when(opened).then(opening + text).otherwise(text)


def parse(text: str, form: str | Form = "r1-zero") -> Parsed:
    """Take one completion apart. UsageError for an unknown form. For columns use the
    expressions.
    """
    t, form = pl.lit(text, dtype=pl.String), Form.of(form)
    reasoning, answer, well_formed = pl.select(
        reasoning_expr(t, form).alias("reasoning"),
        answer_expr(t, form).alias("answer"),
        well_formed_expr(t, form).alias("well_formed"),
    ).row(0)
    return Parsed(reasoning, answer, bool(well_formed))


class _Kind(NamedTuple):
    """A form, or a column of form names, as the expressions need it."""

    open: pl.Expr  # null for `plain`, and for names of unknown forms
    close: pl.Expr
    plain: pl.Expr
    tagged: pl.Expr  # the answer is in tags


def _kind(form: pl.Expr | Form) -> _Kind:
    if isinstance(form, Form):
        opening, closing = (
            pl.lit(mark or None, dtype=pl.String) for mark in (form.open, form.close)
        )
        return _Kind(opening, closing, pl.lit(form.name == "plain"), pl.lit(form.name == "r1-zero"))
    return _Kind(*_delimiters(form), (form == "plain").fill_null(False), form == "r1-zero")


def _delimiters(form: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    """Opening and closing delimiter of each form name; null for `plain` and for unknown forms."""
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
    """The text after the first `mark`; null if it does not occur."""
    return text.str.splitn(mark, 2).struct.field("field_1")


def _before(text: pl.Expr, mark: pl.Expr) -> pl.Expr:
    """The text before the first `mark`; all of it if it does not occur."""
    return text.str.splitn(mark, 2).struct.field("field_0")
