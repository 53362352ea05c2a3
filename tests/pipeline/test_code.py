"""A pipeline file names the code that it imports, before anything is imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from curate import cli
from curate.pipeline.config import code_of

PIPELINE = """
name: shared
stages:
  sums:
    do: generate
    recipe: marked_recipe:Recipe
    model: somewhere
  train:
    do: grpo
    rewards: {"marked_reward:short": 1.0}
    where: "a = 'x:y z'"
"""


def test_every_dotted_path_is_listed_and_nothing_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "shared.yaml"
    path.write_text(PIPELINE)
    (tmp_path / "marked_recipe.py").write_text("raise SystemExit('imported')")
    assert code_of(path) == ["marked_recipe:Recipe", "marked_reward:short"]
    assert code_of(path, ["stages.sums.engine.name=my.engine:Engine"])[-1] == "my.engine:Engine"
    assert "marked_recipe" not in sys.modules


def test_no_code_refuses_the_pipeline_before_it_is_read_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "shared.yaml"
    path.write_text(PIPELINE)
    monkeypatch.setattr(sys, "argv", ["curate", "run", str(path), "--no-code"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert "marked_recipe:Recipe, marked_reward:short" in capsys.readouterr().err


def test_shipped_pipelines_name_no_code() -> None:
    from curate.warehouse.schemas import data_dir

    for path in sorted(data_dir("pipelines").glob("*.yaml")):
        assert code_of(path) == [], path.name
