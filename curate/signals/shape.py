"""Shape of a trace: tags, length, lines, code, balance of brackets, unexpected characters."""

from __future__ import annotations

import polars as pl

from curate.prompts.forms import answer_expr, well_formed_expr
from curate.signals.order import chinese_clashes, clashes, misplaced_marks
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
    counted,
    share,
    shared_form,
)

# Living scripts that the other signals do not support: text in one of them is not judged. Several
# of them in one text are noise, like scripts that are not used for prose today.
_UNSUPPORTED = (
    "Bengali Thai Tamil Telugu Gujarati Gurmukhi Kannada Malayalam Oriya Sinhala Khmer Lao Myanmar "
    "Tibetan Georgian Armenian Hebrew Ethiopic Mongolian"
).split()
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
_SIZES = ("left", "right")  # of LaTeX brackets
# Words that do not make a line by themselves. A list may have one word per line, but not these.
_FUNCTION_WORDS = (
    "the of and to is are was were we it that this these so then with for be by have has as a in "
    "or can if at from an but 的 是 了 在 和 我们 所以 因为 有 这 把 el la los de que y en un una "
    "es con le les des du et est dans pour der die das und ist ein eine mit zu den il di che e un "
    "per del 就 也 都 对 等于 那么 可以 就是 一个 は が を に の で も と и в на не что это по с к "
    "из для мы то في من على إلى أن هو هي ثم ve bir bu için là của và các है के में की को और से"
).split()
_FUNCTION_WORD_LINE = (
    rf"(?im)^[ \t]*(?:(?:{'|'.join(_FUNCTION_WORDS)})[.,;:。，]*|[,;。，；、])[ \t\r]*$"
)
# A text was cut off if it ends in one of these words or marks, or in a letter although its other
# sentences end in a mark. Headings and table rows need none, and items of a list only if the item
# before has one.
_CUT_OFF = (
    r"(?i)(?:(?-u:\b)(?:the|an|of|and|or|because|which|than|my|your|their|our|its|every|was|were"
    r"|are|is|with|from|into|we|they|would|should|must|been|between|although|und|oder|der|das|ein"
    r"|eine|mit|weil|dass|et|ou|les|des|dans|avec|que|el|los|las|una|con|porque|para)"
    r"|[，、,(（\[{“「《=+×÷≤≥→]|(?:因为|所以|但是|如果|而且|以及|或者|[的把被与和]))\z"
)
_SENTENCE_END = r"[.!?](?:\s|[\"'”’)])|[。！？]"
_OPEN_LINE = (
    r"\A\s*[^\s\-*•#|>【\d](?:[^\n]*?\p{L}[^\n\p{L}]+){4}[^\n]*[\p{Ll}\p{Lo}]\z"
    r"|\A\s*[^\s\-*•#|>【\d][^\n]*\p{Han}{5}\z"
    r"|(?-u:\b)(?:a|to|in|on|at|by|for|as|if|when|that|this|has|have|had|be|will|can|could|he|she"
    r"|not|but|so|then|there|more|per|von|zu|im|um|auf|le|la|un|une|du|de|en|por|su|se|di|il)\z"
)
_ITEM_MARK = r"[ \t]*(?:\d{1,3}[.)、]|[-*•])[ \t]"
_OPEN_ITEM = (
    rf"(?m)^{_ITEM_MARK}[^\n]*[.!?。！？；;]\s*\n{_ITEM_MARK}[^\n]{{12,}}[\p{{Ll}}\p{{Lo}},，]\z"
)
_END_TOKENS = r"(?:\s*(?:<\|[^|<>\n]{1,40}\|>|</s>|<eo[a-z]>))+\s*\z"
# A refusal opens with an apology or "as an AI" and says in the same sentence that it cannot help.
_REFUSAL = (
    r"(?i)\A\W*(?:(?:i['’]?m|i am|we are)?\s*(?:very |so |really |truly )?sorry|unfortunately"
    r"|regrettably|i regret|(?:i|we) apologi[sz]e|(?:my|our) (?:\w+ )?apolog(?:y|ies)|i appreciate"
    r"|thank(?: you|s)|as an? (?:\w+ )?(?:ai|artificial intelligence|(?:large )?language model)"
    r"|(?:i['’]m|i am) (?:just |only )?an? (?:\w+ )?(?:ai|artificial|(?:large )?language model)"
    r"|lo siento|lamento|lamentablemente|desafortunadamente|je suis désolé|désolée?|malheureusement"
    r"|es tut mir leid|leider|entschuldigung|mi dispiace|purtroppo|desculpe|infelizmente|helaas"
    r"|het spijt me|tyvärr|üzgünüm|maalesef|извините|простите|к сожалению)"
    r"[^.!?\n]{0,160}(?:can(?:no|['’])t|can not|unable|not able|won['’]t|don['’]t|do not|not going"
    r"|no puedo|no podemos|ne peux|ne suis pas|kann|non posso|não posso|kan ik|kan inte|inte hjälpa"
    r"|yardımcı olamam|yapamam|cevap veremem|не могу|не можем)"
    r"|\A\W*i(?:['’]m| am)? (?:can(?:no|['’])?t|can not|must|have to|unable to|not able to"
    r"|won['’]t|will not) (?:be able to |respectfully |in good conscience )?"
    r"(?:help|assist|answer|provide|comply|fulfil|decline|do (?:that|this)|write|create|give"
    r"|generate|support|engage|discuss|continue)"
    r"|\A\W*i (?:do not|don['’]t) (?:feel comfortable|think i (?:can|should))"
    r"|\A\W*it (?:is not|isn['’]t|would not be|wouldn['’]t be) (?:\w+ )?"
    r"(?:appropriate|ethical|acceptable|right) (?:for me |of me )?to"
    r"|\A\s*(?:(?:非常|很|十分)?(?:抱歉|遗憾)|对不起|不好意思|作为(?:一个|一名|一款)?(?:AI|人工智能|语言模型|大))"
    r"[^。！？\n]{0,60}(?:不能|无法|没法|不便|没有能力)"
    r"|\A\s*我(?:不能|无法|没法|不可以)(?:回答|提供|协助|帮助|完成|满足|生成|讨论)"
    r"|\A\s*(?:大変)?(?:申し訳|すみません|恐れ入り)[^。\n]{0,60}(?:ません|できない)"
    r"|\A\s*(?:죄송|미안)[^.\n]{0,60}(?:없|못)|\A\s*я не могу|\A\s*no puedo (?:ayudar|responder)"
    r"|\A\s*(?:عذر|آسف|أعتذر)[^.\n]{0,60}(?:لا|غير)|\A\s*(?:क्षमा|माफ़)[^।\n]{0,60}(?:नहीं|असमर्थ)"
)
_REFUSAL_LENGTH = 400  # characters; a longer text does more than refuse


