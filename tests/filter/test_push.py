"""Exports as `datasets` reads them, and uploads to the Hub, with a fake in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from curate.errors import CurateError
from curate.filter import apply_rules, load_rules
from curate.filter.corpus import write_corpus
from curate.filter.export import FORMATS, ORIGIN, export_corpus
from curate.warehouse import Warehouse


@pytest.fixture
def stored(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> Warehouse:
    warehouse = Warehouse(tmp_path / "wh")
    write_corpus(warehouse, con, apply_rules(con, load_rules("cold-start")), "mine")
    return warehouse


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize(
    ("format", "columns"),
    [
        ("messages", {"messages", *ORIGIN}),
        ("prompt-completion", {"prompt", "completion", *ORIGIN}),
        ("conversational", {"prompt", "completion", *ORIGIN}),
        ("sharegpt", {"conversations", *ORIGIN}),
        ("verl", {"data_source", "prompt", "ability", "reward_model", "extra_info"}),
        (
            "prompts",
            {
                "prompt",
                "reference",
                "verifier",
                "choices",
                "tests",
                "metadata",
                "label",
                "problem_id",
            },
        ),
    ],
)
def test_datasets_loads_every_format(
    stored: Warehouse, tmp_path: Path, format: str, columns: set[str], suffix: str
) -> None:
    import datasets

    rows = export_corpus(stored, "mine", tmp_path / "out", format, suffix)
    loaded = datasets.load_dataset(
        str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.num_rows == rows == (4 if FORMATS[format].by_problem else 8)
    assert set(loaded.column_names) == columns
    first: dict[str, Any] = loaded[0]
    if format == "messages":
        assert [turn["role"] for turn in first["messages"]] == ["user", "assistant"]
        assert first["messages"][1]["content"].startswith("<think>")
    elif format == "sharegpt":
        assert [turn["from"] for turn in first["conversations"]] == ["human", "gpt"]
    elif format == "verl":
        assert first["prompt"][0]["role"] == "user"
        assert set(first["reward_model"]) == {"style", "ground_truth"}
        assert {"trace_id", "problem_id", "verdict"} <= set(first["extra_info"])
    elif format == "prompts":
        assert [turn["role"] for turn in first["prompt"]] == ["user"]
    elif format == "conversational":
        assert [turn["role"] for turn in first["prompt"]] == ["user"]
        assert [turn["role"] for turn in first["completion"]] == ["assistant"]
    else:
        assert "<answer>" in first["completion"]
        assert "<answer>" not in first["prompt"].split("User:")[-1]


def test_push_sends_the_folder_with_its_card(
    stored: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake `huggingface_hub.HfApi` records its calls; no hub is contacted."""
    hub = pytest.importorskip("huggingface_hub")
    calls: list[tuple[str, dict[str, Any]]] = []

    class Fake:
        def create_repo(self, name: str, **options: Any) -> None:
            calls.append(("create", {"name": name, **options}))

        def upload_folder(self, **options: Any) -> None:
            names = sorted(
                str(p.relative_to(options["folder_path"]))
                for p in Path(options["folder_path"]).rglob("*.*")
            )
            calls.append(("upload", {**options, "names": names}))

    monkeypatch.setattr(hub, "HfApi", Fake)
    export_corpus(stored, "mine", tmp_path / "out", push="me/mine")
    assert calls[0] == ("create", {"name": "me/mine", "repo_type": "dataset", "exist_ok": True})
    assert calls[1][1]["repo_id"] == "me/mine"
    assert calls[1][1]["names"] == ["README.md", "data/train-00000.parquet"]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "8 rows" in card
    assert "| one-language |" in card
    assert "## Lineage" in card

    def refuse(self: Fake, name: str, **options: Any) -> None:
        raise PermissionError("401 Unauthorized")

    monkeypatch.setattr(Fake, "create_repo", refuse)
    with pytest.raises(CurateError, match="could not be pushed to me/mine: 401 Unauthorized"):
        export_corpus(stored, "mine", tmp_path / "out", push="me/mine")
