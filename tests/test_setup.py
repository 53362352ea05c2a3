"""Set-up says what it downloads, and refuses a Python without wheels before it does anything."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[1] / "tools" / "setup.py"


@pytest.fixture
def setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("curate_setup", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_large_downloads_and_the_number_of_packages_are_shown(setup: ModuleType) -> None:
    large = "  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (194.0 MB)"
    assert setup.worth_showing(large) == "downloading torch 2.13.0 (194.0 MB)"
    assert setup.worth_showing("  Downloading idna-3.10-py3-none-any.whl (70 kB)") is None
    assert setup.worth_showing("Installing collected packages: a, b, c") == "installing 3 packages"
    assert setup.worth_showing("Requirement already satisfied: six") is None


def test_a_python_without_wheels_is_refused_with_what_to_install(
    setup: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(setup, "OLDEST", (4, 0))
    monkeypatch.setattr(setup, "NEWEST", (4, 1))
    monkeypatch.setattr(sys, "argv", ["setup.py", "--venv", str(tmp_path / "venv")])
    assert setup.main() == 2
    messages = capsys.readouterr().err
    assert "wheels for 4.0 to 4.1" in messages
    assert "make quickstart PYTHON=" in messages
    assert not (tmp_path / "venv").exists()


def test_pips_messages_go_to_a_log_and_to_the_screen_only_on_failure(
    setup: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pip = setup.Pip(Path(sys.executable), tmp_path / "setup.log")
    with setup.Step("asking pip") as step:
        assert pip(step, "--version")
        assert "pip " not in capsys.readouterr().out.replace("asking pip", "")
        assert not pip(step, "install", "--no-index", "curate-has-no-such-package")
    messages = capsys.readouterr().out
    assert "No matching distribution" in messages
    assert "setup.log" in messages
    assert "pip " in (tmp_path / "setup.log").read_text()


def test_the_script_needs_nothing_but_the_standard_library() -> None:
    command = [sys.executable, "-S", "-I", str(PATH), "--help"]
    assert subprocess.run(command, capture_output=True).returncode == 0
