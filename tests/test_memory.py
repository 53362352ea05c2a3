"""The memory setting is parsed, and a smaller one changes no value."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from curate import files
from curate.annotate import job as annotate
from curate.errors import UsageError
from curate.job import Context
from curate.memory import megabytes, text_bytes
from curate.warehouse import Warehouse


def test_sizes_are_parsed_with_units() -> None:
    assert megabytes("2GB", 200) == 2000
    assert megabytes(" 1.5 GiB ", 200) == 1500
    assert megabytes("700MB", 200) == 700
    for wrong in ("2", "lots", "2TB", "-1GB"):
        with pytest.raises(UsageError, match="write 500MB or 2GB"):
            megabytes(wrong, 200)
    with pytest.raises(UsageError, match="at least 600MB"):
        text_bytes("500MB")


def test_more_memory_is_more_text_up_to_a_limit() -> None:
    assert text_bytes("600MB") < text_bytes("800MB") < text_bytes("2GB") == text_bytes("8GB")


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    wh = Warehouse(tmp_path / "wh")
    problem_rows = [
        {
            "problem_id": "p",
            "source": "made",
            "question": "What is 3 + 4?",
            "reference": "7",
            "verifier": "exact",
        }
    ]
    wh.write("problems", "made", problem_rows, key=1)
    words = [f"I add {i} words{' too' * (i % 40)}." for i in range(500)]
    rows = pl.DataFrame(
        {
            "trace_id": [f"t{i:04}" for i in range(500)],
            "completion": [f"<think>{text}</think> <answer>7</answer>" for text in words],
        }
    ).with_columns(
        attempt=pl.lit(0),
        problem_id=pl.lit("p"),
        sample_index=pl.lit(0),
        recipe=pl.lit("r"),
        form=pl.lit("r1-zero"),
        prompt=pl.lit(""),
        finish_reason=pl.lit("stop"),
        answer=pl.lit("7"),
    )
    traces = wh.version("traces", "made", "v")
    traces.publish("0", rows)
    traces.publish("1", rows.head(0))
    traces.seal()
    return wh


def test_a_part_measured_in_pieces_is_the_same_part(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = []
    whole = files.read_parts

    def small(path: Path, size: int | None = None, columns: list[str] | None = None):
        for part in whole(path, 2_000, columns):
            pieces.append(part.height)
            yield part

    monkeypatch.setattr("curate.annotate.job.read_parts", small)
    with Context(warehouse) as context:
        done = annotate.run(annotate.AnnotateConfig(verify=False, memory="600MB"), context)
        assert annotate.run(annotate.AnnotateConfig(verify=False), context).rows == 0
    assert done.rows == 500
    assert len(pieces) > 5
    measured = warehouse.sql("SELECT trace_id, words FROM annotated ORDER BY trace_id")
    assert measured["words"].to_list() == [2.0 + (i % 40) for i in range(500)]
