"""Signals in closed form: counts and shares that can be checked by hand."""

from __future__ import annotations

import re
from collections import Counter
from importlib import import_module

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import UsageError
from curate.signals import GROUPS, annotate_frame, column_groups, derived_columns, with_macros
from curate.warehouse.schemas import arrow_schema


def one(completion: str | None, **columns: object) -> dict[str, object]:
    """All signals and macros of one text."""
    frame = pl.DataFrame(
        {"completion": [completion], **{name: [value] for name, value in columns.items()}}
    )
    return with_macros(annotate_frame(frame)).row(0, named=True)


def test_every_declared_column_is_measured_by_its_group() -> None:
    frame = pl.DataFrame({"completion": ["a b c"], "note": ["mine"]})
    measured = annotate_frame(frame)
    assert measured.columns == ["completion", "note", *column_groups()]
    assert set(column_groups().values()) == set(GROUPS)
    assert [
        name for name in arrow_schema("signals").names if name not in ("trace_id", "attempt")
    ] == list(column_groups())
    for name, group in GROUPS.items():
        assert annotate_frame(frame, [name]).columns == ["completion", "note", *group.columns]
    assert set(derived_columns()) == {"readable", "mixed_language", "stray_script", "quality"}


def test_wrong_use_raises_a_clear_error() -> None:
    with pytest.raises(UsageError, match="unknown group of signals 'taste'"):
        annotate_frame(pl.DataFrame({"completion": ["a"]}), ["taste"])
    with pytest.raises(UsageError, match="'completion', which is missing"):
        annotate_frame(pl.DataFrame({"text": ["a"]}))


def test_rows_keep_their_order_across_slices() -> None:
    count = 4_321
    frame = pl.DataFrame({"completion": ["word " * (i % 7) for i in range(count)]})
    measured = annotate_frame(frame, ["shape"])
    assert measured["words"].to_list() == [float(i % 7) for i in range(count)]


def test_tags_of_each_form() -> None:
    zero = "<think>1 + 1 = 2.</think> <answer>2</answer>"
    signals = one(zero, form="r1-zero", finish_reason="stop")
    assert (
        signals["has_think"],
        signals["well_formed"],
        signals["has_summary"],
        signals["truncated"],
    ) == (
        True,
        True,
        True,
        False,
    )
    cut = one("<think>1 + 1", form="r1-zero", finish_reason="length")
    assert (cut["has_think"], cut["well_formed"], cut["has_summary"], cut["truncated"]) == (
        True,
        False,
        False,
        True,
    )
    assert one("<think>\n\n</think> <answer>2</answer>", form="r1-zero")["has_think"] is False
    assert one("<think>a</think>", form="r1")["has_summary"] is False
    opened = one("b</think> c", form="r1", prompt="User: a\n<think>\n")
    assert (opened["has_think"], opened["well_formed"]) == (True, True)
    assert one("b</think> c", form="r1", prompt="User: a")["well_formed"] is False
    own = one("[T]why[/T] because", form="r1[[T]|[/T]]")
    assert (own["has_think"], own["well_formed"], own["has_summary"]) == (True, True, True)
    free = one("a <think>b</think> c")
    assert (free["has_think"], free["has_summary"], free["truncated"]) == (True, True, None)


def test_tags_of_several_forms_in_one_frame() -> None:
    text = "<think>a</think> <answer>2</answer>"
    forms = ["r1-zero", "r1", "plain", None, "r1[[T]|[/T]]"]
    together = annotate_frame(
        pl.DataFrame({"completion": [text] * 5, "form": forms}), ["shape"]
    ).drop("form")
    alone = pl.concat(
        annotate_frame(
            pl.DataFrame({"completion": [text], "form": pl.Series([form], dtype=pl.String)}),
            ["shape"],
        ).drop("form")
        for form in forms
    )
    assert together.equals(alone)


