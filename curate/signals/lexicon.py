"""Words and pairs of words in running text, which distinguish prose from unordered words.

Two signals use existing word lists. `unknown_word_share` looks words up in those of wordfreq
(words of Wikipedia, subtitles, news, books and the web). `known_pair_share` looks neighbouring
English words up in the 242,342 frequent pairs of Google Books that symspellpy ships, and
neighbouring Chinese or Japanese characters in the words of wordfreq. Pseudo-words are in no list,
and shuffled text forms few pairs.

The lists are hashed into three tables of 16 MB. One or two of a hundred
words outside the lists are false positives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from itertools import pairwise

import numpy as np
import polars as pl

# Languages of the word lists: those of the signals, as far as their words are separated by spaces.
# Each with the list that is read, and its rarest words in negative centibels: 750 is one in 32
# million words, 600 one in a million.
_LISTS = {"en": ("large", 750)} | dict.fromkeys(
    ("es", "fr", "de", "it", "pt", "nl", "sv", "tr", "vi", "ru"), ("small", 600)
)
_RAREST = 700  # rarest words whose pairs of characters count: one in ten million
_BITS = 24
_LONG = 3  # minimum letters of a word to look up; shorter ones are often variables and units
_PAIRS = "frequency_bigramdictionary_en_243_342.txt"


def word_shares(segments: pl.DataFrame, count: int) -> pl.DataFrame:
    """Count words and pairs of `segments` (row, at, segment: words of one clause), per row.

    `checked`: words in small letters of three or more; `unknown`: those in no list. `pairs`:
    neighbours of which the second is in small letters; `known_pairs`: those that are frequent.
    One row for each of the `count` texts.
    """
    words = (
        segments.select("row", "at", pl.col("segment").str.split(" ").alias("word"))
        .explode("word")
        .filter(pl.col("word") != "")
        .with_columns(small=pl.col("word").str.to_lowercase())
    )
    row, code = words.get_column("row").to_numpy(), words.get_column("small").hash().to_numpy()
    small = (words.get_column("word") == words.get_column("small")).to_numpy()
    checked = small & (words.get_column("small").str.len_chars() >= _LONG).to_numpy()
    place = np.flatnonzero(checked & ~_looked_up(_word_table(), code))
    # Compounds and contractions are made of words.
    compound = words.get_column("small").gather(place).str.contains(r"[-'’]").to_numpy()
    return pl.DataFrame(
        {
            "checked": np.bincount(row[checked], minlength=count),
            "unknown": np.bincount(row[place[~compound]], minlength=count),
            **_neighbours(words, small, code, _pair_table(), count),
        }
    )


def character_pairs(segments: pl.DataFrame, count: int) -> pl.DataFrame:
    """Count neighbouring Chinese or Japanese characters of `segments`, per row, as `word_shares`.

    A pair is known if a word of a list holds it: characters in no order form few such pairs.
    """
    characters = (
        segments.select("row", "at", pl.col("segment").str.split("").alias("character"))
        .explode("character")
        .filter(pl.col("character") != "")
    )
    code = characters.get_column("character").hash().to_numpy()
    every = np.ones(characters.height, dtype=np.bool_)
    pairs = _neighbours(characters, every, code, _han_table(), count)
    return pl.DataFrame({f"character_{name}": counts for name, counts in pairs.items()})


def _neighbours(
    tokens: pl.DataFrame, counted: np.ndarray, code: np.ndarray, table: np.ndarray, count: int
) -> dict[str, np.ndarray]:
    """Count the counted tokens that follow another in their segment, and those the table pairs."""
    row, at = tokens.get_column("row").to_numpy(), tokens.get_column("at").to_numpy()
    place = np.flatnonzero((at[1:] == at[:-1]) & counted[1:]) + 1
    known = place[_looked_up(table, _mixed(code[place - 1], code[place]))]
    return {
        "pairs": np.bincount(row[place], minlength=count),
        "known_pairs": np.bincount(row[known], minlength=count),
    }


def _mixed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """A hash of each pair of hashes, which depends on their order."""
    with np.errstate(over="ignore"):
        return first * np.uint64(0x9E3779B97F4A7C15) ^ second


def _looked_up(table: np.ndarray, code: np.ndarray) -> np.ndarray:
    return table[(code >> np.uint64(64 - _BITS)).astype(np.int64)]


def _table(code: np.ndarray) -> np.ndarray:
    table = np.zeros(1 << _BITS, dtype=np.bool_)
    table[(code >> np.uint64(64 - _BITS)).astype(np.int64)] = True
    return table


def _codes(words: Iterable[str]) -> np.ndarray:
    return pl.Series(list(words), dtype=pl.String).hash().to_numpy()


@cache
def _word_table() -> np.ndarray:
    return _table(
        _codes(
            word
            for language, (name, rarest) in _LISTS.items()
            for word in _listed(language, name, rarest)
        )
    )


@cache
def _pair_table() -> np.ndarray:
    source = files("symspellpy") / _PAIRS
    pairs = [line.split(" ")[:2] for line in source.read_text("utf-8-sig").splitlines()]
    return _table(_mixed(_codes(a for a, _ in pairs), _codes(b for _, b in pairs)))


@cache
def _han_table() -> np.ndarray:
    pairs = {
        pair
        for language in ("zh", "ja")
        for word in _listed(language, "large", _RAREST)
        if not word.isascii()
        for pair in pairwise(word)
    }
    return _table(_mixed(_codes(a for a, _ in pairs), _codes(b for _, b in pairs)))


def _listed(language: str, name: str, rarest: int) -> Iterator[str]:
    """The words of a list, from the most frequent to those of `rarest` negative centibels."""
    # Imported here, because it takes a third of a second and only measuring needs it.
    from wordfreq import get_frequency_list

    for equally_frequent in get_frequency_list(language, name)[: rarest + 1]:
        yield from equally_frequent
    get_frequency_list.cache_clear()
