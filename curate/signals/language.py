"""Languages of a chain of thought, counted in words.

The prose (no code, LaTeX, numbers, URLs, tags) is cut into segments of one script. The script
decides for Hangul, kana, Han, Cyrillic, Arabic and Devanagari. Latin segments are pieces of clauses
of up to seven words. Pieces of three or more words go to whichlang (a native plugin), whose guess
counts if the piece has a frequent word or letter of that language: the piece then proves its
language. Other pieces inherit the language of the nearest proven piece before (else after) them,
unless they are long and have none of its marks. If no piece of a text proves a language, the
question's language counts. One or two Latin words within another script are names and terms, single
letters are variables; neither counts for any language.
"""

from __future__ import annotations

import polars as pl
from polars_whichlang import detect_lang

from curate.signals.text import HAN_WORDS, JAPANESE_WORDS, WORD, prose, share

LATIN = {
    "eng": "en", "spa": "es", "fra": "fr", "deu": "de", "ita": "it",
    "por": "pt", "nld": "nl", "swe": "sv", "tur": "tr", "vie": "vi",
}  # fmt: skip
LANGUAGES = (
    "en", "zh", "es", "fr", "de", "ru", "ja", "ko", "ar", "it", "pt", "nl", "sv", "tr", "vi", "hi",
    "other",
)  # fmt: skip

_SEGMENT = (
    r"[\p{Latin}\p{M}][\p{Latin}\p{M}'’\-]*(?: +[\p{Latin}\p{M}'’\-]+){0,6}"
    r"|[\p{Han}\p{Hiragana}\p{Katakana}ー々〆]+"
    r"|\p{Hangul}[\p{Hangul} ]*|\p{Cyrillic}[\p{Cyrillic}\p{M}'’\- ]*"
    r"|\p{Arabic}[\p{Arabic}\p{M} ]*|\p{Devanagari}[\p{Devanagari}\p{M} ]*|\p{Greek}{3,}"
    r"|[\p{L}--[\p{Latin}\p{Han}\p{Hiragana}\p{Katakana}ー\p{Hangul}\p{Cyrillic}\p{Arabic}"
    r"\p{Devanagari}\p{Greek}]]+"
)
# Quoted or bracketed text is mentioned, not used: its segments count, but they are not clauses.
_QUOTED = (
    r"[“„][^“”„\n]{1,300}[”“]|«[^«»\n]{1,300}»|[「『][^「」『』\n]{1,300}[」』]|\"[^\"\n]{1,300}\""
    r"|[(（][^()（）\n]{1,300}[)）]"
)
_OPENS = r'^[“„«「『"(（]'
# Characters that Japanese does not use (simplified forms, function words): Han text with one of
# them is Chinese.
_CHINESE_ONLY = (
    r"[这们说为个还问题么吗呢吧让给从应该则样设现对错请验证检计结于两边长圆线关实际总过时开间无别它她"
    r"哪你您啊呀咱]"
)
# Frequent words and letters that prove the language of a clause. Words that several of these
# languages share (`la`, `un`, `a`, `in`) are left out where they would mislead.
_WORDS = {
    "en": (
        "the of and to is are was were we it that this these those so then there with for be "
        "by have has had he she they you let now if or can will would should must from which "
        "get gives my its his her their than what when how because therefore but each every "
        "still not into only"
    ),
    "es": (
        "el los las del y es son que por para con una se entonces luego cada más está hay "
        "como ahora entre al su sus tiene donde cuando porque después tres dos sin sobre ya "
        "muy también pero desde hasta este esta esto eso hemos sería puede lo"
    ),
    "fr": (
        "le les des du et est sont que qui pour avec une il elle nous donc alors pas dans je "
        "donne cela puis ensuite fois sur ce cette ces mais au aux ont lui si ne même"
    ),
    "de": (
        "der die das und ist sind ein eine einen einem einer wir es nicht mit für von zu den "
        "dem also dann auch er sie damit durch bei im wenn daher noch wie hat haben sich auf "
        "aus nach dass aber kann wird werden über unter man nur oder zwei drei als ihr"
    ),
    "it": (
        "il lo gli di che è sono con una del della dei quindi allora dunque poi si ci abbiamo "
        "ora più non al questo anche tre due"
    ),
    "pt": (
        "o os as do da dos das e é são que para com uma não então em por agora cada depois ao "
        "um no na se mais também pelo ela ele isso"
    ),
    "nl": (
        "het een van en is zijn dat wij niet met voor dus dan ook er naar deze de we daarna "
        "drie twee op aan hij ze"
    ),
    "sv": "och att är det ett vi inte med för som på av till nu sedan den har om två tre",
    "tr": "ve bir bu için ile da de olan sonra o çok daha olarak iki üç her",
}
_LETTERS = {"es": "ñ¿¡", "fr": "çœèêù", "de": "äöüß", "pt": "ãõ", "sv": "åäö", "tr": "ığş"}
_MARKS = {
    code: rf"(?i)(?:^|[ '’-])(?:{words.replace(' ', '|')})(?:[ '’-]|$)"
    + (f"|[{_LETTERS[code]}]" if code in _LETTERS else "")
    for code, words in _WORDS.items()
}
_MARKS["vi"] = r"[ăđơưạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ]"
_UNPROVEN = 5  # words from which a clause without proof may still differ from its neighbours
_TOGETHER = 12  # words that suffice for the detector if nothing in the text proves a language
_CLAUSE = 3  # Latin words that the detector needs; below that it guesses
_WHOLE = 4  # Latin words among which a frequent one is expected
_TERMS = 2  # Latin words within another script that are taken for names and terms
_SPOKEN = 2  # words of another script that make a clause
_HAN_TERM = 6  # Han segments up to this many characters are Japanese in a text with kana


