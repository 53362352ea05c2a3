"""Identity and split of a problem: hashes of its content, never of order or machine.

`problem_id` is a hash of everything that decides the right answer. The split is a hash of the
*normalised question* alone, so that the same question with another reference, spacing or case is
never in both splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import polars as pl

TRAIN, HELD_OUT = "train", "held-out"
SPLIT_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "held-out": HELD_OUT,
    "held_out": HELD_OUT,
    "heldout": HELD_OUT,
    "test": HELD_OUT,
    "validation": HELD_OUT,
    "valid": HELD_OUT,
    "dev": HELD_OUT,
    "eval": HELD_OUT,
}
# Bits of a hash that become a share: a float holds every integer of 52 bits exactly.
_BITS = 52


def add_problem_id(frame: pl.DataFrame) -> pl.DataFrame:
    """Add `problem_id`: 32 hex digits, BLAKE2b over question, reference, verifier, choices, tests
    and identity.

    Question and reference are compared in Unicode NFC, with Unix line ends and without surrounding
    white space. `identity` is the part of the metadata that decides the answer, if the source sets
    it.
    """
    hashed = frame.with_columns(canonical(frame["question"]), canonical(frame["reference"]))
    parts = [
        pl.col("question"),
        pl.col("reference"),
        pl.col("verifier"),
        pl.col("choices").list.eval(_framed(pl.element())).list.join(""),
        pl.col("tests"),
        pl.col("identity"),
    ]
    # Each part begins with its length, so that different contents never give the same text.
    content = hashed.select(pl.concat_str([_framed(part) for part in parts]).alias("content"))[
        "content"
    ]
    return frame.with_columns(pl.Series("problem_id", _hashes(content, size=16), dtype=pl.String))


def add_split(
    frame: pl.DataFrame, held_out: float | int, salt: str = ""
) -> tuple[pl.DataFrame, int]:
    """Fill `split`. Returns also the number of rows moved to held-out because their question was
    in both splits.

    `held_out` is a share below 1, with which a question keeps its split whatever is added; or a
    number of questions per source, which is exact, but for a given set of problems only. A split
    that the source names is kept, except that a question held out anywhere is held out everywhere:
    nothing that is evaluated is ever trained on. Another `salt` draws another split. The frame
    needs `question`, `source`, and `same_as`, the wording by which questions are compared (null:
    `question` itself).
    """
    key = salt + normalised(frame.select(pl.coalesce("same_as", "question")).to_series())
    frame = frame.with_columns(pl.Series("key", _hashes(key, size=16), dtype=pl.String))
    free = pl.col("split").is_null()
    if isinstance(held_out, float):
        share = pl.col("key").str.slice(0, _BITS // 4).str.to_integer(base=16) / 2.0**_BITS
        drawn = share < held_out
    else:
        fixed = (~free).any().over("key")
        # Questions in the order of their hashes; those that already have a split are not drawn
        # again.
        order = pl.when(free & ~fixed).then("key").rank("dense").over("source")
        drawn = (order <= held_out).fill_null(False)
    assigned = pl.coalesce("split", pl.when(drawn).then(pl.lit(HELD_OUT)).otherwise(pl.lit(TRAIN)))
    frame = frame.with_columns(assigned.alias("split"))
    held = (pl.col("split") == HELD_OUT).any().over("key")
    moved = frame.filter(held & (pl.col("split") == TRAIN)).height
    frame = frame.with_columns(
        pl.when(held).then(pl.lit(HELD_OUT)).otherwise(pl.lit(TRAIN)).alias("split")
    )
    return frame.drop("key"), moved


def normalised(texts: pl.Series) -> pl.Series:
    """Questions as they are compared: Unicode NFKC, lower case, white space collapsed."""
    texts = _changed(texts, _not_ascii(texts), lambda some: some.str.normalize("NFKC"))
    ragged = texts.str.contains(r"\s\s|[^\S ]")
    texts = _changed(texts, ragged, lambda some: some.str.replace_all(r"\s+", " "))
    return texts.str.to_lowercase().str.strip_chars()


def canonical(texts: pl.Series) -> pl.Series:
    """Texts as they are hashed: Unicode NFC, Unix line ends, no surrounding white space."""
    texts = _changed(texts, _not_ascii(texts), lambda some: some.str.normalize("NFC"))
    unix = texts.str.replace_all("\r\n", "\n", literal=True).str.replace_all(
        "\r", "\n", literal=True
    )
    return unix.str.strip_chars()


def _changed(
    texts: pl.Series, where: pl.Series, change: Callable[[pl.Series], pl.Series]
) -> pl.Series:
    """Texts, with `change` applied to some of them. Most are plain ASCII, which costly changes
    would not alter.
    """
    rows = where.fill_null(False).arg_true()
    return texts.clone().scatter(rows, change(texts.gather(rows))) if len(rows) else texts


def _not_ascii(texts: pl.Series) -> pl.Series:
    return texts.str.len_bytes() != texts.str.len_chars()


def _framed(text: pl.Expr) -> pl.Expr:
    """Text preceded by its length; `-` for null."""
    return pl.coalesce(
        pl.concat_str(text.str.len_bytes().cast(pl.String), pl.lit(":"), text), pl.lit("-")
    )


def _hashes(texts: pl.Series, size: int) -> list[str]:
    # hashlib takes one value per call. It is not the bottleneck: a second for a million questions.
    return [hashlib.blake2b(text.encode(), digest_size=size).hexdigest() for text in texts]
