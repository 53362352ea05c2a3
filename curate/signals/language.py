"""Languages of a chain of thought, counted in words.

The prose (no code, LaTeX, numbers, URLs, tags) is cut into segments of one script. The script
decides for Hangul, kana, Han, Cyrillic, Arabic and Devanagari. Latin segments are pieces of clauses
of up to seven words. Pieces of three or more words go to whichlang (a native plugin), whose guess
counts if the piece has a frequent word or letter of that language: the piece then proves its
language.

A Latin language is expected if the question is in it, else English is. Any other needs evidence
from the whole text: several of its frequent words more than of the expected language's. A single
clause with one short word proves nothing, because languages share such words ("is", "as", "la").
Pieces without proof inherit the language of the nearest proven piece before (else after) them.

Names and terms do not count for any language: Latin words within another script that are not a
proven clause, and single letters, which are variables.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from polars_whichlang import detect_lang

from curate.signals.lexicon import character_pairs, word_shares
from curate.signals.prose import HAN, HAN_WORDS, JAPANESE_WORDS, WORD, prose, share

LATIN = {
    "eng": "en", "spa": "es", "fra": "fr", "deu": "de", "ita": "it",
    "por": "pt", "nld": "nl", "swe": "sv", "tur": "tr", "vie": "vi",
}  # fmt: skip
LANGUAGES = (
    "en", "zh", "es", "fr", "de", "ru", "ja", "ko", "ar", "it", "pt", "nl", "sv", "tr", "vi", "hi",
    "other",
)  # fmt: skip
_PLACES = {code: place for place, code in enumerate(LANGUAGES)}

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
    r"|[(（][^()（）\n]{1,300}[)）]|《[^《》\n]{1,300}》"
)
_OPENS = r'^[“„«「『"(（《]'
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
        "como ahora entre al su sus tiene donde cuando porque después tres dos sobre ya muy "
        "también pero desde hasta este esta esto eso hemos sería puede lo"
    ),
    "fr": (
        "le les des du et est sont que qui pour avec une il elle nous donc alors pas dans je "
        "donne cela puis ensuite fois sur ce cette ces mais au aux ont lui si ne même"
    ),
    "de": (
        "der die das und ist sind ein eine einen einem einer wir es nicht mit für von zu den "
        "dem dann auch er sie damit durch bei im wenn daher noch wie hat haben sich auf aus "
        "nach dass aber kann wird werden über unter man nur oder zwei drei als ihr"
    ),
    "it": (
        "il lo gli di che è sono con una del della dei quindi allora dunque poi si ci abbiamo "
        "ora più non al questo anche tre due"
    ),
    "pt": (
        "o os da dos das e é são que para com uma não então em por agora cada depois ao um na "
        "se mais também pelo ela ele isso"
    ),
    "nl": (
        "het een van en zijn dat wij niet met voor dus dan ook er naar deze de daarna drie "
        "twee op aan hij ze"
    ),
    "sv": "och att är det ett vi inte med för som på av till nu sedan den har om två tre",
    "tr": "ve bir bu için ile da de olan sonra o çok daha olarak iki üç",
}
_LETTERS = {"es": "ñ¿¡", "fr": "çœèêù", "de": "äöüß", "pt": "ãõ", "sv": "åäö", "tr": "ığş"}
_MARKS = {
    code: rf"(?i)(?:^|[ '’-])(?:{words.replace(' ', '|')})(?:[ '’-]|$)"
    + (f"|[{_LETTERS[code]}]" if code in _LETTERS else "")
    for code, words in _WORDS.items()
}
_MARKS["vi"] = r"[ăđơưạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ]"
# The same for counting, with any accented letter: English hardly has them. Words with capitals are
# names ("El Paso", "São Paulo") except at the start.
_COUNTED = {
    code: rf"(?:^(?i:{words.replace(' ', '|')})|[ '’-](?:{words.replace(' ', '|')}))(?:[ '’-]|$)"
    + (r"|(?:^| )\p{Ll}*[\p{Latin}--[a-zA-Z]]" if code != "en" else "")
    for code, words in _WORDS.items()
}
_COUNTED["vi"] = _MARKS["vi"]
# Frequent English words that prove nothing because other languages have them. English prose without
# one of these or of the marks is not in order.
_SHARED = (
    r"(?i)(?:^|[ '’-])(?:a|an|as|in|on|at|no|so|do|me|all|per|also|more|most|some)(?:[ '’-]|$)"
)
_FUNCTION_NAME = (
    r"(?-u:\b)(?:arc)?(?:sin|cos|tan|cot|sec|csc|log|ln|lg|lim|max|min|mod|sqrt|exp|det|gcd|lcm)"
    r"(?-u:\b)"
)
# Frequent words of all Latin languages, for the density of function words. Single letters are
# variables; words that begin or end in an accented letter escape the ASCII word boundary.
_FREQUENT = "|".join(
    sorted(
        {
            word
            for words in (
                *_WORDS.values(),
                "an as in on at no so do me all per also more most some any one two about where "
                "who after before over under up out just both same other such only our us them "
                "is we",
                "la en se me no lo un al ser fue la de ne en un on ou par se plus tout di in un "
                "per da ha si no em um na no um so ein zum zur bis war de te om in is of maar als "
                "dit",
            )
            for word in words.split()
            if len(word) > 1 and word[0].isascii() and word[-1].isascii()
        }
    )
)
_FREQUENT_WORD = rf"(?i)(?-u:\b)(?:{_FREQUENT})(?-u:\b)"
_LATIN_WORD = r"\p{Latin}[\p{Latin}\p{M}'’\-]+"
# Scripts other than Latin; Greek letters, and symbols such as µ, belong to formulas.
_NOT_LATIN = r"[\p{L}--[\p{Latin}\p{Greek}\p{Common}\p{Inherited}]]"
_NOT_CHINESE = r"[\p{L}--[\p{Latin}\p{Greek}\p{Common}\p{Inherited}\p{Han}]]"
_STRAY_IN_LATIN = rf"\p{{Ll}} ?{_NOT_LATIN}+|{_NOT_LATIN}+ ?\p{{Ll}}"
_MENTIONED = (
    rf"(?:characters?|words?|terms?|phrase|kanji|symbol|letter|called|named|name|written|means?)"
    rf" ?{_NOT_LATIN}|{_NOT_LATIN}+ ?(?:means|meaning|stands|refers|is pronounced)"
)
_STRAY_IN_CHINESE = (
    rf"\p{{Han}} ?{_NOT_CHINESE}{{2,}}|{_NOT_CHINESE}{{2,}} ?\p{{Han}}"
    r"|\p{Han} ?(?:the|and|so|then|that|of|is|are|we|therefore|because|which|but|to|with|for|this)"
    r"(?: \p{Ll}+){0,2} ?\p{Han}"
)
_EVIDENCE = 2  # frequent words that an unexpected language needs, beyond those of the expected one
_CLAUSE = 3  # Latin words that the detector needs; below that it guesses
_WHOLE = 5  # Latin words among which a frequent one is expected
_TERMS = 2  # Latin words within another script that are taken for names and terms
_SPOKEN = 2  # words of another script that make a clause
_HAN_TERM = 6  # Han segments up to this many characters are Japanese in a text with kana


def language(frame: pl.DataFrame) -> pl.DataFrame:
    """Measure the columns of group `language` (schemas/signals.sql) on a prepared frame.

    The target is the column `target_language`, else the language of the column `question`; without
    either, `target_language_share` is null. A text without words has share 1: nothing in it is in
    another language.
    """
    question = frame.get_column("_question_language")
    counted = word_counts(frame.get_column("_prose"), question)
    total = pl.sum_horizontal(LANGUAGES)
    best = pl.max_horizontal(LANGUAGES)
    dominant = pl.coalesce(
        *[pl.when((pl.col(code) == best) & (best > 0)).then(pl.lit(code)) for code in LANGUAGES]
    )
    frequent = frame.get_column("_prose").str.count_matches(_FREQUENT_WORD)
    rows = counted.with_columns(_target(frame).fill_null(question).alias("target"))
    in_target = pl.coalesce(
        *[
            pl.when(pl.col("target") == code).then(pl.col(code))
            for code in LANGUAGES
            if code != "other"
        ],
        pl.when(pl.col("target").is_not_null()).then(pl.col("other")),
    )
    pairs = pl.col("pairs") + pl.col("character_pairs")
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
        stray_fragments=_stray_fragments(frame),
        frequent_word_share=pl.when(pl.col("latin_words") > 0)
        .then((frequent / pl.col("latin_words")).clip(0, 1))
        .otherwise(1.0),
        foreign_clauses="foreign_clauses",
        unproven_share=share(pl.col("unproven"), pl.col("clauses")),
        unknown_word_share=share(pl.col("unknown"), pl.col("checked")),
        known_pair_share=pl.when(pairs > 0)
        .then((pl.col("known_pairs") + pl.col("character_known_pairs")) / pairs)
        .otherwise(1.0),
        **{f"share_{code}": share(pl.col(code), total) for code in LANGUAGES},
    )


def _stray_fragments(frame: pl.DataFrame) -> pl.Series:
    """Count stretches of another script inside a clause: glitches, not quotations or terms.

    A stretch counts where it touches the text of the main script without punctuation in between,
    outside quotation marks and brackets. In Latin text that is any other script but Greek, in
    Chinese any but Latin and Greek, and English function words ("所以 the 面积"). Scripts of the
    question are expected in the text.
    """
    question = pl.col("question") if "question" in frame.columns else pl.lit("")
    text = pl.col("_prose")
    rows = frame.select(
        pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"),
        text,
        question.cast(pl.String).fill_null("").alias("question"),
    )
    # Most texts have one script; only the others are searched.
    beyond_ascii = rows.filter(text.str.len_bytes() > text.str.len_chars())
    mixed = beyond_ascii.filter(
        text.str.contains(_NOT_LATIN)
        & (text.str.contains(r"\p{Latin}{2}") | text.str.contains(_NOT_CHINESE))
    ).with_columns(text.str.replace_all(_QUOTED, " ; "))
    latin = text.str.count_matches(_LATIN_WORD)
    chinese = HAN_WORDS * text.str.count_matches(HAN)
    kana = text.str.contains(r"[\p{Hiragana}\p{Katakana}]{3}")
    in_latin = text.str.count_matches(_STRAY_IN_LATIN).cast(pl.Int64) - text.str.count_matches(
        _MENTIONED
    )
    counted = mixed.select(
        "row",
        count=pl.when(latin > HAN_WORDS * text.str.count_matches(_NOT_LATIN))
        .then(pl.when(~pl.col("question").str.contains(_NOT_LATIN)).then(in_latin.clip(0)))
        .when((chinese > latin) & ~kana)
        .then(text.str.count_matches(_STRAY_IN_CHINESE).cast(pl.Int64)),
    )
    joined = rows.select("row").join(counted, on="row", how="left", maintain_order="left")
    return joined.get_column("count").fill_null(0).alias("stray_fragments")


def question_language(frame: pl.DataFrame) -> pl.Series:
    """ISO 639-1 code of each question's language; null without one.

    Many traces share a question, so each distinct question is measured once.
    """
    if "question" not in frame.columns:
        return pl.Series("question_language", [None] * frame.height, dtype=pl.String)
    questions = frame.select(pl.col("question").cast(pl.String)).unique().drop_nulls()
    # A question may be little more than a formula: names of functions are not words of a language.
    text = prose(pl.col("question")).str.replace_all(_FUNCTION_NAME, " ")
    words = word_counts(questions.select(text).get_column("question"), all_columns=False)
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


def word_counts(
    texts: pl.Series, fallback: pl.Series | None = None, all_columns: bool = True
) -> pl.DataFrame:
    """Count the words of each language: one row per text, one float column per code in `LANGUAGES`.

    Further columns unless `all_columns` is false: `switches` (changes of language),
    `foreign_clauses` (see `_foreign_clauses`), `clauses` (words in Latin clauses of at least
    `_WHOLE` words, titles aside), `unproven` (words in those of them without a frequent word of
    their language), `latin_words`, and those of `lexicon`.

    `texts` is prose (see `curate.signals.prose.prose`). `fallback` is the language of Latin text
    without any proof.
    """
    segments = _segments_of(texts, fallback)
    row, words = segments.get_column("row").to_numpy(), segments.get_column("words").to_numpy()
    code = segments.get_column("language").replace_strict(_PLACES, default=-1).to_numpy()
    has = code >= 0
    count, width = len(texts), len(LANGUAGES)
    flat = np.bincount(row[has] * width + code[has], words[has], minlength=count * width)
    counts = pl.DataFrame(flat.reshape(count, width), schema=dict.fromkeys(LANGUAGES, pl.Float64))
    if not all_columns:
        return counts
    flags = segments.select(
        latin=pl.col("script") == "latin",
        clause=(pl.col("script") == "latin") & (pl.col("words") >= _WHOLE) & ~pl.col("title"),
        common=pl.col("common").fill_null(False),
    )
    latin, clause, common = (flag.to_numpy() for flag in flags)
    rows, codes = row[has], code[has]
    switch = (codes[1:] != codes[:-1]) & (rows[1:] == rows[:-1])
    several = pl.Series(np.flatnonzero((flat.reshape(count, width) > 0).sum(axis=1) > 1))
    return pl.concat(
        [
            counts.with_columns(
                latin_words=_sums(row, latin, words, count),
                switches=pl.Series(np.bincount(rows[1:][switch], minlength=count)),
                clauses=_sums(row, clause, words, count),
                unproven=_sums(row, clause & ~common, words, count),
                foreign_clauses=_foreign_clauses(texts, segments, several.cast(pl.UInt32)),
            ),
            word_shares(segments.filter(pl.col("script").is_in(["latin", "ru"])), count),
            character_pairs(segments.filter(pl.col("script").is_in(["han", "ja"])), count),
        ],
        how="horizontal",
    )


def _sums(row: np.ndarray, which: np.ndarray, words: np.ndarray, count: int) -> pl.Series:
    return pl.Series(np.bincount(row[which], words[which], minlength=count))


def _foreign_clauses(texts: pl.Series, segments: pl.DataFrame, several: pl.Series) -> pl.Series:
    """Count the clauses per row, outside quotations, that are not in the language of most clauses.

    A Latin clause counts if it proves its language and is not in capitals, as SQL keywords are.
    Only the rows `several`, with words of several languages, have any.
    """
    if several.is_empty():
        return pl.zeros(len(texts), dtype=pl.Int64, eager=True)
    segments = segments.filter(pl.col("row").is_in(several.implode()))
    segments = segments.join(_quoted(texts, several), on=["row", "nth"], maintain_order="left")
    latin = pl.col("script") == "latin"
    proven = (pl.col("proven") == pl.col("language")) & pl.col("segment").str.contains(
        r"\p{Ll}[\p{L}'’-]* +\p{Ll}"
    )
    clause = pl.when(latin).then(proven).otherwise(pl.col("words") >= _SPOKEN)
    counts = (
        segments.filter(~pl.col("quoted") & clause & pl.col("language").is_not_null())
        .group_by("row", "language")
        .agg(pl.col("words").sum(), clauses=pl.len())
        .group_by("row")
        .agg(foreign=pl.col("clauses").sum() - pl.col("clauses").sort_by("words").last())
    )
    foreign = np.zeros(len(texts), dtype=np.int64)
    foreign[counts.get_column("row").to_numpy()] = counts.get_column("foreign").to_numpy()
    return pl.Series(foreign)


def _quoted(texts: pl.Series, rows: pl.Series) -> pl.DataFrame:
    """Whether each segment of some rows is inside a quotation: row, nth (place in its row)."""
    segment = pl.col("segment")
    return (
        pl.DataFrame({"row": rows, "text": texts.gather(rows)})
        .select("row", pl.col("text").str.extract_all(f"{_QUOTED}|{_SEGMENT}").alias("segment"))
        .explode("segment")
        .drop_nulls("segment")
        .with_columns(quoted=segment.str.contains(_OPENS))
        .with_columns(
            # A segment never crosses a quotation mark, so all segments inside a quotation count.
            times=pl.when("quoted").then(segment.str.count_matches(_SEGMENT)).otherwise(1)
        )
        .select("row", pl.col("quoted").repeat_by("times"))
        .explode("quoted")
        .drop_nulls("quoted")
        .with_columns(nth=pl.int_range(pl.len(), dtype=pl.UInt32).over("row"))
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
    """The segments of texts with their languages; `nth` is the place of a segment in its row."""
    segments = (
        pl.DataFrame({"text": texts})
        .with_columns(fallback=fallback if fallback is not None else pl.lit(None, dtype=pl.String))
        .with_row_index("row")
        .select(
            "row",
            "fallback",
            pl.col("text").str.extract_all(_SEGMENT).alias("segment"),
        )
        .with_columns(nth=pl.int_ranges(0, pl.col("segment").list.len(), dtype=pl.UInt32))
        .explode("segment", "nth")
        .drop_nulls("segment")
    )
    return _languages(_scripts(segments))


def _scripts(segments: pl.DataFrame) -> pl.DataFrame:
    """Add `script` (the language itself, except for Latin and Han) and `words`."""
    text = pl.col("segment")
    ascii_ = text < "\x80"
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
    # Segments are letters: those that begin in ASCII are Latin, and need no search.
    place = segments.select(pl.arg_where(~ascii_)).to_series()
    others = segments.select(text.gather(place)).select(script.alias("script")).to_series()
    latin = pl.repeat("latin", segments.height, eager=True)
    scripts = latin.scatter(place, others) if len(place) else latin
    characters = text.str.len_chars()
    spoken = text.str.count_matches(WORD).cast(pl.Float64)
    return (
        segments.with_columns(scripts.alias("script"))
        .with_columns(
            pl.when(pl.col("script") == "han").then(HAN_WORDS * characters)
            .when(pl.col("script") == "ja").then(JAPANESE_WORDS * characters)
            .otherwise(spoken)
            .alias("words")
        )
        .filter(pl.col("words") > 0)
    )  # fmt: skip


def _languages(segments: pl.DataFrame) -> pl.DataFrame:
    """Add `language` (null: counts for none), `proven`, `common` and `title` to the segments.

    `common` is whether a Latin segment has a frequent word of its language, `title` whether most of
    its words have capitals.
    """
    latin, han = pl.col("script") == "latin", pl.col("script") == "han"
    segments = segments.with_row_index("at").with_columns(
        expected=pl.when(pl.col("fallback").is_in(list(LATIN.values())))
        .then("fallback")
        .otherwise(pl.lit("en"))
    )
    proofs = _proofs(segments.filter(latin & (pl.col("words") >= _CLAUSE)))
    frame = segments.join(proofs, on="at", how="left", maintain_order="left")
    frame = _inherit(frame).join(
        _joined(frame.filter(latin)), on="row", how="left", maintain_order="left"
    )
    frame = frame.with_columns(around=pl.coalesce("inherited", "joined", "expected"))
    # Most texts have one script, and need none of the sums over their segments.
    scripts = frame.filter(~latin).get_column("row").unique()
    several = pl.col("row").is_in(scripts.implode())
    one = frame.filter(~several).with_columns(language=pl.coalesce("proven", "around"))
    mixed = frame.filter(several).with_columns(
        pl.when(latin)
        .then(_latin_language())
        .when(han)
        .then(_han_language())
        .otherwise(pl.col("script"))
        .alias("language")
    )
    return _with_common_words(pl.concat([one, mixed]))


def _latin_language() -> pl.Expr:
    """Language of a Latin segment.

    Where another script has more words than the proven Latin clauses, one or two Latin words are a
    name, a term or a formula, however many follow each other; longer stretches too if the other
    script has clauses.
    """
    latin, words = pl.col("script") == "latin", pl.col("words")
    proven_words = words.filter(pl.col("proven").is_not_null()).sum().over("row")
    other_words = words.filter(~latin).sum().over("row")
    other_clause = words.filter(~latin).max().over("row") >= _WHOLE
    foreign = other_words > proven_words
    term = (words <= _TERMS) & ~_neighbour_is_latin() & (pl.len().over("row") > 1)
    unproven = foreign & ((words < _CLAUSE) | (pl.col("inherited").is_null() & other_clause))
    return pl.coalesce("proven", pl.when(~term & ~unproven).then("around"))


def _han_language() -> pl.Expr:
    """Language of a Han segment: Japanese in a text with kana, else Chinese.

    Null for a single character in Latin text: it is mentioned, or a slip (see `stray_fragments`).
    """
    words, characters = pl.col("words"), pl.col("segment").str.len_chars()
    latin_words = words.filter(pl.col("script") == "latin").sum().over("row")
    chinese_words = words.filter(pl.col("script") == "han").sum().over("row")
    japanese_words = words.filter(pl.col("script") == "ja").sum().over("row")
    japanese = (japanese_words > 0) & ((characters <= _HAN_TERM) | (japanese_words > chinese_words))
    return (
        pl.when(pl.col("segment").str.contains(_CHINESE_ONLY)).then(pl.lit("zh"))
        .when(japanese).then(pl.lit("ja"))
        .when((characters < 2) & (latin_words > 0) & (chinese_words < 2 * HAN_WORDS)).then(None)
        .otherwise(pl.lit("zh"))
    )  # fmt: skip


def _proofs(clauses: pl.DataFrame) -> pl.DataFrame:
    """Add up the evidence of Latin clauses: `at`, `guess` and `proven` (null without proof)."""
    guesses = clauses.lazy().with_columns(_detected().alias("guess")).collect()
    # A title proves nothing: works and places keep their names in any language.
    marked = _with_marks(guesses, "guess").with_columns(
        pl.col("marked") & pl.col("segment").str.contains(r"(?:^| )\p{Ll}")
    )
    foreign = marked.filter(pl.col("marked") & (pl.col("guess") != pl.col("expected")))
    evidence = _evidence(foreign, "guess").filter(pl.col("margin") > 0)
    enough = pl.col("margin").sum().over("row", "guess") >= _EVIDENCE
    accepted = evidence.filter(enough).select("at", accepted=pl.lit(True))
    proven = pl.col("marked") & ((pl.col("guess") == pl.col("expected")) | pl.col("accepted"))
    return marked.join(accepted, on="at", how="left").select(
        "at", "guess", pl.when(proven).then(pl.col("guess")).alias("proven")
    )


def _evidence(frame: pl.DataFrame, language: str) -> pl.DataFrame:
    """Add `margin`: frequent words of `language` in the segment, beyond English and expected ones.

    English counts even if it is not expected, because the detector takes it for other languages. A
    clause with several frequent words is not compared with the others: it switches inside.
    """
    counted = _hits(frame, language, "own").join(
        _hits(frame, "expected", "theirs").select("at", "theirs"), on="at"
    )
    english = (
        pl.when(pl.col(language) == "en")
        .then(0)
        .otherwise(_spread(pl.col("segment")).str.count_matches(_COUNTED["en"]))
    )
    own, theirs = pl.col("own").cast(pl.Int64), pl.max_horizontal("theirs", english)
    switched = (own >= _EVIDENCE) & (own >= theirs)
    return counted.with_columns(margin=pl.when(switched).then(own).otherwise(own - theirs))


def _hits(frame: pl.DataFrame, language: str, name: str) -> pl.DataFrame:
    """Add the number of frequent words and letters of the language in the column `language`."""
    parts = [
        frame.filter(pl.col(language) == code).with_columns(
            _spread(pl.col("segment")).str.count_matches(_COUNTED[code]).alias(name)
        )
        for code in _codes(frame, language)
    ]
    return pl.concat(parts)


def _spread(segment: pl.Expr) -> pl.Expr:
    """Double the spaces, so that neighbouring words do not share the space that delimits them."""
    return segment.str.replace_all(" ", "  ", literal=True)


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
            marked=pl.col("segment").str.contains(_MARKS[code])
        )
        for code in _codes(frame, language)
    ]
    return pl.concat(parts)


def _codes(frame: pl.DataFrame, language: str) -> list[str]:
    """Latin languages in the column `language`, at least one: most frames have few of them."""
    return [code for code in frame.get_column(language).unique() if code in _MARKS] or ["en"]


def _with_common_words(frame: pl.DataFrame) -> pl.DataFrame:
    """Add `common` and `title` (see `_languages`). Proven segments need no second search."""
    text, words = pl.col("segment"), pl.col("words")
    doubtful = frame.filter(
        (pl.col("script") == "latin") & (words >= _WHOLE) & pl.col("proven").is_null()
    )
    searched = _with_marks(doubtful, "language").select(
        "at",
        "marked",
        shared=(pl.col("language") == "en") & text.str.contains(_SHARED),
        title=2 * text.str.count_matches(r"(?:^| )\p{Lu}") >= words,
    )
    return frame.join(searched, on="at", how="left", maintain_order="left").with_columns(
        common=pl.coalesce(pl.col("marked") | pl.col("shared"), pl.col("proven").is_not_null()),
        title=pl.col("title").fill_null(False),
    )


def _joined(latin: pl.DataFrame) -> pl.DataFrame:
    """Language of all Latin segments joined, for rows in which no single clause proves one."""
    together = (
        latin.filter(pl.col("proven").is_null().all().over("row"))
        .group_by("row")
        .agg(pl.col("segment").str.join(" "), pl.col("expected").first(), at=pl.col("at").first())
        .with_columns(_detected().alias("joined"))
    )
    foreign = together.filter(pl.col("joined") != pl.col("expected"))
    return (
        _evidence(foreign, "joined").filter(pl.col("margin") >= _EVIDENCE).select("row", "joined")
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
