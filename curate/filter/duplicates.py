"""Duplicates: texts that are the same once folded, and texts that share most of their word 3-grams.

Near duplicates are found by MinHash (Broder 1997) in 20 bands of 5 rows, which pairs texts of Jaccard similarity 0.8
with probability 0.9996 and of 0.5 with 0.47; every pair is then checked against its true similarity. Texts too short
for that (fewer than `SHORT` tokens) are compared exactly only: their few 3-grams would make many of them alike.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import polars_textproc as textproc

from curate.filter.shingles import TOKEN, folded, tokens

BANDS, ROWS, SHINGLE = 20, 5, 3
SHORT = 10  # tokens
_PAIRS = 20_000  # pairs whose texts are in memory at once


def signatures(texts: pl.Series, near: bool = True) -> pl.DataFrame:
    """`exact` (hash of the folded text; null where it is empty) and `bands` (20 hashes; null if short)."""
    fold = pl.DataFrame({"text": texts.cast(pl.String)}).select(
        folded(pl.col("text")).alias("text")
    )
    columns = {"exact": pl.when(pl.col("text") != "").then(pl.col("text").hash())}
    if near:
        sketch = pl.col("sketch")
        # A column of its own: in twenty expressions the plugin would be called twenty times.
        made = textproc.minhash(
            pl.col("text"), tokenizer_pattern=TOKEN, buckets=BANDS, bsize=ROWS, window=SHINGLE
        )
        fold = fold.with_columns(sketch=made)
        # 32 hexadecimal digits a band, of which 64 bits are enough
        width = 32
        bands = pl.concat_list([sketch.str.slice(i * width, width).hash() for i in range(BANDS)])
        enough = pl.col("text").str.count_matches(" ", literal=True) + 1 >= SHORT
        columns["bands"] = pl.when(enough).then(bands)
    return fold.select(**columns)


def apart(marks: pl.DataFrame, within: pl.Series) -> pl.DataFrame:
    """The signatures, mixed with a value each, so that only texts of the same value are alike."""
    salt = within.fill_null("").hash(3).rename("salt")
    mixed = pl.struct("exact", "salt").hash()
    exact = marks.with_columns(salt).select(
        pl.when(pl.col("exact").is_not_null()).then(mixed).alias("exact")
    )
    if "bands" not in marks.columns:
        return exact
    salted = marks.with_columns(salt)
    bands = pl.concat_list(
        [pl.struct(pl.col("bands").list.get(i), "salt").hash() for i in range(BANDS)]
    )
    return exact.hstack(
        salted.select(pl.when(pl.col("bands").is_not_null()).then(bands).alias("bands"))
    )


def duplicate_of(
    texts: pl.Series, score: pl.Series | None = None, near: bool = True, threshold: float = 0.8
) -> pl.DataFrame:
    """`duplicates` of texts that are in memory."""
    return duplicates(signatures(texts, near), texts.gather, score, threshold)


def duplicates(
    marks: pl.DataFrame,
    fetch: Callable[[pl.Series], pl.Series],
    score: pl.Series | None = None,
    threshold: float = 0.8,
) -> pl.DataFrame:
    """One row a text: `original` (index of the text it duplicates, or its own), `kind` (exact, near; null: it is none).

    `marks` are the texts' `signatures`, `fetch` gives the texts at some indices. The original of a group is the text
    with the highest `score`, then the first. `threshold` is the least Jaccard similarity of word 3-grams of near
    duplicates; a group is a connected component, so two of its members may be less alike than that.
    """
    marks = marks.with_row_index("at")
    # Texts of nothing are not duplicates of each other.
    marks = marks.with_columns(pl.col("exact").fill_null(pl.col("at").hash(1)))
    exact = marks.select("at", pl.col("at").min().over("exact").alias("first"))
    pairs = [exact.select(pl.col("first").alias("a"), pl.col("at").alias("b"))]
    if "bands" in marks.columns:
        pairs.append(_near_pairs(marks, exact, fetch, threshold))
    label = _components(pl.concat(pairs), marks.height)
    rank = (
        score.cast(pl.Float64).fill_nan(None).fill_null(float("-inf"))
        if score is not None
        else pl.lit(0.0)
    )
    frame = (
        pl.DataFrame({"label": label})
        .with_row_index("at")
        .with_columns(score=rank, exact=marks["exact"])
    )
    best = (
        pl.col("at")
        .sort_by(["score", "at"], descending=[True, False])
        .first()
        .over("label")
        .alias("original")
    )
    frame = frame.with_columns(best)
    same = pl.col("exact") == pl.col("exact").gather(pl.col("original"))
    kind = pl.when(pl.col("at") == pl.col("original")).then(None).when(same).then(pl.lit("exact"))
    return frame.select("original", kind.otherwise(pl.lit("near")).alias("kind"))


def _near_pairs(
    marks: pl.DataFrame,
    exact: pl.DataFrame,
    fetch: Callable[[pl.Series], pl.Series],
    threshold: float,
) -> pl.DataFrame:
    """Pairs whose similarity is at least the threshold. In a band, each text is compared with the first of its bucket
    and with the one before it: linear where many texts are alike, and a chain holds the group together."""
    first = marks.join(
        exact.filter(pl.col("at") == pl.col("first")).select("at"), on="at", how="semi"
    )
    first = first.drop_nulls("bands").select("at", "bands")
    found = [pl.DataFrame(schema={"a": first.schema["at"], "b": first.schema["at"]})]
    for i in range(BANDS):  # one at a time: all of them are twenty rows a text
        bucket = pl.col("bucket")
        band = first.select("at", bucket=pl.col("bands").list.get(i)).filter(bucket.is_duplicated())
        band = band.sort("bucket", "at").with_columns(
            first=pl.col("at").first().over("bucket"), before=pl.col("at").shift(1).over("bucket")
        )
        found.append(band.select(pl.col("first").alias("a"), pl.col("at").alias("b")))
        found.append(
            band.select(pl.col("before").alias("a"), pl.col("at").alias("b")).drop_nulls("a")
        )
    pairs = pl.concat(found)
    pairs = pairs.filter(pl.col("a") != pl.col("b")).unique()
    # Pairs that share text lie together, and a slice of them bounds what is fetched.
    slices = pairs.sort("a", "b").iter_slices(_PAIRS)
    return pl.concat([part.filter(_similar(part, fetch, threshold)) for part in slices] or [pairs])


def _similar(
    pairs: pl.DataFrame, fetch: Callable[[pl.Series], pl.Series], threshold: float
) -> pl.Series:
    """Whether the true Jaccard similarity of each pair's 3-grams reaches the threshold."""
    asked = pl.concat([pairs["a"], pairs["b"]]).unique().sort()
    flat = tokens(fetch(asked))
    hashed, whole = flat.windows(SHINGLE)
    sets = (
        pl.DataFrame({"text": flat.row[: len(hashed)][whole], "gram": hashed[whole]})
        .unique()
        .group_by("text")
        .agg(pl.col("gram"))
    )
    sets = sets.with_columns(at=asked.gather(sets["text"]))
    both = pairs.join(
        sets.select(a="at", left="gram"), on="a", how="left", maintain_order="left"
    ).join(sets.select(b="at", right="gram"), on="b", how="left", maintain_order="left")
    shared = pl.col("left").list.set_intersection("right").list.len()
    total = pl.col("left").list.len() + pl.col("right").list.len() - shared
    return both.select((shared / total >= threshold).fill_null(False).alias("similar")).get_column(
        "similar"
    )


def _components(pairs: pl.DataFrame, count: int) -> np.ndarray:
    """The smallest member of each text's connected component, by repeated minimum over edges and pointer jumping."""
    label = np.arange(count, dtype=np.int64)
    a, b = pairs["a"].to_numpy().astype(np.int64), pairs["b"].to_numpy().astype(np.int64)
    while True:
        low = np.minimum(label[a], label[b])
        new = label.copy()
        np.minimum.at(new, a, low)
        np.minimum.at(new, b, low)
        np.minimum.at(new, label[a], low)
        np.minimum.at(new, label[b], low)
        new = new[new]
        if np.array_equal(new, label):
            return label
        label = new
