"""Tokens of many texts in one long column, and hashes of n tokens, to detect duplicates and
contamination.

Text is folded first: NFKC, lower case, no punctuation. A token is a word, a number, or a single
Chinese or Japanese character; for duplicates also an operator, relation or bracket, since "3 + 4"
and "3 - 4" are two problems.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

CJK = r"[\p{Han}\p{Hiragana}\p{Katakana}ー々]"
WORD = rf"{CJK}|[\w--{CJK}]+"
# Numbers with decimal point, ratio or factorial; primes of functions; signs with a meaning.
SIGN = r"'+\(|[\p{Sm}\-*/^%!°√()\[\]]"
MEANING = rf"\d+(?:[.,:]\d+)*!*|\b[a-z]!+|{CJK}|[\w--{CJK}--\d][\w--{CJK}]*|{SIGN}"
# Hyphens inside words, emphasis of Markdown, and marks that end a sentence do not count as signs.
_MINUS, _HYPHEN, _EMPHASIS = "[−﹣－]", r"(\p{L}{2})-(\p{L}{2})", r"\*\*+|(?m:^\s*[-*]\s)"
_EXCLAIMED = r"(\p{L}{2}\s*|[\s.,;:?])!+|(=\s*-?[\d.,]+\s*)!+(\s*\z)"


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of texts: `text`, `code` (hash) and `row` (index of the text) of each; `count`: number
    of texts.
    """

    text: pl.Series
    code: np.ndarray
    row: np.ndarray
    count: int

    def windows(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the hash of the `size` tokens that start at each place, and whether they are in
        one text.

        The result is shorter than the tokens by size - 1.
        """
        number = len(self.code) - size + 1
        if number <= 0:
            return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=bool)
        hashed = self.code[:number].copy()
        with np.errstate(over="ignore"):
            for step in range(1, size):
                hashed = hashed * np.uint64(0xD6E8FEB86659FD93) + self.code[step : step + number]
        return hashed, self.row[:number] == self.row[size - 1 :]

    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each text."""
        return np.bincount(self.row, minlength=self.count)


def folded(text: pl.Expr) -> pl.Expr:
    """Return text in the form in which duplicates are compared: tokens and signs, separated by
    spaces.
    """
    return _tokens_of(text, MEANING).list.join(" ")


def tokens(texts: pl.Series, pattern: str = WORD) -> Tokens:
    """Return the tokens of folded texts. Null texts have none."""
    frame = (
        pl.DataFrame({"text": texts.cast(pl.String)})
        .with_row_index("row")
        .select("row", _tokens_of(pl.col("text"), pattern).alias("token"))
        .explode("token")
        .drop_nulls("token")
    )
    token = frame.get_column("token")
    return Tokens(
        token,
        token.hash().to_numpy(),
        frame.get_column("row").to_numpy().astype(np.int64),
        len(texts),
    )


def _tokens_of(text: pl.Expr, pattern: str) -> pl.Expr:
    text = text.str.normalize("NFKC").str.to_lowercase()
    if pattern == MEANING:
        text = text.str.replace_all(_MINUS, "-").str.replace_all(_EMPHASIS, " ")
        text = text.str.replace_all(_HYPHEN, "$1 $2").str.replace_all(_EXCLAIMED, "$1$2$3")
    return text.str.extract_all(pattern)
