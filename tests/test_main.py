"""The entry point: Ctrl-C at any moment is one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("module", ["typer", "pydantic", "duckdb"])
def test_ctrl_c_during_imports_is_one_line(tmp_path: Path, module: str) -> None:
    (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv[1:] = ['sql', 'select 1']\n"
        "from curate.__main__ import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.strip().startswith("interrupted: ")


def test_the_version_is_an_option_and_a_command() -> None:
    command = [sys.executable, "-m", "curate"]
    option = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60)
    other = subprocess.run([*command, "version"], capture_output=True, text=True, timeout=60)
    assert option.returncode == other.returncode == 0
    assert option.stdout == other.stdout != ""
