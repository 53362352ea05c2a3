"""Shape of a trace: tags, length, lines, code, balance of brackets, unexpected characters."""

from __future__ import annotations

import polars as pl

from curate.prompts.forms import answer_expr, well_formed_expr
from curate.signals.text import ALPHABETIC, CODE_FENCE, CURRENCY, FORMULA, WORD, share, words

# Characters outside the scripts, punctuation and mathematics of the supported languages: other
# scripts and dingbats.
_STRANGE = (
    r"[^\s\p{Latin}\p{Han}\p{Hiragana}\p{Katakana}ー\p{Hangul}\p{Cyrillic}\p{Arabic}\p{Devanagari}\p{Greek}"
    r"\p{N}\p{P}\p{Sm}\p{Sc}\p{Sk}\p{M}°№→-⇿─-▟✓✔✗✘✅❌⁰-₟ℂ-⅏]"
)
# Includes UTF-8 that was decoded as Latin-1 or Windows-1252: "Ã©", "â€™", "Ð°".
_BROKEN = (
    r"[\x{FFFD}\p{Co}\p{Cn}[\p{Cc}--[\t\n\r]]]"
    r"|[ÃÂÐÑ][\x{80}-\x{BF}ƒ†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ€‚„…]|â(?:€|‚¬|„¢|ˆ|†|‰)|ï»¿"
    r"|[åæçèé][\x{80}-\x{BF}][\x{80}-\x{BF}]"
)
# A word that no writer writes: a capital inside, letters of two scripts, symbols glued to it, or an
# endless chain of letters.
_SPACED = r"[\p{Cyrillic}\p{Hangul}\p{Arabic}\p{Hebrew}\p{Thai}\p{Devanagari}]"
_ODD = (
    rf"\S*(?:\p{{Ll}}\p{{Lu}}\p{{Ll}}|\p{{Latin}}{_SPACED}|{_SPACED}\p{{Latin}}"
    rf"|{ALPHABETIC}[^\s\p{{L}}\p{{N}}\p{{M}}]{{3,}}{ALPHABETIC}"
    rf"|{ALPHABETIC}[_@#%&|;<>{{}}\[\]()]+{ALPHABETIC}"
    r"|[\p{Latin}\p{Cyrillic}]{26,})\S*"
)
_NO_LETTER = r"[[^\p{L}\p{M}]\p{Han}\p{Hiragana}\p{Katakana}ー]"
# Word boundaries are ASCII, here and in the other groups: Unicode ones are fifty times slower on
# text that mixes scripts.
_VOWELLESS = r"(?i)(?-u:\b)[b-df-hj-np-tv-xz]{4,}(?-u:\b)"
_ABBREVIATED = r"(?i)(?-u:\b)[b-df-hj-np-tv-xz]{2,3}(?-u:\b)"
# Symbols that running text does not have between its words: logic, arrows, shapes, dingbats.
_SYMBOL = r"[[\p{Sm}\p{So}←-⯿⟀-⟿]--[+<=>|~±×÷≈≠≤≥→⇒∴√∞°✓✔✗✘✅❌]]"
# Tags and entities of web pages, and remains of tokenizers and chat templates.
_MARKUP = (
    r"(?i)</?[a-z][a-z0-9]{0,15}(?:\s[^<>\n]{0,200})?/?>|&#?[a-z0-9]{2,8};"
    r"|<\|[^|<>\n]{1,40}\|>|\[/?(?:PAD|UNK|CLS|SEP|MASK|INST|BOS|EOS)\]|<0x[0-9a-f]{2}>|##[a-z]|[ĠĊ▁]"
)
# A stop or comma between spaces, or two marks that no writer puts together.
_LOOSE = r"\s[.,;](?:\s|\z)|[,;]\s?[,;.]|\.\s?[,;]|[、。，；][、。，；]"
# A run of letters and digits without a break: keys, base64, words run together, endless digits.
# Shorter runs are long names and large numbers. A line of symbols without a space counts too,
# unless it is LaTeX or a script without spaces.
_RUN = (
    r"[A-Za-z0-9+/=_]{120,}"
    r"|[^\s\\\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}"
    r"\x{3000}-\x{303F}\x{FF00}-\x{FFEF}─-▟]{200,}"
)
# Words that English does not put after "the", "an" or "of": finite verbs, conjunctions, subjects,
# most prepositions. Salad of common words does. Exactly one space: a masked formula leaves more.
_NEVER = (
    "is are was were has have can must and but because if then than therefore hence we they he to "
    "from into by with equals"
)
_CLASH = (
    rf"(?i)(?-u:\b)(?:(?:the|an) (?:the|an|of|so|it|at|for|or|{_NEVER.replace(' ', '|')})"
    rf"|of (?:of|{_NEVER.replace(' ', '|')}))(?-u:\b)"
    # In none of these languages does a sentence end in an article or a conjunction. Words that can
    # end one in another language (an, du, los, par) are left out.
    r"|(?i)(?-u:\b)(?:(?:the|its|their|every|el|las|del|sus|le|la|les|des|ses|ces|dem|den|einem|einen"
    r"|zum|zur|welche[rs]?|deren|wessen)[.,;]|(?:and|or|because|than|if|into|que|con|porque|aunque"
    r"|pero|et|ou|de|sur|avec|dans|dont|si|und|oder|weil|dass|obwohl|nachdem|beim)[.;])"
)
# Phrases of thinking aloud that carry no content. Bare literals match without an automaton.
_FILLER = r"[Ww]ait|[Hh]mm|[Hh]old on|[Ll]et me think|[Ll]et me see|等等|等一下|嗯"
# A number that follows a number with only white space between.
_NUMBER_PAIR = r"\d[ \t]+-?\d[\d.]*"


