"""Shape of a trace: tags, length, lines, code, balance of brackets, unexpected characters."""

from __future__ import annotations

import polars as pl

from curate.prompts.forms import answer_expr, well_formed_expr
from curate.signals.order import clashes, misplaced_marks
from curate.signals.prose import (
    ALPHABETIC,
    CODE_FENCE,
    CURRENCY,
    FORMULA,
    HAN,
    HAN_WORDS,
    JAPANESE_WORDS,
    KANA,
    WORD,
    share,
    words,
)

# Living scripts that the other signals do not support: text in one of them is not judged. Several
# of them in one text are noise, like scripts that are not used for prose today.
_UNSUPPORTED = (
    "Bengali Thai Tamil Telugu Gujarati Gurmukhi Kannada Malayalam Oriya Sinhala Khmer Lao Myanmar "
    "Tibetan Georgian Armenian Hebrew Ethiopic Mongolian"
).split()
_UNSUPPORTED_LETTER = "[" + "".join(rf"\p{{{script}}}" for script in _UNSUPPORTED) + "]"
# Characters outside the scripts, punctuation and mathematics of the supported languages: other
# scripts and dingbats.
_STRANGE = (
    r"[^\s\p{Latin}\p{Han}\p{Hiragana}\p{Katakana}ー\p{Hangul}\p{Cyrillic}\p{Arabic}"
    r"\p{Devanagari}\p{Greek}\p{N}\p{P}\p{Sm}\p{Sc}\p{Sk}\p{M}"
    r"°№→-⇿─-▟✓✔✗✘✅❌⁰-₟ℂ-⅏]"
)
# Includes UTF-8 that was decoded as Latin-1 or Windows-1252: "Ã©", "â€™", "Ð°".
_BROKEN = (
    r"[\x{FFFD}\p{Co}\p{Cn}[\p{Cc}--[\t\n\r]]]"
    r"|[ÃÂÐÑ][\x{80}-\x{BF}ƒ†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ€‚„…]|â(?:€|‚¬|„¢|ˆ|†|‰)|ï»¿"
    r"|[åæçèé][\x{80}-\x{BF}][\x{80}-\x{BF}]"
)
# A word that no writer writes: a capital inside, letters of two scripts, symbols glued to it, or an
# endless chain of letters. Symbols need two letters on either side: f(x)=g(y) is a formula. A word
# ends where Chinese begins, since Chinese has no spaces.
_SPACED = r"[\p{Cyrillic}\p{Hangul}\p{Arabic}\p{Hebrew}\p{Thai}\p{Devanagari}]"
_DENSE = r"[[\S]--[\p{Han}\p{Hiragana}\p{Katakana}\x{3000}-\x{303F}\x{FF00}-\x{FFEF}]]*"
_ODD = (
    rf"{_DENSE}(?:\p{{Ll}}\p{{Lu}}\p{{Ll}}|\p{{Latin}}{_SPACED}|{_SPACED}\p{{Latin}}"
    rf"|{ALPHABETIC}{{2}}[^\s\p{{L}}\p{{N}}\p{{M}}]{{3,}}{ALPHABETIC}{{2}}"
    rf"|{ALPHABETIC}{{2}}[@#%&|;<>{{}}\[\]()]+{ALPHABETIC}{{2}}"
    rf"|[\p{{Latin}}\p{{Cyrillic}}]{{26,}}){_DENSE}"
)
_NO_LETTER = r"[[[^\p{L}\p{M}]\p{Han}\p{Hiragana}\p{Katakana}ー]--[ \n\t\x{3000}]]"
# Word boundaries are ASCII, here and in the other groups: Unicode ones are fifty times slower on
# text that mixes scripts. Capitals are acronyms (HTML) and names of segments (AB), and `sqrt` is
# the one name of a function without a vowel.
_VOWELLESS = r"(?-u:\b)(?:[B-DF-HJ-NP-TV-XZ][b-df-hj-np-tv-xz]{3,}|[b-df-hj-np-tv-xz]{4,})(?-u:\b)"
_ROOT = r"(?-u:\b)sqrt(?-u:\b)"
_ABBREVIATED = r"(?-u:\b)[b-df-hj-np-tv-xz]{2,3}(?-u:\b)"
_UNIT = r"\d ?[b-df-hj-np-tv-xz]{2,3}(?-u:\b)"
# Symbols that running text does not have between its words: logic, arrows, shapes, dingbats.
_SYMBOL = r"[[\p{Sm}\p{So}←-⯿⟀-⟿]--[+<=>|~±×÷≈≠≤≥→⇒∴√∞°✓✔✗✘✅❌]]"
# Remains of tokenizers and chat templates.
_LEAKED = (
    r"<\|[^|<>\n]{1,40}\|>|</?s>|<(?:unk|pad|bos|eos|mask|sep|cls)>|<0x[0-9A-Fa-f]{2}>"
    r"|##[a-z]|[ĠĊ▁]|\[/?(?:PAD|UNK|CLS|SEP|MASK|INST|BOS|EOS)\]"
)
# Tags and entities of web pages, and the remains above; simple formatting is not debris.
_MARKUP = (
    r"(?i)</?[a-z][a-z0-9]{0,15}(?:\s[^<>\n]{0,200})?/?>|&#?[a-z0-9]{2,8};"
    r"|<\|[^|<>\n]{1,40}\|>|\[/?(?:PAD|UNK|CLS|SEP|MASK|INST|BOS|EOS)\]|<0x[0-9a-f]{2}>"
    r"|##[a-z]|[ĠĊ▁]"
)
_FORMATTING = r"(?i)</?(?:sup|sub|br|b|i|u|em|strong|code) ?/?>"
# A stop or comma between spaces, or two marks that no writer puts together. Ellipses (", ...") and
# commas after initials ("Smith, J., and") are correct.
_LOOSE = r"\s[.,;](?:\s|\z)|[,;]\s?[,;]|[,;]\s?\.(?:[^.]|\z)|\.(?:\s[,;]|;)|[、。，；][、。，；]"
# A run of letters and digits without a break: keys, base64, words run together, endless digits.
# Shorter runs are long names and large numbers. A line of symbols without a space counts too,
# unless it is LaTeX or a script without spaces.
_RUN = (
    r"[A-Za-z0-9+/=_]{120,}"
    r"|[^\s\\\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    r"\p{Tibetan}\x{3000}-\x{303F}\x{FF00}-\x{FFEF}─-▟]{200,}"
)
# Phrases of thinking aloud that carry no content. Bare literals match without an automaton.
_FILLER = r"[Ww]ait|[Hh]mm|[Hh]old on|[Ll]et me think|[Ll]et me see|等等|等一下|嗯"
# A number that follows a number with only white space between.
_NUMBER_PAIR = r"\d[.)]?[ \t]+-?\d[\d.]*"
# List markers "1)" and "B)", and half-open intervals: brackets without a partner that are correct.
_MARKER = r"(?m)(?:^|\s)[0-9A-Za-z]{1,3}\)"
_HALF_OPEN_RIGHT = r"\[[^\[\]()\n]{1,40},[^\[\]()\n]{1,40}\)"
_HALF_OPEN_LEFT = r"\([^\[\]()\n]{1,40},[^\[\]()\n]{1,40}\]"
# Words that do not make a line by themselves. A list may have one word per line, but not these.
_FUNCTION_WORDS = (
    "the of and to is are was were we it that this these so then with for be by have has as a in "
    "or can if at from an but 的 是 了 在 和 我们 所以 因为 有 这 把 el la los de que y en un una "
    "es con le les des du et est dans pour der die das und ist ein eine mit zu den il di che e un "
    "per del 就 也 都 对 等于 那么 可以 就是 一个 は が を に の で も と и в на не что это по с к "
    "из для мы то في من على إلى أن هو هي ثم ve bir bu için là của và các है के में की को और से"
).split()
# A text was cut off if it ends in one of these words or marks, or in a letter although its other
# sentences end in a mark. Headings, list items and table rows need none.
_CUT_OFF = (
    r"(?i)(?:(?-u:\b)(?:the|an|of|and|or|because|which|than|my|your|their|our|its|every|was|were"
    r"|are|is|with|from|into|und|oder|der|das|ein|eine|mit|weil|dass|et|ou|les|des|dans|avec|que|el"
    r"|los|las|una|con|porque|para)|[，、,(（]|(?:因为|所以|但是|如果|而且|以及|或者|[的把被与和]))\z"
)
_SENTENCE_END = r"[.!?](?:\s|[\"'”’)])|[。！？]"
_OPEN_LINE = (
    r"\A\s*[^\s\-*•#|>【\d](?:[^\n]*?\p{L}[^\n\p{L}]+){4}[^\n]*[\p{Ll}\p{Lo}]\z"
    r"|\A\s*[^\s\-*•#|>【\d][^\n]*\p{Han}{5}\z"
)
_END_TOKENS = r"(?:\s*(?:<\|[^|<>\n]{1,40}\|>|</s>|<eo[a-z]>))+\s*\z"
# A refusal opens with an apology or "as an AI" and says in the same sentence that it cannot help.
_REFUSAL = (
    r"(?i)\A\W*(?:(?:i['’]?m|i am|we are)?\s*(?:very |so |really )?sorry|unfortunately"
    r"|i apologi[sz]e|as an? (?:ai|artificial intelligence|(?:large )?language model)|lo siento"
    r"|lamento|je suis désolé|désolée?|es tut mir leid|entschuldigung|mi dispiace|desculpe"
    r"|извините|к сожалению)"
    r"[^.!?\n]{0,120}(?:can(?:no|['’])t|can not|unable|not able|won['’]t|don['’]t|do not|no puedo"
    r"|ne peux|kann|non posso|não posso|не могу)"
    r"|\A\W*i(?:['’]m| am)? (?:can(?:no|['’])?t|can not|must|have to|unable to|not able to"
    r"|won['’]t) (?:be able to |respectfully )?"
    r"(?:help|assist|answer|provide|comply|fulfil|decline|do (?:that|this))"
    r"|\A\s*(?:(?:非常|很|十分)?抱歉|对不起|不好意思|作为(?:一个|一名)?(?:AI|人工智能|语言模型))"
    r"[^。！？\n]{0,60}(?:不能|无法|没法|不便)"
    r"|\A\s*申し訳[^。\n]{0,60}(?:ません|できない)|\A\s*죄송[^.\n]{0,60}(?:없|못)"
)
_REFUSAL_LENGTH = 400  # characters; a longer text does more than refuse


