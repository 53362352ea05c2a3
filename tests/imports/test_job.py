"""Foreign trace sets of each layout become problems and traces for every other job."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from curate.annotate import job as annotate
from curate.config import validate
from curate.errors import UsageError
from curate.filter.job import FilterConfig
from curate.filter.job import run as run_filter
from curate.imports import job as importing
from curate.job import Context

COT = "<think>\nTwo and three are five.\n</think>\n\nThe answer is \\boxed{5}."
OPENR1 = {
    "problem": "What is 2 + 3?",
    "solution": "Five.",
    "answer": "5",
    "problem_type": "Algebra",
    "source": "olympiads",
    "uuid": "u",
    "generations": [COT, "<think>\nHm", COT.replace("5", "6")],
    "finish_reasons": ["stop", "length", "stop"],
    "is_reasoning_complete": [True, False, True],
    "correctness_math_verify": [True, False, False],
    "messages": [
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": COT},
    ],
}
OPENTHOUGHTS = {
    "problem": "What is 2 + 3?",
    "deepseek_reasoning": "Two and three are five.",
    "deepseek_solution": "The answer is \\boxed{5}.",
    "ground_truth_solution": "By counting, \\boxed{\\frac{10}{2}}.",
    "domain": "math",
    "source": "amc",
}
TAGGED = (
    "<|begin_of_thought|>\n\nTwo and three are five.\n\n<|end_of_thought|>\n\n"
    "<|begin_of_solution|>\n\nThe answer is \\boxed{5}.\n\n<|end_of_solution|>"
)
SHAREGPT = {
    "system": "s",
    "conversations": [
        {"from": "human", "value": "What is 2 + 3?"},
        {"from": "gpt", "value": TAGGED},
    ],
}
MESSAGES = {"messages": OPENR1["messages"], "reference": "5"}
PAIRS = {"prompt": "What is 2 + 3?", "response": COT, "ground_truth": "5"}
BARE = {
    "task": "What is 2 + 3?",
    "text": "Two and three are five.</think> \\boxed{5}",
    "truth": "5",
}


@pytest.fixture
def context(tmp_path):
    with Context(tmp_path / "wh") as ctx:
        yield ctx


def write(path: Path, rows: list[dict]) -> str:
    if path.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def bring(context: Context, path: str, **changes):
    return importing.run(
        validate(importing.ImportConfig, {"path": path, **changes}, "import"), context
    )


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("row", "layout", "options", "judged"),
    [
        (OPENR1, "openr1", {}, ["correct", "wrong", "wrong"]),
        (OPENTHOUGHTS, "openthoughts", {}, ["correct"]),
        (SHAREGPT, "messages", {}, ["unverifiable"]),
        (MESSAGES, "messages", {"verifier": "math"}, ["correct"]),
        (PAIRS, "pairs", {"verifier": "math"}, ["correct"]),
        (
            BARE,
            "pairs",
            {
                "verifier": "math",
                "columns": {"question": "task", "completion": "text", "reference": "truth"},
            },
            ["correct"],
        ),
    ],
)
def test_each_layout_is_recognised_and_judged(
    context, tmp_path, capsys, row, layout, options, judged, suffix
):
    result = bring(context, write(tmp_path / f"set{suffix}", [row]), **options)
    assert f"layout {layout}:" in capsys.readouterr().err
    assert result.rows == len(judged)
    annotate.run(annotate.AnnotateConfig(), context)
    rows = context.warehouse.sql("SELECT * FROM annotated ORDER BY sample_index")
    assert rows["verdict"].to_list() == judged
    assert set(rows["question"]) == {"What is 2 + 3?"}
    assert set(rows["form"]) == {"r1"}
    assert set(rows["recipe"]) == {"import"}
    first = rows.row(0, named=True)
    assert first["reasoning"] == "Two and three are five."
    assert first["answer"].endswith("\\boxed{5}.") or first["answer"] == "\\boxed{5}"
    if layout == "openr1":
        assert rows["finish_reason"].to_list() == ["stop", "length", "stop"]
        assert first["source"] == "olympiads"


def test_a_second_import_adds_nothing_and_a_file_that_has_grown_only_what_is_new(context, tmp_path):
    rows = [{**PAIRS, "prompt": f"What is {i} + 3?", "ground_truth": str(i + 3)} for i in range(50)]
    path = write(tmp_path / "set.jsonl", rows)
    assert bring(context, path, verifier="math").rows == 50
    again = bring(context, path, verifier="math")
    assert again.rows == 0
    assert "nothing new" in again.summary
    write(
        tmp_path / "set.jsonl",
        [*rows, {**PAIRS, "response": "<think>a</think> \\boxed{5}"}, rows[2]],
    )
    grown = bring(context, path, verifier="math")
    assert grown.rows == 1
    assert "51 traces were there already" in grown.summary
    ids = context.warehouse.sql("SELECT trace_id, problem_id, sample_index FROM traces")
    assert ids.height == ids["trace_id"].n_unique() == 51
    assert ids.select("problem_id", "sample_index").is_unique().all()
    assert context.warehouse.sql("SELECT count(*) FROM problems").item() == 50


def test_an_interrupted_import_is_completed_by_the_next_one(context, tmp_path, monkeypatch):
    from curate import files

    monkeypatch.setattr(files, "PART_ROWS", 10)
    rows = [
        {**PAIRS, "prompt": f"What is {i % 30} + 3?", "ground_truth": str(i % 30 + 3)}
        for i in range(60)
    ]
    path = write(tmp_path / "set.jsonl", rows)
    whole = importing._part
    calls = []

    def cut(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(importing, "_part", cut)
    with pytest.raises(KeyboardInterrupt):
        bring(context, path, verifier="math")
    monkeypatch.setattr(importing, "_part", whole)
    bring(context, path, verifier="math")
    counts = context.warehouse.sql(
        "SELECT count(*) AS n, count(DISTINCT trace_id) AS ids FROM traces"
    )
    assert counts.row(0) == (30, 30)


def test_imported_traces_make_a_corpus(context, tmp_path):
    path = write(tmp_path / "set.jsonl", [OPENR1])
    result = bring(context, path, name="mine")
    annotate.run(annotate.AnnotateConfig(), context)
    corpus = run_filter(FilterConfig(rules="rejection", traces=[result.facts["family"]]), context)
    rows = context.warehouse.sql("SELECT prompt, completion FROM corpora")
    assert corpus.rows == rows.height == 1
    assert rows["prompt"][0].endswith("User: What is 2 + 3? Assistant:")
    assert rows["completion"][0].strip() == COT


def test_a_saved_dataset(context, tmp_path):
    import datasets

    datasets.Dataset.from_list([PAIRS]).save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": datasets.Dataset.from_list([SHAREGPT])}).save_to_disk(
        str(tmp_path / "parts")
    )
    assert bring(context, str(tmp_path / "saved"), verifier="math").rows == 1
    assert bring(context, str(tmp_path / "parts")).rows == 1
    assert bring(context, str(tmp_path / "saved"), verifier="math").rows == 0


def test_errors_name_the_column_or_the_file(context, tmp_path):
    path = write(tmp_path / "set.jsonl", [{"a": "x", "b": "y"}])
    with pytest.raises(UsageError, match="no column is known to hold the question; there are a, b"):
        bring(context, path)
    with pytest.raises(UsageError, match="has no column 'nothing'"):
        bring(context, path, columns={"question": "nothing"})
    with pytest.raises(UsageError, match=r"columns.quesion: no such field"):
        bring(context, path, columns={"quesion": "a"})
    with pytest.raises(UsageError, match=r"nothing at 'missing.jsonl'"):
        bring(context, "missing.jsonl")
    with pytest.raises(UsageError, match="cannot load dataset"):
        bring(context, "no-such-owner/no-such-set")
