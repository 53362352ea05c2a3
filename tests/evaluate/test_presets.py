"""`curate evaluate --benchmark` from a miniature to the table, on the stub engine."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from curate.cli import app


def test_a_preset_runs_from_a_local_copy_to_a_table(
    tmp_path: Path,
    stub_model: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [{"problem": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(3)]
    for name in ("aime24", "aime25"):
        pl.DataFrame(rows).write_parquet(tmp_path / f"{name}.parquet")
    monkeypatch.setenv("CURATE_BENCHMARKS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    style = r"<think>\nIt is {answer}.\n</think>\n\nThe answer is \boxed{{answer}}."
    command = [
        "evaluate", stub_model, "--benchmark", "aime24,aime25", "-k", "2", "-w", "wh",
        "engine.name=stub", "engine.args.right=1", f"engine.args.style={style}",
    ]  # fmt: skip
    app(command, standalone_mode=False)
    printed = capsys.readouterr().out
    assert printed.count("3 problems, 2 samples each") == 2
    assert printed.count("1.000") >= 2
    assert "aime24: 2 samples, 32,768 tokens" in printed
