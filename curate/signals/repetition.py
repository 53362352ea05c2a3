"""Repetition: duplicate lines, paragraphs and n-grams, loops, and the compression ratio.

The tokens of all texts form one long column; no text is handled in Python on its own. Loops are
detected by distance: a stretch in which every four tokens also occurred d tokens earlier, with the
same d throughout, repeats a unit of d tokens.
"""

from __future__ import annotations

from string import ascii_letters, digits

import numpy as np
import polars as pl
import polars_textproc as textproc

from curate.signals.ngrams import n_gram_shares, sort
from curate.signals.prose import counted, share

# A Chinese or Japanese character is a word. Chains of letters are cut at 30 characters: `aaaa…`
# then is a loop too, and hardly any word of any language is cut.
_CJK = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_TOKEN = rf"{_CJK}|[\w--{_CJK}]{{1,30}}|[^\w\s]"
# bits of a token's kinds, by its first byte
_WORD, _DIGIT, _MARK = 1, 2, 4
_CHARACTER = 9  # a word, and a character of Chinese or Japanese
_ASCII = 127
_KINDS = np.zeros(256, dtype=np.uint8)
_KINDS[[ord(c) for c in ascii_letters + "_"]] = _WORD
_KINDS[[ord(c) for c in digits]] = _WORD | _DIGIT
_KINDS[[ord(c) for c in ".):"]] = _MARK
_TAIL = 1000  # characters: longer than most loop units, yet filled by a loop at the end
_ITEM = r"^\s*(?:\d{1,3}[.)、:]|[-*•])\s*(.{8,})$"
_LIST = 6  # items from which a share of repeated ones means something
_WINDOW = 4  # tokens that must recur before a stretch counts as repeated
_PIECE = 4 << 20  # characters whose tokens are in memory at once; a text is hardly ever longer


def repetition(frame: pl.DataFrame) -> pl.DataFrame:
    """Measure the columns of group `repetition` (schemas/signals.sql) on a prepared frame."""
    text = pl.col("_text").str.strip_chars()
    texts = frame.select(text.alias("text")).with_columns(
        pl.col("text").str.replace_all(r"\n+", "\n").str.split("\n").alias("lines"),
        pl.col("text").str.replace_all(r"\n{2,}", "\u0000").str.split("\u0000").alias("paragraphs"),
    )
    shares = texts.select(
        **_duplicates("lines", "duplicate_line"),
        **_duplicates("paragraphs", "duplicate_paragraph"),
        compression=_compression(pl.col("text")),
        compression_tail=_compression(pl.col("text").str.tail(_TAIL)),
    )
    by_token = _in_pieces(texts.get_column("text"))
    return pl.concat([shares, _repeated_items(texts), by_token], how="horizontal")


def _in_pieces(texts: pl.Series) -> pl.DataFrame:
    """The columns of `_by_token`, with memory that the length of a text does not raise.

    A text longer than `_PIECE` is measured in pieces: its shares of n-grams are means over them,
    its loop is that of the piece with the longest.
    """
    long = texts.str.len_bytes() > _PIECE
    if not long.any():
        return _by_token(texts)
    short = pl.select(pl.when(long).then(pl.lit("")).otherwise(texts)).to_series()
    columns = _by_token(short)
    loops = [name for name in columns.columns if name.startswith("loop_")]
    for at in long.arg_true():
        size = int(texts[at : at + 1].str.len_chars()[0])
        cuts = [texts[at : at + 1].str.slice(i, _PIECE) for i in range(0, size, _PIECE)]
        pieces = pl.concat([_by_token(cut) for cut in cuts])
        weight = pl.Series([float(min(_PIECE, size - i)) for i in range(0, size, _PIECE)])
        whole = pieces.select(
            (pl.exclude(loops) * pl.lit(weight)).sum() / size,
            pl.col(loops).sort_by("loop_characters").last(),
        )
        columns = pl.concat([columns[:at], whole.select(columns.columns), columns[at + 1 :]])
    return columns


