"""A checkpoint of somebody else is data: loading it runs no code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from curate.errors import CurateError
from curate.train.checkpoints import Checkpoints
from curate.train.model.sharding import check_index, load_shards


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


def write_shards(folder: Path) -> Path:
    import torch.distributed.checkpoint as dcp

    tensors = {"a.weight:exp_avg": torch.ones(3, 2), "a.weight:step": torch.tensor(4.0)}
    dcp.save(tensors, checkpoint_id=folder, no_dist=True)
    return folder / ".metadata"


def test_the_index_of_shards_is_read_and_code_in_it_does_not_run(tmp_path: Path) -> None:
    """Sharded optimizers: PyTorch itself reads their index with pickle."""
    index = write_shards(tmp_path / "shards")
    check_index(index)
    whole = index.read_bytes()
    for payload in (
        pickle.dumps({"a": Poison(tmp_path / "marker")}),
        # Names that the list allows, and attributes of them that it does not.
        b"cpathlib\nos.mkdir\n(V" + str(tmp_path / "marker").encode() + b"\ntR.",
        b"\x80\x04\x8c\x05torch\x8c\x0aSize.index\x93.",
        whole[:-20],
        b"",
    ):
        index.write_bytes(payload)
        with pytest.raises(CurateError, match=r"metadata cannot be read"):
            load_shards(None, None, index.parent)  # type: ignore[arg-type]
    assert not (tmp_path / "marker").exists()
