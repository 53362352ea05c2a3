"""`curate problems load`: files and flat keys become one stored set with a name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from curate.errors import UsageError
from curate.problems.store import stage_of


@pytest.mark.parametrize(
    ("files", "data", "expected"),
    [
        (
            ["data/sums.jsonl"],
            {"verifier": "math", "held_out": 0.2},
            {"name": "sums", "held_out": 0.2,
             "sources": [{"source": "files", "path": "data/sums.jsonl", "verifier": "math"}]},
        ),
        (
            ["a.csv", "b.csv"],
            {"name": "both"},
            {"name": "both", "sources": [{"source": "files", "path": ["a.csv", "b.csv"]}]},
        ),
        (
            [],
            {"source": "hub", "dataset": "openai/gsm8k", "subset": "main"},
            {"name": "openai-gsm8k",
             "sources": [{"source": "hub", "dataset": "openai/gsm8k", "subset": "main"}]},
        ),
        ([], {"sources": [{"source": "x"}]}, {"sources": [{"source": "x"}]}),
    ],
)  # fmt: skip
def test_flat_keys_are_put_into_one_source(
    files: list[str], data: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert stage_of(files, data) == expected


def test_keys_of_a_source_next_to_sources_and_nothing_at_all_are_refused() -> None:
    with pytest.raises(UsageError, match="verifier: sources are given in the config"):
        stage_of([], {"sources": [], "verifier": "math"})
    with pytest.raises(UsageError, match="name files of problems"):
        stage_of([], {})


def test_the_command_stores_lists_and_shows(tmp_path: Path, sums: str) -> None:
    def curate(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "curate", "problems", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)

    done = curate("load", sums, "verifier=math", "held_out=0.25")
    assert done.returncode == 0, done.stderr
    assert "40 problems in problems/sums/" in done.stdout
    assert "problems: sums@" in done.stdout
    assert "sums" in curate("list").stdout
    shown = curate("show", "sums").stdout
    assert "40 problems" in shown
    assert "held-out" in shown
    wrong = curate("load", sums, "verifer=math")
    assert wrong.returncode == 2
    assert "did you mean 'verifier'?" in wrong.stderr
    assert curate("load").returncode == 2
