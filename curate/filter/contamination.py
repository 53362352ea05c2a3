"""Contamination: detect texts that are items of a benchmark, in part or reworded.

A text and an item are compared if they share n words in a row, a rare run of three words, or their
set of numbers. Such a pair is a hit if the texts are alike: the share of words that the shorter one
finds in the other, each weighted by its rarity (inverse document frequency over items and texts),
reaches a threshold, and the numbers agree. Boilerplate ("where m and n are relatively prime
positive integers") is frequent and weighs little, so it is never a hit by itself.

In texts of a spaceless script a token is a character, and n words are n / 0.65 characters (the
words per character that the language signals count). An item shorter than n words must occur as a
whole, and needs at least `SHORTEST` words: anything shorter is a common phrase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from math import ceil
from pathlib import Path

import numpy as np
import polars as pl

from curate.errors import UsageError
from curate.files import column_expr, data_files, read_parts
from curate.filter.shingles import CJK, Tokens, tokens
from curate.problems.benchmarks import BENCHMARKS, BenchmarkSource
from curate.signals.prose import HAN_WORDS

SHORTEST = 4
TEXT_COLUMNS = ("question", "problem", "prompt", "instruction", "input", "text")
# Ours, calibrated on planted copies, paraphrases and AIME-like problems of tests/filter.
SIMILARITY = 0.6
_MUTUAL = 0.45
_NUMBERS = 0.75  # share of the shorter text's numbers that the other must contain
_RUN = 3  # words
_RARE = 3  # a run of words is rare if at most this many items contain it
_CANDIDATES = 20  # items that a text is compared with
_NUMBER = r"^\d"

HITS = {
    "at": pl.Int64,
    "item": pl.Int64,
    "tokens": pl.Int64,
    "overlap": pl.String,
    "similarity": pl.Float64,
}


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Items of benchmarks and their tokens. Texts that share `n` words in a row are compared."""

    texts: pl.Series
    flat: Tokens
    n: int

    @property
    def items(self) -> int:
        """Return the number of items."""
        return len(self.texts)


def read_benchmark(
    paths: Sequence[str | Path], column: str | None = None, n: int = 10
) -> Benchmark:
    """Read items from data files or text files (.txt: one item per line), or of a benchmark by its
    name, such as `aime24`, if there is no file of that name.

    They are in `column`, or in the first of `TEXT_COLUMNS`. Raises `UsageError` if a file has no
    such column, or no item at all.
    """
    texts: list[pl.Series] = []
    for path in map(Path, paths):
        if is_preset(path):
            source = BenchmarkSource(source="benchmark", dataset=str(path))
            texts.append(source.load()["question"].alias("text"))
            continue
        if path.suffix.lower() == ".txt" and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            texts.append(pl.Series("text", lines, dtype=pl.String))
            continue
        for file in data_files([path]):
            texts += [_items(part, column, file) for part in read_parts(file)]
    if not texts:
        raise UsageError("no benchmark was named")
    return benchmark_of(pl.concat(texts), n)


def is_preset(path: str | Path) -> bool:
    """Whether a path is the name of a benchmark (`curate/problems/benchmarks.py`), and no file."""
    return str(path) in BENCHMARKS and not Path(path).exists()


def _items(part: pl.DataFrame, column: str | None, file: Path) -> pl.Series:
    name = column or next((c for c in TEXT_COLUMNS if part.schema.get(c) == pl.String), None)
    if name is None and list(part.columns)[:1] == ["column_1"]:  # a table without names
        name = "column_1"
    value = None if name is None else column_expr(part.schema, name)
    if value is None:
        raise UsageError(f"{file} has no column of text: name one of {', '.join(part.columns)}")
    return part.select(value[0].cast(pl.String).alias("text")).to_series()


def benchmark_of(texts: pl.Series, n: int = 10) -> Benchmark:
    """Return the benchmark of these items."""
    if n < SHORTEST:
        raise UsageError(f"n must be at least {SHORTEST}: shorter runs of words occur everywhere")
    return Benchmark(texts.cast(pl.String), tokens(texts), n)


