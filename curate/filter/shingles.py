"""Tokens of many texts in one long column, and hashes of n tokens: what duplicates and contamination are found with.

A token is a word, or a single Chinese or Japanese character, of text that was folded: NFKC, lower case, no punctuation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

CJK = r"[\p{Han}\p{Hiragana}\p{Katakana}ー々]"
TOKEN = rf"{CJK}|[\w--{CJK}]+"


@dataclass(frozen=True, slots=True)
class Tokens:
    """`text`, `code` (hash) and `row` (index of the text it is from), one entry a token; `count`: number of texts."""

    text: pl.Series
    code: np.ndarray
    row: np.ndarray
    count: int

    def windows(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Hash of the `size` tokens that begin at each place, and whether they lie in one text. Shorter by size - 1."""
        number = len(self.code) - size + 1
        if number <= 0:
            return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=bool)
        hashed = self.code[:number].copy()
        with np.errstate(over="ignore"):
            for step in range(1, size):
                hashed = hashed * np.uint64(0xD6E8FEB86659FD93) + self.code[step : step + number]
        return hashed, self.row[:number] == self.row[size - 1 :]

    def lengths(self) -> np.ndarray:
        """Tokens of each text."""
        return np.bincount(self.row, minlength=self.count)


def folded(text: pl.Expr) -> pl.Expr:
    """Text as it is compared: NFKC, lower case, its tokens with one space between."""
    return text.str.normalize("NFKC").str.to_lowercase().str.extract_all(TOKEN).list.join(" ")


def tokens(texts: pl.Series) -> Tokens:
    """The tokens of folded texts. Null texts have none."""
    frame = (
        pl.DataFrame({"text": texts.cast(pl.String)})
        .with_row_index("row")
        .select(
            "row",
            pl.col("text")
            .str.normalize("NFKC")
            .str.to_lowercase()
            .str.extract_all(TOKEN)
            .alias("token"),
        )
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
