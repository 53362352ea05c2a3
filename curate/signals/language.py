"""Which languages a chain of thought is written in, counted in words.

The prose (no code, LaTeX, numbers, URLs, tags) is cut into segments of one script. Script decides for Hangul, kana, Han,
Cyrillic, Arabic and Devanagari; Latin segments are clauses between punctuation marks, and those of three or more
words go to whichlang (a native plugin). Shorter ones take the language of the clause before (else after) them, and where
a text has too few Latin words to tell, that of the question. One or two Latin words between words of
another script are names and terms, and count for none. Single letters are variables, and count for none either.
"""

from __future__ import annotations

import polars as pl
from polars_whichlang import detect_lang

from curate.signals.text import HAN_WORDS, JAPANESE_WORDS, WORD, prose, share

LATIN = {
    "eng": "en", "spa": "es", "fra": "fr", "deu": "de", "ita": "it", "por": "pt", "nld": "nl", "swe": "sv", "tur": "tr", "vie": "vi",
}  # fmt: skip
LANGUAGES = ("en", "zh", "es", "fr", "de", "ru", "ja", "ko", "ar", "it", "pt", "nl", "sv", "tr", "vi", "hi", "other")

_SEGMENT = (
    r"[\p{Latin}\p{M}](?:[\p{Latin}\p{M}'’\- ]*[\p{Latin}\p{M}])?"
    r"|[\p{Han}\p{Hiragana}\p{Katakana}ー々〆]+"
    r"|\p{Hangul}[\p{Hangul} ]*|\p{Cyrillic}[\p{Cyrillic}\p{M}'’\- ]*|\p{Arabic}[\p{Arabic}\p{M} ]*|\p{Devanagari}[\p{Devanagari}\p{M} ]*"
    r"|\p{Greek}{3,}|[\p{L}--[\p{Latin}\p{Han}\p{Hiragana}\p{Katakana}ー\p{Hangul}\p{Cyrillic}\p{Arabic}\p{Devanagari}\p{Greek}]]+"
)
# Characters that Japanese does not write (simplified forms and Chinese function words): a run of Han with one is Chinese.
_CHINESE_ONLY = (
    r"[这们说为个还问题么吗呢吧让给从应该则样设现对错请验证检计结于两边长圆线关实际总过时开间无别它她哪你您啊呀咱]"
)
_CLAUSE = 3  # Latin words that a clause must have for the detector; below that it guesses
_TERMS = 2  # Latin words in running text of another script that are taken for names and terms
_HAN_TERM = 6  # a pure Han segment of at most so many characters in a text with kana is Japanese


def language(frame: pl.DataFrame) -> pl.DataFrame:
    """Columns of group `language` (see schemas/signals.sql) from the columns that `prepare` made.

    The target is the column `target_language` where it says one, else the language of the column `question`; without
    either `target_language_share` is null. A text without words has share 1: nothing in it is in another language.
    """
    asked = _question_language(frame)
    counted = word_counts(frame.get_column("_prose"), asked)
    total = pl.sum_horizontal(LANGUAGES)
    best = pl.max_horizontal(LANGUAGES)
    dominant = pl.coalesce(*[pl.when((pl.col(code) == best) & (best > 0)).then(pl.lit(code)) for code in LANGUAGES])
    rows = counted.with_columns(_target(frame).fill_null(asked).alias("target"))
    in_target = pl.coalesce(
        *[pl.when(pl.col("target") == code).then(pl.col(code)) for code in LANGUAGES if code != "other"],
        pl.when(pl.col("target").is_not_null()).then(pl.col("other")),
    )
    return rows.select(
        question_language=asked,
        target_language_share=pl.when(pl.col("target").is_null())
        .then(None)
        .when(total > 0)
        .then(in_target / total)
        .otherwise(1.0),
        dominant_language=dominant,
        dominant_language_share=pl.when(total > 0).then(best / total).otherwise(1.0),
        language_words=total,
        **{f"share_{code}": share(pl.col(code), total) for code in LANGUAGES},
    )


def _question_language(frame: pl.DataFrame) -> pl.Series:
    """ISO 639-1 code of the language each question is in; null where there is none. Each distinct question is read once."""
    if "question" not in frame.columns:
        return pl.Series("question_language", [None] * frame.height, dtype=pl.String)
    questions = frame.select(pl.col("question").cast(pl.String)).unique().drop_nulls()
    words = word_counts(questions.select(prose(pl.col("question"))).get_column("question"))
    best = pl.max_horizontal(LANGUAGES)
    code = pl.coalesce(*[pl.when((pl.col(code) == best) & (best > 0)).then(pl.lit(code)) for code in LANGUAGES])
    known = questions.with_columns(words.select(code.alias("question_language")).get_column("question_language"))
    joined = frame.select(pl.col("question").cast(pl.String)).join(
        known, on="question", how="left", maintain_order="left"
    )
    return joined.get_column("question_language")


def _target(frame: pl.DataFrame) -> pl.Series:
    if "target_language" not in frame.columns:
        return pl.Series("target_language", [None] * frame.height, dtype=pl.String)
    code = pl.col("target_language").cast(pl.String).str.to_lowercase().str.extract(r"^([a-z]{2})\b")
    return frame.select(code).get_column("target_language")


