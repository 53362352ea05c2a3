"""N-gram shares of many texts at once, as Gopher defines and datatrove computes them.

All texts are one long column of words. A word n-gram is a hash; sorting brings equal hashes
together. An n-gram can repeat only where its first n - 1 words do, so few candidates remain after
the 2-grams. The arrays have one entry per word:

    code   hash of the word, mixed with its row     size   characters of the word
    row    index of its text, ascending             gap    1 if a space separates it from the next
"""

from __future__ import annotations

import numpy as np
import polars as pl

TOP, DUPLICATE = (2, 3, 4), (5, 6, 7, 8, 9, 10)
_FEW = 8  # texts at most whose jumps are followed one at a time
_ROUNDS = 40  # limit of the fixpoint in `_greedy`, which settles in two or three rounds


def n_gram_shares(
    code: np.ndarray, row: np.ndarray, size: np.ndarray, gap: np.ndarray, characters: np.ndarray
) -> pl.DataFrame:
    """Return `top_n_gram_share` and `duplicate_n_gram_share` per text (`characters`: text lengths).

    Top: characters of the most frequent n-gram, with its spaces, times its count (Gopher, table
    A1). Duplicate: characters of n-grams seen before, reading from left to right and skipping each
    repeated n-gram. Both are divided by the characters of the text. The first can exceed 1 if
    n-grams overlap themselves.
    """
    count = len(characters)
    ends, gaps = np.r_[0, np.cumsum(size)], np.r_[0, np.cumsum(gap)]
    whole = np.maximum(characters, 1).astype(np.float64)
    shares: dict[str, np.ndarray] = {}
    at = np.arange(len(code), dtype=np.int64)
    grams = code.copy()
    # Words from each word to the end of its text, counting the word itself.
    stop = np.flatnonzero(np.r_[row[1:] != row[:-1], True]) + 1 if len(row) else row
    remaining = np.repeat(stop, np.diff(np.r_[0, stop])) - at
    for n in range(2, max(DUPLICATE) + 1):
        inside = remaining[at] >= n
        at, grams = at[inside], grams[inside]
        with np.errstate(over="ignore"):
            grams = grams * np.uint64(0xD6E8FEB86659FD93) + code[at + n - 1]
        group, first, number = _groups(grams)
        if n in TOP:
            top = _top(row, at[first], number, n, count, ends, gaps)
            shares[f"top_{n}_gram_share"] = top / whole
        repeated = group >= 0
        at, grams, group = at[repeated], grams[repeated], group[repeated]
        if n in DUPLICATE:
            place = at[_greedy(at, group, row, n)]
            length = ends[place + n] - ends[place]
            shares[f"duplicate_{n}_gram_share"] = (
                np.bincount(row[place], length, minlength=count) / whole
            )
    return pl.DataFrame(shares)


