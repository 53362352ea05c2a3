"""The object API samples, judges, keeps and exports, with the data of the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curate import api
from curate.errors import UsageError
from curate.llm import LLM

QUESTIONS = [{"question": f"What is {a} + 2?", "reference": str(a + 2)} for a in range(6)]


@pytest.fixture
def llm(tmp_path: Path, stub_model: str) -> LLM:
    engine: dict[str, Any] = {"name": "stub", "args": {"right": 0.7}}
    return LLM(stub_model, engine=engine, form="r1-zero", warehouse=tmp_path / "wh")


def test_texts_come_in_the_order_of_the_questions(llm: LLM) -> None:
    traces = llm.generate(["What is 5 + 2?", "What is 1 + 2?", "What is 5 + 2?"], samples=3)
    texts = traces.texts()
    assert [len(t) for t in texts] == [3, 3, 3]
    assert texts[0] == texts[2] != texts[1]
    frame = traces.frame()
    assert frame["question"].to_list() == ["What is 5 + 2?"] * 3 + ["What is 1 + 2?"] * 3
    assert frame["prompt"].to_list() == frame["question"].to_list()  # as it is, by default


def test_the_same_call_again_samples_nothing(llm: LLM) -> None:
    first = llm.generate(QUESTIONS, samples=2, verifier="math").frame()
    again = llm.generate(QUESTIONS, samples=2, verifier="math").frame()
    assert first["trace_id"].to_list() == again["trace_id"].to_list()
    assert api.sql("SELECT count(*) FROM traces", warehouse=llm.warehouse).item() == 12


def test_judge_keep_and_export(llm: LLM, tmp_path: Path) -> None:
    traces = llm.generate(pl.DataFrame(QUESTIONS), samples=8, verifier="math").judge()
    verdicts = traces.frame()["verdict"].value_counts()
    counts = dict(verdicts.iter_rows())
    assert counts["correct"] > 0
    assert counts["wrong"] > 0
    corpus = traces.keep("rejection", corpus="mine")
    assert set(corpus.frame()["trace_id"]) <= set(traces.frame()["trace_id"])
    assert corpus.export(tmp_path / "out.parquet") == len(corpus.frame()) > 0
    written = pl.read_parquet(tmp_path / "out.parquet")
    assert written["verdict"].unique().to_list() == ["correct"]


def test_stored_problems_and_recipes_work_as_in_the_command(llm: LLM, sums: str) -> None:
    source = {"source": "files", "path": sums, "verifier": "math"}
    name = api.problems("sums", sources=[source], held_out=0.2, warehouse=llm.warehouse)
    settings = {"model": llm.model, "engine": llm.engine, "warehouse": llm.warehouse}
    traces = LLM(recipe="r1-zero", **settings).generate(name, samples=2)  # type: ignore[arg-type]
    same = api.generate(
        "r1-zero", model=llm.model, problems=name, samples=2, engine=llm.engine,
        warehouse=llm.warehouse,
    )  # fmt: skip
    assert same.facts["family"] == traces.family
    assert same.rows == 0
    assert set(traces.frame()["split"]) == {"train"}


@pytest.mark.parametrize("questions", [[], [{"text": "a"}], pl.DataFrame({"q": ["a"]})])
def test_rows_without_a_question_are_refused(llm: LLM, questions: Any) -> None:
    with pytest.raises(UsageError, match="questions: give texts, or rows with a column"):
        llm.generate(questions)


def test_a_row_selects_no_code(llm: LLM) -> None:
    with pytest.raises(UsageError, match="unknown verifier 'os:system'"):
        llm.generate([{"question": "a?", "reference": "1", "verifier": "os:system"}])
