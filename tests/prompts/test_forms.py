"""Forms: well-formed texts, their reasoning and answer; no trick yields an answer from a broken
form.
"""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import UsageError
from curate.prompts.forms import (
    Form,
    answer_expr,
    compose_expr,
    parse,
    reasoning_expr,
    well_formed_expr,
    with_opener_expr,
)

# Text without delimiters: no brackets, no bars.
prose = st.text(
    st.characters(blacklist_characters="<>|[]", blacklist_categories=["Cs"]), max_size=40
)
FORMS = ["r1-zero", "r1", "plain", "r1[<|begin|>|<|end|>]", "r1[[[|]]]"]


@pytest.mark.parametrize(
    ("text", "reasoning", "answer", "well_formed"),
    [
        ("<think> a </think> <answer> 5 </answer>", "a", "5", True),
        ("  \n<think>a\nb</think>\n\n<answer>5\n6</answer>\n", "a\nb", "5\n6", True),
        ("　<think>想</think><answer>五</answer>　", "想", "五", True),
        ("<think></think><answer>5</answer>", "", "5", True),
        # nothing to judge
        ("", None, None, False),
        ("5", None, None, False),
        ("<think>a</think><answer></answer>", "a", None, False),
        ("<think>a</think><answer> \n </answer>", "a", None, False),
        # cut off
        ("<think> a b", "a b", None, False),
        ("<think>a</think>", "a", None, False),
        ("<think>a</think> <answer> 5", "a", None, False),
        ("<think>a</think> 5 </answer>", "a", None, False),
        # an answer, but not in the form
        ("<answer>5</answer>", None, "5", False),
        ("a </think> <answer>5</answer>", None, "5", False),
        ("so: <think>a</think> <answer>5</answer>", "a", "5", False),
        ("<think>a</think> so <answer>5</answer>", "a", "5", False),
        ("<think>a</think> <answer>5</answer> indeed", "a", "5", False),
        (
            "<think>write <answer> tags</think> <answer>5</answer>",
            "write <answer> tags",
            "5",
            False,
        ),
        ("<think>a</think> <answer>5</answer> User: more?", "a", "5", False),
        # several answers, or an answer where none belongs
        ("<think>a</think> <answer>5</answer> <answer>6</answer>", "a", None, False),
        (
            "<think>a</think> <answer>5</answer>\nUser: b\n<think>c</think> <answer>6</answer>",
            "a",
            None,
            False,
        ),
        ("<think>a</think> <answer>5<answer>6</answer></answer>", "a", None, False),
        ("<think>a <answer>5</answer>", "a <answer>5</answer>", None, False),
        ("<think>a <answer>5</answer></think>", "a <answer>5</answer>", None, False),
        ("<answer>5</answer> <think>a</think>", "a", None, False),
        ("<think>a</think> </answer>5<answer>", "a", None, False),
        # nested, repeated or reversed reasoning
        ("<think><think>a</think></think><answer>5</answer>", "<think>a", None, False),
        ("<think>a</think><think>b</think><answer>5</answer>", "a", None, False),
        ("</think>a<think> <answer>5</answer>", "<answer>5</answer>", None, False),
        # tags that only look like tags
        ("<THINK>a</THINK><ANSWER>5</ANSWER>", None, None, False),
        ("<think>a</think><answer>5</answer><Answer>6</Answer>", "a", "5", False),
        ("<think>a< /think >b</think><answer>5</answer>", "a< /think >b", "5", False),
    ],
)
def test_r1_zero(text, reasoning, answer, well_formed):
    parsed = parse(text, "r1-zero")
    assert (parsed.reasoning, parsed.answer, parsed.well_formed) == (reasoning, answer, well_formed)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer", "well_formed"),
    [
        ("<think>\na\n</think>\n\nThe answer is 5.", "a", "The answer is 5.", True),
        ("<think>a</think>", "a", None, False),
        ("<think>a", "a", None, False),
        ("The answer is 5.", None, "The answer is 5.", False),
        ("a</think>5", None, "5", False),
        ("Hm. <think>a</think>5", "a", "5", False),
        ("<think>a</think>5<think>b</think>6", "a", None, False),
        ("<think>a</think>b</think>6", "a", None, False),
        ("<think>a<think>b</think>6", "a<think>b", "6", False),
        ("<think>a</think>5 <THINK>b", "a", "5 <THINK>b", False),
        ("", None, None, False),
    ],
)
def test_r1(text, reasoning, answer, well_formed):
    parsed = parse(text, "r1")
    assert (parsed.reasoning, parsed.answer, parsed.well_formed) == (reasoning, answer, well_formed)
    own = text.replace("<think>", "<|in|>").replace("</think>", "<|out|>")
    if "<THINK>" not in text:  # a variant of the default tags does not count with other delimiters
        other = parse(own, "r1[<|in|>|<|out|>]")
        back = (reasoning or "").replace("<think>", "<|in|>") if reasoning is not None else None
        assert (other.reasoning, other.answer, other.well_formed) == (back, answer, well_formed)