def shape(frame: pl.DataFrame) -> pl.DataFrame:
    """Measure the columns of group `shape` (schemas/signals.sql) on a prepared frame."""
    text, prose, cot = pl.col("_text"), pl.col("_prose"), pl.col("_cot")
    # Shared inputs become columns first: Polars computes an expression wherever it occurs.
    frame = frame.with_columns(
        _without_code=text.str.replace_all(CODE_FENCE, ""),
        _characters=text.str.len_chars(),
        _visible=text.str.len_chars() - _white_space(text),
        _alphabetic=prose.str.count_matches(WORD),
        _alphabetic_cot=cot.str.count_matches(WORD),
        **_endings(text),
    )
    frame = frame.hstack(_beyond_ascii(frame))
    # Shares of words are over words of all scripts: one acronym in a Chinese text is not its prose.
    dense = HAN_WORDS * pl.col("_han") + JAPANESE_WORDS * pl.col("_kana")
    frame = frame.with_columns(
        _words=pl.col("_alphabetic_cot") + dense, _spoken=pl.col("_alphabetic") + dense
    )
    characters, visible = pl.col("_characters"), pl.col("_visible")
    total, spoken = pl.col("_words"), pl.col("_spoken")
    without_code = pl.col("_without_code")
    measured = frame.select(
        **_tags(frame),
        characters=characters,
        words=total,
        lines=pl.when(characters > 0).then(_number(text, "\n") + 1).otherwise(0),
        longest_line=_longest(text.str.split("\n")),
        function_word_lines=without_code.str.count_matches(_FUNCTION_WORD_LINE),
        code_blocks=text.str.count_matches("```", literal=True) // 2,
        code_share=share(characters - without_code.str.len_chars(), characters),
        broken_share=share(pl.col("_broken"), characters),
        strange_share=share((pl.col("_strange") - pl.col("_unsupported")).clip(0), visible),
        unsupported_share=share(pl.col("_unsupported"), visible),
        odd_word_share=share(prose.str.extract_all(_ODD).list.n_unique(), spoken),
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
        symbol_share=share(pl.col("_symbols"), visible),
        loose_marks=cot.str.replace_all(CODE_FENCE, "").str.count_matches(_LOOSE),
        longest_run=_longest(without_code.str.extract_all(_RUN)),
        clashing_word_share=share(clashes(prose) + pl.col("_chinese_clashes"), spoken),
        misplaced_marks=misplaced_marks(prose),
        filler_share=share(cot.str.count_matches(_FILLER), total),
        number_pairs=without_code.str.count_matches(_NUMBER_PAIR),
        mean_word_length=share(
            (prose.str.len_chars() - _white_space(prose) - prose.str.count_matches(_NO_LETTER))
            .cast(pl.Int64)
            .clip(0),
            pl.col("_alphabetic"),
        ),
    )
    return measured.hstack(_rare_counts(frame))


