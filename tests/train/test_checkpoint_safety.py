"""A checkpoint of somebody else is data: loading it runs no code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from curate.errors import CurateError
from curate.train.checkpoints import Checkpoints


class Poison:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints" / "run" / "step-000001"
    directory.mkdir(parents=True)
    torch.save({"random": [Poison(tmp_path / "marker")]}, directory / "trainer.pt")
    with pytest.raises(CurateError, match="more than tensors"):
        Checkpoints(tmp_path, "run").load(1, None, None, None)  # type: ignore[arg-type]
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("content", [b"", b"a text", b"PK\x03\x04 half a zip file"])
def test_a_damaged_checkpoint_is_one_message(tmp_path: Path, content: bytes) -> None:
    directory = tmp_path / "checkpoints" / "run" / "step-000001"
    directory.mkdir(parents=True)
    (directory / "trainer.pt").write_bytes(content)
    with pytest.raises(CurateError, match=r"trainer\.pt cannot be read"):
        Checkpoints(tmp_path, "run").load(1, None, None, None)  # type: ignore[arg-type]
