"""Shell completion offers what exists: recipes, rules, pipelines, data sets of the warehouse."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from curate.problems.store import store_rows


def complete(words: str, folder: Path) -> list[str]:
    """Completions that bash gets for the last word."""
    environment = {
        **os.environ,
        "_CURATE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    command = [sys.executable, "-m", "curate"]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("curate ge", ["generate"]),
        ("curate generate r", ["r1-zero", "rejection"]),
        ("curate filter c", ["cold-start"]),
        ("curate run qu", ["quickstart"]),
        ("curate schema pi", ["pipeline"]),
        ("curate sql --file model", ["model_rates"]),
    ],
)
def test_names_that_ship_are_completed(tmp_path: Path, words: str, offered: list[str]) -> None:
    assert complete(words, tmp_path) == offered


def test_own_files_and_stored_problems_are_completed(tmp_path: Path) -> None:
    import polars as pl

    (tmp_path / "mine.yaml").write_text("")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "a.yaml").write_text("")
    store_rows(tmp_path / "warehouse", pl.DataFrame({"question": ["a?"]}), "sums")
    assert complete("curate run mi", tmp_path) == ["mine.yaml"]
    assert complete("curate run con", tmp_path) == ["configs/"]
    assert complete("curate run configs/", tmp_path) == ["configs/a.yaml"]
    assert complete("curate problems show s", tmp_path) == ["sums"]
    assert complete("curate watch ", tmp_path) == ["configs/", "warehouse"]
    assert complete("curate problems show -w other s", tmp_path) == []
