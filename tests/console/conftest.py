"""A small warehouse: judged traces of the stub engine, and a corpus of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from curate import api


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("console")
    rows = [
        {"question": f"What is {a} + {b}?", "reference": str(a + b), "solution": f"{a + b}."}
        for a in range(1, 7)
        for b in range(1, 3)
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = folder / "stub-model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    warehouse = folder / "wh"
    source = {"source": "files", "path": str(folder / "sums.jsonl"), "verifier": "math"}
    name = api.problems("sums", sources=[source], held_out=0.2, warehouse=warehouse)
    api.generate(
        "r1-zero", model=str(model), problems=name, samples=3, engine={"name": "stub"},
        warehouse=warehouse,
    )  # fmt: skip
    api.annotate(warehouse=warehouse)
    api.filter("rejection", corpus="best", warehouse=warehouse)
    return warehouse