def contaminated(
    texts: pl.Series, benchmark: Benchmark, similarity: float = SIMILARITY
) -> pl.DataFrame:
    """Find the texts that are items of the benchmark; one row per text, with the most similar item.

    `at` and `item`: indices of the text and of the item. `similarity`: from 0 to 1. `overlap`: the
    longest shared run of words, folded, and `tokens` its length.
    """
    flat = tokens(texts)
    pairs = _candidates(flat, benchmark)
    if pairs.is_empty():
        return pl.DataFrame(schema=HITS)
    scored = pairs.hstack(_similarities(pairs, flat, benchmark.flat))
    whole = ~pl.col("short") | pl.col("run")
    # With a run of n words, an excerpt of an item or an item inside a longer text is a hit as well;
    # without one, the two texts must be about the same.
    either = pl.max_horizontal("of_item", "of_text")
    alike = pl.when("run").then(either).when(pl.col("of_text") >= _MUTUAL).then("of_item")
    hits = (
        scored.with_columns(similarity=alike)
        .filter(whole & (pl.col("similarity") >= similarity) & (pl.col("numbers") >= _NUMBERS))
        .sort("at", "similarity", "item", descending=[False, True, False])
        .unique("at", keep="first", maintain_order=True)
    )
    runs = [
        _longest_run(flat, at, benchmark.flat, item)
        for at, item in hits.select("at", "item").rows()
    ]
    return hits.with_columns(
        pl.Series("tokens", [len(run) for run in runs], dtype=pl.Int64),
        pl.Series("overlap", [" ".join(run) for run in runs], dtype=pl.String),
    ).select(pl.col(name).cast(kind) for name, kind in HITS.items())