def language(frame: pl.DataFrame) -> pl.DataFrame:
    """Measure the columns of group `language` (schemas/signals.sql) on a prepared frame.

    The target is the column `target_language`, else the language of the column `question`; without
    either, `target_language_share` is null. A text without words has share 1: nothing in it is in
    another language.
    """
    question = _question_language(frame)
    counted = word_counts(frame.get_column("_prose"), question)
    total = pl.sum_horizontal(LANGUAGES)
    best = pl.max_horizontal(LANGUAGES)
    dominant = pl.coalesce(
        *[pl.when((pl.col(code) == best) & (best > 0)).then(pl.lit(code)) for code in LANGUAGES]
    )
    rows = counted.with_columns(_target(frame).fill_null(question).alias("target"))
    in_target = pl.coalesce(
        *[
            pl.when(pl.col("target") == code).then(pl.col(code))
            for code in LANGUAGES
            if code != "other"
        ],
        pl.when(pl.col("target").is_not_null()).then(pl.col("other")),
    )
    return rows.select(
        question_language=question,
        target_language_share=pl.when(pl.col("target").is_null())
        .then(None)
        .when(total > 0)
        .then(in_target / total)
        .otherwise(1.0),
        dominant_language=dominant,
        dominant_language_share=pl.when(total > 0).then(best / total).otherwise(1.0),
        language_words=total,
        language_switches="switches",
        foreign_clauses="foreign_clauses",
        unproven_share=share(pl.col("unproven"), pl.col("clauses")),
        **{f"share_{code}": share(pl.col(code), total) for code in LANGUAGES},
    )


def _question_language(frame: pl.DataFrame) -> pl.Series:
    """ISO 639-1 code of each question's language; null without one.

    Many traces share a question, so each distinct question is measured once.
    """
    if "question" not in frame.columns:
        return pl.Series("question_language", [None] * frame.height, dtype=pl.String)
    questions = frame.select(pl.col("question").cast(pl.String)).unique().drop_nulls()
    words = word_counts(questions.select(prose(pl.col("question"))).get_column("question"))
    best = pl.max_horizontal(LANGUAGES)
    code = pl.coalesce(
        *[pl.when((pl.col(code) == best) & (best > 0)).then(pl.lit(code)) for code in LANGUAGES]
    )
    languages = questions.with_columns(
        words.select(code.alias("question_language")).get_column("question_language")
    )
    joined = frame.select(pl.col("question").cast(pl.String)).join(
        languages, on="question", how="left", maintain_order="left"
    )
    return joined.get_column("question_language")


def _target(frame: pl.DataFrame) -> pl.Series:
    if "target_language" not in frame.columns:
        return pl.Series("target_language", [None] * frame.height, dtype=pl.String)
    code = (
        pl.col("target_language").cast(pl.String).str.to_lowercase().str.extract(r"^([a-z]{2})\b")
    )
    return frame.select(code).get_column("target_language")


