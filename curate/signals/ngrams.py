"""N-gram shares of many texts at once, as Gopher defines them and datatrove computes them, over one column of words.

A word n-gram is a hash; equal hashes are found by sorting. An n-gram can repeat only where its first n - 1 words do, so
that after the 2-grams little is left to sort. The functions below name what they take:

    code   hash of each word, mixed with its row      size   characters of each word
    row    text each word is from, ascending          gap    1 where a space stands between this word and the next
"""

from __future__ import annotations

import numpy as np
import polars as pl

TOP, DUPLICATE = (2, 3, 4), (5, 6, 7, 8, 9, 10)
_ROUNDS = 40  # of the fixpoint in `_greedy`; it settles in two or three


def n_gram_shares(
    code: np.ndarray, row: np.ndarray, size: np.ndarray, gap: np.ndarray, characters: np.ndarray
) -> pl.DataFrame:
    """`top_n_gram_share` and `duplicate_n_gram_share` for each text; `characters` are those of each whole text.

    Top: characters of the most frequent n-gram, with its spaces, times its count (Gopher, table A1). Duplicate:
    characters of n-grams that stood before, read from left to right, going on behind each one that is found. Both are
    divided by the characters of the text; the first may exceed 1 where n-grams overlap themselves.
    """
    count = len(characters)
    ends, gaps = np.r_[0, np.cumsum(size)], np.r_[0, np.cumsum(gap)]
    whole = np.maximum(characters, 1).astype(np.float64)
    shares: dict[str, np.ndarray] = {}
    at = np.arange(len(code), dtype=np.int64)
    grams = code.copy()
    # words from each one to the end of its text, itself included
    stop = np.flatnonzero(np.r_[row[1:] != row[:-1], True]) + 1 if len(row) else row
    left = np.repeat(stop, np.diff(np.r_[0, stop])) - at
    for n in range(2, max(DUPLICATE) + 1):
        inside = left[at] >= n
        at, grams = at[inside], grams[inside]
        with np.errstate(over="ignore"):
            grams = grams * np.uint64(0xD6E8FEB86659FD93) + code[at + n - 1]
        group, first = _groups(grams)
        number = np.bincount(group, minlength=len(first))
        length = ends[at + n] - ends[at]
        if n in TOP:
            spaced = length + gaps[at + n - 1] - gaps[at]
            shares[f"top_{n}_gram_share"] = (
                _top(row, at, first, number, spaced, n, count, ends, gaps) / whole
            )
        repeated = number[group] > 1
        at, grams, group, length = at[repeated], grams[repeated], group[repeated], length[repeated]
        if n in DUPLICATE:
            found = _greedy(at, group, row, n)
            shares[f"duplicate_{n}_gram_share"] = (
                np.bincount(row[at[found]], length[found], minlength=count) / whole
            )
    return pl.DataFrame(shares)


def _groups(grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Group of each n-gram (equal ones share one), and the index of each group's first member.

    Hashes are sorted with their index in the lowest bits, which keeps equal ones in order; 40 bits or more of the hash
    are left for the slices that `annotate_frame` makes.
    """
    if len(grams) == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    low = np.uint64((1 << len(grams).bit_length()) - 1)
    mixed = grams ^ (grams >> np.uint64(29))
    ordered = np.sort((mixed & ~low) | np.arange(len(grams), dtype=np.uint64))
    index = (ordered & low).astype(np.int64)
    new = np.r_[True, (ordered[1:] & ~low) != (ordered[:-1] & ~low)]
    group = np.empty(len(grams), dtype=np.int64)
    group[index] = np.cumsum(new) - 1
    return group, index[new]


def _top(
    row: np.ndarray,
    at: np.ndarray,
    first: np.ndarray,
    number: np.ndarray,
    spaced: np.ndarray,
    n: int,
    count: int,
    ends: np.ndarray,
    gaps: np.ndarray,
) -> np.ndarray:
    """Characters in the most frequent n-gram of each text; of several, the one that came first."""
    result = np.zeros(count)
    # Where no n-gram repeats, the first of the text is the most frequent. Its place: the first word of the text.
    begin = np.flatnonzero(np.r_[True, row[1:] != row[:-1]]) if len(row) else row
    enough = begin[begin + n - 1 < len(row)]
    enough = enough[row[enough + n - 1] == row[enough]]
    result[row[enough]] = ends[enough + n] - ends[enough] + gaps[enough + n - 1] - gaps[enough]
    many = number > 1
    place, often = first[many], number[many].astype(np.int64)
    best = np.zeros(count, dtype=np.int64)
    rank = (often << 32) | (0xFFFFFFFF - at[place])
    np.maximum.at(best, row[at[place]], rank)
    won = best[row[at[place]]] == rank
    result[row[at[place[won]]]] = spaced[place[won]] * often[won]
    return result


def _greedy(at: np.ndarray, group: np.ndarray, row: np.ndarray, n: int) -> np.ndarray:
    """Which of the repeated n-grams a reader counts who goes from left to right and skips n words after each.

    The first n-gram of a group that the reader meets is remembered, each later one that it meets is counted, and those
    inside a counted one are not met. Both hold at once for one set only: it is reached by turns, from the left.
    """
    if len(at) == 0:
        return np.zeros(0, dtype=bool)
    # how many stand before each word: faster than a search, since the places are dense
    before = np.zeros(len(row) + n + 1, dtype=np.int64)
    before[at + 1] = 1
    behind = np.cumsum(before)[at + n]
    text = row[at]
    counted = ~_first_of_group(group, np.ones(len(at), dtype=bool))
    going = np.arange(len(at))  # those of texts that are not settled: most are after one round
    for _ in range(_ROUNDS):
        met = _met(counted[going], behind, text[going])
        new = met & ~_first_of_group(group[going], met)
        changed = new != counted[going]
        if not changed.any():
            break
        counted[going] = new
        unsettled = np.zeros(int(text[-1]) + 1, dtype=bool)
        unsettled[text[going[changed]]] = True
        kept = unsettled[text[going]]
        behind = np.r_[0, np.cumsum(kept)][behind[kept]]
        going = going[kept]
    return counted


def _first_of_group(group: np.ndarray, met: np.ndarray) -> np.ndarray:
    """The first member of each group among those that are met."""
    first = np.empty(int(group.max()) + 1, dtype=np.int64)
    first[group] = len(group)
    place = np.flatnonzero(met)[::-1]
    first[group[place]] = place  # of several, the last one assigned stays: the first member
    return first[group] == np.arange(len(group))


def _met(counted: np.ndarray, behind: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The places a reader meets who jumps from a counted place to what lies behind it.

    All texts are read at once, a jump at a time: there are as many rounds as the longest chain of jumps in one text.
    """
    place = np.flatnonzero(counted)
    if len(place) == 0:
        return np.ones(len(counted), dtype=bool)
    text, following = row[place], np.searchsorted(place, behind[place])
    text, jumped = np.r_[text, -1], np.zeros(len(place), dtype=bool)
    now = np.flatnonzero(np.r_[True, text[1:-1] != text[:-2]])
    while len(now):
        jumped[now] = True
        then = following[now]
        now = then[text[then] == text[now]]
    edges = np.zeros(len(counted) + 1, dtype=np.int64)
    edges[place[jumped] + 1] += 1
    np.add.at(edges, behind[place[jumped]], -1)
    return np.cumsum(edges)[:-1] == 0