def shape(frame: pl.DataFrame) -> pl.DataFrame:
    """Measure the columns of group `shape` (schemas/signals.sql) on a prepared frame."""
    text, prose, cot = pl.col("_text"), pl.col("_prose"), pl.col("_cot")
    tags = _tags(set(frame.columns))
    lines = text.str.split("\n")
    blocks = (
        text.str.replace_all(r"\n[ \t\r]*\n\s*", "\u0000")
        .str.split("\u0000")
        .list.eval(pl.element().str.len_chars())
    )
    without_code = pl.col("_without_code")
    prose_lines = without_code.str.split("\n")
    visible = text.str.len_chars() - _white_space(text)
    # Shares of words are over words of all scripts: one acronym in a Chinese text is not its prose.
    dense = HAN_WORDS * cot.str.count_matches(HAN) + JAPANESE_WORDS * cot.str.count_matches(KANA)
    alphabetic = prose.str.count_matches(WORD)
    spoken = alphabetic + dense
    unsupported = pl.col("_unsupported")
    prepared = frame.with_columns(
        _unsupported=_unsupported_letters(frame),
        _without_code=text.str.replace_all(CODE_FENCE, ""),
    )
    return prepared.select(
        **tags,
        characters=text.str.len_chars(),
        words=words(cot),
        lines=pl.when(text.str.len_bytes() > 0).then(lines.list.len()).otherwise(0),
        longest_line=lines.list.eval(pl.element().str.len_chars()).list.max().fill_null(0),
        longest_paragraph=blocks.list.max().fill_null(0),
        function_word_lines=prose_lines.list.eval(_is_function_word()).list.sum(),
        indentations=prose_lines.list.eval(_indentation().n_unique()).list.first(),
        code_blocks=text.str.count_matches("```", literal=True) // 2,
        code_share=share(text.str.len_chars() - without_code.str.len_chars(), text.str.len_chars()),
        unbalanced_latex=_unbalanced_latex(without_code),
        unbalanced_brackets=_unbalanced_brackets(without_code),
        broken_share=share(text.str.count_matches(_BROKEN), text.str.len_chars()),
        strange_share=share(
            (text.str.count_matches(_STRANGE).cast(pl.Int64) - unsupported).clip(0), visible
        ),
        unsupported_share=share(unsupported, visible),
        odd_word_share=share(
            prose.str.extract_all(_ODD).list.n_unique(),
            spoken,
        ),
        vowelless_share=share(
            prose.str.count_matches(_VOWELLESS) - prose.str.count_matches(_ROOT), spoken
        ),
        abbreviated_share=share(
            (
                prose.str.count_matches(_ABBREVIATED).cast(pl.Int64)
                - cot.str.count_matches(_UNIT).cast(pl.Int64)
            ).clip(0),
            spoken,
        ),
        symbol_share=share(text.str.count_matches(_SYMBOL), visible),
        markup_count=(
            without_code.str.count_matches(_MARKUP).cast(pl.Int64)
            - without_code.str.count_matches(_FORMATTING)
        ).clip(0),
        leaked_tokens=without_code.str.count_matches(_LEAKED),
        loose_marks=cot.str.replace_all(CODE_FENCE, "").str.count_matches(_LOOSE),
        longest_run=without_code.str.extract_all(_RUN)
        .list.eval(pl.element().str.len_chars())
        .list.max()
        .fill_null(0),
        clashing_word_share=share(clashes(prose), spoken),
        misplaced_marks=misplaced_marks(prose),
        filler_share=share(cot.str.count_matches(_FILLER), words(cot)),
        number_pairs=without_code.str.count_matches(_NUMBER_PAIR),
        mean_word_length=share(
            (prose.str.len_chars() - _white_space(prose) - prose.str.count_matches(_NO_LETTER))
            .cast(pl.Int64)
            .clip(0),
            alphabetic,
        ),
    )


