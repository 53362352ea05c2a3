"""A dotted path in a config may name a module next to the config; nothing there hides an installed
one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from curate import registry
from curate.errors import UsageError

BUILTIN = {"ours": "curate.records:Problem"}


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.setenv(registry.FOLDERS, "")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")


def resolve(name: str, **kwargs: Any) -> Any:
    return registry.resolve("reward", name, BUILTIN, **kwargs)


def test_a_module_next_to_the_config_is_found(tmp_path: Path) -> None:
    (tmp_path / "next_to_config.py").write_text("short = 7\n")
    registry.add_folder(tmp_path)
    assert resolve("next_to_config:short") == 7
    assert str(tmp_path) in os.environ[registry.FOLDERS]  # for processes that are started later


def test_a_module_in_the_current_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "empty" / "in_this_folder.py").write_text("import math\nshort = math.pi\n")
    assert resolve("in_this_folder:short") == pytest.approx(3.14159, abs=1e-5)


def test_a_file_in_the_folder_does_not_hide_an_installed_module(tmp_path: Path) -> None:
    (tmp_path / "polars.py").write_text("raise SystemExit('not this one')\n")
    registry.add_folder(tmp_path)
    assert resolve("polars:DataFrame").__module__.startswith("polars.")
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (None, "no_such_module:x", "no module 'no_such_module' is installed or in"),
        ("def short(: pass\n", "broken_a:short", r"broken_a\.py:1: invalid syntax"),
        ("import no_such_thing\n", "broken_b:short", "No module named 'no_such_thing'"),
        ("1 / 0\n", "broken_c:short", r"broken_c\.py:1: ZeroDivisionError: division by zero"),
        ("short = 1\n", "broken_d:shrot", "has no 'shrot'; did you mean 'short'"),
        (None, "our", "unknown reward 'our': choose one of ours, or your own as 'module:name'"),
        (None, "our", r"did you mean 'ours'\?"),
    ],
)
def test_an_unloadable_name_gives_one_message_with_the_reason(
    tmp_path: Path, text: str | None, name: str, message: str
) -> None:
    if text:
        (tmp_path / f"{name.partition(':')[0]}.py").write_text(text)
    registry.add_folder(tmp_path)
    with pytest.raises(UsageError, match=message):
        resolve(name)


def test_a_name_from_data_never_selects_a_module(tmp_path: Path) -> None:
    (tmp_path / "from_data.py").write_text("raise AssertionError('a row selected code')\n")
    registry.add_folder(tmp_path)
    with pytest.raises(UsageError, match=r"unknown reward 'from_data:x': choose one of ours$"):
        resolve("from_data:x", data=True)
    assert resolve("ours", data=True).__name__ == "Problem"
