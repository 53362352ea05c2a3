"""Plain files in, plain files out: annotated, filtered, exported."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import polars as pl
import pytest

from curate.errors import CurateError, UsageError
from curate.filter import apply_rules, load_rules, write_corpus
from curate.filter.decide import explain
from curate.filter.export import FORMATS, export_corpus
from curate.filter.plain_files import filter_files, narrowed
from curate.signals.plain_files import annotate_files
from curate.warehouse import Warehouse
from tests.filter.conftest import traces


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "traces.jsonl"
    traces().select("completion", "question", "verdict", "finish_reason").rename(
        {"completion": "response"}
    ).write_ndjson(path)
    return path


def test_annotate_keeps_the_columns_and_adds_signals(jsonl: Path, tmp_path: Path) -> None:
    assert annotate_files([jsonl], tmp_path / "a.parquet", "response", form="r1-zero") == 24
    rows = pl.read_parquet(tmp_path / "a.parquet")
    assert rows.columns[:4] == ["response", "question", "verdict", "finish_reason"]
    assert rows["well_formed"].to_list()[:6] == [True, False, False, True, True, True]
    assert rows["mixed_language"].to_list()[:6] == [False, False, False, True, False, False]
    # the fourth is more Chinese than English; its question was in English
    assert rows["readable"].to_list()[:6] == [True, False, True, False, True, True]
    # again, on the annotated file, into a directory; existing files are kept
    folder = tmp_path / "out"
    assert annotate_files([tmp_path / "a.parquet"], folder, "response", form="r1-zero") == 24
    assert annotate_files([tmp_path / "a.parquet"], folder, "response", form="r1-zero") == 0
    assert pl.read_parquet(folder / "a.parquet").equals(rows)


def test_a_text_without_tags_is_reasoning(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"text": "So it is seven.", "target_language": "zh"}\n'
        '{"text": "所以等于七。", "target_language": "zh"}\n'
    )
    annotate_files([path], tmp_path / "o.jsonl", "text")
    rows = pl.read_ndjson(tmp_path / "o.jsonl")
    assert rows["target_language_share"].to_list() == [0.0, 1.0]
    assert rows["words"].to_list()[0] == 4


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"a": 1}\n{"a": \n', "line 2: not valid JSON"),
        ('{"a": 1}\n', "no column 'completion'"),
        ('{"completion": "x", "words": 3}\n', r"rename them first"),
    ],
)
def test_wrong_input_is_an_error_and_leaves_no_file(
    tmp_path: Path, content: str, says: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(CurateError, match=says):
        annotate_files([path], tmp_path / "o.parquet")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.jsonl"]


def test_an_unknown_output_format_is_refused(jsonl: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must end in"):
        annotate_files([jsonl], tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_missing_files_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        annotate_files([tmp_path / "none.jsonl"], tmp_path / "o.parquet")
    with pytest.raises(UsageError, match="holds no"):
        annotate_files([tmp_path], tmp_path / "o.parquet")


def test_filter_plain_files_as_in_the_warehouse(
    jsonl: Path, tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    rules = load_rules("cold-start")
    out = tmp_path / "kept.jsonl"
    result = filter_files([jsonl], rules, out, "response", form="r1-zero")
    wanted = apply_rules(con, rules).kept["trace_id"].to_list()
    assert result.kept["trace_id"].to_list() == [
        f"row-{int(t[1]) * 6 + int(t[2]):09d}" for t in sorted(wanted)
    ]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 8
    assert all(set(row) == {"response", "question", "verdict", "finish_reason"} for row in rows)
    with narrowed([jsonl], rules, "response", "r1-zero") as narrow:
        assert explain(narrow.con, rules, "row-000000000").dropped_by == "correct"


def test_a_rule_that_reads_what_files_lack_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"completion": "So it is seven."}\n')
    with pytest.raises(UsageError, match="rule 'correct' reads the column 'verdict'"):
        filter_files([path], load_rules("rejection"), tmp_path / "o.jsonl")
    assert filter_files([path], load_rules("unfiltered"), tmp_path / "o.jsonl").kept.height == 1


def test_every_format_exports_with_its_card(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path / "w")
    problems = [
        {
            "problem_id": f"p{p}",
            "question": f"What is {p} + 4 + 3?",
            "reference": str(p + 7),
            "verifier": "math",
        }
        for p in range(4)
    ]
    warehouse.write("problems", "sums", problems, key="sums")
    write_corpus(
        warehouse, con, apply_rules(con, load_rules("cold-start")), "mine", parents=["traces/x/y"]
    )
    for name, kind in FORMATS.items():
        if kind.paired:  # needs wrong traces in the warehouse: tests/filter/test_export.py
            continue
        folder, expected = tmp_path / name, 4 if kind.by_problem else 8
        assert export_corpus(warehouse, "mine", folder, name) == expected
        assert export_corpus(warehouse, "mine", folder, name) == expected
        rows = pl.read_parquet(folder / "data" / "*.parquet")
        assert rows.height == expected
    assert rows["reward_model"].to_list()[0] == {"style": "rule", "ground_truth": "7"}
    assert rows["prompt"].to_list()[0] == [{"role": "user", "content": "What is 0 + 4 + 3?"}]
    talk = pl.read_parquet(tmp_path / "sharegpt" / "data" / "*.parquet")["conversations"].to_list()[
        0
    ]
    assert [turn["from"] for turn in talk] == ["human", "gpt"]
    text = (folder / "README.md").read_text()
    assert "| correct |" in text
    assert "made from `traces/x/y`" in text
    with pytest.raises(UsageError, match="unknown format"):
        export_corpus(warehouse, "mine", tmp_path / "z", "csv")
    with pytest.raises(UsageError, match="has other content"):
        export_corpus(warehouse, "mine", tmp_path, "messages")
    for suffix, read in ((".parquet", pl.read_parquet), (".jsonl", pl.read_ndjson)):
        file = tmp_path / f"one{suffix}"
        assert export_corpus(warehouse, "mine", file, "verl") == 4
        assert file.is_file()
        assert read(file)["reward_model"].to_list() == rows["reward_model"].to_list()
        card = (tmp_path / "one.md").read_text()
        assert f"data_files: one{suffix}" in card
        assert "| correct |" in card
    with pytest.raises(UsageError, match="--push sends a folder"):
        export_corpus(warehouse, "mine", tmp_path / "one.jsonl", push="me/mine")
    with pytest.raises(UsageError, match="or name a folder"):
        export_corpus(warehouse, "mine", tmp_path / "one.csv")
