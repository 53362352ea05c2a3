"""Which languages a chain of thought is written in, counted in words.

The prose (no code, LaTeX, numbers, URLs, tags) is cut into segments of one script. Script decides for Hangul, kana,
Han, Cyrillic, Arabic and Devanagari. Latin segments are pieces of clauses, of up to seven words; those of three or more
to whichlang (a native plugin), whose word is taken where the piece holds a frequent word or letter of that language.
Other pieces take the language of the proven piece before (else after) them, unless they are long and show none of it.
Where nothing in a text proves a language, the question's counts. One or two Latin words between words of another script
are names and terms, and count for none. Single letters are variables, and count for none either.
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
    "en",
    "zh",
    "es",
    "fr",
    "de",
    "ru",
    "ja",
    "ko",
    "ar",
    "it",
    "pt",
    "nl",
    "sv",
    "tr",
    "vi",
    "hi",
    "other",
)

_SEGMENT = (
    r"[\p{Latin}\p{M}][\p{Latin}\p{M}'’\-]*(?: +[\p{Latin}\p{M}'’\-]+){0,6}"
    r"|[\p{Han}\p{Hiragana}\p{Katakana}ー々〆]+"
    r"|\p{Hangul}[\p{Hangul} ]*|\p{Cyrillic}[\p{Cyrillic}\p{M}'’\- ]*"
    r"|\p{Arabic}[\p{Arabic}\p{M} ]*|\p{Devanagari}[\p{Devanagari}\p{M} ]*|\p{Greek}{3,}"
    r"|[\p{L}--[\p{Latin}\p{Han}\p{Hiragana}\p{Katakana}ー\p{Hangul}\p{Cyrillic}\p{Arabic}\p{Devanagari}\p{Greek}]]+"
)
# What is quoted, or stands in brackets, is spoken about: the segments in it count as any other, but switch nothing.
_QUOTED = (
    r"[“„][^“”„\n]{1,300}[”“]|«[^«»\n]{1,300}»|[「『][^「」『』\n]{1,300}[」』]|\"[^\"\n]{1,300}\""
    r"|[(（][^()（）\n]{1,300}[)）]"
)
_OPENS = r'^[“„«「『"(（]'
# Characters that Japanese does not write (simplified forms, function words): a run of Han with one is Chinese.
_CHINESE_ONLY = r"[这们说为个还问题么吗呢吧让给从应该则样设现对错请验证检计结于两边长圆线关实际总过时开间无别它她哪你您啊呀咱]"
# Frequent words and letters by which a clause proves to be in a language. Words that several of these languages share
# (`la`, `un`, `a`, `in`) are left out as far as they would mislead.
_WORDS = {
    "en": (
        "the of and to is are was were we it that this these those so then there with for be by have has had "
        "he she they you let now if or can will would should must from which get gives my its his her their "
        "than what when how because therefore but each every still not into only"
    ),
    "es": (
        "el los las del y es son que por para con una se entonces luego cada más está hay como ahora entre al "
        "su sus tiene donde cuando porque después tres dos sin sobre ya muy también pero desde hasta este "
        "esta esto eso hemos sería puede lo"
    ),
    "fr": (
        "le les des du et est sont que qui pour avec une il elle nous donc alors pas dans je donne cela "
        "puis ensuite fois sur ce cette ces mais au aux ont lui si ne même"
    ),
    "de": (
        "der die das und ist sind ein eine einen einem einer wir es nicht mit für von zu den dem also dann "
        "auch er sie damit durch bei im wenn daher noch wie hat haben sich auf aus nach dass aber kann wird "
        "werden über unter man nur oder zwei drei als ihr"
    ),
    "it": (
        "il lo gli di che è sono con una del della dei quindi allora dunque poi si ci abbiamo ora più non al "
        "questo anche tre due"
    ),
    "pt": (
        "o os as do da dos das e é são que para com uma não então em por agora cada depois ao um no na se "
        "mais também pelo ela ele isso"
    ),
    "nl": (
        "het een van en is zijn dat wij niet met voor dus dan ook er naar deze de we daarna drie twee op aan hij ze"
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
_UNPROVEN = 5  # words from which a clause that proves nothing may still differ from the others
_TOGETHER = 12  # words that are enough for the detector without a proof, where nothing in the text proves anything
_CLAUSE = 3  # Latin words that a clause must have for the detector; below that it guesses
_WHOLE = 4  # Latin words among which a frequent one is to be expected
_TERMS = 2  # Latin words in running text of another script that are taken for names and terms
_SPOKEN = 2  # words of another script that are a clause
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
    dominant = pl.coalesce(
        *[pl.when((pl.col(code) == best) & (best > 0)).then(pl.lit(code)) for code in LANGUAGES]
    )
    rows = counted.with_columns(_target(frame).fill_null(asked).alias("target"))
    in_target = pl.coalesce(
        *[
            pl.when(pl.col("target") == code).then(pl.col(code))
            for code in LANGUAGES
            if code != "other"
        ],
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
        language_switches="switches",
        foreign_clauses="foreign_clauses",
        unproven_share=share(pl.col("unproven"), pl.col("clauses")),
        **{f"share_{code}": share(pl.col(code), total) for code in LANGUAGES},
    )


def _question_language(frame: pl.DataFrame) -> pl.Series:
    """ISO 639-1 code of each question's language; null where there is none. Each distinct question is read once."""
    if "question" not in frame.columns:
        return pl.Series("question_language", [None] * frame.height, dtype=pl.String)
    questions = frame.select(pl.col("question").cast(pl.String)).unique().drop_nulls()
    words = word_counts(questions.select(prose(pl.col("question"))).get_column("question"))
    best = pl.max_horizontal(LANGUAGES)
    code = pl.coalesce(
        *[pl.when((pl.col(code) == best) & (best > 0)).then(pl.lit(code)) for code in LANGUAGES]
    )
    known = questions.with_columns(
        words.select(code.alias("question_language")).get_column("question_language")
    )
    joined = frame.select(pl.col("question").cast(pl.String)).join(
        known, on="question", how="left", maintain_order="left"
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
    """Words of each language: one row a text, one float column a code in `LANGUAGES`.

    Beside them `switches` (changes of language), `foreign_clauses` (see `_foreign_clauses`), `clauses` (words in Latin
    clauses of `_WHOLE` or more) and `unproven` (of those, words in clauses without a mark of the language that they
    seem to be in).

    `texts` is prose (see `curate.signals.text.prose`). `fallback` is the language of Latin text that proves nothing.
    """
    rows = pl.DataFrame({"row": pl.int_range(len(texts), dtype=pl.UInt32, eager=True)})
    segments = _segments_of(texts, fallback)
    told = pl.col("language").drop_nulls()
    clause = (pl.col("script") == "latin") & (pl.col("words") >= _WHOLE)
    counts = segments.group_by("row").agg(
        *[
            pl.col("words").filter(pl.col("language") == code).sum().alias(code)
            for code in LANGUAGES
        ],
        switches=(told != told.shift(1)).sum(),
        clauses=pl.col("words").filter(clause).sum(),
        unproven=pl.col("words").filter(clause & pl.col("told").is_null()).sum(),
    )
    counts = counts.join(_foreign_clauses(segments), on="row", how="left")
    return rows.join(counts, on="row", how="left", maintain_order="left").select(
        pl.col(LANGUAGES).fill_null(0.0),
        pl.col("switches", "foreign_clauses").fill_null(0),
        pl.col("clauses", "unproven").fill_null(0.0),
    )


def _foreign_clauses(segments: pl.DataFrame) -> pl.DataFrame:
    """row and `foreign_clauses`: clauses outside quotation marks in another language than most of such clauses.

    A Latin clause counts where it proves its language, and is not written in capitals as keywords of SQL are.
    """
    latin = pl.col("script") == "latin"
    proven = (pl.col("told") == pl.col("language")) & pl.col("segment").str.contains(
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
    """The stretches of prose in each text in reading order: row, segment, language (null: counts for none), words.

    For showing what `word_counts` counted: `texts` are whole texts, whose code and formulas are left out here.
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
    """Adds `script` (for all but Latin and Han the language itself) and `words`."""
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
    """Adds `language`: null for what counts as none (a Latin term in other script, one Han character in Latin text)."""
    latin, han = pl.col("script") == "latin", pl.col("script") == "han"
    clause = latin & (pl.col("words") >= _CLAUSE)
    # The detector sees only the clauses that it can tell.
    guessed = (
        segments.lazy().with_row_index("at").filter(clause)
        .select("at", "segment", detect_lang(pl.col("segment")).replace_strict(LATIN, default=None).alias("guess"))
        .collect()
    )  # fmt: skip
    told = _proven(guessed, "guess").select(
        "at", "guess", pl.when("proven").then(pl.col("guess")).alias("told")
    )
    whole = pl.len().over("row")
    frame = segments.with_row_index("at").join(told, on="at", how="left", maintain_order="left")
    frame = _inherit(frame).join(
        _joined(segments, told), on="row", how="left", maintain_order="left"
    )
    latin_words = pl.col("words").filter(latin).sum().over("row")
    chinese_words = pl.col("words").filter(han).sum().over("row")
    japanese_words = pl.col("words").filter(pl.col("script") == "ja").sum().over("row")
    neighbour = _neighbour_is_latin()
    characters = pl.col("segment").str.len_chars()
    han_language = (
        pl.when(pl.col("segment").str.contains(_CHINESE_ONLY)).then(pl.lit("zh"))
        .when((japanese_words > 0) & ((characters <= _HAN_TERM) | (japanese_words > chinese_words))).then(pl.lit("ja"))
        .when((characters < 2) & (latin_words > 0) & (chinese_words < 2 * HAN_WORDS)).then(None)
        .otherwise(pl.lit("zh"))
    )  # fmt: skip
    asked = pl.when(pl.col("fallback").is_in(list(LATIN.values()))).then("fallback")
    doubtful = frame.filter(latin & pl.col("told").is_null() & (pl.col("words") >= _UNPROVEN))
    apart = _proven(doubtful, "inherited").select("at", differs=~pl.col("proven"))
    frame = frame.join(apart, on="at", how="left", maintain_order="left").with_columns(
        around=pl.coalesce("inherited", "joined", asked, pl.lit("en"))
    )
    latin_language = (
        pl.when((pl.col("words") <= _TERMS) & ~neighbour & (whole > 1)).then(None)
        .otherwise(pl.coalesce("told", pl.when("differs").then("guess"), "around"))
    )  # fmt: skip
    return frame.with_columns(
        pl.when(latin)
        .then(latin_language)
        .when(han)
        .then(han_language)
        .otherwise(pl.col("script"))
        .alias("language")
    )


def _proven(frame: pl.DataFrame, language: str) -> pl.DataFrame:
    """Adds `proven`: whether the segment holds a word or a letter that marks the language in the column `language`.

    Rows come back by language, those without one left out: each is searched for the marks of its own language only.
    """
    parts = [
        frame.filter(pl.col(language) == code).with_columns(
            proven=pl.col("segment").str.contains(mark)
        )
        for code, mark in _MARKS.items()
    ]
    return pl.concat(parts)


def _joined(segments: pl.DataFrame, told: pl.DataFrame) -> pl.DataFrame:
    """For rows in which no Latin clause proves its language: what the detector says of all together, if enough."""
    latin = segments.with_row_index("at").filter(pl.col("script") == "latin")
    sure = (
        latin.select("at", "row")
        .join(told.drop_nulls("told"), on="at", how="semi")
        .select("row")
        .unique()
    )
    together = (
        latin.join(sure, on="row", how="anti")
        .group_by("row")
        .agg(pl.col("segment").str.join(" "), pl.col("words").sum())
        .with_columns(
            detect_lang(pl.col("segment")).replace_strict(LATIN, default=None).alias("joined")
        )
    )
    return (
        _proven(together, "joined")
        .filter((pl.col("words") >= _TOGETHER) | pl.col("proven"))
        .select("row", "joined")
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
