"""Ids by content, and splits that never overlap, for any order, spacing or other rows."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.problems.base import to_schema
from curate.problems.identity import HELD_OUT, TRAIN, add_problem_id, add_split

TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)


def frame(*rows: dict) -> pl.DataFrame:
    return to_schema(pl.concat([pl.DataFrame([row]) for row in rows], how="diagonal_relaxed"))


def ids(*rows: dict) -> list[str]:
    return add_problem_id(frame(*rows))["problem_id"].to_list()


BASE = {
    "question": "What is 1 + 2?",
    "reference": "3",
    "verifier": "math",
    "choices": ["2", "3"],
    "tests": "[]",
    "identity": "i",
}


def test_ids_never_change():
    # Ids name rows of warehouses that exist: this one must never change.
    assert ids({"question": "What is 1 + 2?", "reference": "3", "verifier": "math"}) == [
        "5797ee4e47ce6d74451343272e1fd986"
    ]
    assert ids(BASE) == ["c0ba1776ea34caae1f2ad1b7d48a28cc"]


@pytest.mark.parametrize(
    "change",
    [
        {"question": "What is 1 + 3?"},
        {"question": "what is 1 + 2?"},
        {"reference": "4"},
        {"reference": None},
        {"verifier": "choice"},
        {"choices": ["3", "2"]},
        {"choices": ["23"]},
        {"choices": None},
        {"tests": "[1]"},
        {"identity": None},
    ],
)
def test_columns_that_decide_the_answer_change_the_id(change):
    assert len(set(ids(BASE, BASE | change))) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"question": "  What is 1 + 2?\n"},
        {"reference": " 3"},
        {"solution": "count"},
        {"source": "elsewhere", "domain": "math"},
        {"difficulty": 0.5, "split": "train", "target_language": "en"},
        {"metadata": '{"row": 7}'},
    ],
)
def test_other_columns_do_not_change_the_id(change):
    assert len(set(ids(BASE, BASE | change))) == 1


def test_unicode_and_line_ends_are_compared_in_one_form():
    assert len(set(ids({"question": "caf\u00e9\r\nx"}, {"question": "cafe\u0301\nx"}))) == 1


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(TEXT, st.none() | TEXT, st.none() | TEXT), min_size=2, max_size=6, unique=True
    )
)
def test_different_contents_have_different_ids(rows):
    got = ids(*({"question": "q", "verifier": v, "tests": t, "identity": i} for v, t, i in rows))
    assert len(set(got)) == len(rows)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.sampled_from(["a", "A ", "a\n", "b", "ｂ", "c", "d", "e"]), min_size=1, max_size=12
    ),
    st.lists(st.sampled_from([None, TRAIN, HELD_OUT]), min_size=12, max_size=12),
    st.sampled_from([0.0, 0.3, 0.9, 1, 2, 100]),
)
def test_a_question_is_in_one_split_only(questions, splits, held_out):
    rows = frame(
        *(
            {"question": q, "split": s, "source": "x"}
            for q, s in zip(questions, splits, strict=False)
        )
    )
    done, _ = add_split(rows, held_out)
    key = pl.col("question").str.normalize("NFKC").str.to_lowercase().str.strip_chars()
    assert done.group_by(key).agg(pl.col("split").n_unique())["split"].max() == 1
    assert done["question"].to_list() == questions
    # a question named held-out is never trained on
    assert (done.filter(rows["split"] == HELD_OUT)["split"] == HELD_OUT).all()


def test_with_a_share_a_question_keeps_its_split_whatever_is_added():
    many = frame(*({"question": f"q{i}", "source": "x"} for i in range(3000)))
    whole, _ = add_split(many, 0.2)
    part, _ = add_split(many.reverse().head(1000), 0.2)
    assert whole.filter(pl.col("split") == HELD_OUT).height == pytest.approx(
        600, abs=5 * (3000 * 0.2 * 0.8) ** 0.5
    )
    both = whole.join(part, on="question")
    assert both.height == 1000
    assert (both["split"] == both["split_right"]).all()
    other, _ = add_split(many, 0.2, salt="again")
    assert (other["split"] != whole["split"]).any()


def test_a_count_is_exact_for_each_source_and_independent_of_order():
    rows = frame(*({"question": f"{s} {i // 2}", "source": s} for s in "ab" for i in range(100)))
    done, moved = add_split(rows, 7)
    held = done.filter(pl.col("split") == HELD_OUT)
    assert held.group_by("source").agg(pl.col("question").n_unique()).sort("source").rows() == [
        ("a", 7),
        ("b", 7),
    ]
    assert moved == 0
    again, _ = add_split(rows.sample(fraction=1, shuffle=True, seed=1), 7)
    assert set(again.filter(pl.col("split") == HELD_OUT)["question"]) == set(held["question"])


def test_a_named_split_is_kept_unless_the_question_is_held_out_elsewhere():
    rows = frame(
        {"question": "a", "split": TRAIN},
        {"question": "b", "split": HELD_OUT},
        {"question": " B", "split": TRAIN, "reference": "other"},
    )
    done, moved = add_split(rows, 0.0)
    assert done["split"].to_list() == [TRAIN, HELD_OUT, HELD_OUT]
    assert moved == 1


def test_one_problem_in_two_languages_is_one_question():
    rows = frame(
        *({"question": q, "same_as": f"q{i}"} for i in range(50) for q in (f"q{i}", f"问{i}"))
    )
    done, _ = add_split(rows, 0.5)
    assert done.group_by("same_as").agg(pl.col("split").n_unique())["split"].max() == 1
    assert done["split"].n_unique() == 2