def _by_token(texts: pl.Series) -> pl.DataFrame:
    """Columns that compare the tokens of each text: n-gram shares and loops."""
    tokens = _tokens(texts)
    grams = _n_grams(tokens, texts.str.len_chars().to_numpy())
    loops = _loops(_without_list_numbers(tokens), len(texts))
    return pl.concat([grams, loops], how="horizontal")


def _tokens(texts: pl.Series) -> pl.DataFrame:
    """One row per token: row, code (hash), size (characters) and its kinds.

    Kinds: word (not punctuation), cjk, number (up to three digits), mark (as after a list number).
    """
    tokens = (
        pl.DataFrame({"text": texts})
        .with_row_index("row")
        .select("row", pl.col("text").str.extract_all(_TOKEN).alias("token"))
        .explode("token")
        .drop_nulls("token")
    )
    token = tokens.get_column("token")
    first, size = _first_bytes(token)
    kind = _KINDS[first]
    # A byte decides about ASCII; the regular expressions, which take longer, see the others.
    beyond = np.flatnonzero(first > _ASCII)
    others = token.gather(beyond)
    size[beyond] = others.str.len_chars().to_numpy()
    kind[beyond] = np.where(
        others.str.contains(rf"^{_CJK}").to_numpy(),
        _CHARACTER,
        np.where(others.str.contains(r"^\w").to_numpy(), _WORD, 0),
    ) + np.where((others == "、").to_numpy(), _MARK, 0)
    row = tokens.get_column("row")
    return pl.DataFrame(
        {
            "row": row,
            "code": token.hash() ^ (row.cast(pl.UInt64) * 0x9E3779B9),
            "size": size,
            "word": (kind & _WORD) > 0,
            "cjk": kind == _CHARACTER,
            "number": ((kind & _DIGIT) > 0) & (size <= 3),
            "mark": (kind & _MARK) > 0,
        }
    )