def test_shape_in_closed_form() -> None:
    signals = one("ab cd\n\nefghij\nk\n\n\n```py\nx = 1\n```\n")
    assert signals["characters"] == 34
    assert signals["lines"] == 10
    assert signals["longest_line"] == 6
    assert signals["longest_paragraph"] == len("```py\nx = 1\n```\n")
    assert signals["code_blocks"] == 1
    assert signals["code_share"] == pytest.approx(15 / 34)
    assert signals["mean_word_length"] == pytest.approx(10 / 3, abs=0.4)


def test_balance_of_latex_and_brackets() -> None:
    assert one(r"\( x \) and $y$ and \begin{a}\end{a} {([])}")["unbalanced_latex"] == 0
    broken = one(r"\( x and $y and \begin{a} {([]")
    assert broken["unbalanced_latex"] == 3
    assert broken["unbalanced_brackets"] == 3
    assert one("A) red B) blue\n1) one\n2) two")["unbalanced_brackets"] == 0
    assert one("Cases [0, 1), [1, 2) and (2, 3]. Sum ((x + 1).")["unbalanced_brackets"] == 1
    assert one("It costs $5 and then $3, so $8.")["unbalanced_latex"] == 0


def test_broken_and_strange_characters() -> None:
    assert one("abc\ufffd\x07xyz")["broken_share"] == pytest.approx(2 / 8)
    assert (
        one("x ≤ y, π ≈ 3.14, √2 ∈ ℝ, →, ∑, “quoted” — 中文，日本語、한국어 العربية हिन्दी")[
            "strange_share"
        ]
        == 0
    )
    assert one("ab ᚠᛇ")["strange_share"] == pytest.approx(2 / 4)


def test_token_soup_is_odd() -> None:
    assert one("We add 3 and 4, so the well-known answer isn't 8 (it is 7).")["odd_word_share"] == 0
    assert one("forEach ektor%%Zusam {}()_nder мaть")["odd_word_share"] == 3 / 5
    assert one("sdkfj qwrtp zxcvb hello")["vowelless_share"] == pytest.approx(3 / 4)


def test_loops_are_measured_in_characters() -> None:
    clean = one("First add three and four. Then take two away from that.")
    assert (clean["loop_characters"], clean["loop_repeats"]) == (0, 0.0)
    waiting = one("Start. " + "wait " * 20)
    assert waiting["loop_repeats"] == pytest.approx(20)
    assert waiting["loop_characters"] == 80
    assert waiting["loop_share"] == pytest.approx(80 / 86)
    sentence = one("So it is " + "I add the two numbers again. " * 10)
    assert sentence["loop_repeats"] == pytest.approx(10)
    assert sentence["loop_characters"] == 10 * len("Iaddthetwonumbersagain.")
    assert one("a" * 400)["loop_share"] == pytest.approx(1, abs=30 / 400)
    assert one("我们再算一次。" * 12)["loop_repeats"] == pytest.approx(12)
    # A loop in one text does not affect the next.
    frame = annotate_frame(
        pl.DataFrame({"completion": ["one two three four " * 9, "one two three four five"]})
    )
    assert frame["loop_repeats"].to_list() == [pytest.approx(9), 0.0]


def test_duplicate_lines_and_paragraphs() -> None:
    signals = one("abc\nabc\nde\nabc")
    assert signals["duplicate_line_share"] == pytest.approx(2 / 4)
    assert signals["duplicate_line_character_share"] == pytest.approx(6 / 14)
    assert one("abc\n\nabc\n\nde")["duplicate_paragraph_share"] == pytest.approx(1 / 3)


def test_n_gram_shares_see_chinese() -> None:
    assert one("今天我们来算一道题目看看结果是多少")["duplicate_5_gram_share"] == 0
    assert one("我们来算一道题目。" * 6)["duplicate_5_gram_share"] > 0.5


def test_compression_rises_with_repetition() -> None:
    assert one("")["compression"] == 0
    prose = one(
        "Each bag holds a dozen marbles, and Tom gave away three of them to his sister at noon."
    )
    assert prose["compression"] < 2 < 5 < one("the same again " * 60)["compression"]