def word_counts(texts: pl.Series, fallback: pl.Series | None = None) -> pl.DataFrame:
    """Count the words of each language: one row per text, one float column per code in `LANGUAGES`.

    Further columns: `switches` (changes of language), `foreign_clauses` (see `_foreign_clauses`),
    `clauses` (words in Latin clauses of at least `_WHOLE` words) and `unproven` (words in those of
    them without a mark of their language).

    `texts` is prose (see `curate.signals.text.prose`). `fallback` is the language of Latin text
    without any proof.
    """
    rows = pl.DataFrame({"row": pl.int_range(len(texts), dtype=pl.UInt32, eager=True)})
    segments = _segments_of(texts, fallback)
    languages = pl.col("language").drop_nulls()
    clause = (pl.col("script") == "latin") & (pl.col("words") >= _WHOLE)
    counts = segments.group_by("row").agg(
        *[
            pl.col("words").filter(pl.col("language") == code).sum().alias(code)
            for code in LANGUAGES
        ],
        switches=(languages != languages.shift(1)).sum(),
        clauses=pl.col("words").filter(clause).sum(),
        unproven=pl.col("words").filter(clause & pl.col("proven").is_null()).sum(),
    )
    counts = counts.join(_foreign_clauses(segments), on="row", how="left")
    return rows.join(counts, on="row", how="left", maintain_order="left").select(
        pl.col(LANGUAGES).fill_null(0.0),
        pl.col("switches", "foreign_clauses").fill_null(0),
        pl.col("clauses", "unproven").fill_null(0.0),
    )


def _foreign_clauses(segments: pl.DataFrame) -> pl.DataFrame:
    """Count the clauses per row, outside quotations, that are not in the language of most clauses.

    A Latin clause counts if it proves its language and is not in capitals, as SQL keywords are.
    """
    latin = pl.col("script") == "latin"
    proven = (pl.col("proven") == pl.col("language")) & pl.col("segment").str.contains(
        r"\p{Ll}[\p{L}'’-]* +\p{Ll}"
    )
    clause = pl.when(latin).then(proven).otherwise(pl.col("words") >= _SPOKEN)
    return (
        segments.filter(~pl.col("quoted") & clause & pl.col("language").is_not_null())
        .group_by("row", "language")
        .agg(pl.col("words").sum(), clauses=pl.len())
        .group_by("row")
        .agg(foreign_clauses=pl.col("clauses").sum() - pl.col("clauses").sort_by("words").last())
    )


def language_segments(texts: pl.Series, fallback: pl.Series | None = None) -> pl.DataFrame:
    """List the segments that `word_counts` counts: row, segment, language (null: none), words.

    Segments are in reading order. `texts` are whole texts; code and formulas are masked here.
    """
    plain = pl.DataFrame({"text": texts}).select(prose(pl.col("text"))).get_column("text")
    return (
        _segments_of(plain, fallback)
        .sort("row", "at")
        .select("row", "segment", "language", "words")
    )


def _segments_of(texts: pl.Series, fallback: pl.Series | None) -> pl.DataFrame:
    segments = (
        pl.DataFrame({"text": texts})
        .with_columns(fallback=fallback if fallback is not None else pl.lit(None, dtype=pl.String))
        .with_row_index("row")
        .select(
            "row",
            "fallback",
            pl.col("text").str.extract_all(f"{_QUOTED}|{_SEGMENT}").alias("segment"),
        )
        .explode("segment")
        .drop_nulls("segment")
        .with_row_index("place")
        .with_columns(quoted=pl.col("segment").str.contains(_OPENS))
    )
    inside = (
        segments.filter("quoted")
        .with_columns(pl.col("segment").str.extract_all(_SEGMENT))
        .explode("segment")
    )
    segments = segments.filter(~pl.col("quoted")).merge_sorted(
        inside.drop_nulls("segment"), key="place"
    )
    return _languages(_scripts(segments.drop("place")))


