"""Repetition: duplicate lines, paragraphs and n-grams, loops, and how well the text compresses.

The n-gram shares are those of Gopher (Rae et al. 2021, table A1), computed by a native plugin; words are `TOKEN`, so
that Chinese has n-grams too. A loop is found by distance: where the same four tokens stood d tokens before, and
did so for a whole stretch with the same d, the stretch repeats a unit of d tokens.
"""

from __future__ import annotations

import polars as pl
import polars_textproc as textproc

from curate.signals.text import share

# A Chinese or Japanese character is a token; a chain of letters is cut at 16, so that `aaaa…` is a loop too.
TOKEN = r"[\p{Han}\p{Hiragana}\p{Katakana}]|[\w--[\p{Han}\p{Hiragana}\p{Katakana}]]+"
_LOOP_TOKEN = r"[\p{Han}\p{Hiragana}\p{Katakana}]|[\w--[\p{Han}\p{Hiragana}\p{Katakana}]]{1,16}|[^\w\s]"
_TAIL = 1000  # characters: longer than the unit of nearly every loop, short enough that a loop at the end fills it
_WINDOW = 4  # tokens that must recur before a stretch counts as repeated


def repetition(frame: pl.DataFrame) -> pl.DataFrame:
    """Columns of group `repetition` (see schemas/signals.sql) from the columns that `prepare` made."""
    text = pl.col("_text").str.strip_chars()
    shares = frame.select(
        textproc.repetition_signals(text, tokenizer_pattern=TOKEN).alias("g"),
        text.alias("text"),
        text.str.replace_all(r"\n+", "\n").str.split("\n").alias("lines"),
        text.str.replace_all(r"\n{2,}", "\u0000").str.split("\u0000").alias("paragraphs"),
    ).select(
        **_duplicates("lines", "duplicate_line"),
        **_duplicates("paragraphs", "duplicate_paragraph"),
        **{
            f"top_{n}_gram_share": pl.col("g").struct.field(f"top_{n}_gram_char_ratio").cast(pl.Float64)
            for n in (2, 3, 4)
        },
        **{
            f"duplicate_{n}_gram_share": pl.col("g").struct.field(f"dup_{n}_gram_char_ratio").cast(pl.Float64)
            for n in (5, 6, 7, 8, 9, 10)
        },
        compression=_compression(pl.col("text")),
        compression_tail=_compression(pl.col("text").str.tail(_TAIL)),
    )
    return pl.concat([shares, loops(frame.get_column("_text"))], how="horizontal")


def _duplicates(column: str, name: str) -> dict[str, pl.Expr]:
    """Share of lines (paragraphs) that stood before, by number, and by characters of the whole text."""
    parts = pl.col(column)
    unique = parts.list.unique()
    extra = _characters(parts) - _characters(unique)
    return {
        f"{name}_share": share(parts.list.len() - unique.list.len(), parts.list.len()),
        f"{name}_character_share": share(extra, pl.col("text").str.len_chars()),
    }


def _characters(parts: pl.Expr) -> pl.Expr:
    return parts.list.eval(pl.element().str.len_chars()).list.sum().cast(pl.Int64)


def _compression(text: pl.Expr) -> pl.Expr:
    """Bytes for each byte after deflate (level 1): about 2 for prose, beyond 5 for loops. 0 for an empty text."""
    ratio = textproc.compression_ratio(text, level=1).cast(pl.Float64)
    return pl.when(text.str.len_bytes() > 0).then(ratio).otherwise(0.0)


def loops(texts: pl.Series) -> pl.DataFrame:
    """The longest stretch that repeats one unit: `loop_characters`, `loop_share` (of non-space characters), `loop_repeats`.

    Tokens of all texts lie in one long column; no text is looked at in Python.
    """
    tokens = (
        pl.DataFrame({"text": texts})
        .with_row_index("row")
        .select("row", pl.col("text").str.extract_all(_LOOP_TOKEN).alias("token"))
        .explode("token")
        .drop_nulls("token")
        .with_row_index("at")
        .select("at", "row", pl.col("token").hash().alias("code"), pl.col("token").str.len_chars().alias("size"))
    )
    window = pl.col("code")
    for step in range(1, _WINDOW):
        window = window * 1_000_003 + pl.col("code").shift(step).fill_null(0)
    whole = (pl.col("row") == pl.col("row").shift(_WINDOW - 1)).fill_null(False)
    runs = (
        tokens.with_columns(window.alias("window"), pl.col("size").cum_sum().alias("end"))
        .with_columns(
            pl.when(whole)
            .then(pl.col("at").cast(pl.Int64) - pl.col("at").cast(pl.Int64).shift(1).over("row", "window"))
            .alias("distance")
        )
        .with_columns(pl.struct("row", "distance").rle_id().alias("run"))
        .drop_nulls("distance")
        .group_by("run")
        .agg(
            pl.col("row").first(),
            pl.col("distance").first(),
            pl.col("at").first().alias("first"),
            pl.len().alias("length"),
            pl.col("end").last().alias("end"),
        )
    )
    # The stretch begins one unit and one window before the first repeat was seen.
    begin = (pl.col("first").cast(pl.Int64) - pl.col("distance") - (_WINDOW - 1)).clip(0)
    ends = tokens.select(
        pl.col("at").cast(pl.Int64).alias("begin"), (pl.col("size").cum_sum() - pl.col("size")).alias("start")
    )
    longest = (
        runs.with_columns(begin.alias("begin"))
        .join(ends, on="begin", how="left")
        .with_columns(
            (pl.col("end") - pl.col("start")).alias("loop_characters"),
            ((pl.col("length") + _WINDOW - 1 + pl.col("distance")) / pl.col("distance")).alias("loop_repeats"),
        )
        # Twice is a quotation, not a loop.
        .filter(pl.col("loop_repeats") >= 3)
        .sort("loop_characters", descending=True)
        .group_by("row", maintain_order=True)
        .first()
    )
    sizes = tokens.group_by("row").agg(pl.col("size").sum().alias("visible"))
    return (
        pl.DataFrame({"row": pl.int_range(len(texts), dtype=pl.UInt32, eager=True)})
        .join(longest.select("row", "loop_characters", "loop_repeats"), on="row", how="left")
        .join(sizes, on="row", how="left")
        .sort("row")
        .select(
            pl.col("loop_characters").fill_null(0).cast(pl.Int64),
            share(pl.col("loop_characters").fill_null(0), pl.col("visible").fill_null(0)).alias("loop_share"),
            pl.col("loop_repeats").fill_null(0.0),
        )
    )
