"""Every saved query runs, on a warehouse with rows in its tables and on an empty one; the views
are correct.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from curate.signals import GROUPS, annotate_frame
from curate.warehouse import Warehouse
from curate.warehouse.schemas import data_dir

QUERIES = sorted(data_dir("queries").glob("*.sql"))
CLEAN = (
    "<think>First I add the two numbers. Wait, let me check that. It is seven.</think> "
    "<answer>7</answer>"
)
MIXED = (
    "<think>First I add the two numbers together, 然后我们再把最后一个数加上去得到结果.</think> "
    "<answer>8</answer>"
)


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """Two problems with two traces each by each of two models; trace 0 has a second attempt, trace
    3 two verdicts.
    """
    wh = Warehouse(tmp_path_factory.mktemp("wh"))
    problem_rows = [
        {"problem_id": f"p{i}", "source": "made", "question": "Add them.", "verifier": "math"}
        for i in range(2)
    ]
    problems = wh.write("problems", "made", problem_rows, key=1)
    rows = [
        {
            "trace_id": f"t{i}",
            "attempt": 0,
            "problem_id": f"p{i % 2}",
            "sample_index": i // 4,
            "recipe": "grpo",
            "form": "r1-zero",
            "model": "m1" if i < 4 else "m2",
            "completion": CLEAN if i % 2 == 0 else MIXED,
            "finish_reason": "length" if i == 0 else "stop",
            "policy_step": i // 4,
        }
        for i in range(8)
    ]
    rows.append(rows[0] | {"attempt": 1, "finish_reason": "stop"})
    frame = pl.DataFrame(rows)
    traces = wh.write("traces", "made", frame, key=1, parents=[problems.ref, "model:m0"])
    measured = annotate_frame(frame.with_columns(question=pl.lit("Add them.")))
    for name, group in GROUPS.items():
        rows_of = measured.select("trace_id", "attempt", *group.columns)
        older = rows_of.with_columns(pl.lit(None).alias(column) for column in group.columns)
        # an older version of the group does not count
        wh.version("signals", f"{name}@0", "made.v").publish("0", older)
        wh.version("signals", f"{name}@{group.version}", "made.v").publish("0", rows_of)
    verdicts = frame.select(
        "trace_id",
        "attempt",
        verifier=pl.lit("math"),
        verifier_version=pl.lit("2"),
        kind=pl.lit("rule"),
        verdict=pl.when(pl.col("completion") == CLEAN)
        .then(pl.lit("correct"))
        .otherwise(pl.lit("wrong")),
    )
    wh.version("verdicts", "math@2", "made.v").publish("0", verdicts)
    outdated = verdicts.filter(pl.col("trace_id") == "t3").with_columns(
        verifier_version=pl.lit("1"), verdict=pl.lit("unverifiable")
    )
    wh.version("verdicts", "math@1", "made.v").publish("0", outdated)
    step = frame.select(
        "trace_id", "policy_step", run_id=pl.lit("run"), problem_id="problem_id", reward=pl.lit(0.5)
    )
    wh.write("rollouts", "run", step.unique(maintain_order=True), key=1)
    kept = {
        "corpus": "best",
        "problem_id": "p0",
        "prompt": "Add them.",
        "completion": CLEAN,
        "source": "made",
    }
    corpus = wh.write("corpora", "best", [kept], key=1, parents=[traces.ref])
    model = {
        "model_hash": "m0",
        "name": "m0",
        "kind": "sft",
        "path": "m0",
        "data": f'{{"corpora": ["{corpus.ref}-older"]}}',
    }
    wh.write("models", "all", [model], key=1)
    return wh


@pytest.mark.parametrize("path", QUERIES, ids=lambda path: path.stem)
def test_saved_queries_run(path: Path, warehouse: Warehouse, tmp_path: Path) -> None:
    query = path.read_text(encoding="utf-8")
    assert query.startswith("-- ")
    warehouse.sql(query)
    empty = Warehouse(tmp_path / "wh")
    empty.write("problems", "none", [], key=1)
    empty.version("traces", "none", "v").seal()
    empty.sql(query)


def test_one_row_per_trace_with_its_last_attempt_and_newest_annotation(
    warehouse: Warehouse,
) -> None:
    rows = warehouse.sql(
        "SELECT trace_id, attempt, verdict, truncated, mixed_language, reflection_count "
        "FROM annotated ORDER BY ALL"
    )
    assert rows["trace_id"].to_list() == [f"t{i}" for i in range(8)]
    assert rows["attempt"].to_list() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert rows["verdict"].to_list() == ["correct", "wrong"] * 4
    assert not rows["truncated"].any()
    assert rows["mixed_language"].to_list() == [False, True] * 4
    assert rows["reflection_count"].to_list() == [1, 0] * 4


def test_pass_rates_languages_and_behaviour(warehouse: Warehouse) -> None:
    rates = warehouse.sql(
        "SELECT problem_id, model, samples, pass_rate FROM problem_rates ORDER BY ALL"
    ).rows()
    assert rates == [
        ("p0", "m1", 2, 1.0),
        ("p0", "m2", 2, 1.0),
        ("p1", "m1", 2, 0.0),
        ("p1", "m2", 2, 0.0),
    ]
    models = warehouse.sql(
        "SELECT model, traces, pass_rate, mixed_language FROM model_rates ORDER BY ALL"
    ).rows()
    assert models == [("m1", 4, 0.5, 0.5), ("m2", 4, 0.5, 0.5)]
    mixture = warehouse.sql(
        "SELECT sum(traces), avg(share_of_traces) FROM language_mixture WHERE model = 'm1'"
    ).row(0)
    assert mixture[0] == 4
    steps = warehouse.sql(
        "SELECT policy_step, rollouts, reward, reflections FROM policy_steps ORDER BY ALL"
    ).rows()
    assert steps == [(0, 4, 0.5, 0.5), (1, 4, 0.5, 0.5)]


def test_lineage_leads_through_models_to_the_problems(warehouse: Warehouse) -> None:
    rows = warehouse.sql(
        "SELECT split_part(ancestor, '/', 1) AS kind, depth FROM ancestry "
        "WHERE ref LIKE 'corpora/best/%' "
        "ORDER BY depth, kind"
    ).rows()
    assert rows == [("traces", 1), ("model:m0", 2), ("problems", 2), ("corpora", 3)]


def test_unmeasured_traces_are_neither_readable_nor_unreadable(tmp_path: Path) -> None:
    wh = Warehouse(tmp_path / "wh")
    row = {
        "trace_id": "t",
        "attempt": 0,
        "problem_id": "p",
        "sample_index": 0,
        "recipe": "grpo",
        "form": "plain",
    }
    wh.write("traces", "made", [row | {"finish_reason": "stop", "completion": "x"}], key=1)
    assert wh.sql("SELECT readable FROM annotated").item() is None