def _white_space(text: pl.Expr) -> pl.Expr:
    """Number of white-space characters. Literals are counted five times as fast as a class."""
    return sum(
        (text.str.count_matches(space, literal=True).cast(pl.Int64) for space in " \n\t\u3000"),
        start=pl.lit(0),
    )


def _is_function_word() -> pl.Expr:
    """Whether a line is one function word, with or without a mark, or a mark alone."""
    short = pl.element().filter(pl.element().str.len_bytes() <= 24)
    line = short.str.strip_chars()
    word = line.str.strip_chars(".,;:。，").str.to_lowercase()
    return word.is_in(_FUNCTION_WORDS) | line.is_in(list(",;。，；、"))


def _indentation() -> pl.Expr:
    """Leading spaces of a line; null for a blank line."""
    line = pl.element()
    text = line.str.strip_chars_start(" ")
    return (line.str.len_chars() - text.str.len_chars()).filter(text != "")


def _unsupported_letters(frame: pl.DataFrame) -> pl.Series:
    """Letters of the most frequent unsupported script of each text.

    Few texts have any, so only those are searched for each script.
    """
    rows = frame.select("_text").with_row_index("row")
    text = pl.col("_text")
    beyond_ascii = rows.filter(text.str.len_bytes() > text.str.len_chars())
    counts = beyond_ascii.filter(text.str.contains(_UNSUPPORTED_LETTER)).select(
        "row",
        count=pl.max_horizontal(
            pl.col("_text").str.count_matches(rf"[\p{{L}}&&\p{{{script}}}]")
            for script in _UNSUPPORTED
        ),
    )
    joined = rows.select("row").join(counts, on="row", how="left", maintain_order="left")
    return joined.get_column("count").fill_null(0)


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
    # Without tags to keep, a text is well formed if it ends and answers.
    ending = text.str.tail(400).str.replace(_END_TOKENS, "").str.strip_chars_end()
    last_line = ending.str.extract(r"([^\n]*)\z")
    unfinished = ending.str.contains(_CUT_OFF) | (
        last_line.str.contains(_OPEN_LINE) & text.str.contains(_SENTENCE_END)
    )
    refusal = text.str.head(300).str.contains(_REFUSAL) & (text.str.len_chars() <= _REFUSAL_LENGTH)
    well_formed = pl.when(plain).then(well_formed & ~unfinished & ~refusal).otherwise(well_formed)
    finish = (
        pl.col("finish_reason") if "finish_reason" in columns else pl.lit(None, dtype=pl.String)
    )
    return {
        "has_think": pl.when(plain).then(closed).otherwise(reasoned).fill_null(False),
        "well_formed": well_formed.fill_null(False),
        "unfinished": unfinished,
        "refusal": refusal,
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


def _unbalanced_brackets(text: pl.Expr) -> pl.Expr:
    """Brackets without their other half, summed over {}, () and [].

    List markers excuse closing brackets; a half-open interval has one bracket of each kind.
    """
    right, left = _count(text, _HALF_OPEN_RIGHT), _count(text, _HALF_OPEN_LEFT)
    round_ = _count(text, r"\(") - _count(text, r"\)") + right - left
    square = _count(text, r"\[") - _count(text, r"\]") - right + left
    excused = pl.when(round_ < 0).then((-round_ - _count(text, _MARKER)).clip(0)).otherwise(round_)
    return excused + square.abs() + _difference(text, r"\{", r"\}")


def _count(text: pl.Expr, pattern: str) -> pl.Expr:
    return text.str.count_matches(pattern).cast(pl.Int64)


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
