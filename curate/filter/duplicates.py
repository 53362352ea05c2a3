"""Duplicates: texts that are equal once folded, and texts that share most of their 3-grams of
tokens.

Folding keeps what carries meaning (operators, relations, signs, digits, brackets and the order of
all), so that "3 + 4" and "3 - 4" are two problems. Near duplicates are found by MinHash (Broder
1997) in 20 bands of 5 rows, which pairs texts of Jaccard similarity 0.8 with probability 0.9996 and
of 0.5 with 0.47; every pair is then checked against its true similarity. Texts too short for that
(fewer than `SHORT` tokens) are only compared exactly: with few 3-grams, many of them would look
alike.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import polars_textproc as textproc

from curate.filter.shingles import MEANING, folded, tokens

BANDS, ROWS, SHINGLE = 20, 5, 3
SHORT = 10  # tokens
_PAIRS = 20_000  # pairs whose texts are in memory at once
# Tokens in which two problems of one pattern differ: numbers, signs, names of one letter, and words
# for a number, an operation or a relation. English articles are excluded.
_FACTS = (
    r"^(?:[^\p{L}].*|[b-hj-z]|[\p{Greek}]"
    r"|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozen|hundred|thousand"
    r"|million|half|third|quarter|twice|thrice|double|triple|first|second"
    r"|not|no|without|except|even|odd|prime|more|less|fewer|greater|smaller|larger|least|most"
    r"|greatest|smallest|largest|minimum|maximum|minimal|maximal|min|max|sum|difference|product"
    r"|quotient|ratio|increase[sd]?|decrease[sd]?|add|added|plus|minus|times|divided|subtract"
    r"|subtracted|lost|gained|positive|negative|leq?|geq?|lt|gt|neq?|sin|cos|tan|cot|sec|csc|arc\w+"
    r"|sinh|cosh|tanh|log|ln|exp"
    r"|sqrt|frac|cdot|div|pm|mp|pi|true|false|inside|outside|before|after"
    r"|[零一二三四五六七八九十百千万两半倍加减乘除多少大小正负奇偶不最])$"
)


def signatures(texts: pl.Series, near: bool = True, facts: bool = False) -> pl.DataFrame:
    """Return the hashes by which texts are compared, one row per text.

    `exact`: of the folded text; null if it is empty. `bands` (with `near`): 20 hashes; null if the
    text is short. `facts` (with `facts`): of its numbers, signs and relations in their order.
    """
    frame = pl.DataFrame({"text": texts.cast(pl.String)}).select(
        folded(pl.col("text")).alias("text")
    )
    columns: dict[str, pl.Expr] = {
        "exact": pl.when(pl.col("text") != "").then(pl.col("text").hash())
    }
    if facts:
        words = pl.col("text").str.split(" ")
        meant = words.list.eval(pl.element().filter(pl.element().str.contains(_FACTS)))
        columns["facts"] = meant.list.join(" ").hash(2)
    if near:
        sketch = pl.col("sketch")
        # Computed once, as a column: twenty expressions would call the plugin twenty times.
        minhash = textproc.minhash(
            pl.col("text"), tokenizer_pattern="[^ ]+", buckets=BANDS, bsize=ROWS, window=SHINGLE
        )
        frame = frame.with_columns(sketch=minhash)
        # 32 hexadecimal digits per band, of which 64 bits are enough
        width = 32
        bands = pl.concat_list([sketch.str.slice(i * width, width).hash() for i in range(BANDS)])
        enough = pl.col("text").str.count_matches(" ", literal=True) + 1 >= SHORT
        columns["bands"] = pl.when(enough).then(bands)
    return frame.select(**columns)


def salted(marks: pl.DataFrame, within: pl.Series) -> pl.DataFrame:
    """Mix each signature with a value, so that only texts with the same value can be alike."""
    salt = within.fill_null("").hash(3).rename("salt")
    mixed = pl.struct("exact", "salt").hash()
    columns = [pl.when(pl.col("exact").is_not_null()).then(mixed).alias("exact")]
    if "facts" in marks.columns:
        columns.append(pl.col("facts"))
    if "bands" in marks.columns:
        bands = pl.concat_list(
            [pl.struct(pl.col("bands").list.get(i), "salt").hash() for i in range(BANDS)]
        )
        columns.append(pl.when(pl.col("bands").is_not_null()).then(bands).alias("bands"))
    return marks.with_columns(salt).select(columns)


def duplicates(
    marks: pl.DataFrame,
    fetch: Callable[[pl.Series], pl.Series],
    score: pl.Series | None = None,
    threshold: float = 0.8,
) -> pl.DataFrame:
    """Find the original of each text; one row per text.

    `original`: index of the text that it duplicates, or its own. `kind`: exact, near, or null for
    an original. `marks` are the `signatures` of the texts, `fetch` returns the texts at given
    indices. The original of a group is the text with the highest `score`, then the first.
    `threshold` is the minimum Jaccard similarity of the 3-grams of near duplicates. A group is a
    connected component, so two of its members may be less alike than that; with `facts`, all
    members have the same numbers, signs and relations.
    """
    marks = marks.with_row_index("at")
    # Empty texts are not duplicates of each other.
    marks = marks.with_columns(pl.col("exact").fill_null(pl.col("at").hash(1)))
    exact = marks.select("at", pl.col("at").min().over("exact").alias("first"))
    pairs = [exact.select(pl.col("first").alias("a"), pl.col("at").alias("b"))]
    if "bands" in marks.columns:
        pairs.append(_near_pairs(marks, exact, fetch, threshold))
    label = _components(pl.concat(pairs), marks.height)
    rank: pl.Series | pl.Expr = pl.lit(0.0)
    if score is not None:
        rank = score.cast(pl.Float64).fill_nan(None).fill_null(float("-inf"))
    frame = (
        pl.DataFrame({"label": label})
        .with_row_index("at")
        .with_columns(score=rank, exact=marks["exact"])
    )
    order = pl.col("at").sort_by(["score", "at"], descending=[True, False])
    frame = frame.with_columns(original=order.first().over("label"))
    same = pl.col("exact") == pl.col("exact").gather(pl.col("original"))
    kind = pl.when(pl.col("at") == pl.col("original")).then(None).when(same).then(pl.lit("exact"))
    return frame.select("original", kind.otherwise(pl.lit("near")).alias("kind"))


def _near_pairs(
    marks: pl.DataFrame,
    exact: pl.DataFrame,
    fetch: Callable[[pl.Series], pl.Series],
    threshold: float,
) -> pl.DataFrame:
    """Return the pairs whose similarity is at least the threshold.

    In a band, each text is compared with the first of its bucket and with the one before it, which
    is linear even if many texts are alike; chains connect the group.
    """
    first = marks.join(
        exact.filter(pl.col("at") == pl.col("first")).select("at"), on="at", how="semi"
    )
    first = first.drop_nulls("bands")
    if "facts" in first.columns:  # texts whose numbers or relations differ never share a bucket
        bands = [pl.struct(pl.col("bands").list.get(i), "facts").hash() for i in range(BANDS)]
        first = first.with_columns(bands=pl.concat_list(bands))
    first = first.select("at", "bands")
    candidates = [pl.DataFrame(schema={"a": first.schema["at"], "b": first.schema["at"]})]
    for i in range(BANDS):  # one at a time: all bands together are twenty rows per text
        bucket = pl.col("bucket")
        band = first.select("at", bucket=pl.col("bands").list.get(i)).filter(bucket.is_duplicated())
        band = band.sort("bucket", "at").with_columns(
            first=pl.col("at").first().over("bucket"), before=pl.col("at").shift(1).over("bucket")
        )
        candidates.append(band.select(pl.col("first").alias("a"), pl.col("at").alias("b")))
        candidates.append(
            band.select(pl.col("before").alias("a"), pl.col("at").alias("b")).drop_nulls("a")
        )
    pairs = pl.concat(candidates)
    pairs = pairs.filter(pl.col("a") != pl.col("b")).unique()
    # Pairs that share text are adjacent, and a slice of them bounds the number of texts fetched.
    slices = pairs.sort("a", "b").iter_slices(_PAIRS)
    return pl.concat([part.filter(_similar(part, fetch, threshold)) for part in slices] or [pairs])


def _similar(
    pairs: pl.DataFrame, fetch: Callable[[pl.Series], pl.Series], threshold: float
) -> pl.Series:
    """Whether the true Jaccard similarity of each pair's 3-grams reaches the threshold."""
    members = pl.concat([pairs["a"], pairs["b"]]).unique().sort()
    flat = tokens(fetch(members), MEANING)
    hashed, whole = flat.windows(SHINGLE)
    sets = (
        pl.DataFrame({"text": flat.row[: len(hashed)][whole], "gram": hashed[whole]})
        .unique()
        .group_by("text")
        .agg(pl.col("gram"))
    )
    sets = sets.with_columns(at=members.gather(sets["text"]))
    both = pairs.join(
        sets.select(a="at", left="gram"), on="a", how="left", maintain_order="left"
    ).join(sets.select(b="at", right="gram"), on="b", how="left", maintain_order="left")
    shared = pl.col("left").list.set_intersection("right").list.len()
    total = pl.col("left").list.len() + pl.col("right").list.len() - shared
    return both.select((shared / total >= threshold).fill_null(False).alias("similar")).get_column(
        "similar"
    )


def _components(pairs: pl.DataFrame, count: int) -> np.ndarray:
    """Return the smallest member of each text's connected component.

    The method is repeated minimum over edges, with pointer jumping.
    """
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
