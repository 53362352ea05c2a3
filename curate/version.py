"""The version of the code that runs."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import curate


@cache
def code_version() -> str:
    """Version of the package, with the commit if it runs from a git checkout."""
    root = Path(curate.__file__).parent.parent
    if not (root / ".git").exists():
        return curate.__version__
    command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return curate.__version__
    commit = done.stdout.strip() if done.returncode == 0 else ""
    return f"{curate.__version__}+{commit}" if commit else curate.__version__