def _groups(grams: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the group of each n-gram, and of each group its first member and its size.

    Equal n-grams are a group; one that occurs once is in none (-1). Hashes are sorted with their
    index in the lowest bits, which keeps equal hashes in order. At least 40 bits of the hash remain
    in the slices of `annotate_frame`.
    """
    low = np.uint64((1 << len(grams).bit_length()) - 1)
    mixed = grams ^ (grams >> np.uint64(29))
    ordered = sort((mixed & ~low) | np.arange(len(grams), dtype=np.uint64))
    bits = ordered & ~low
    same = bits[1:] == bits[:-1]
    before, after = np.r_[False, same][: len(bits)], np.r_[same, False][: len(bits)]
    index = (ordered & low).astype(np.int64)
    first = after & ~before
    members = before | after
    number = np.cumsum(first[members]) - 1
    group = np.full(len(grams), -1)
    group[index[members]] = number
    return group, index[first], np.bincount(number)


def sort(numbers: np.ndarray) -> np.ndarray:
    """Sort numbers on one thread with Polars: 3.5 times faster than NumPy without its AVX-512 path.

    NumPy leaves that path out on some processors that have AVX-512.
    """
    return pl.Series(numbers).sort(multithreaded=False).to_numpy()


def _top(
    row: np.ndarray,
    place: np.ndarray,
    number: np.ndarray,
    n: int,
    count: int,
    ends: np.ndarray,
    gaps: np.ndarray,
) -> np.ndarray:
    """Characters in the most frequent n-gram of each text; ties go to the earliest n-gram.

    `place` is the first word of each repeated n-gram, `number` how often it occurs.
    """
    result = np.zeros(count)
    # If no n-gram repeats, the first n-gram of the text counts as the most frequent.
    begin = np.flatnonzero(np.r_[True, row[1:] != row[:-1]]) if len(row) else row
    enough = begin[begin + n - 1 < len(row)]
    enough = enough[row[enough + n - 1] == row[enough]]
    result[row[enough]] = _spaced(enough, n, ends, gaps)
    text, often = row[place], number.astype(np.int64)
    best = np.zeros(count, dtype=np.int64)
    rank = (often << 32) | (0xFFFFFFFF - place)
    np.maximum.at(best, text, rank)
    won = best[text] == rank
    result[text[won]] = _spaced(place[won], n, ends, gaps) * often[won]
    return result


def _spaced(place: np.ndarray, n: int, ends: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Characters of the n-grams that begin at `place`, with the spaces inside."""
    return ends[place + n] - ends[place] + gaps[place + n - 1] - gaps[place]


def _greedy(at: np.ndarray, group: np.ndarray, row: np.ndarray, n: int) -> np.ndarray:
    """Mark the repeated n-grams counted by a scan from left to right that skips counted n-grams.

    The scan remembers the first n-gram of a group, counts each later one, and never sees those that
    begin inside a counted one. Exactly one set satisfies this; iterating from a guess reaches it.
    """
    if len(at) == 0:
        return np.zeros(0, dtype=bool)
    # Number of n-grams before each word. A lookup table beats a search, since places are dense.
    before = np.zeros(len(row) + n + 1, dtype=np.int32)
    before[at + 1] = 1
    behind = np.cumsum(before, dtype=np.int32)[at + n]
    text = row[at]
    counted = ~_first_of_group(group, np.ones(len(at), dtype=bool))
    open_ = np.arange(len(at))  # n-grams of unsettled texts; most texts settle in one round
    for _ in range(_ROUNDS):
        met = _met(counted[open_], behind, text[open_])
        new = met & ~_first_of_group(group[open_], met)
        changed = new != counted[open_]
        if not changed.any():
            break
        counted[open_] = new
        unsettled = np.zeros(int(text[-1]) + 1, dtype=bool)
        unsettled[text[open_[changed]]] = True
        kept = unsettled[text[open_]]
        behind = np.r_[0, np.cumsum(kept)][behind[kept]]
        open_ = open_[kept]
    return counted


def _first_of_group(group: np.ndarray, met: np.ndarray) -> np.ndarray:
    """Mark the first member of each group among the n-grams that the scan meets."""
    first = np.empty(int(group.max()) + 1, dtype=np.int64)
    first[group] = len(group)
    place = np.flatnonzero(met)[::-1]
    first[group[place]] = place  # NumPy keeps the last assignment: the earliest member
    return first[group] == np.arange(len(group))


def _met(counted: np.ndarray, behind: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Mark the n-grams that the scan meets when it jumps over each counted n-gram.

    All texts are scanned at once, one jump per round: there are as many rounds as the longest chain
    of jumps in one text.
    """
    place = np.flatnonzero(counted)
    if len(place) == 0:
        return np.ones(len(counted), dtype=bool)
    text, following = row[place], np.searchsorted(place, behind[place])
    text, jumped = np.r_[text, -1], np.zeros(len(place), dtype=bool)
    now = np.flatnonzero(np.r_[True, text[1:-1] != text[:-2]])
    while len(now) > _FEW:
        jumped[now] = True
        then = following[now]
        now = then[text[then] == text[now]]
    if len(now):  # the longest texts: their many jumps are cheaper one at a time
        chain, texts = following.tolist(), text.tolist()
        for start in now.tolist():
            at, scanned = start, texts[start]
            while texts[at] == scanned:
                jumped[at] = True
                at = chain[at]
    edges = np.zeros(len(counted) + 1, dtype=np.int64)
    edges[place[jumped] + 1] += 1
    np.add.at(edges, behind[place[jumped]], -1)
    return np.cumsum(edges)[:-1] == 0
