"""Delimiters of reasoning as other models write them, replaced by `<think>` and `</think>`.

A delimiter counts if the text begins with it, or if only its closing half occurs, since the prompt
may have ended with the opening one. Anywhere else it is text about delimiters, and stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import polars as pl

from curate.prompts.forms import ANSWER_OPEN, CLOSE, OPEN

PAIRS = (
    (OPEN, CLOSE),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<thought>", "</thought>"),
    ("<thoughts>", "</thoughts>"),
    ("<reason>", "</reason>"),
    ("<analysis>", "</analysis>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("Thinking...\n", "...done thinking."),  # what ollama prints
    ("Thinking…\n", "…done thinking."),
)
# marks around the answer, and end-of-turn marks that are not part of the text
_SOLUTION = (
    "<|begin_of_solution|>",
    "<|end_of_solution|>",
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
)
_HARMONY = (
    r"<\|channel\|>\s*(\w+)(?:[^<]|<\|constrain\|>)*<\|message\|>"
    r"((?:[^<]|<(?!\|(?:end|return|call|start|channel)\|>))*)"
)
# the same as decoded with skip_special_tokens
_BARE_HARMONY = r"(?s)\A\s*analysis(.+?)assistantfinal(.+)\z"


def ends_in_opener(prompt: pl.Expr, own: Iterable[tuple[str, str]] = ()) -> pl.Expr:
    """Whether a prompt ends with an opening delimiter, so that the completion begins with
    reasoning.
    """
    return prompt.str.strip_chars_end().str.contains(_openers(own)).fill_null(False)


def without_opener(prompt: pl.Expr, own: Iterable[tuple[str, str]] = ()) -> pl.Expr:
    """Remove the opening delimiter from the end of a prompt."""
    stripped = prompt.str.strip_chars_end().str.replace(_openers(own), "")
    return (
        pl.when(ends_in_opener(prompt, own)).then(stripped.str.strip_chars_end()).otherwise(prompt)
    )


def in_our_delimiters(
    texts: pl.Series, opened: pl.Series, own: Iterable[tuple[str, str]] = ()
) -> pl.Series:
    """Texts with their reasoning between `<think>` and `</think>`; `opened`: the prompt had the
    opener.
    """
    frame = pl.DataFrame({"text": texts.str.strip_chars(), "opened": opened})
    for opener, closer in (*own, *PAIRS):
        # one step per delimiter: nested in one expression, its size would grow exponentially
        if frame.get_column("text").str.contains("(?i)" + _any((opener, closer))).any():
            frame = frame.with_columns(text=_replaced(opener, closer))
    text = pl.col("text")
    for mark in _SOLUTION:
        frame = frame.with_columns(text=text.str.replace_all(mark, "", literal=True))
    if frame.get_column("text").str.contains("<|channel|>", literal=True).any():
        frame = frame.with_columns(text=text.map_elements(_channels, return_dtype=pl.String))
    if frame.get_column("text").str.contains(_BARE_HARMONY).any():
        parts = f"{OPEN}\n${{1}}\n{CLOSE}\n\n${{2}}"
        frame = frame.with_columns(text=text.str.replace(_BARE_HARMONY, parts))
    bare = pl.col("opened") & ~text.str.contains(OPEN, literal=True)
    headed = pl.concat_str(pl.lit(f"{OPEN}\n"), text)
    return frame.select(pl.when(bare).then(headed).otherwise(text).str.strip_chars()).to_series()


def _replaced(opener: str, closer: str) -> pl.Expr:
    """Replace one pair of delimiters in the column `text` where it delimits the reasoning."""
    text = pl.col("text")
    opens, closes = "(?i)" + re.escape(opener), "(?i)" + re.escape(closer)
    begins = text.str.contains(rf"\A{opens}")
    # a closer without its opener: the prompt ended with the opener
    headless = text.str.contains(closes) & ~text.str.contains(opens)
    if opener == OPEN:  # text with our own delimiters may break the form; it stays as it is
        exact = text.str.starts_with(OPEN) | ~begins
        headed = pl.concat_str(pl.lit(f"{OPEN}\n"), text)
        ours = pl.when(headless).then(headed).otherwise(text)
        return pl.when(exact).then(ours).otherwise(_in_place(text, opens, closes))
    return pl.when(begins | headless).then(_in_place(text, opens, closes)).otherwise(text)


def _in_place(text: pl.Expr, opens: str, closes: str) -> pl.Expr:
    body = text.str.replace(rf"\A{opens}\s*", "").str.replace(closes, CLOSE)
    return pl.concat_str(pl.lit(f"{OPEN}\n"), body)


def _channels(text: str | None) -> str | None:
    """The channels of the harmony format: `analysis` is the reasoning, `final` the answer."""
    if text is None or "<|channel|>" not in text:
        return text
    thoughts: list[str] = []
    answers: list[str] = []
    for channel, body in re.findall(_HARMONY, text):
        (answers if channel == "final" else thoughts).append(body.strip())
    if not thoughts and not answers:
        return text
    closing = f"\n{CLOSE}\n\n" if answers else ""
    return f"{OPEN}\n" + "\n\n".join(thoughts) + closing + "\n\n".join(answers)


def form_of(text: pl.Expr) -> pl.Expr:
    """Return the form of a text: r1-zero, r1 or plain."""
    opened = text.str.contains(OPEN, literal=True)
    answered = text.str.contains(ANSWER_OPEN, literal=True)
    return (
        pl.when(opened & answered)
        .then(pl.lit("r1-zero"))
        .when(opened)
        .then(pl.lit("r1"))
        .otherwise(pl.lit("plain"))
    )


def _openers(own: Iterable[tuple[str, str]]) -> str:
    return "(?i)" + _any(opener.strip() for opener, _ in (*own, *PAIRS)) + r"\z"


def _any(marks: Iterable[str]) -> str:
    return "(?:" + "|".join(re.escape(mark) for mark in marks) + ")"