def word_counts(texts: pl.Series, fallback: pl.Series | None = None) -> pl.DataFrame:
    """Words of each language: one row a text, one float column a code in `LANGUAGES`.

    `texts` is prose (see `curate.signals.text.prose`). `fallback` is the language of Latin text that is too short to tell.
    """
    segments = (
        pl.DataFrame({"text": texts})
        .with_columns(fallback=fallback if fallback is not None else pl.lit(None, dtype=pl.String))
        .with_row_index("row")
        .select("row", "fallback", pl.col("text").str.extract_all(_SEGMENT).alias("segment"))
        .explode("segment")
        .drop_nulls("segment")
    )
    rows = pl.DataFrame({"row": pl.int_range(len(texts), dtype=pl.UInt32, eager=True)})
    counts = (
        _languages(_scripts(segments))
        .group_by("row")
        .agg(*[pl.col("words").filter(pl.col("language") == code).sum().alias(code) for code in LANGUAGES])
    )
    return rows.join(counts, on="row", how="left", maintain_order="left").select(pl.col(LANGUAGES).fill_null(0.0))


def _scripts(segments: pl.DataFrame) -> pl.DataFrame:
    """Adds `script` (for all but Latin and Han the language itself) and `words`."""
    text = pl.col("segment")
    script = (
        pl.when(text.str.contains(r"^[\p{Latin}\p{M}]")).then(pl.lit("latin"))
        .when(text.str.contains(r"[\p{Hiragana}\p{Katakana}]")).then(pl.lit("ja"))
        .when(text.str.contains(r"^\p{Han}")).then(pl.lit("han"))
        .when(text.str.contains(r"^\p{Cyrillic}")).then(pl.lit("ru"))
        .when(text.str.contains(r"^\p{Hangul}")).then(pl.lit("ko"))
        .when(text.str.contains(r"^\p{Arabic}")).then(pl.lit("ar"))
        .when(text.str.contains(r"^\p{Devanagari}")).then(pl.lit("hi"))
        .otherwise(pl.lit("other"))
    )  # fmt: skip
    characters = text.str.len_chars()
    spoken = text.str.count_matches(WORD).cast(pl.Float64)
    return (
        segments.with_columns(script.alias("script"))
        .with_columns(
            pl.when(pl.col("script") == "han").then(HAN_WORDS * characters)
            .when(pl.col("script") == "ja").then(JAPANESE_WORDS * characters)
            .otherwise(spoken)
            .alias("words")
        )
        .filter(pl.col("words") > 0)
    )  # fmt: skip


def _languages(segments: pl.DataFrame) -> pl.DataFrame:
    """Adds `language`: null for what counts as none (a Latin term in other script, one Han character in Latin text)."""
    latin, han = pl.col("script") == "latin", pl.col("script") == "han"
    clause = latin & (pl.col("words") >= _CLAUSE)
    # The detector sees only the clauses that it can tell.
    told = (
        segments.lazy().with_row_index("at").filter(clause)
        .select("at", detect_lang(pl.col("segment")).replace_strict(LATIN, default=None).alias("told"))
        .collect()
    )  # fmt: skip
    whole = pl.len().over("row")
    frame = segments.with_row_index("at").join(told, on="at", how="left", maintain_order="left")
    frame = _inherit(frame)
    latin_words = pl.col("words").filter(latin).sum().over("row")
    chinese_words = pl.col("words").filter(han).sum().over("row")
    japanese_words = pl.col("words").filter(pl.col("script") == "ja").sum().over("row")
    neighbour = _neighbour_is_latin()
    han_language = (
        pl.when(pl.col("segment").str.contains(_CHINESE_ONLY)).then(pl.lit("zh"))
        .when((japanese_words > 0) & ((pl.col("segment").str.len_chars() <= _HAN_TERM) | (japanese_words > chinese_words)))
        .then(pl.lit("ja"))
        .when((pl.col("segment").str.len_chars() < 2) & (latin_words > 0) & (chinese_words < 2 * HAN_WORDS)).then(None)
        .otherwise(pl.lit("zh"))
    )  # fmt: skip
    latin_language = (
        pl.when((pl.col("words") <= _TERMS) & ~neighbour & (whole > 1)).then(None)
        .otherwise(pl.coalesce("told", "inherited", pl.when(pl.col("fallback").is_in(list(LATIN.values()))).then("fallback"), pl.lit("en")))
    )  # fmt: skip
    return frame.with_columns(
        pl.when(latin).then(latin_language).when(han).then(han_language).otherwise(pl.col("script")).alias("language")
    )


def _inherit(frame: pl.DataFrame) -> pl.DataFrame:
    """Adds `inherited`: the language told of the nearest Latin clause before in the same row, else after."""
    source = pl.when(pl.col("told").is_not_null()).then(pl.col("row"))
    before = pl.when(source.forward_fill() == pl.col("row")).then(pl.col("told").forward_fill())
    after = pl.when(source.backward_fill() == pl.col("row")).then(pl.col("told").backward_fill())
    return frame.with_columns(pl.coalesce(before, after).alias("inherited"))


def _neighbour_is_latin() -> pl.Expr:
    """Whether the segment before or after, in the same row, is Latin too."""
    latin, row = pl.col("script") == "latin", pl.col("row")
    before = latin.shift(1).fill_null(False) & (row.shift(1) == row).fill_null(False)
    after = latin.shift(-1).fill_null(False) & (row.shift(-1) == row).fill_null(False)
    return before | after
