"""Loading as a whole: columns of the table, duplicates, splits, the report, users' own sources, bad
configs.
"""

import re
from pathlib import Path

import polars as pl
import pytest

import curate
from curate.errors import UsageError
from curate.problems import Source, from_rows, load_problems
from curate.problems.base import SCHEMA
from curate.records import Problem


class Mine(Source):
    """A user's own source: `rows` are its problems."""

    rows: list[dict]

    def load(self) -> pl.DataFrame:
        return pl.DataFrame(self.rows)


def load(*rows, **config):
    return load_problems({"sources": [{"source": f"{__name__}:Mine", "rows": list(rows)}]} | config)


def test_columns_are_those_of_the_schema():
    sql = (Path(curate.__file__).parent.parent / "schemas" / "problems.sql").read_text()
    # Sources never correct: `curate correct` adds that column.
    assert [*SCHEMA, "correction"] == re.findall(r"^    (\w+) ", sql, re.MULTILINE)
    frame, _ = load({"question": "a"})
    assert frame.schema == pl.Schema(SCHEMA)


def test_the_first_of_duplicates_stays():
    frame, report = load(
        {"question": "a", "reference": "1", "solution": "first"},
        {"question": "b", "reference": "1", "solution": None},
        {"question": " a", "reference": "1", "solution": "second"},
        {"question": "a", "reference": "2", "solution": None},
    )
    assert frame["question"].to_list() == ["a", "b", "a"]
    assert frame["solution"].to_list() == ["first", None, None]
    assert (report.loaded, report.duplicates, report.problems) == (4, 1, 3)


def test_a_duplicate_that_is_held_out_holds_the_question_out():
    frame, report = load({"question": "a", "split": "train"}, {"question": "a", "split": "test"})
    assert frame["split"].to_list() == ["held-out"]
    assert report.moved_to_held_out == 1


def test_names_of_splits():
    rows = [
        {"question": str(i), "split": s}
        for i, s in enumerate(["train", "TEST", " validation ", "held_out"])
    ]
    assert load(*rows).frame["split"].to_list() == ["train"] + ["held-out"] * 3
    with pytest.raises(UsageError, match="unknown split 'extra'"):
        load({"question": "a", "split": "extra"})


def test_ids_do_not_depend_on_order_or_other_rows():
    rows = [{"question": f"q{i}", "reference": str(i)} for i in range(20)]
    one, two = load(*rows).frame, load(*reversed(rows[:7])).frame
    both = one.join(two, on="question")
    assert both.height == 7
    assert (both["problem_id"] == both["problem_id_right"]).all()
    assert (both["split"] == both["split_right"]).all()


def test_the_report_counts_rows_by_split_and_source():
    rows = [
        {"question": f"q{i}", "verifier": "math" if i else None, "source": f"s{i % 2}"}
        for i in range(10)
    ]
    _, report = load(*rows, held_out=2)
    assert (report.train, report.held_out) == (6, 4)
    assert report.without_verifier == 1
    assert report.sources == {"s0": 5, "s1": 5}
    text = "\n".join(report.lines())
    assert "10 problems (6 train, 4 held-out): s0 5, s1 5" in text
    assert "1 problem names no verifier" in text


def test_rows_become_records():
    frame, _ = load(
        {"question": "a", "reference": "1", "choices": ["1", "2"]}, {"question": "b"}, held_out=0
    )
    first, second = from_rows(frame.with_columns(extra=1))
    assert first == Problem("a", "1", problem_id=frame["problem_id"][0], choices=["1", "2"])
    assert second.choices is None
    assert second.split == "train"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "sources"),
        ({"sources": []}, "sources"),
        ({"sources": [{"path": "x"}]}, "which source"),
        ({"sources": [{"source": "no_such"}]}, "unknown source 'no_such'"),
        (
            {"sources": [{"source": "files"}]},
            r"sources\[0\] \(files\): invalid config:\s+path: missing",
        ),
        ({"sources": [{"source": "curate.records:Problem"}]}, "not a curate.problems.Source"),
        ({"sources": [{"source": "no.such.module:Thing"}]}, "cannot load the"),
        ({"sources": [{"source": "files", "path": "x", "colour": 1}]}, "colour"),
        ({"sources": [{"source": "files", "path": "x"}], "held_out": -1}, "held_out"),
        ({"sources": [{"source": "files", "path": "x"}], "held_out": 1.5}, "held_out"),
        ({"sources": [{"source": "files", "path": "x"}], "colour": 1}, "colour"),
    ],
)
def test_a_wrong_config_is_one_message(config, message):
    with pytest.raises(UsageError, match=message):
        load_problems(config)


def test_a_source_without_rows_or_with_odd_columns_is_refused():
    with pytest.raises(UsageError, match="no problems"):
        load()
    with pytest.raises(UsageError, match="unknown columns: odd"):
        load({"question": "a", "odd": 1})
    with pytest.raises(UsageError, match="without a question"):
        load({"reference": "1"})


@pytest.mark.parametrize(
    ("rows", "extra", "message"),
    [
        ("question,verifier\n1+1?,maths\n", {}, "unknown verifier 'maths'"),
        ("question,verifier\n1+1?,maths\n", {}, "did you mean 'math'"),
        # a row is data: it cannot name a module that would then be imported
        ("question,verifier\n1+1?,os:getcwd\n", {}, "unknown verifier 'os:getcwd'"),
        ("question\n1+1?\n", {"verifier": "maths"}, "unknown verifier 'maths'"),
        ("question\n1+1?\n", {"verifier": "mine_too:x"}, "no module 'mine_too'"),
    ],
)
def test_a_verifier_that_does_not_exist_is_refused(tmp_path, rows, extra, message):
    path = tmp_path / "p.csv"
    path.write_text(rows)
    with pytest.raises(UsageError, match=message):
        load_problems({"sources": [{"source": "files", "path": str(path), **extra}]})
