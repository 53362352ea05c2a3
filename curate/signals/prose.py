"""The texts that signals read, and the unit in which words are counted.

Every group of signals reads the columns added by `prepare`, the one definition of chain of thought
and prose: `_text` (the completion, with an opening delimiter that the prompt contained), `_cot`
(the chain of thought) and `_prose` (the chain of thought without code, LaTeX, URLs, tags and
numbers).
"""

from __future__ import annotations

import polars as pl

from curate.errors import UsageError
from curate.prompts.forms import Form, reasoning_expr, with_opener_expr

# Words per character for scripts without spaces. Chinese: 0.65 (jieba finds words of about 1.5
# characters in running prose). Japanese: 0.55 (morphological analysers give about 1.8 characters
# per word over kana and kanji).
HAN_WORDS = 0.65
JAPANESE_WORDS = 0.55

CODE_FENCE = r"(?s)```.*?(?:```|\z)"
# `$5 and $3` is money, `$5 + 3 = 8$` is not: a formula has a mathematical sign between its dollars.
# The first such sign ends the first bounded repeat, which keeps the automaton small: two
# overlapping bounded repeats take five times as long.
FORMULA = r"\$[^$\n\\^_=+*/<>{}|-]{0,60}[\\^_=+*/<>{}|-][^$\n]{0,400}\$"
CURRENCY = r"\$\d[\d,.]*(?:[\s.,;:!?)]|\z)"
_MASK = (
    r"(?s:```.*?(?:```|\z))|`[^`\n]*`"
    rf"|(?s:\$\$.*?\$\$)|{FORMULA}|{CURRENCY}|\$[^$\n\\^_=+*/<>{{}}|-]{{1,60}}\$"
    r"|(?s:\\\[.*?\\\])|(?s:\\\(.*?\\\))"
    r"|(?s:\\begin\{.*?\\end\{\w+\*?\})|\\[A-Za-z]+"
    r"|(?:https?://|www\.)[^\s\p{Han}]+|</?[A-Za-z][\w-]*/?>|<\|[^|<>\n]*\|>"
    # Text between tags in square brackets (voices, examples in word lists) is mentioned, not used.
    r"|\[[a-z_]{2,20}\][^\n\[\]]*\[/[a-z_]{2,20}\]"
    r"|\p{N}+"
)

HAN = r"[\p{Han}々〆]"
KANA = r"[\p{Hiragana}\p{Katakana}ー]"
# A word of an alphabetic script: letters and marks, with inner apostrophes and hyphens. Single
# letters are variables and do not count.
ALPHABETIC = r"[[\p{L}\p{M}]--[\p{Han}\p{Hiragana}\p{Katakana}ー]]"
WORD = ALPHABETIC + r"(?:[’'\-]?" + ALPHABETIC + r")+"


def prepare(frame: pl.DataFrame) -> pl.DataFrame:
    """Return `frame` with `_text`, `_cot` and `_prose` added (strings, never null).

    Needs `completion`; uses `reasoning`, `form` and `prompt` if present. Without a form the whole
    text is reasoning. With one, `curate.prompts.forms` extracts the reasoning; if the form has none
    (`plain`, or the tags are missing), it is the whole text.
    """
    columns = set(frame.columns)
    text = pl.col("completion").cast(pl.String).fill_null("")
    cot: list[pl.Expr] = []
    form = shared_form(frame)
    if form is not None:
        if "prompt" in columns:
            text = with_opener_expr(text, pl.col("prompt"), form)
        cot.append(reasoning_expr(pl.col("_text"), form))
    if "reasoning" in columns:
        cot.insert(0, pl.col("reasoning").cast(pl.String))
    return (
        frame.with_columns(text.fill_null("").alias("_text"))
        .with_columns(pl.coalesce(*cot, pl.col("_text")).alias("_cot"))
        .with_columns(prose(pl.col("_cot")).alias("_prose"))
    )


def shared_form(frame: pl.DataFrame) -> Form | pl.Expr | None:
    """The form of all rows, which expressions read faster than a column; None without any."""
    names = frame.get_column("form").unique() if "form" in frame.columns else [None]
    if len(names) != 1:
        return pl.col("form")
    try:
        return None if names[0] is None else Form.of(names[0])
    except UsageError:  # an unknown name: its columns are null
        return pl.col("form")


def prose(text: pl.Expr) -> pl.Expr:
    """Replace code, LaTeX, URLs, tags and numbers by a space, which leaves natural language."""
    return text.str.replace_all(_MASK, " ")


def counted(frame: pl.DataFrame, where: pl.Expr, **columns: pl.Expr) -> pl.DataFrame:
    """Return integer columns that are computed on the rows that meet `where`, and 0 on the others.

    A search costs the same whether it finds anything or not, and most texts need few of them.
    """
    rows = frame.with_row_index("_at").filter(where)
    if rows.is_empty():
        return pl.DataFrame(
            {name: pl.zeros(frame.height, dtype=pl.Int64, eager=True) for name in columns}
        )
    values = rows.select("_at", *[e.cast(pl.Int64).alias(name) for name, e in columns.items()])
    places = pl.DataFrame({"_at": pl.int_range(frame.height, dtype=pl.UInt32, eager=True)})
    joined = places.join(values, on="_at", how="left", maintain_order="left")
    return joined.drop("_at").fill_null(0)


def share(part: pl.Expr, whole: pl.Expr) -> pl.Expr:
    """`part / whole`, or 0 if the whole is 0."""
    return pl.when(whole > 0).then(part / whole).otherwise(0.0)
