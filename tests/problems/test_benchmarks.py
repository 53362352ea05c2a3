"""Benchmarks are read from local copies of the shape that their data sets have on the Hub."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curate.errors import UsageError
from curate.evaluate.presets import preset_names, presets
from curate.filter.contamination import read_benchmark
from curate.problems import load_problems
from curate.problems.benchmarks import BENCHMARKS

ARGUMENTS = [{"input": "3\n4", "output": "7", "testtype": "functional"}]
STDIN = [{"input": "3 4\n", "output": "7\n", "testtype": "stdin"}]


def packed(tests: list[dict[str, str]]) -> str:
    """Private tests as the data set holds them: JSON text, pickled, compressed, in base64."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def code_row(day: str, **more: Any) -> dict[str, Any]:
    return {
        "question_title": "sum",
        "question_content": "Add two numbers.",
        "starter_code": "",
        "contest_date": f"{day}T00:00:00",
        "public_test_cases": json.dumps(STDIN),
        "private_test_cases": packed(STDIN),
        "metadata": "{}",
        **more,
    }


ROWS: dict[str, list[dict[str, Any]]] = {
    "aime24": [{"id": 60, "problem": "What is 100 + 104?", "solution": "", "answer": "204"}],
    "aime25": [{"id": "0", "problem": "What is 35 + 35?", "answer": "70"}],
    "math500": [{"problem": "Simplify $2/4$.", "answer": "\\frac{1}{2}", "level": 1}],
    "gpqa-diamond": [
        {
            "Question": "Which is right?",
            "Correct Answer": "the right one\n",
            **{f"Incorrect Answer {n}": f"wrong {n}" for n in (1, 2, 3)},
        }
    ],
    "livecodebench": [
        code_row("2024-07-31"),
        code_row("2024-08-01"),
        code_row(
            "2025-01-31",
            question_content="Write add.",
            starter_code="class Solution:\n    def add(self, a: int, b: int) -> int:\n        ",
            public_test_cases=json.dumps(ARGUMENTS),
            private_test_cases=packed(ARGUMENTS),
            metadata='{"func_name": "add"}',
        ),
        code_row("2025-02-01"),
    ],
    "mmlu-pro": [
        {
            "question": "Which is the second?",
            "options": ["first", "second", "third"],
            "answer": "B",
            "answer_index": 1,
            "category": "other",
        }
    ],
}


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one miniature of each benchmark, which the environment names."""
    for name, rows in ROWS.items():
        pl.DataFrame(rows).write_parquet(tmp_path / f"{name}.parquet")
    monkeypatch.setenv("CURATE_BENCHMARKS", str(tmp_path))
    return tmp_path


def loaded(name: str, **keys: Any) -> pl.DataFrame:
    source = {"source": "benchmark", "dataset": name, **keys}
    return load_problems({"sources": [source], "held_out": 0}).frame


def test_there_is_a_miniature_and_a_preset_of_every_benchmark() -> None:
    assert set(ROWS) == set(BENCHMARKS) == set(preset_names())


@pytest.mark.parametrize(
    ("name", "reference"),
    [("aime24", "204"), ("aime25", "70"), ("math500", "\\frac{1}{2}"), ("mmlu-pro", "B")],
)
def test_questions_and_references_are_those_of_the_data_set(
    copies: Path, name: str, reference: str
) -> None:
    frame = loaded(name)
    assert frame["reference"].to_list() == [reference]
    assert frame["split"].unique().to_list() == ["held-out"]
    assert frame["source"].to_list() == [name]


def test_the_right_choice_of_gpqa_has_a_place_that_does_not_change(copies: Path) -> None:
    row = loaded("gpqa-diamond").row(0, named=True)
    letter = row["reference"]
    assert row["choices"]["ABCD".index(letter)] == "the right one"
    assert f"{letter}) the right one" in row["question"].splitlines()
    assert loaded("gpqa-diamond").row(0, named=True) == row


def test_live_code_bench_keeps_its_window_and_reads_packed_tests(copies: Path) -> None:
    frame = loaded("livecodebench")
    assert frame.height == 2
    tests = [json.loads(text) for text in frame["tests"]]
    assert tests == [STDIN + STDIN, ARGUMENTS + ARGUMENTS]
    assert "class Solution" in frame["question"][1]
    assert json.loads(frame["metadata"][1])["func_name"] == "add"


def test_packed_tests_run_no_code(copies: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    text = base64.b64encode(zlib.compress(pickle.dumps(Bomb()))).decode()
    row = code_row("2024-09-01", private_test_cases=text)
    pl.DataFrame([row]).write_parquet(tmp_path / "livecodebench.parquet")
    with pytest.raises((UsageError, ValueError)):
        loaded("livecodebench")
    assert not (tmp_path / "ran").exists()


def test_a_copy_without_a_column_is_refused(tmp_path: Path) -> None:
    pl.DataFrame({"question": ["x"], "answer": ["1"]}).write_parquet(tmp_path / "copy.parquet")
    with pytest.raises(UsageError, match=r"no column 'problem'.*aime24 has the columns"):
        loaded("aime24", path=str(tmp_path / "copy.parquet"))
    with pytest.raises(UsageError, match="no local copy"):
        loaded("aime24", path=str(tmp_path / "none.parquet"))


def test_a_set_that_is_a_loading_script_says_how_to_get_its_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CURATE_BENCHMARKS", raising=False)
    with pytest.raises(UsageError, match=r"hf download .*code_generation_lite"):
        loaded("livecodebench")


def test_a_benchmark_is_a_list_of_contamination_by_its_name(copies: Path) -> None:
    benchmark = read_benchmark(["math500", "mmlu-pro"], n=5)
    assert benchmark.texts.to_list()[0] == "Simplify $2/4$."
    assert benchmark.items == 2


def test_presets_have_the_sampling_of_the_report() -> None:
    for name, config in presets("aime24,aime25,math500,gpqa-diamond,livecodebench,mmlu-pro"):
        sampling = config["sampling"]
        assert sampling == {"temperature": 0.6, "top_p": 0.95, "max_tokens": 32768}, name
    assert presets("aime24", ["samples=2"])[0][1]["samples"] == 2
    with pytest.raises(UsageError, match="did you mean 'math500'"):
        presets("math50")
    with pytest.raises(UsageError, match="named twice"):
        presets("aime24,aime24")