def _beyond_ascii(frame: pl.DataFrame) -> pl.DataFrame:
    """Counts of characters and pairs that printable ASCII does not have."""
    text, prose, cot = pl.col("_text"), pl.col("_prose"), pl.col("_cot")
    rich = text.str.contains(r"[^\t\n\r -~]") | (cot.str.len_bytes() > cot.str.len_chars())
    counts = counted(
        frame,
        rich,
        _han=cot.str.count_matches(HAN),
        _kana=cot.str.count_matches(KANA),
        _broken=text.str.count_matches(_BROKEN),
        _strange=text.str.count_matches(_STRANGE),
        _symbols=text.str.count_matches(_SYMBOL),
        _chinese_clashes=chinese_clashes(prose),
    )
    # The letters of the most frequent unsupported script; few texts have any.
    unsupported = pl.max_horizontal(
        text.str.count_matches(rf"[\p{{L}}&&\p{{{script}}}]") for script in _UNSUPPORTED
    )
    foreign = counts.get_column("_strange") > 0
    return counts.hstack(counted(frame, pl.lit(foreign), _unsupported=unsupported))


def _rare_counts(frame: pl.DataFrame) -> pl.DataFrame:
    """The columns that need a search only in texts with a certain character."""
    text, without_code = pl.col("_text"), pl.col("_without_code")
    markup = (
        without_code.str.count_matches(_MARKUP).cast(pl.Int64)
        - without_code.str.count_matches(_FORMATTING)
    ).clip(0)
    marked = counted(
        frame,
        without_code.str.contains(r"[<&\[#ĠĊ▁]"),
        markup_count=markup,
        leaked_tokens=without_code.str.count_matches(_LEAKED),
    )
    latex = counted(
        frame,
        without_code.str.contains(r"[\\$]"),
        unbalanced_latex=_unbalanced_latex(without_code),
    )
    paragraphs = text.str.replace_all(r"\n[ \t\r]*\n\s*", "\u0000").str.split("\u0000")
    longest = counted(
        frame, text.str.contains(r"\n[ \t\r]*\n"), longest_paragraph=_longest(paragraphs)
    ).select(
        longest_paragraph=pl.when(pl.col("longest_paragraph") > 0)
        .then("longest_paragraph")
        .otherwise(frame.get_column("_characters"))
    )
    starts = without_code.str.extract_all(r"(?m)^ *[^ \n]")
    indented = counted(
        frame,
        without_code.str.contains(r"(?m)^ "),
        indentations=starts.list.eval(pl.element().str.len_chars()).list.n_unique(),
    )
    blank = frame.select(without_code.str.contains(r"\A[ \n]*\z")).to_series()
    indented = indented.select(pl.col("indentations").clip(pl.when(blank).then(0).otherwise(1)))
    return pl.concat([marked, latex, longest, indented, _brackets(frame)], how="horizontal")


def _white_space(text: pl.Expr) -> pl.Expr:
    """Number of white-space characters. Literals are counted five times as fast as a class."""
    return sum((_number(text, space) for space in " \n\t\u3000"), start=pl.lit(0))


def _number(text: pl.Expr, mark: str) -> pl.Expr:
    return text.str.count_matches(mark, literal=True).cast(pl.Int64)


def _longest(parts: pl.Expr) -> pl.Expr:
    return parts.list.eval(pl.element().str.len_chars()).list.max().fill_null(0)