def test_behaviour_in_english_and_chinese() -> None:
    text = (
        "3 + 4 = 7. Wait, that is 3.5 more. Let me check: 7 - 4 = 3. That doesn't work\n"
        "Let's try another approach."
    )
    signals = one(text)
    assert signals["reflection_count"] == 1
    assert signals["verification_count"] >= 1
    assert signals["backtrack_count"] == 2
    assert signals["step_count"] == 5
    assert signals["equation_count"] == 2
    assert signals["reflective_words"] == 2
    assert one("Please wait for the bus.")["reflection_count"] == 0
    ordinary = one("苹果、香蕉、梨等等。请定期检查身体，并输入验证码。")
    assert (ordinary["reflection_count"], ordinary["verification_count"]) == (0, 0)
    chinese = one("先算三加四。等等，不对，重新计算。我们来验算一下！换一种方法。")
    assert chinese["reflection_count"] == 2
    assert chinese["verification_count"] == 1
    assert chinese["backtrack_count"] == 2
    assert chinese["step_count"] == 4
    assert one("3 + 4 = 7. 7 + 5 = 12.")["step_count"] == 2


def test_shares_of_words_are_over_the_words_of_all_scripts() -> None:
    signals = one("网页用 HTML 编写，iPad 也可以打开，不需要 sdfgh 这样的词。")
    han = 0.65 * len("网页用编写也可以打开不需要这样的词")
    assert signals["odd_word_share"] == pytest.approx(1 / (han + 3))
    assert signals["vowelless_share"] == pytest.approx(1 / (han + 3))


def test_words_in_an_order_that_no_grammar_allows() -> None:
    assert one("We add the two numbers, and then we are done.")["clashing_word_share"] == 0
    salad = one("The of we the sum and than numbers is are many of because they.")
    assert salad["clashing_word_share"] * salad["words"] >= 4
    assert one("这是一个的因为三角形，的把它们。")["clashing_word_share"] > 0.1
    shuffled = one("add. we The sum is two. and So the rest follows so The end. of")
    assert shuffled["misplaced_marks"] == 3


def test_leaked_tokens_and_lines_of_one_word() -> None:
    assert one("So <|im_end|> we add ▁two [PAD] and ##ing.")["leaked_tokens"] == 4
    assert one("```\n<s>\n```\nWe add.")["leaked_tokens"] == 0
    assert one("We\nadd\nthe\nsum\nof\nboth\n.")["function_word_lines"] == 3
    assert one("a\n b\n   c\n\n b\n```\n       x\n```")["indentations"] == 3


def test_endings_of_texts() -> None:
    assert one("We add them. Then we divide by the")["unfinished"] is True
    assert one("We add them. Then we divide the sum by two and stop he")["unfinished"] is True
    assert one("The answer is twelve")["unfinished"] is False
    assert one("I'm sorry, but I can't help with that.")["refusal"] is True
    assert one("I'm sorry for the slip. The sum is 7.")["refusal"] is False


def test_a_script_that_is_not_supported_is_not_judged() -> None:
    thai = one("วันนี้เราจะบวกเลขสองจำนวนแล้วหารด้วยสามเพื่อหาค่าเฉลี่ย")
    assert thai["readable"] is None
    assert thai["unsupported_share"] > 0.5
    assert thai["strange_share"] < 0.1
    assert one("คำ " * 60)["readable"] is False  # a loop is one in any script
    assert one("ⵣⵥⵯ ᏣᎳᎩ คำ გამა ሀሁ")["readable"] is False  # many scripts are noise


def test_a_numbered_loop_is_a_loop() -> None:
    numbered = one(" ".join(f"{i}. The Old House" for i in range(1, 13)))
    assert numbered["loop_repeats"] == pytest.approx(12, abs=1)
    circling = one(
        "\n".join(f"{i}. {'The Old House' if i % 3 else 'A Tale of Two'}" for i in range(9))
    )
    assert circling["repeated_item_share"] == pytest.approx(7 / 9)


