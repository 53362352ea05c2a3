"""Rescoring: rows next to the old ones, what changes sides, and nothing sampled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

torch = pytest.importorskip("torch")

from curate.engines.transformers import TransformersEngine
from curate.errors import UsageError
from curate.job import Context
from curate.train import rescore
from curate.train.advantages import group_advantages
from curate.train.grpo import train_grpo
from curate.warehouse import Warehouse
from tests.train.test_grpo import PROBLEMS, Counting, config
from tests.train.test_replay import FP32, stored


@pytest.fixture
def engine(tiny_dir: Path) -> Any:
    return Counting(TransformersEngine(FP32, tiny_dir))


@pytest.fixture
def trained(tiny_dir: Path, tmp_path: Path, engine: Any) -> Iterator[tuple[Context, str]]:
    """A run whose completions were rewarded for their letters, by the package's own verifier."""
    context = Context(Warehouse(tmp_path))
    stored(context.warehouse)
    settings = config(
        tiny_dir, steps=2, rewards={"tests.train.test_rescore:vowels": 1.0, "accuracy": 0.0}
    )
    result = train_grpo(settings, context.warehouse, engine, context.pool, PROBLEMS)
    yield context, result.run_id
    context.close()


def vowels(frame: pl.DataFrame) -> pl.Expr:
    return pl.col("completion").str.count_matches("[aeiouAEIOU]").cast(pl.Float64)


def digits(frame: pl.DataFrame) -> pl.Expr:
    return pl.col("completion").str.count_matches("[0-9]").cast(pl.Float64)


def test_new_rewards_are_rows_next_to_the_old_ones(trained: tuple[Context, str]) -> None:
    context, run_id = trained
    wh = context.warehouse
    before = wh.sql("SELECT * FROM rollouts ORDER BY trace_id")
    new = {"tests.train.test_rescore:digits": 2.0, "tests.train.test_rescore:vowels": None}
    result = rescore.run({"run": run_id[:8], "rewards": new}, context, "rescore")
    assert wh.sql("SELECT * FROM rollouts ORDER BY trace_id").equals(before)
    rows = wh.sql(
        "SELECT n.*, t.completion FROM rescored n JOIN traces t USING (trace_id) ORDER BY trace_id"
    )
    assert rows.height == before.height == result.rows == 32
    expected = rows.select(digits(rows) * 2.0).to_series()
    assert rows["reward"].equals(expected, check_names=False)
    assert rows["reward"].n_unique() > 1
    groups = rows.select(pl.struct("policy_step", "problem_id").rank("dense") - 1).to_series()
    advantages = group_advantages(
        torch.tensor(rows["reward"].to_list()), torch.tensor(groups.to_list(), dtype=torch.long)
    )
    assert rows["advantage"].to_list() == pytest.approx(advantages.tolist())

    by_step, by_problem = rescore.changes(wh, result.facts["rescore_id"])
    signs = rows.join(before, on="trace_id", suffix="_old").select(
        "policy_step", changed=pl.col("advantage").sign() != pl.col("advantage_old").sign()
    )
    assert by_step["changed"].sum() == signs["changed"].sum() > 0
    assert by_problem["changed"].to_list() == sorted(by_problem["changed"], reverse=True)
    again = rescore.run({"run": run_id, "rewards": new}, context, "rescore")
    assert again.rows == 0
    assert wh.sql("SELECT count(*) FROM rescored").item() == 32


def test_the_same_rewards_change_nothing(trained: tuple[Context, str]) -> None:
    context, run_id = trained
    result = rescore.run({"run": run_id}, context, "rescore")
    by_step, by_problem = rescore.changes(context.warehouse, result.facts["rescore_id"])
    assert by_step["changed"].to_list() == [0, 0]
    assert by_step["rollouts"].to_list() == [16, 16]
    assert by_problem.is_empty()


def test_another_verifier_and_another_reference_give_other_verdicts(
    trained: tuple[Context, str],
) -> None:
    context, run_id = trained
    wh = context.warehouse
    rewards = {"accuracy": 1.0, "tests.train.test_rescore:vowels": None}
    always = {"verifier": "tests.train.always:Always"}
    rescore.run({"run": run_id, "rewards": rewards, "name": "always", **always}, context, "x")
    assert wh.sql("SELECT DISTINCT verdict FROM rescored WHERE rescore = 'always'").item() == (
        "correct"
    )
    text = wh.sql(
        "SELECT t.problem_id, t.answer FROM traces t JOIN rollouts USING (trace_id) "
        "WHERE t.answer IS NOT NULL LIMIT 1"
    ).row(0)
    rows = wh.sql("SELECT * FROM problems").with_columns(
        reference=pl.when(pl.col("problem_id") == text[0])
        .then(pl.lit(text[1]))
        .otherwise("reference")
    )
    wh.write("problems", "corrected", rows, key="corrected")
    data = {"run": run_id, "rewards": rewards, "name": "right", "problems": "corrected"}
    rescore.run(data, context, "x")
    right = wh.sql(
        "SELECT DISTINCT problem_id FROM rescored WHERE verdict = 'correct' AND rescore = 'right'"
    )
    assert right["problem_id"].to_list() == [text[0]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"run": "nothing"}, "rescore: no run called 'nothing'"),
        ({}, "name the run"),
        ({"run": "RUN", "rewards": {"acuracy": 1}}, "unknown reward 'acuracy'"),
        ({"run": "RUN", "verifier": "maths"}, "unknown verifier 'maths'"),
        ({"run": "RUN", "problems": "letterz"}, "no problems called 'letterz'"),
        ({"run": "RUN", "rewarts": {}}, "rewarts: no such key; did you mean 'rewards'"),
    ],
)
def test_mistakes_are_one_message(
    trained: tuple[Context, str], data: dict[str, Any], message: str
) -> None:
    context, run_id = trained
    given = {k: run_id if v == "RUN" else v for k, v in data.items()}
    with pytest.raises(UsageError, match=message):
        rescore.run(given, context, "rescore")
