"""Steps that read text: overlaps are shown and stored, duplicates can be restricted to a value."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import polars as pl
import pytest

from curate.filter import apply_rules, load_rules
from curate.filter.corpus import write_corpus
from curate.filter.job import overlap_lines
from curate.filter.plain_files import explain_files, filter_files
from curate.warehouse import Warehouse

QUESTION = (
    "A farmer has seventeen sheep and all but nine of them run away over the hill, "
    "how many are left?"
)


def rule_file(folder: Path, select: dict[str, object]) -> Path:
    path = folder / "mine.yaml"
    path.write_text(json.dumps({"name": "mine", "rules": [], "select": select}), encoding="utf-8")
    return path


def rows() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "question": [
                QUESTION,
                "What is 2 + 2?",
                "Name the largest planet that goes around the sun.",
            ],
            "completion": ["Nine sheep are left.", "It is 4.", "Jupiter is the largest."],
            "source": ["a", "b", "b"],
            "quality": [0.5, 0.6, 0.7],
        }
    )


@pytest.mark.parametrize("n", [8, 10, 13])
def test_overlaps_of_a_file_are_shown_and_written_with_both_texts(tmp_path: Path, n: int) -> None:
    rows().write_parquet(tmp_path / "in.parquet")
    benchmark = tmp_path / "bench.jsonl"
    benchmark.write_text(
        json.dumps({"problem": "Here it comes. " + QUESTION.upper()}) + "\n", encoding="utf-8"
    )
    rules = load_rules(
        rule_file(tmp_path, {"contamination": {"benchmarks": [str(benchmark)], "n": n}})
    )
    result = filter_files([tmp_path / "in.parquet"], rules, tmp_path / "out.parquet")
    assert (
        pl.read_parquet(tmp_path / "out.parquet")["completion"].to_list()
        == rows()["completion"].to_list()[1:]
    )
    assert result.overlaps["tokens"].to_list() == [20]
    shown = "\n".join(overlap_lines(result))
    assert "1 problem is in the benchmarks" in shown
    assert shown.lower().count("all but nine of them run away over the hill") == 2
    table = pl.read_parquet(tmp_path / "out.contamination.parquet").row(0, named=True)
    assert table["question"] == QUESTION
    assert QUESTION.upper() in table["item"]
    assert table["similarity"] > 0.8


def test_overlaps_are_stored_with_the_corpus(
    tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    benchmark = tmp_path / "bench.txt"
    benchmark.write_text("What is 2 + 4 + 3?\n", encoding="utf-8")
    result = apply_rules(
        con, load_rules(rule_file(tmp_path, {"contamination": {"benchmarks": [str(benchmark)]}}))
    )
    warehouse = Warehouse(tmp_path / "wh")
    version = write_corpus(warehouse, con, result, "mine")
    stored = warehouse.sql(
        "SELECT corpus, corpus_version, problem_id, n, tokens, overlap, item FROM contamination"
    ).rows()
    item = "What is 2 + 4 + 3?"
    assert stored == [("mine", version.version, "p2", 10, 5, "what is 2 4 3", item)]
    assert warehouse.sql("SELECT count(*) FROM corpora WHERE problem_id = 'p2'").item() == 0


def test_duplicates_are_detected_within_a_value_or_everywhere(tmp_path: Path) -> None:
    text = (
        "First I add the seven apples to the five pears and then I count all of the fruit in the "
        "big basket again"
    )
    pl.DataFrame(
        {
            "completion": [text, text + " slowly", text, text.upper() + "!"],
            "source": ["a", "a", "b", "b"],
            "quality": [0.1, 0.9, 0.5, 0.4],
        }
    ).write_parquet(tmp_path / "in.parquet")
    kept = {}
    for within in (None, "source"):
        rules = load_rules(
            rule_file(tmp_path, {"duplicates": {"over": "completion", "within": within}})
        )
        result = filter_files([tmp_path / "in.parquet"], rules, tmp_path / "out.parquet")
        kept[within] = result.kept["trace_id"].str.slice(-1).to_list()
    assert kept == {None: ["1"], "source": ["1", "2"]}


def test_a_row_of_a_file_can_be_explained(tmp_path: Path) -> None:
    rows().write_parquet(tmp_path / "in.parquet")
    path = tmp_path / "mine.yaml"
    path.write_text(
        json.dumps(
            {"rules": [{"name": "good", "keep": "quality > 0.55", "reason": "Only good ones."}]}
        ),
        encoding="utf-8",
    )
    explanation = explain_files([tmp_path / "in.parquet"], load_rules(path), "row-000000000")
    assert "dropped by 'good'" in explanation
    assert "quality = 0.5" in explanation
    assert "kept" in explain_files([tmp_path / "in.parquet"], load_rules(path), "row-000000002")