def _tags(frame: pl.DataFrame) -> dict[str, pl.Expr]:
    """Tags as the form defines them; without a form, `<think>` and `</think>`."""
    text, form = pl.col("_text"), shared_form(frame)
    closed = text.str.contains(r"(?s)<think>.*\S.*</think>")
    after = text.str.contains(r"(?s)</think>\s*\S")
    reasoned = (pl.col("_cot") != pl.col("_text")) & (pl.col("_cot").str.strip_chars() != "")
    blank = text.str.strip_chars() == ""
    # Without tags to keep, a text is well formed if it ends and answers.
    ends = ~pl.col("_unfinished") & ~pl.col("_refusal")
    if form is None:
        has_think, has_summary, well_formed = closed, after, ~blank & ends
    else:
        answer = pl.col("answer") if "answer" in frame.columns else answer_expr(text, form)
        answered, kept = answer.str.strip_chars() != "", well_formed_expr(text, form)
        if isinstance(form, pl.Expr):
            plain = (form == "plain") | form.is_null()
            kept = pl.when(form.is_null()).then(~blank).otherwise(kept)
            has_think = pl.when(plain).then(closed).otherwise(reasoned)
            has_summary = pl.when(plain).then(after).otherwise(answered)
            well_formed = pl.when(plain).then(kept & ends).otherwise(kept)
        elif form.name == "plain":
            has_think, has_summary, well_formed = closed, after, kept & ends
        else:
            has_think, has_summary, well_formed = reasoned, answered, kept
    finish = (
        pl.col("finish_reason")
        if "finish_reason" in frame.columns
        else pl.lit(None, dtype=pl.String)
    )
    return {
        "has_think": has_think.fill_null(False),
        "well_formed": well_formed.fill_null(False),
        "unfinished": pl.col("_unfinished"),
        "refusal": pl.col("_refusal"),
        "has_summary": has_summary.fill_null(False),
        "truncated": finish == "length",
    }


def _endings(text: pl.Expr) -> dict[str, pl.Expr]:
    """Whether a text was cut off, and whether it is a refusal."""
    ending = text.str.tail(400).str.replace(_END_TOKENS, "").str.strip_chars_end()
    last_line = ending.str.extract(r"([^\n]*)\z")
    sentences = text.str.contains(_SENTENCE_END)
    short = text.str.len_chars() <= _REFUSAL_LENGTH
    fences = text.str.count_matches("```", literal=True)
    return {
        "_unfinished": ending.str.contains(_CUT_OFF)
        | (last_line.str.contains(_OPEN_LINE) & sentences)
        | ending.str.contains(_OPEN_ITEM)
        | (fences % 2 == 1),
        "_refusal": short & text.str.head(300).str.contains(_REFUSAL),
    }


def _brackets(frame: pl.DataFrame) -> pl.DataFrame:
    """`unbalanced_brackets`: brackets without their other half, summed over {}, () and [].

    List markers excuse closing brackets; a half-open interval has one bracket of each kind.
    """
    text = pl.col("_without_code")
    names = {"round": "()", "square": "[]", "curly": "{}"}
    excess = frame.select(
        text, **{name: _number(text, b[0]) - _number(text, b[1]) for name, b in names.items()}
    )
    odd = (pl.col("round") != 0) | (pl.col("square") != 0)
    mixed = counted(
        excess,
        odd,
        right=text.str.count_matches(_HALF_OPEN_RIGHT),
        left=text.str.count_matches(_HALF_OPEN_LEFT),
        markers=text.str.count_matches(_MARKER),
    )
    intervals = pl.when(odd).then(pl.col("right") - pl.col("left")).otherwise(0)
    excess = excess.hstack(mixed).with_columns(
        round=pl.col("round") + intervals, square=pl.col("square") - intervals
    )
    closing = (-pl.col("round") - pl.col("markers")).clip(0)
    excused = pl.when(pl.col("round") < 0).then(closing).otherwise("round")
    return excess.select(
        unbalanced_brackets=excused + pl.col("square").abs() + pl.col("curly").abs()
    )


def _unbalanced_latex(text: pl.Expr) -> pl.Expr:
    """Environments, delimiters and dollars without their other half."""
    money = text.str.replace_all(rf"\\\$|{FORMULA}|{CURRENCY}", " ")
    pairs = [(r"\begin{", r"\end{"), (r"\[", r"\]"), (r"\(", r"\)")]
    sizes = [text.str.count_matches(rf"\\{name}(?-u:\b)").cast(pl.Int64) for name in _SIZES]
    return (
        sum(((_number(text, one) - _number(text, other)).abs() for one, other in pairs), pl.lit(0))
        + (sizes[0] - sizes[1]).abs()
        + _number(money, "$") % 2
    )