def _first_bytes(tokens: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """The first byte of each token, and its length in bytes."""
    array = tokens.to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    letters = np.frombuffer(data or b"", dtype=np.uint8)
    return letters[ends[:-1]], np.diff(ends)


def _without_list_numbers(tokens: pl.DataFrame) -> pl.DataFrame:
    """Drop numbers that a mark and a word follow ("18. The"): they would hide a numbered loop."""
    item = pl.col("mark").shift(-1) & pl.col("word").shift(-2) & ~pl.col("number").shift(-2)
    marker = pl.col("number") & item.fill_null(False)
    return tokens.select("row", "code", "size", "word", "mark", "number").filter(~marker)


def _n_grams(tokens: pl.DataFrame, characters: np.ndarray) -> pl.DataFrame:
    words = tokens.filter("word")
    cjk = words.get_column("cjk").to_numpy()
    gap = (
        np.r_[~cjk[:-1] & ~cjk[1:], False].astype(np.int64)
        if len(cjk)
        else np.zeros(0, dtype=np.int64)
    )
    return n_gram_shares(
        words.get_column("code").to_numpy(),
        words.get_column("row").to_numpy().astype(np.int64),
        words.get_column("size").to_numpy(),
        gap,
        characters,
    )


def _duplicates(column: str, name: str) -> dict[str, pl.Expr]:
    """Share of lines (paragraphs) seen before: by number, and by characters of the whole text."""
    parts = pl.col(column)
    unique = parts.list.unique()
    extra = _characters(parts) - _characters(unique)
    return {
        f"{name}_share": share(parts.list.len() - unique.list.len(), parts.list.len()),
        f"{name}_character_share": share(extra, pl.col("text").str.len_chars()),
    }


def _repeated_items(texts: pl.DataFrame) -> pl.DataFrame:
    """Share of list items that repeat an earlier one, markers aside; 0 for a list of few items."""
    items = pl.col("lines").list.eval(pl.element().str.extract(_ITEM).drop_nulls())
    listed = pl.col("text").str.count_matches(rf"(?m){_ITEM}") >= _LIST
    counts = counted(texts, listed, items=items.list.len(), distinct=items.list.n_unique())
    return counts.select(
        repeated_item_share=share(pl.col("items") - pl.col("distinct"), pl.col("items"))
    )


def _characters(parts: pl.Expr) -> pl.Expr:
    return parts.list.eval(pl.element().str.len_chars()).list.sum().cast(pl.Int64)


def _compression(text: pl.Expr) -> pl.Expr:
    """Bytes per byte after deflate (level 1): about 2 for prose, over 5 for loops, 0 if empty."""
    ratio = textproc.compression_ratio(text, level=1).cast(pl.Float64)
    return pl.when(text.str.len_bytes() > 0).then(ratio).otherwise(0.0)


def _loops(tokens: pl.DataFrame, count: int) -> pl.DataFrame:
    """Measure the longest stretch that repeats a unit: its characters, share and repeats."""
    row, size = tokens.get_column("row").to_numpy(), tokens.get_column("size").to_numpy()
    distance = _distances(tokens.get_column("code").to_numpy(), row)
    # Runs of equal distance inside one text.
    edge = (
        np.flatnonzero(np.r_[True, (distance[1:] != distance[:-1]) | (row[1:] != row[:-1])])
        if len(row)
        else row
    )
    length = np.diff(np.r_[edge, len(row)])
    unit = distance[edge]
    # A loop has at least three units (twice may be a quotation). The run lacks the first unit and
    # the first window, hence the threshold of two units less one window.
    long = (unit > 0) & (length + _WINDOW - 1 >= 2 * unit)
    edge, length, unit = edge[long], length[long], unit[long]
    ends = np.r_[0, np.cumsum(size)]
    # The stretch begins one unit and one window before the end of the first repeated window.
    begin = np.maximum(edge - unit - (_WINDOW - 1), 0)
    longest = (
        pl.DataFrame(
            {
                "row": row[edge],
                "loop_characters": ends[edge + length] - ends[begin],
                "loop_repeats": (length + _WINDOW - 1 + unit) / unit,
            },
            schema={"row": pl.UInt32, "loop_characters": pl.Int64, "loop_repeats": pl.Float64},
        )
        .sort("row", "loop_characters", descending=[False, True])
        .unique("row", keep="first", maintain_order=True)
    )
    visible = np.bincount(row, size, minlength=count)
    return (
        pl.DataFrame({"row": pl.int_range(count, dtype=pl.UInt32, eager=True), "visible": visible})
        .join(longest, on="row", how="left", maintain_order="left")
        .select(
            pl.col("loop_characters").fill_null(0),
            share(pl.col("loop_characters").fill_null(0), pl.col("visible")).alias("loop_share"),
            pl.col("loop_repeats").fill_null(0.0),
        )
    )


def _distances(code: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Distance in tokens to the previous copy of the window that ends in each token; 0 if none.

    Windows are sorted by hash with their place in the lowest bits, so that equal windows are
    adjacent and in order. In the slices of `annotate_frame` at least 41 bits of the hash remain: a
    false pair is rare and does not form a run.
    """
    count = len(code)
    distance = np.zeros(count, dtype=np.int64)
    if count < _WINDOW + 1:
        return distance
    with np.errstate(over="ignore"):
        window = code[_WINDOW - 1 :].copy()
        for step in range(1, _WINDOW):
            window = (
                window * np.uint64(0xD6E8FEB86659FD93) + code[_WINDOW - 1 - step : count - step]
            )
        window ^= window >> np.uint64(29)
    low = np.uint64((1 << int(count).bit_length()) - 1)
    place = np.arange(_WINDOW - 1, count, dtype=np.uint64)
    ordered = sort((window & ~low) | place)
    same = (ordered[1:] & ~low) == (ordered[:-1] & ~low)
    later, earlier = (
        (ordered[1:] & low)[same].astype(np.int64),
        (ordered[:-1] & low)[same].astype(np.int64),
    )
    inside = (row[later] == row[earlier]) & (
        row[np.maximum(earlier - (_WINDOW - 1), 0)] == row[later]
    )
    distance[later[inside]] = (later - earlier)[inside]
    return distance
