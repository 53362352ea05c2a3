"""Problems from files: every format gives the same rows, and bad input is named with its file and
line.
"""

import json

import polars as pl
import pytest

from curate.errors import UsageError
from curate.problems import load_problems

ROWS = [
    {"problem": "What is 1 + 2?", "answer": "3", "level": "0.25"},
    {"problem": "What is 2 + 2?", "answer": "4", "level": "0.5"},
]
COLUMNS = {"question": "problem", "reference": "answer", "difficulty": "level"}


def load(path, **config):
    return load_problems(
        {"sources": [{"source": "files", "path": str(path), "verifier": "math"} | config]}
    )


def jsonl(path, *rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


def test_choices_are_shown_below_the_question_if_asked(tmp_path):
    rows = [
        {"question": "Which?", "choices": {"text": ["one", "two"]}, "reference": "B"},
        {"question": "Why?", "choices": None, "reference": "x"},
    ]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = load(path, verifier="choice", show_choices=True).frame
    assert shown["question"].to_list() == ["Which?\n\nA) one\nB) two", "Why?"]
    plain = load(path, verifier="choice").frame
    assert plain["question"].to_list() == ["Which?", "Why?"]


def test_every_format_gives_the_same_rows(tmp_path):
    table = pl.DataFrame(ROWS)
    jsonl(tmp_path / "a.jsonl", *ROWS)
    table.write_csv(tmp_path / "a.csv")
    table.write_csv(tmp_path / "a.tsv", separator="\t")
    table.write_parquet(tmp_path / "a.parquet")
    frames = [
        load(tmp_path / f"a.{kind}", columns=COLUMNS).frame
        for kind in ("jsonl", "csv", "tsv", "parquet")
    ]
    assert all(frame.equals(frames[0]) for frame in frames)
    first = frames[0].row(0, named=True)
    assert (first["question"], first["reference"], first["difficulty"]) == (
        "What is 1 + 2?",
        "3",
        0.25,
    )
    assert (first["source"], first["verifier"]) == ("a", "math")


def test_values_of_json_become_text(tmp_path):
    rows = [
        {"question": "q1", "reference": 3, "tests": [{"in": 1}]},
        {"question": "q2", "reference": 0.5},
        {"question": "q3", "reference": True},
        {"question": "q4", "reference": None},
        {"question": "q5", "reference": "x", "difficulty": 1},
    ]
    frame = load(jsonl(tmp_path / "a.jsonl", *rows)).frame
    assert frame["reference"].to_list() == ["3", "0.5", "true", None, "x"]
    assert json.loads(frame["tests"][0]) == [{"in": 1}]
    assert frame["difficulty"].to_list() == [None] * 4 + [1.0]
    numbers = pl.DataFrame({"question": ["a", "b"], "reference": [3, None]})
    numbers.write_parquet(tmp_path / "n.parquet")
    assert load(tmp_path / "n.parquet").frame["reference"].to_list() == ["3", None]


@pytest.mark.parametrize(
    "bad", ['{"question": "b"', "not json", "[1]", '"text"', "{'question': 'b'}"]
)
def test_a_broken_line_is_named(tmp_path, bad):
    path = jsonl(tmp_path / "a.jsonl", {"question": "a"}, "", bad)
    with pytest.raises(UsageError, match=r"a\.jsonl, line 3"):
        load(path)


def test_a_row_without_a_question_is_named_or_skipped(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        {"question": "a"},
        "",
        {"question": "  "},
        {"question": None},
        {"reference": "1"},
    )
    with pytest.raises(UsageError, match=r"line 3: no question \(3 such rows\)"):
        load(path)
    assert load(path, skip_invalid=True).frame["question"].to_list() == ["a"]
    (tmp_path / "a.csv").write_text("question,reference\na,1\n,2\n")
    with pytest.raises(UsageError, match=r"a\.csv, line 3"):
        load(tmp_path / "a.csv")


def test_a_missing_column_is_named_with_the_existing_ones(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", *ROWS)
    with pytest.raises(UsageError, match=r"no column 'question': it has problem, answer, level"):
        load(path)
    with pytest.raises(UsageError, match="no column 'gold'"):
        load(path, columns={"question": "problem", "reference": "gold"})
    with pytest.raises(UsageError, match="unknown field 'quest'"):
        load(path, columns={"quest": "problem"})


@pytest.mark.parametrize("name", ["none.jsonl", "none/*.csv", "empty"])
def test_a_missing_file_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no problems at"):
        load(tmp_path / name)


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    (tmp_path / "a.txt").write_text("question")
    (tmp_path / "b.jsonl").write_bytes(b'{"question": "\xff"}\n')
    for name, message in (
        ("a.parquet", "not readable Parquet"),
        ("a.txt", "must end in"),
        ("b.jsonl", "line 1: not valid JSON"),
    ):
        with pytest.raises(UsageError, match=message):
            load(tmp_path / name)


def test_directories_and_patterns_mean_their_files_in_order(tmp_path):
    jsonl(tmp_path / "b.jsonl", {"question": "b"})
    jsonl(tmp_path / "a.jsonl", {"question": "a", "reference": "1"})
    (tmp_path / "c.csv").write_text("question,solution\nc,s\n")
    (tmp_path / "readme.txt").write_text("no problems here")
    assert load(tmp_path).frame["question"].to_list() == ["a", "b", "c"]
    assert load(tmp_path / "*.jsonl").frame["question"].to_list() == ["a", "b"]
    config = {
        "source": "files",
        "path": [str(tmp_path / "c.csv"), str(tmp_path / "a.jsonl")],
        "label": "mine",
    }
    frame, report = load_problems({"sources": [config]})
    assert frame["question"].to_list() == ["c", "a"]
    assert frame["source"].to_list() == ["mine", "mine"]
    assert report.without_verifier == 2


def test_the_verifier_of_a_row_overrides_that_of_the_file(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl", {"question": "a", "how": "choice"}, {"question": "b", "how": None}
    )
    assert load(path, columns={"verifier": "how"}).frame["verifier"].to_list() == ["choice", "math"]


@pytest.mark.parametrize(
    "choices",
    [
        ["2", "3"],
        '["2", "3"]',
        {"text": ["2", "3"], "label": ["A", "B"]},
        {"B": "3", "A": "2"},
        [2, 3],
    ],
)
def test_choices_in_their_many_shapes(tmp_path, choices):
    path = jsonl(
        tmp_path / "a.jsonl",
        {"question": "a", "choices": choices, "reference": 1},
        {"question": "b"},
    )
    frame = load(path, reference_is_index=True).frame
    assert frame["choices"].to_list() == [["2", "3"], None]
    assert frame["reference"].to_list() == ["B", None]


def test_invalid_choices_and_indices_are_refused(tmp_path):
    with pytest.raises(UsageError, match="choices"):
        load(jsonl(tmp_path / "a.jsonl", {"question": "a", "choices": 7}))
    with pytest.raises(UsageError, match="is not a position"):
        load(
            jsonl(tmp_path / "a.jsonl", {"question": "a", "reference": "B"}),
            reference_is_index=True,
        )


def test_a_reference_inside_a_solution(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"question": "a", "answer": "1 + 2 = 3\n#### 3"})
    frame = load(
        path, columns={"reference": "answer", "solution": "answer"}, reference_pattern="#### (.+)"
    ).frame
    assert frame["reference"][0] == "3"
    assert frame["solution"][0].startswith("1 + 2 = 3")
    with pytest.raises(UsageError, match="matches no reference"):
        load(path, columns={"reference": "answer"}, reference_pattern="## : (.+)")
    with pytest.raises(UsageError, match="group"):
        load(path, reference_pattern="####")
    with pytest.raises(UsageError, match="regular expression"):
        load(path, reference_pattern="(")


def test_a_limit_and_a_difficulty_that_is_not_a_number(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", *({"question": f"q{i}"} for i in range(9)))
    assert load(path, limit=4).frame.height == 4
    with pytest.raises(UsageError, match="cannot be read as difficulty"):
        load(jsonl(tmp_path / "b.jsonl", {"question": "a", "difficulty": "hard"}))


def test_metadata_of_the_file_is_part_of_the_problem(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        {"question": "a", "metadata": {"n": 1}},
        {"question": "a", "metadata": {"n": 2}},
    )
    frame = load(path).frame
    assert frame["problem_id"].n_unique() == 2
    assert frame["metadata"].to_list() == ['{"n": 1}', '{"n": 2}']