def _scripts(segments: pl.DataFrame) -> pl.DataFrame:
    """Add `script` (the language itself, except for Latin and Han) and `words`."""
    text = pl.col("segment")
    script = (
        pl.when(text.str.contains(r"^[\p{Latin}\p{M}]")).then(pl.lit("latin"))
        .when(text.str.contains(r"^[\p{Han}々〆]*[\p{Hiragana}\p{Katakana}ー]")).then(pl.lit("ja"))
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
    """Add `language`: null for a Latin term in another script, or one Han character in Latin."""
    latin, han = pl.col("script") == "latin", pl.col("script") == "han"
    clause = latin & (pl.col("words") >= _CLAUSE)
    # The detector is reliable, and therefore called, only on clauses of several words.
    guesses = (
        segments.lazy()
        .with_row_index("at")
        .filter(clause)
        .select("at", "segment", _detected().alias("guess"))
        .collect()
    )
    proofs = _with_marks(guesses, "guess").select(
        "at", "guess", pl.when("marked").then(pl.col("guess")).alias("proven")
    )
    whole = pl.len().over("row")
    frame = segments.with_row_index("at").join(proofs, on="at", how="left", maintain_order="left")
    frame = _inherit(frame).join(
        _joined(segments, proofs), on="row", how="left", maintain_order="left"
    )
    latin_words = pl.col("words").filter(latin).sum().over("row")
    chinese_words = pl.col("words").filter(han).sum().over("row")
    japanese_words = pl.col("words").filter(pl.col("script") == "ja").sum().over("row")
    neighbour = _neighbour_is_latin()
    characters = pl.col("segment").str.len_chars()
    han_language = (
        pl.when(pl.col("segment").str.contains(_CHINESE_ONLY)).then(pl.lit("zh"))
        .when((japanese_words > 0) & ((characters <= _HAN_TERM) | (japanese_words > chinese_words)))
        .then(pl.lit("ja"))
        .when((characters < 2) & (latin_words > 0) & (chinese_words < 2 * HAN_WORDS)).then(None)
        .otherwise(pl.lit("zh"))
    )  # fmt: skip
    fallback = pl.when(pl.col("fallback").is_in(list(LATIN.values()))).then("fallback")
    doubtful = frame.filter(latin & pl.col("proven").is_null() & (pl.col("words") >= _UNPROVEN))
    differing = _with_marks(doubtful, "inherited").select("at", differs=~pl.col("marked"))
    frame = frame.join(differing, on="at", how="left", maintain_order="left").with_columns(
        around=pl.coalesce("inherited", "joined", fallback, pl.lit("en"))
    )
    latin_language = (
        pl.when((pl.col("words") <= _TERMS) & ~neighbour & (whole > 1)).then(None)
        .otherwise(pl.coalesce("proven", pl.when("differs").then("guess"), "around"))
    )  # fmt: skip
    return frame.with_columns(
        pl.when(latin)
        .then(latin_language)
        .when(han)
        .then(han_language)
        .otherwise(pl.col("script"))
        .alias("language")
    )


def _detected() -> pl.Expr:
    """Language that whichlang detects in `segment`; null for one that is not a Latin language."""
    return detect_lang(pl.col("segment")).replace_strict(LATIN, default=None)


def _with_marks(frame: pl.DataFrame, language: str) -> pl.DataFrame:
    """Add `marked`: whether the segment has a mark of the language in the column `language`.

    Rows return grouped by language, without those whose language is null, because each row is
    searched for the marks of its own language only.
    """
    parts = [
        frame.filter(pl.col(language) == code).with_columns(
            marked=pl.col("segment").str.contains(mark)
        )
        for code, mark in _MARKS.items()
    ]
    return pl.concat(parts)


def _joined(segments: pl.DataFrame, proofs: pl.DataFrame) -> pl.DataFrame:
    """Language of all Latin segments joined, for rows in which no single clause proves one."""
    latin = segments.with_row_index("at").filter(pl.col("script") == "latin")
    sure = (
        latin.select("at", "row")
        .join(proofs.drop_nulls("proven"), on="at", how="semi")
        .select("row")
        .unique()
    )
    together = (
        latin.join(sure, on="row", how="anti")
        .group_by("row")
        .agg(pl.col("segment").str.join(" "), pl.col("words").sum())
        .with_columns(_detected().alias("joined"))
    )
    return (
        _with_marks(together, "joined")
        .filter((pl.col("words") >= _TOGETHER) | pl.col("marked"))
        .select("row", "joined")
    )


def _inherit(frame: pl.DataFrame) -> pl.DataFrame:
    """Add `inherited`: language of the nearest proven clause before in the same row, else after."""
    proven = pl.col("proven")
    source = pl.when(proven.is_not_null()).then(pl.col("row"))
    before = pl.when(source.forward_fill() == pl.col("row")).then(proven.forward_fill())
    after = pl.when(source.backward_fill() == pl.col("row")).then(proven.backward_fill())
    return frame.with_columns(pl.coalesce(before, after).alias("inherited"))


def _neighbour_is_latin() -> pl.Expr:
    """Whether the previous or the next segment of the same row is Latin."""
    latin, row = pl.col("script") == "latin", pl.col("row")
    before = latin.shift(1).fill_null(False) & (row.shift(1) == row).fill_null(False)
    after = latin.shift(-1).fill_null(False) & (row.shift(-1) == row).fill_null(False)
    return before | after
