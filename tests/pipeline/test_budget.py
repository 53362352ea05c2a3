"""A time budget shrinks later stages to the machine's speed, and decides once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.config import validate
from curate.errors import UsageError
from curate.job import Context
from curate.pipeline.budget import SHARE, Budget, BudgetConfig, check_budget
from curate.pipeline.config import load_pipeline
from curate.pipeline.drawing import planned
from curate.pipeline.runner import Pipeline
from curate.pipeline.stages import Done, Stage, stage_kind


def stage(name: str, do: str = "generate", **keys: Any) -> Stage:
    """A stage that samples `limit` x `samples` completions."""
    config: dict[str, Any] = {"problems": "@sums", "samples": 1, **keys}
    if do == "generate":
        config |= {"recipe": "r1-zero", "model": "m"}
    else:
        config |= {"models": [{"label": "one", "model": "m"}, {"label": "two", "model": "n"}]}
    return Stage(name, do, config, stage_kind(do).config(config, name), ())


def finished(seconds: float, rate: float | None = None) -> Done:
    return Done("key", "", {}, [], "", seconds, rate)


def budget(folder: Path, stages: list[Stage], minutes: float | None, **fits: Any) -> Budget:
    config = BudgetConfig.model_validate({"minutes": minutes, "speed": "first", "stages": fits})
    return Budget(config, stages, folder / "_runs" / "x")


FIRST = stage("first", limit=10)


def test_stages_that_fit_stay_as_written(tmp_path: Path) -> None:
    later = stage("later", limit=100)
    fits = budget(tmp_path, [FIRST, later], 10, later={"least": {"limit": 10}})
    assert fits.fitted(later, "k", {"first": finished(60, 1.0)}) == later


@pytest.mark.parametrize("cost", [1.0, 2.0])
def test_a_stage_gets_what_the_remaining_time_allows_at_the_measured_rate(
    tmp_path: Path, cost: float
) -> None:
    """Of 5 minutes 78 seconds are used, so 222 are left, at one sample per second."""
    later = stage("later", limit=1000)
    fits = budget(tmp_path, [FIRST, later], 5, later={"least": {"limit": 1}, "cost": cost})
    fitted = fits.fitted(later, "k", {"first": finished(78, 1.0)})
    assert fitted.config["limit"] == fitted.checked.limit
    assert fitted.checked.limit == pytest.approx(SHARE * 222 / cost, abs=1)


@settings(deadline=None, max_examples=30)
@given(
    rate=st.floats(0.01, 100),
    used=st.floats(0, 3600),
    limits=st.lists(st.integers(10, 2000), min_size=1, max_size=4),
)
def test_stages_fit_the_budget_or_are_at_their_least(
    rate: float, used: float, limits: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    stages = [stage(f"s{i}", limit=limit) for i, limit in enumerate(limits)]
    least = {s.name: {"least": {"limit": 5}} for s in stages}
    folder = tmp_path_factory.mktemp("budget")
    fits = budget(folder, [FIRST, *stages], 25, **least)
    done = {"first": finished(used, rate)}
    for one in stages:
        limit = fits.fitted(one, "k", done).checked.limit
        assert 5 <= limit <= one.checked.limit
        seconds = limit / rate
        assert limit == 5 or sum(d.seconds for d in done.values()) + seconds <= 1500
        done[one.name] = finished(seconds)


def test_excess_time_of_a_stage_is_taken_from_the_next_one(tmp_path: Path) -> None:
    two, three = stage("two", limit=600), stage("three", limit=600)
    fits = {name: {"least": {"limit": 1}} for name in ("two", "three")}
    plan = budget(tmp_path, [FIRST, two, three], 10, **fits)
    done = {"first": finished(0.0, 1.0)}
    assert plan.fitted(two, "k", done).checked.limit == pytest.approx(SHARE * 300, abs=1)
    done["two"] = finished(500.0)
    assert plan.fitted(three, "k", done).checked.limit == pytest.approx(SHARE * 100, abs=1)


def test_a_decision_is_kept_whatever_the_next_run_measures(tmp_path: Path) -> None:
    later = stage("later", limit=1000)
    plan = budget(tmp_path, [FIRST, later], 5, later={"least": {"limit": 1}})
    slow = plan.fitted(later, "k", {"first": finished(78, 1.0)})
    assert plan.fitted(later, "k", {"first": finished(1, 50.0)}) == slow
    assert plan.fitted(later, "other key", {"first": finished(1, 50.0)}) == later


def test_drawing_a_pipeline_decides_nothing(tmp_path: Path) -> None:
    later = stage("later", limit=1000)
    plan = budget(tmp_path, [FIRST, later], 5, later={"least": {"limit": 1}})
    assert plan.fitted(later, "k", {"first": finished(78, 1.0)}, decide=False) == later
    assert not (tmp_path / "_runs").exists()


def test_a_smaller_evaluation_reports_its_wider_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two models: 400 samples become 100, which doubles the width."""
    last = stage("last", do="evaluate", limit=200)
    plan = budget(tmp_path, [FIRST, last], 10, last={"least": {"limit": 50}})
    plan.fitted(last, "k", {"first": finished(600, 1.0)})
    messages = capsys.readouterr().err
    assert "limit 200 -> 50" in messages
    assert "2.0 times as wide" in messages
    assert "10m00s of 10 minutes" in messages