def shape(frame: pl.DataFrame) -> pl.DataFrame:
    """Measure the columns of group `shape` (schemas/signals.sql) on a prepared frame."""
    text, prose = pl.col("_text"), pl.col("_prose")
    tags = _tags(set(frame.columns))
    lines = text.str.split("\n").list.eval(pl.element().str.len_chars())
    blocks = (
        text.str.replace_all(r"\n[ \t\r]*\n\s*", "\u0000")
        .str.split("\u0000")
        .list.eval(pl.element().str.len_chars())
    )
    without_code = text.str.replace_all(CODE_FENCE, "")
    visible = text.str.len_chars() - text.str.count_matches(r"\s")
    spoken = prose.str.count_matches(WORD)
    return frame.select(
        **tags,
        characters=text.str.len_chars(),
        words=words(pl.col("_cot")),
        lines=pl.when(text.str.len_bytes() > 0).then(lines.list.len()).otherwise(0),
        longest_line=lines.list.max().fill_null(0),
        longest_paragraph=blocks.list.max().fill_null(0),
        code_blocks=text.str.count_matches("```", literal=True) // 2,
        code_share=share(text.str.len_chars() - without_code.str.len_chars(), text.str.len_chars()),
        unbalanced_latex=_unbalanced_latex(text),
        unbalanced_brackets=_difference(text, r"\{", r"\}")
        + _difference(text, r"\(", r"\)")
        + _difference(text, r"\[", r"\]"),
        broken_share=share(text.str.count_matches(_BROKEN), text.str.len_chars()),
        strange_share=share(text.str.count_matches(_STRANGE), visible),
        odd_word_share=share(
            prose.str.count_matches(_ODD), prose.str.count_matches(r"\S*\p{L}\S*")
        ),
        vowelless_share=share(prose.str.count_matches(_VOWELLESS), spoken),
        abbreviated_share=share(prose.str.count_matches(_ABBREVIATED), spoken),
        symbol_share=share(text.str.count_matches(_SYMBOL), visible),
        markup_count=without_code.str.count_matches(_MARKUP),
        loose_marks=pl.col("_cot").str.count_matches(_LOOSE),
        longest_run=without_code.str.extract_all(_RUN)
        .list.eval(pl.element().str.len_chars())
        .list.max()
        .fill_null(0),
        clashing_word_share=share(prose.str.count_matches(_CLASH), spoken),
        filler_share=share(pl.col("_cot").str.count_matches(_FILLER), words(pl.col("_cot"))),
        number_pairs=without_code.str.count_matches(_NUMBER_PAIR),
        mean_word_length=share(prose.str.len_chars() - prose.str.count_matches(_NO_LETTER), spoken),
    )


def _tags(columns: set[str]) -> dict[str, pl.Expr]:
    """Tags as the form defines them; without a form, `<think>` and `</think>`."""
    text, form = (
        pl.col("_text"),
        pl.col("form") if "form" in columns else pl.lit(None, dtype=pl.String),
    )
    plain = (form == "plain") | form.is_null()
    closed = text.str.contains(r"(?s)<think>.*\S.*</think>")
    after = text.str.contains(r"(?s)</think>\s*\S")
    reasoned = (pl.col("_cot") != pl.col("_text")) & (pl.col("_cot").str.strip_chars() != "")
    answer = pl.col("answer") if "answer" in columns else answer_expr(text, form)
    well_formed = (
        pl.when(form.is_null())
        .then(text.str.strip_chars() != "")
        .otherwise(well_formed_expr(text, form))
    )
    finish = (
        pl.col("finish_reason") if "finish_reason" in columns else pl.lit(None, dtype=pl.String)
    )
    return {
        "has_think": pl.when(plain).then(closed).otherwise(reasoned).fill_null(False),
        "well_formed": well_formed.fill_null(False),
        "has_summary": pl.when(plain)
        .then(after)
        .otherwise(answer.str.strip_chars() != "")
        .fill_null(False),
        "truncated": finish == "length",
    }


def _difference(text: pl.Expr, one: str, other: str) -> pl.Expr:
    """Absolute difference between the numbers of matches of two patterns."""
    return (
        text.str.count_matches(one).cast(pl.Int64) - text.str.count_matches(other).cast(pl.Int64)
    ).abs()


def _unbalanced_latex(text: pl.Expr) -> pl.Expr:
    """Environments, delimiters and dollars without their other half."""
    money = text.str.replace_all(rf"\\\$|{FORMULA}|{CURRENCY}", " ")
    dollars = money.str.count_matches("$", literal=True)
    return (
        _difference(text, r"\\begin\{", r"\\end\{")
        + _difference(text, r"\\\[", r"\\\]")
        + _difference(text, r"\\\(", r"\\\)")
        + _difference(text, r"\\left(?-u:\b)", r"\\right(?-u:\b)")
        + (dollars % 2).cast(pl.Int64)
    )
