"""The texts that signals look at, and how words are counted in each script.

Every group of signals reads the columns that `prepare` adds, so that what counts as the chain of thought and as prose
is said once: `_text` (the completion, with the opening delimiter that the prompt may have held), `_cot` (the
chain of thought) and `_prose` (the chain of thought without code, LaTeX, URLs, tags and numbers).
"""

from __future__ import annotations

import polars as pl

from curate.prompts.forms import reasoning_expr, with_opener_expr

# Words a character, for scripts written without spaces. Chinese: 0.65 (jieba cuts running Chinese prose into words of
# about 1.5 characters). Japanese: 0.55 (morphological analysers give about 1.8 characters a word, kana and kanji).
HAN_WORDS = 0.65
JAPANESE_WORDS = 0.55

CODE_FENCE = r"(?s)```.*?(?:```|\z)"
# `$5 and $3` is money, `$5 + 3 = 8$` is not: between the dollars of a formula stands something of mathematics. The
# first such sign ends the first count, so that one automaton of few states reads it: two open counts take five times
# as long.
FORMULA = r"\$[^$\n\\^_=+*/<>{}|-]{0,60}[\\^_=+*/<>{}|-][^$\n]{0,400}\$"
CURRENCY = r"\$\d[\d,.]*(?:[\s.,;:!?)]|\z)"
_MASK = (
    r"(?s:```.*?(?:```|\z))|`[^`\n]*`"
    rf"|(?s:\$\$.*?\$\$)|{FORMULA}|{CURRENCY}|\$[^$\n\\^_=+*/<>{{}}|-]{{1,60}}\$"
    r"|(?s:\\\[.*?\\\])|(?s:\\\(.*?\\\))"
    r"|(?s:\\begin\{.*?\\end\{\w+\*?\})|\\[A-Za-z]+"
    r"|(?:https?://|www\.)[^\s\p{Han}]+|</?[A-Za-z][\w-]*/?>|<\|[^|<>\n]*\|>"
    r"|\p{N}+"
)

HAN = r"[\p{Han}々〆]"
KANA = r"[\p{Hiragana}\p{Katakana}ー]"
# A word of an alphabetic script: letters and marks, with apostrophes and hyphens inside. Single letters are variables.
ALPHABETIC = r"[[\p{L}\p{M}]--[\p{Han}\p{Hiragana}\p{Katakana}ー]]"
WORD = ALPHABETIC + r"(?:[’'\-]?" + ALPHABETIC + r")+"


def prepare(frame: pl.DataFrame) -> pl.DataFrame:
    """`frame` with `_text`, `_cot` and `_prose` added (all strings, never null).

    Needs `completion`; `reasoning`, `form` and `prompt` are used where they are there. Without a form a text is
    reasoning as a whole; with one, the reasoning is what `curate.prompts.forms` says, and all of the text where the
    form has no reasoning (`plain`, or tags that were never written).
    """
    columns = set(frame.columns)
    text = pl.col("completion").cast(pl.String).fill_null("")
    cot: list[pl.Expr] = []
    if "form" in columns:
        if "prompt" in columns:
            text = with_opener_expr(text, pl.col("prompt"), pl.col("form"))
        cot.append(reasoning_expr(pl.col("_text"), pl.col("form")))
    if "reasoning" in columns:
        cot.insert(0, pl.col("reasoning").cast(pl.String))
    return (
        frame.with_columns(text.fill_null("").alias("_text"))
        .with_columns(pl.coalesce(*cot, pl.col("_text")).alias("_cot"))
        .with_columns(prose(pl.col("_cot")).alias("_prose"))
    )


def prose(text: pl.Expr) -> pl.Expr:
    """`text` with code, LaTeX, URLs, tags and numbers replaced by a space: what is left is language."""
    return text.str.replace_all(_MASK, " ")


def words(text: pl.Expr) -> pl.Expr:
    """Number of words (float): words of alphabetic scripts, and an estimate from Chinese and Japanese characters."""
    return (
        text.str.count_matches(WORD).cast(pl.Float64)
        + HAN_WORDS * text.str.count_matches(HAN)
        + JAPANESE_WORDS * text.str.count_matches(KANA)
    )


def share(part: pl.Expr, whole: pl.Expr) -> pl.Expr:
    """`part / whole`, and 0 where the whole is 0."""
    return pl.when(whole > 0).then(part / whole).otherwise(0.0)