def _candidates(flat: Tokens, benchmark: Benchmark) -> pl.DataFrame:
    """Return the pairs to compare: `at`, `item`, `run` (they share n words in a row), `short`
    (item).
    """
    items = benchmark.flat
    lengths, spaceless = items.lengths(), _spaceless(items)
    least = np.where(spaceless, ceil(SHORTEST / HAN_WORDS), SHORTEST)
    size = np.where(spaceless, ceil(benchmark.n / HAN_WORDS), benchmark.n)
    short = lengths < size
    size = np.minimum(size, np.maximum(lengths, 1))
    wanted = lengths >= least
    shared = []
    for width in np.unique(size[wanted]):
        mine = _grams(items, int(width), wanted & (size == width)).rename({"row": "item"})
        mine = mine.filter(pl.len().over("gram") <= max(_RARE, items.count // 50))
        theirs = _grams(flat, int(width)).rename({"row": "at"})
        shared.append(_joined(theirs, mine).with_columns(run=pl.lit(True)))
    rare = _grams(items, _RUN, wanted).rename({"row": "item"})
    rare = rare.filter(pl.len().over("gram") <= _RARE)
    close = _joined(_grams(flat, _RUN).rename({"row": "at"}), rare).filter(pl.col("shared") >= 2)
    numbers = _joined(
        _number_sets(flat).rename({"row": "at"}), _number_sets(items).rename({"row": "item"})
    )
    shared += [frame.with_columns(run=pl.lit(False)) for frame in (close, numbers)]
    pairs = (
        pl.concat(shared).group_by("at", "item").agg(pl.col("run").any(), pl.col("shared").sum())
    )
    pairs = pairs.filter(pl.Series(wanted).gather(pairs.get_column("item")))
    pairs = pairs.sort("at", "run", "shared", "item", descending=[False, True, True, False])
    pairs = pairs.filter(pl.int_range(pl.len()).over("at") < _CANDIDATES)
    return pairs.with_columns(short=pl.Series(short).gather(pairs.get_column("item")))


def _grams(flat: Tokens, width: int, wanted: np.ndarray | None = None) -> pl.DataFrame:
    """Return the distinct n-grams of each text as hashes: `row`, `gram`."""
    hashed, whole = flat.windows(width)
    row = flat.row[: len(hashed)]
    if wanted is not None:
        whole = whole & wanted[row]
    return pl.DataFrame({"row": row[whole], "gram": hashed[whole]}).unique()


def _number_sets(flat: Tokens) -> pl.DataFrame:
    """Return a hash of the distinct numbers of each text with at least two: `row`, `gram`."""
    return (
        pl.DataFrame({"row": flat.row, "token": flat.text})
        .filter(pl.col("token").str.contains(_NUMBER))
        .group_by("row")
        .agg(pl.col("token").unique().sort())
        .filter(pl.col("token").list.len() >= 2)
        .select("row", gram=pl.col("token").list.join(" ").hash(5))
    )


def _joined(theirs: pl.DataFrame, mine: pl.DataFrame) -> pl.DataFrame:
    """Return pairs that share grams, and how many they share. Grams of most texts, boilerplate, are
    left out.
    """
    theirs = theirs.join(mine.select("gram").unique(), on="gram", how="semi")
    texts = max(theirs.get_column("at").n_unique(), 1)
    most = max(50, texts // 20)
    theirs = theirs.filter(pl.len().over("gram") <= most)
    pairs = theirs.join(mine, on="gram").group_by("at", "item").len("shared")
    return pairs.select("at", "item", pl.col("shared").cast(pl.Int64))


def _similarities(pairs: pl.DataFrame, flat: Tokens, items: Tokens) -> pl.DataFrame:
    """Return `of_item` and `of_text`, the weighted share of one's words that the other contains,
    and `numbers`.
    """
    ours = _counts(items, pairs.get_column("item")).rename({"row": "item"})
    theirs = _counts(flat, pairs.get_column("at")).rename({"row": "at"})
    documents = (
        pl.concat([_documents(items), _documents(flat)]).group_by("code").agg(pl.col("texts").sum())
    )
    total = items.count + flat.count
    # Smoothed, so that words of all texts keep some weight: among few texts, all words are equal.
    weight = 0.1 + ((total + 1) / (pl.col("texts") + 1)).log()
    weights = documents.select("code", weight=weight)
    ours = ours.join(weights, on="code", how="left")
    theirs = theirs.join(weights, on="code", how="left")
    both = (
        pairs.select("at", "item")
        .join(ours, on="item")
        .join(theirs.select("at", "code", other="count"), on=["at", "code"], how="left")
    )
    least = pl.min_horizontal("count", pl.col("other").fill_null(0))
    number = pl.col("number")
    shared = both.group_by("at", "item").agg(
        (least * pl.col("weight")).sum().alias("shared"),
        least.filter(number).sum().alias("shared_numbers"),
    )
    item_sums, text_sums = _sums(ours, "item"), _sums(theirs, "at")
    frame = (
        pairs.select("at", "item")
        .join(shared, on=["at", "item"], how="left", maintain_order="left")
        .join(item_sums, on="item", how="left", maintain_order="left")
        .join(text_sums, on="at", how="left", maintain_order="left", suffix="_text")
    )
    fewest = pl.min_horizontal("numbers", "numbers_text")
    return frame.select(
        of_item=pl.col("shared") / pl.col("weights"),
        of_text=pl.col("shared") / pl.col("weights_text"),
        numbers=pl.when(pl.col("numbers") == 0)
        .then(1.0)
        .when(fewest == 0)
        .then(0.0)
        .otherwise(pl.col("shared_numbers") / fewest),
    )


def _counts(flat: Tokens, rows: pl.Series) -> pl.DataFrame:
    """Return the distinct tokens of some texts: `row`, `code`, `count`, `number` (whether it is
    one).
    """
    frame = pl.DataFrame({"row": flat.row, "code": flat.code, "token": flat.text})
    return (
        frame.filter(pl.col("row").is_in(rows.unique().implode()))
        .group_by("row", "code")
        # Names of variables are frequent and must not outweigh the words.
        .agg(pl.len().clip(1, 2).cast(pl.Int64).alias("count"), pl.col("token").first())
        .with_columns(number=pl.col("token").str.contains(_NUMBER))
        .drop("token")
    )


def _documents(flat: Tokens) -> pl.DataFrame:
    """Return the number of texts in which each token occurs: `code`, `texts`."""
    distinct = pl.DataFrame({"row": flat.row, "code": flat.code}).unique()
    return distinct.group_by("code").agg(pl.len().cast(pl.Int64).alias("texts"))


def _sums(counts: pl.DataFrame, key: str) -> pl.DataFrame:
    weighted = (pl.col("count") * pl.col("weight")).sum()
    numbers = pl.col("count").filter("number").sum()
    return counts.group_by(key).agg(weighted.alias("weights"), numbers.alias("numbers"))


def _longest_run(flat: Tokens, at: int, items: Tokens, item: int) -> list[str]:
    """Return the longest run of tokens that a text and an item share."""
    ours, theirs = _words(flat, at), _words(items, item)
    match = SequenceMatcher(None, ours, theirs, autojunk=False).find_longest_match()
    return ours[match.a : match.a + match.size]


def _words(flat: Tokens, row: int) -> list[str]:
    first, end = np.searchsorted(flat.row, [row, row + 1])
    words: list[str] = flat.text.slice(int(first), int(end - first)).to_list()
    return words


def _spaceless(flat: Tokens) -> np.ndarray:
    """Whether most tokens of each text are Chinese or Japanese characters."""
    single = flat.text.str.contains(rf"^{CJK}$").to_numpy().astype(np.int64)
    return np.bincount(flat.row, weights=single, minlength=flat.count) * 2 > flat.lengths()