def test_stray_fragments_of_another_script() -> None:
    def stray(text: str, question: str = "What is the area?") -> object:
        return one(text, question=question)["stray_fragments"]

    assert stray("so the 面积 is 12 and we add один more.") == 2
    assert stray("so the 面积 is 12.", "什么是面积？") == 0  # expected: the question has it
    assert stray('The word "面积" (面积) means area; π and µ are symbols.') == 0
    assert stray("The character 明 means bright.\n- 猫: cat") == 0
    assert stray("所以 the 面积是十二，用 Python 计算，x 等于三。", "面积是多少？") == 1


def test_function_words_shared_by_languages_prove_none() -> None:
    for text in (
        "He is open 6 days a week, so is she.",
        "Half as many points as Naomi is 34 points.",
        "They drove 50 miles per hour and sold sterling silver beads.",
        "El Niño and São Paulo are names.",
    ):
        assert one(text)["share_en"] == 1, text
    switched = one("We add them first, y luego dividimos la suma entre los dos.")
    assert switched["mixed_language"] is True


@pytest.mark.parametrize(
    ("text", "form", "question"),
    [
        (
            "<think>3 + 4 = 7. 7 + 5 = 12.</think> <answer>12</answer>",
            "r1-zero",
            "What is 3 + 4 + 5?",
        ),
        ("<think>3+4=7</think> <answer>7</answer>", "r1-zero", "计算 3 + 4"),
        (
            "<think>先算 3 + 4 = 7，再加 5，得 12。</think> <answer>12</answer>",
            "r1-zero",
            "3 + 4 + 5 等于多少？",
        ),
        (
            " <think> 1 + 1 + 1 + 1 + 1 = 5. </think> <answer> 5 </answer>",
            "r1-zero",
            "What is 1 + 1 + 1 + 1 + 1?",
        ),
        (
            "<think>I add 9 to 4 and get 13.\nI add 2 and get 15.</think> <answer>15</answer>",
            "r1-zero",
            "Add 9 + 4 + 2",
        ),
    ],
)
def test_short_clean_arithmetic_is_readable(text: str, form: str, question: str) -> None:
    signals = one(text, form=form, question=question, finish_reason="stop")
    assert signals["readable"] is True
    assert signals["mixed_language"] is False
    assert signals["target_language_share"] == 1
    assert signals["quality"] > 0.95


def test_failed_and_looping_traces_are_not_readable() -> None:
    assert one(None)["readable"] is False
    assert one("<think> " + "I add it again. " * 40, form="r1-zero")["readable"] is False


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300), st.sampled_from(["r1-zero", "r1", "plain", None]))
def test_any_text_has_signals_in_their_ranges(text: str, form: str | None) -> None:
    signals = one(text, form=form, question="What is it?", finish_reason="stop")
    for name, value in signals.items():
        if name.endswith("_share") and not name.startswith("top_") and value is not None:
            assert 0 <= value <= 1 + 1e-9, name
    assert sum(
        value for name, value in signals.items() if name.startswith("share_")
    ) == pytest.approx(1 if signals["language_words"] else 0)
    assert signals["readable"] in (True, False, None)
    assert 0 <= signals["quality"] <= 1 + 1e-9


def gopher(text: str) -> dict[str, float]:
    """Gopher's n-gram shares of one text, computed one n-gram at a time as in datatrove 0.10.1."""
    words = re.findall(r"\w+", text)
    shares = {}
    for n in (2, 3, 4):
        grams = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
        gram, count = grams.most_common(1)[0] if grams else ("", 0)
        shares[f"top_{n}_gram_share"] = len(gram) * count / max(len(text), 1)
    for n in range(5, 11):
        seen, i, repeated = set(), 0, 0
        while i + n <= len(words):
            gram = "".join(words[i : i + n])
            if gram in seen:
                repeated, i = repeated + len(gram), i + n
            else:
                seen.add(gram)
                i += 1
        shares[f"duplicate_{n}_gram_share"] = repeated / max(len(text), 1)
    return shares


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["ab", "cde", "f"]), max_size=70), min_size=1, max_size=8))
def test_n_gram_shares_equal_those_of_gopher(texts: list[list[str]]) -> None:
    joined = [" ".join(words) for words in texts]
    measured = annotate_frame(pl.DataFrame({"completion": joined}), ["repetition"])
    for row, text in zip(measured.iter_rows(named=True), joined, strict=True):
        for name, value in gopher(text).items():
            assert row[name] == pytest.approx(value, abs=1e-9), name