def test_without_a_measured_rate_or_a_limit_nothing_shrinks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later = stage("later", limit=1000)
    least = {"least": {"limit": 1}}
    plan = budget(tmp_path, [FIRST, later], 5, later=least)
    assert plan.fitted(later, "k", {"first": finished(78, None)}) == later
    assert "no speed is known" in capsys.readouterr().err
    unlimited = budget(tmp_path, [FIRST, later], None, later=least)
    assert unlimited.fitted(later, "k", {"first": finished(1e6, 1e-3)}) == later


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"speed": "frist", "stages": {"later": {}}}, "no stage frist; there are first, later"),
        ({"speed": "later", "stages": {"first": {}}}, "first runs before later"),
        ({"speed": "first", "stages": {"later": {"least": {"limt": 1}}}}, "no number limt"),
        ({"speed": "first", "stages": {"later": {}}, "minutes": 0}, "minutes"),
    ],
)
def test_a_wrong_budget_is_refused_before_anything_runs(data: Any, message: str) -> None:
    def load() -> None:
        config = validate(BudgetConfig, data, "p.yaml: budget")
        check_budget(config, [FIRST, stage("later", limit=10)], "p.yaml")

    with pytest.raises(UsageError, match=message):
        load()


PIPELINE = """
name: timed
vars: {minutes: 0.001}
engine: {name: stub}
budget:
  minutes: $minutes
  speed: first
  stages: {last: {least: {limit: 2}}}
stages:
  problems: {do: problems, name: sums, sources: [{source: files, path: SUMS, verifier: math}]}
  first: {do: generate, recipe: r1-zero, model: MODEL, problems: "@problems", samples: 1, limit: 4}
  last: {do: generate, recipe: distill, model: MODEL, problems: "@problems", samples: 1, limit: 20}
"""


def test_a_pipeline_run_twice_keeps_its_decisions_and_does_nothing(
    tmp_path: Path, sums: str, stub_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "timed.yaml"
    path.write_text(PIPELINE.replace("SUMS", sums).replace("MODEL", stub_model))

    def rows_of_last(*overrides: str) -> int:
        with Context(tmp_path / "wh") as context:
            pipeline = Pipeline(*load_pipeline(path, overrides), context)
            pipeline.run()
            assert all(stage.state == "done" for stage in planned(pipeline))
            query = "SELECT count(*) FROM traces WHERE recipe = 'distill'"
            return int(context.warehouse.sql(query).item())

    assert rows_of_last() == 2  # its least: the time was over
    assert "last gets limit 20 -> 2" in capsys.readouterr().err
    assert rows_of_last() == 2
    assert "nothing to do: 3 stages done before" in capsys.readouterr().err
    assert rows_of_last("vars.minutes=1000") == 20  # another budget is another decision
    assert rows_of_last("vars.minutes=null") == 20
