"""Every function of `curate.api` acts like its command: one small warehouse from problems to a
page.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import polars as pl
import pytest

from curate import api
from curate.engines.testing.tiny import make_tiny_model
from curate.errors import UsageError

STUB = {"name": "stub", "args": {"right": 0.8}}


@pytest.mark.slow
def test_every_function_from_problems_to_the_page(tmp_path: Path, sums: str) -> None:
    wh = tmp_path / "wh"
    model = str(make_tiny_model(tmp_path / "tiny", seed=1, max_len=1024))
    source = {"source": "files", "path": sums, "verifier": "math"}
    name = api.problems("sums", sources=[source], held_out=0.2, warehouse=wh)
    assert name.startswith("sums@")

    sampled = api.generate(
        "r1-zero", model=model, problems=name, samples=2, engine=STUB, warehouse=wh
    )
    problems = api.sql("SELECT * FROM problems WHERE split = 'train'", warehouse=wh)
    assert sampled.rows == 2 * len(problems) > 0
    again = api.generate(
        "r1-zero", model=model, problems=name, samples=2, engine=STUB, warehouse=wh
    )
    assert again.rows == 0

    (tmp_path / "mine.jsonl").write_text(
        json.dumps({"question": "1 + 1?", "answer": "2", "completion": "<think>a</think> 2"}) + "\n"
    )
    columns = {"question": "question", "completion": "completion", "reference": "answer"}
    imported = api.import_traces(
        str(tmp_path / "mine.jsonl"), columns=columns, verifier="math", warehouse=wh
    )
    assert imported.rows == 1

    assert api.annotate(warehouse=wh).rows == sampled.rows + 1
    verdicts = dict(
        api.sql("SELECT verdict, count(*) FROM annotated GROUP BY 1", warehouse=wh).iter_rows()
    )
    assert verdicts["correct"] > verdicts["wrong"] > 0

    kept = api.filter("unfiltered", corpus="all", warehouse=wh)
    assert api.export("all", tmp_path / "all.parquet", warehouse=wh) == kept.rows > 0
    assert pl.read_parquet(tmp_path / "all.parquet").columns[0] == "messages"

    trained = api.train("sft", model=model, corpus="all", batch_size=64, warehouse=wh)
    assert Path(str(trained.model), "model.safetensors").exists()

    models = [{"label": "base", "model": model}, {"label": "sft", "model": trained.model}]
    table = api.evaluate(models=models, problems=name, samples=2, engine=STUB, warehouse=wh)
    assert {"base", "sft"} <= set(table["model"])

    known = ["expression", "boxed-expression"]
    report = api.reward_test(rewards={"accuracy": 1.0}, known=known, warehouse=wh)
    assert report.failures == []
    measured = api.influence(
        model=model, traces=[sampled.facts["family"]], problems=name, warehouse=wh
    )
    assert measured.rows == sampled.rows
    one = problems["problem_id"][0]
    assert api.correct({one: "-1"}, warehouse=wh).facts["traces"] >= 2
    with pytest.raises(UsageError, match="no run called 'grpo'"):
        api.rescore("grpo", warehouse=wh)

    page = api.report(out=str(tmp_path / "page.html"), warehouse=wh)
    assert "<html" in page.read_text()


def test_run_returns_the_result_of_each_stage(tmp_path: Path, sums: str) -> None:
    source = {"source": "files", "path": sums, "verifier": "math"}
    stages = {"problems": {"do": "problems", "sources": [source]}}
    (tmp_path / "p.yaml").write_text(json.dumps({"name": "p", "stages": stages}))
    done = api.run(tmp_path / "p.yaml", "stages.problems.name=ours", warehouse=tmp_path / "wh")
    assert done["problems"].value.startswith("ours@")
    assert api.check(warehouse=tmp_path / "wh").damages == []


def test_wrong_calls_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'sftt' is none of .*did you mean 'sft'"):
        api.train("sftt", warehouse=tmp_path)
    with pytest.raises(UsageError, match="smaples: no such key; did you mean 'samples'"):
        api.generate("r1-zero", model="m", problems="p", smaples=2, warehouse=tmp_path)
    with pytest.raises(UsageError, match="only reads"):
        api.sql("DROP TABLE traces", warehouse=tmp_path)


def test_watch_refuses_a_folder_without_a_warehouse(tmp_path: Path) -> None:
    """How it serves is in tests/report/test_watch.py."""
    with pytest.raises(UsageError, match="no warehouse at"):
        api.watch(warehouse=tmp_path)


def test_every_function_is_called_above() -> None:
    functions = [
        n for n, f in vars(api).items() if inspect.isfunction(f) and f.__module__ == api.__name__
    ]
    text = Path(__file__).read_text()
    assert [name for name in functions if f"api.{name}(" not in text] == []
