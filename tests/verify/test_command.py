from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from curate.errors import CurateError, UsageError
from curate.verify import cli_verify


def test_one_pair() -> None:
    output = cli_verify("1/2", r"so \boxed{0.5}")
    assert output.startswith("correct")
    assert "0.5" in output
    assert "math" in output
    assert cli_verify("1/2", "").startswith("wrong  (no answer")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file(tmp_path: Path, suffix: str) -> None:
    frame = pl.DataFrame(
        {
            "id": [1, 2, 3],
            "gold": ["007", "0.50", ""],
            "prediction": [r"\boxed{7}", r"\boxed{0.6}", None],
        }
    )
    path = tmp_path / f"pairs{suffix}"
    {".csv": frame.write_csv, ".jsonl": frame.write_ndjson, ".parquet": frame.write_parquet}[
        suffix
    ](path)
    output = cli_verify(file=path)
    assert "3 rows: 1 correct, 1 wrong, 1 unverifiable" in output
    written = tmp_path / f"pairs.verdicts{suffix}"
    frame = {".csv": pl.read_csv, ".jsonl": pl.read_ndjson, ".parquet": pl.read_parquet}[suffix](
        written
    )
    assert frame["verdict"].to_list() == ["correct", "wrong", "unverifiable"]
    assert frame["id"].to_list() == [1, 2, 3]
    assert {"extracted", "detail", "verifier", "verifier_version", "seconds"} <= set(frame.columns)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, written.name])


def test_a_file_gives_what_its_verifiers_need(tmp_path: Path) -> None:
    rows = [
        {
            "gold": "B",
            "prediction": "cats",
            "verifier": "choice",
            "choices": ["dogs", "cats"],
            "tests": None,
        },
        {
            "gold": "B",
            "prediction": "dogs",
            "verifier": "choice",
            "choices": ["dogs", "cats"],
            "tests": None,
        },
        {
            "gold": "cats",
            "prediction": "The answer is **Cats**.",
            "verifier": "text",
            "choices": None,
            "tests": None,
        },
        {"gold": None, "prediction": "x", "verifier": "code", "choices": None, "tests": "{"},
    ]
    frame = pl.DataFrame(rows)
    frame.write_parquet(tmp_path / "mixed.parquet")
    cli_verify(file=tmp_path / "mixed.parquet", out=tmp_path / "out.jsonl")
    expected = ["correct", "wrong", "correct", "unverifiable"]
    assert pl.read_ndjson(tmp_path / "out.jsonl")["verdict"].to_list() == expected
    as_text = frame.with_columns(
        choices=pl.Series(['["dogs", "cats"]', '["dogs", "cats"]', None, None])
    )
    as_text.write_csv(tmp_path / "mixed.csv")
    cli_verify(file=tmp_path / "mixed.csv")
    assert pl.read_csv(tmp_path / "mixed.verdicts.csv")["verdict"].to_list() == expected
    frame.head(1).with_columns(choices=pl.lit("dogs, cats")).write_csv(tmp_path / "bad.csv")
    with pytest.raises(UsageError, match="choices must hold lists"):
        cli_verify(file=tmp_path / "bad.csv")


def test_wrong_use_says_what_to_do(tmp_path: Path) -> None:
    for arguments in (
        {},
        {"gold": "1"},
        {"gold": "1", "answer": "1", "file": "x.csv"},
        {"file": tmp_path / "none.csv"},
    ):
        with pytest.raises(UsageError):
            cli_verify(**arguments)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown verifier 'maths'"):
        cli_verify("1", "1", "maths")
    path = tmp_path / "x.csv"
    path.write_text("gold,answer\n1,1\n")
    with pytest.raises(UsageError, match="no column prediction"):
        cli_verify(file=path)
    (tmp_path / "x.parquet").write_text("no parquet")
    with pytest.raises(CurateError, match="not readable Parquet"):
        cli_verify(file=tmp_path / "x.parquet")
