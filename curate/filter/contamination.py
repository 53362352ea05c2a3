"""Contamination: which texts share n words in a row with a benchmark, and which words those are.

Words are folded tokens (see tokens.py). In texts of a spaceless script a token is a character, and n words are
n / 0.65 characters (the words a character that the language signals count). A benchmark item shorter than n words
counts when all of it occurs, if it has at least `SHORTEST` words: below that it is a phrase that anybody may write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import polars as pl

from curate.errors import UsageError
from curate.files import data_files, read_parts
from curate.filter.shingles import CJK, Tokens, tokens
from curate.signals.text import HAN_WORDS

SIZES = (8, 10, 13)  # n of GPT-3 (13), Llama 2 (10) and stricter use
SHORTEST = 4
TEXT_COLUMNS = ("question", "problem", "prompt", "instruction", "input", "text")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Hashes of the n-grams of benchmark items: window size in tokens to sorted hashes."""

    grams: dict[int, np.ndarray]
    items: int


def read_benchmark(
    paths: Sequence[str | Path], column: str | None = None, n: int = 10
) -> Benchmark:
    """The items of Parquet, JSONL or text files (.txt: one item a line), in `column` or the first of `TEXT_COLUMNS`.

    Raises `UsageError` where a file has no such column, or nothing to compare with.
    """
    texts: list[pl.Series] = []
    for path in map(Path, paths):
        if path.suffix == ".txt" and path.is_file():
            texts.append(
                pl.Series("text", path.read_text(encoding="utf-8").splitlines(), dtype=pl.String)
            )
            continue
        for file in data_files([path]):
            for part in read_parts(file):
                name = column or next(
                    (c for c in TEXT_COLUMNS if part.schema.get(c) == pl.String), None
                )
                if name is None or name not in part.columns:
                    raise UsageError(
                        f"{file} has no column of text: name one of {', '.join(part.columns)}"
                    )
                texts.append(part.get_column(name).cast(pl.String).rename("text"))
    if not texts:
        raise UsageError("no benchmark was named")
    return benchmark_of(pl.concat(texts), n)


def benchmark_of(texts: pl.Series, n: int = 10) -> Benchmark:
    """The n-grams of these items."""
    if n < SHORTEST:
        raise UsageError(f"n must be at least {SHORTEST}: shorter runs of words occur everywhere")
    flat = tokens(texts)
    lengths, spaceless = flat.lengths(), _spaceless(flat)
    size = np.where(spaceless, ceil(n / HAN_WORDS), n)
    size = np.minimum(size, np.maximum(lengths, 1))
    least = np.where(spaceless, ceil(SHORTEST / HAN_WORDS), SHORTEST)
    wanted = lengths >= least
    grams: dict[int, np.ndarray] = {}
    for width in np.unique(size[wanted]):
        hashed, whole = flat.windows(int(width))
        row = flat.row[: len(hashed)]
        mine = whole & wanted[row] & (size[row] == width)
        grams[int(width)] = np.unique(hashed[mine])
    return Benchmark(grams, int(wanted.sum()))


def contaminated(texts: pl.Series, benchmark: Benchmark) -> pl.DataFrame:
    """The texts that share an n-gram with the benchmark: `at` (index), `tokens` (length of the overlap), `overlap`.

    `overlap` is the longest shared run of tokens, folded, with spaces between.
    """
    flat = tokens(texts)
    covered = np.zeros(len(flat.code) + 1, dtype=np.int64)
    for width, known in benchmark.grams.items():
        hashed, whole = flat.windows(width)
        hit = np.flatnonzero(whole & np.isin(hashed, known))
        np.add.at(covered, hit, 1)
        np.add.at(covered, hit + width, -1)
    inside = np.cumsum(covered)[:-1] > 0
    start = inside & ~(np.r_[False, inside[:-1]] & np.r_[False, flat.row[1:] == flat.row[:-1]])
    return (
        pl.DataFrame(
            {"at": flat.row, "token": flat.text, "run": np.cumsum(start), "inside": inside}
        )
        .filter("inside")
        .group_by("at", "run", maintain_order=True)
        .agg(
            pl.len().cast(pl.Int64).alias("tokens"), pl.col("token").str.join(" ").alias("overlap")
        )
        .sort("at", "tokens", descending=[False, True], maintain_order=True)
        .unique("at", keep="first", maintain_order=True)
        .select("at", "tokens", "overlap")
    )


def _spaceless(flat: Tokens) -> np.ndarray:
    """Whether most tokens of each text are Chinese or Japanese characters."""
    single = flat.text.str.contains(rf"^{CJK}$").to_numpy().astype(np.int64)
    return np.bincount(flat.row, weights=single, minlength=flat.count) * 2 > flat.lengths()
