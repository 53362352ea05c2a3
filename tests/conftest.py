"""Fixtures for all tests: a folder for models, problems as files, and an empty warehouse."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

# Tests never contact a hub, even on machines with a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture
def stub_model(tmp_path: Path) -> str:
    """A model directory for the stub engine only: it has weights to hash, and nothing to load."""
    path = tmp_path / "stub-model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return str(path)


@pytest.fixture
def sums(tmp_path: Path) -> str:
    """Forty sums as a JSON Lines file, with worked solutions."""
    path = tmp_path / "sums.jsonl"
    rows = [
        {
            "question": f"What is {a} + {b}?",
            "reference": str(a + b),
            "solution": f"{a} + {b} = {a + b}.",
            "target_language": "en",
        }
        for a in range(1, 9)
        for b in range(1, 6)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