def test_plain_is_all_answer():
    assert parse("  5 \n", "plain").answer == "5"
    assert parse("5", "plain").well_formed
    assert parse("5", "plain").reasoning is None
    assert parse(" \n", "plain").answer is None
    assert not parse(" \n", "plain").well_formed


@settings(deadline=None, max_examples=60)
@given(prose, prose, st.sampled_from(FORMS))
def test_a_composed_completion_is_parsed_into_its_parts(reasoning, answer, name):
    form = Form.of(name)
    parsed = parse(form.compose(reasoning, answer), form)
    if name == "plain":
        whole = _stripped(f"{reasoning}\n\n{answer}")
        assert (parsed.reasoning, parsed.answer) == (None, whole or None)
        assert parsed.well_formed == bool(whole)
    else:
        assert parsed.reasoning == _stripped(reasoning)
        assert parsed.answer == (_stripped(answer) or None)
        assert parsed.well_formed == bool(_stripped(answer))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(prose, prose, st.sampled_from(FORMS)), min_size=1, max_size=5))
def test_composed_columns_agree_with_one_text_at_a_time(rows):
    frame = pl.DataFrame(rows, schema=["reasoning", "answer", "form"], orient="row")
    parts = pl.col("reasoning"), pl.col("answer")
    composed = frame.select(compose_expr(*parts, pl.col("form"))).to_series().to_list()
    assert composed == [Form.of(form).compose(r, a) for r, a, form in rows]
    for name in FORMS:
        one = frame.select(compose_expr(*parts, Form.of(name))).to_series().to_list()
        assert one == [Form.of(name).compose(r, a) for r, a, _ in rows]


def test_missing_parts_are_empty_and_an_unknown_form_composes_nothing():
    frame = pl.DataFrame({"r": [None], "a": ["5"]}, schema={"r": pl.String, "a": pl.String})
    parts = pl.col("r"), pl.col("a")
    assert frame.select(compose_expr(*parts, Form.of("plain"))).item() == "5"
    assert frame.select(compose_expr(*parts, pl.lit("r1-zer"))).item() is None


def _stripped(text: str) -> str:
    """Strip Unicode's White_Space (Python's own strip also takes the separators U+001C to
    U+001F).
    """
    return pl.select(pl.lit(text).str.strip_chars()).item()


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "5", " ", "a"]), max_size=9
    )
)
def test_only_one_order_of_tags_is_well_formed(parts):
    tags = [part for part in parts if part.startswith("<")]
    if parse("".join(parts), "r1-zero").well_formed:
        assert tags == ["<think>", "</think>", "<answer>", "</answer>"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.text(max_size=60), st.sampled_from(FORMS)), min_size=1, max_size=5))
def test_columns_of_mixed_forms_agree_with_one_text_at_a_time(rows):
    frame = pl.DataFrame(rows, schema=["text", "form"], orient="row")
    t, f = pl.col("text"), pl.col("form")
    got = frame.select(r=reasoning_expr(t, f), a=answer_expr(t, f), w=well_formed_expr(t, f)).rows()
    expected = [parse(text, form) for text, form in rows]
    assert got == [(p.reasoning, p.answer, p.well_formed) for p in expected]


def test_null_and_unknown_are_null_not_false():
    frame = pl.DataFrame({"t": [None, "x", "x"], "f": ["r1", None, "odd"]})
    t, f = pl.col("t"), pl.col("f")
    got = frame.select(r=reasoning_expr(t, f), a=answer_expr(t, f), w=well_formed_expr(t, f)).rows()
    assert got == [(None, None, None)] * 3


def test_an_opener_at_the_end_of_the_prompt_belongs_to_the_completion():
    frame = pl.DataFrame(
        {
            "c": ["a</think>5", "<think>a</think>5", "a</think>5"],
            "p": ["User: q Assistant: <think>\n", "User: <think> q Assistant:", None],
        }
    ).with_columns(t=with_opener_expr(pl.col("c"), pl.col("p"), pl.lit("r1")))
    assert frame["t"].to_list() == ["<think>a</think>5", "<think>a</think>5", "a</think>5"]


@pytest.mark.parametrize(
    ("name", "opening", "closing"),
    [
        ("r1-zero", "<think>", "</think>"),
        ("r1", "<think>", "</think>"),
        ("plain", "", ""),
        (
            "r1[<|begin_of_thought|>|<|end_of_thought|>]",
            "<|begin_of_thought|>",
            "<|end_of_thought|>",
        ),
        ("r1[[[|]]]", "[[", "]]"),
        ("r1[思考：|回答：]", "思考：", "回答："),
    ],
)
def test_names_of_forms(name, opening, closing):
    form = Form.of(name)
    assert (str(form), form.open, form.close) == (name, opening, closing)
    assert Form.of(form) is form


@pytest.mark.parametrize(
    "name", ["", "r2", "R1", "r1[]", "r1[a]", "r1[|a]", "r1[a|b|c]", "r1[a|A]", "r1[<t>|<t>x]"]
)
def test_an_unknown_form_is_refused(name):
    with pytest.raises(UsageError, match="form"):
        Form.of(name)
