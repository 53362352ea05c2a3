"""A stranger's warehouse that names outside paths: nothing there is touched."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from curate.errors import CurateError, UsageError
from curate.filter.job import FilterConfig, run
from curate.job import Context
from curate.warehouse import Warehouse
from curate.warehouse.card import write_card
from curate.warehouse.check import check, repair
from curate.warehouse.names import now

TRACE = {
    "trace_id": "t1",
    "attempt": 0,
    "problem_id": "p",
    "sample_index": 0,
    "recipe": "r1-zero",
    "form": "plain",
    "finish_reason": "stop",
    "completion": "It is 2.",
    "prompt": "What is 1 + 1?",
    "answer": "It is 2.",
}


@pytest.fixture
def wh(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path / "wh").create()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Somebody's files, old enough to look abandoned."""
    for name in ("notes.txt", ".ssh/key", "old-work/thesis.txt"):
        path = tmp_path / "home" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        os.utime(path, (1, 1))
        os.utime(path.parent, (1, 1))
    return tmp_path / "home"


def contents(folder: Path) -> dict[Path, str]:
    return {path: path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["_staging", "_trash"])
@pytest.mark.parametrize("linked", ["directory", "entry"])
def test_cleaning_removes_nothing_behind_a_link(
    wh: Warehouse, home: Path, name: str, linked: str
) -> None:
    before, place = contents(home), wh.root / name
    if place.exists():
        place.rmdir()
    if linked == "directory":
        place.symlink_to(home)
    else:
        place.mkdir()
        (place / "0123456789ab-1-0a0a0a0a").symlink_to(home)
        (place / "old-work").symlink_to(home / "old-work")
    with Context(wh.root):
        pass
    assert contents(home) == before


def test_a_card_is_not_written_into_a_directory_that_a_row_names(wh: Warehouse, home: Path) -> None:
    for number, place in enumerate((str(home), "../home", "models/link")):
        (wh.root / "models").mkdir(exist_ok=True)
        if place == "models/link":
            (wh.root / place).symlink_to(home)
        row = {"model_hash": f"h{number}", "name": "x", "kind": "sft", "path": place}
        wh.write("models", f"m{number}", [row | {"created_at": now()}], key=number)
        assert write_card(wh, f"h{number}") is None
    assert not (home / "README.md").exists()


def test_repair_moves_nothing_that_a_manifest_names_outside(wh: Warehouse, home: Path) -> None:
    (home / "manifest.json").write_text("{}")
    version = wh.write("traces", "d", [TRACE], key=1)
    path = version.path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest |= {"parents": ["../home", str(home)], "config": {"merged": 2}}
    path.write_text(json.dumps(manifest))
    version.parts()[0].unlink()
    repair(wh.root, check(wh.root).damages)
    assert (home / "manifest.json").exists()
    assert not path.exists()


def test_the_template_that_a_row_names_is_not_read_as_a_file(wh: Warehouse, home: Path) -> None:
    secret = home / "secret.txt"
    secret.write_text("SECRET {question}")
    problem = {"problem_id": "p", "question": "What is 1 + 1?", "source": "s", "split": "train"}
    wh.write("problems", "s", [problem | {"verifier": "math"}], key=1)
    wh.write("traces", "d", [TRACE | {"template": f"{secret}@0123"}], key=1)
    with Context(wh.root) as context:
        with pytest.raises(UsageError, match="does not ship") as caught:
            run(FilterConfig(rules="unfiltered"), context)
        assert "SECRET" not in str(caught.value)
        # the user may name it
        run(FilterConfig(rules="unfiltered", template=str(secret)), context)
    assert wh.sql("SELECT prompt FROM corpora").item().startswith("SECRET")


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[1]", '{"no": "such key"}'])
def test_a_damaged_result_of_a_run_is_one_message(wh: Warehouse, text: str) -> None:
    pytest.importorskip("torch")
    from curate.train.checkpoints import Checkpoints

    runs = Checkpoints(wh.root, "run")
    (runs.path / "model").mkdir(parents=True)
    (runs.path / "model" / "config.json").write_text("{}")
    (runs.path / "result.json").write_text(text)
    with pytest.raises(CurateError, match=r"result\.json cannot be read"):
        runs.finished()