def test_shorthand_symbols_markup_and_loose_marks() -> None:
    assert one("wnt cmp the dn")["abbreviated_share"] == 3 / 4
    # "km"; "rhythm" is a word, and the single letter "a" does not count
    assert one("In km it is a rhythm of five")["abbreviated_share"] == 1 / 7
    assert one("∀∃ x = 5")["symbol_share"] == 2 / 5  # the equals sign is not a symbol
    assert one("3 × 4 ≈ 12 → ok ✓")["symbol_share"] == 0
    assert one("<td>5</td> &nbsp; 3 < 4 & 5 > 2")["markup_count"] == 3
    assert one("```html\n<td>5</td>\n```")["markup_count"] == 0
    assert one("so , and . here,, now.; but 0.5, 1,000 and e.g. this, too.")["loose_marks"] == 4
    assert one("Take $x$, then $y$. And 3 . 5")["loose_marks"] == 1


def test_switches_of_language_and_clauses_without_a_common_word() -> None:
    mixed = one(
        "First I add the two numbers, 然后我们再把它们加起来, "
        "and then I check the sum, 最后得到结果。"
    )
    assert mixed["language_switches"] == 3
    terms = one("我们用 Python 来计算这个问题的答案，再用 GPU 检查一次。")
    assert terms["language_switches"] == 0
    plain = one("I add the two numbers and I get seven.")
    assert (plain["language_switches"], plain["unproven_share"]) == (0, 0.0)
    salad = one("Lemon kettle station velocity margin. I add the two large numbers.")
    assert salad["unproven_share"] == 5 / 10  # the single letter "I" is not a word
    assert one("3 + 4 = 7")["unproven_share"] == 0.0


def test_a_text_in_another_language_than_the_question_is_not_readable() -> None:
    text = (
        "我们需要求各位数字之和等于五的三位数有多少个。"
        "先设百位，再设十位和个位，然后用隔板法得到结果。"
    )
    question = "How many three-digit numbers are there?"
    assert one(text)["readable"] is True  # no question, no target language
    assert one(text, question=question)["readable"] is False
    assert one(text, question=question, target_language="zh")["readable"] is True


def test_words_and_pairs_that_are_in_no_list() -> None:
    prose = one("We add the two numbers and then divide the sum by three to find the mean.")
    assert prose["unknown_word_share"] == 0
    pseudo = one("We gromble the trinquet, and then we splandify the well-known dorquess.")
    assert pseudo["unknown_word_share"] == pytest.approx(4 / 9)  # a compound is made of words
    words = "We add the two numbers and then divide the sum by three to find the mean".split()
    shuffled = one(" ".join(words[::-1]))
    assert shuffled["known_pair_share"] < prose["known_pair_share"] - 0.2
    chinese = "我们先把两个数加起来，然后再除以三，就得到平均数。"
    assert one(chinese[::-1])["known_pair_share"] < one(chinese)["known_pair_share"]
    assert one("12 + 7 = 19")["known_pair_share"] == 1


def test_a_very_long_text_is_measured_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    short = "one two three four five six seven eight nine ten eleven"
    loop = "wait and see then " * 20
    whole = annotate_frame(pl.DataFrame({"completion": [loop, short, ""]}), ["repetition"])
    monkeypatch.setattr(import_module("curate.signals.repetition"), "_PIECE", 90)
    pieces = annotate_frame(pl.DataFrame({"completion": [loop, short, ""]}), ["repetition"])
    assert pieces[1:].equals(whole[1:])
    assert pieces["loop_share"][0] == pytest.approx(whole["loop_share"][0], abs=0.05)
    assert pieces["loop_repeats"][0] == pytest.approx(5, abs=0.5)
    assert 0.5 < pieces["duplicate_5_gram_share"][0] < whole["duplicate_5_gram_share"][0]
