"""vLLM on its own GPUs: which ones it sees, how weights reach it, and the proof that they arrived.
None of these tests needs a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from curate.engines.base import EngineConfig
from curate.engines.proof import expected_hashes
from curate.engines.vllm import VllmEngine, devices_of, own_devices
from curate.engines.vllm_transfer import Children, way_of_weights
from curate.errors import UsageError
from curate.records import Request, Sampling

ROOT = Path(__file__).parents[2]


def config(**settings: Any) -> EngineConfig:
    return EngineConfig.model_validate({"name": "vllm", **settings})


@pytest.mark.parametrize("given", ["2,3", [2, 3], "2, 3", "2,3,"])
def test_devices_may_be_a_number_a_string_or_a_list(given: Any) -> None:
    assert config(devices=given).devices == [2, 3]
    assert config(devices=1).devices == [1]


@pytest.mark.parametrize("given", ["", [], [1, 1], [-1], "one"])
def test_invalid_devices_are_refused(given: Any) -> None:
    with pytest.raises(ValidationError):
        config(devices=given)


def test_devices_are_numbered_as_this_process_sees_them() -> None:
    assert own_devices(config(devices="1,2"), ["4", "GPU-b", "6"]) == ["GPU-b", "6"]
    with pytest.raises(
        UsageError, match=r"engine\.devices names GPU 2, 5, but this process sees 0, 1: name others"
    ):
        own_devices(config(devices="1,2,5"), ["0", "1"])
    with pytest.raises(UsageError, match=r"names GPU 0, but this process sees none"):
        own_devices(config(devices=0), [])
    with pytest.raises(
        UsageError, match=r"names 3 GPUs; 2 replicas with tensor_parallel_size 2 need 4"
    ):
        own_devices(config(devices="0,1,2", replicas=2, tensor_parallel_size=2), ["0", "1", "2"])


def test_devices_are_for_vllm(tiny: Path) -> None:
    from curate.engines import open_engine

    for name in ("transformers", "stub"):
        with pytest.raises(
            UsageError, match=f"engine.devices is for vllm; the engine here is {name}"
        ):
            open_engine(EngineConfig(name=name, devices=[0]), tiny)


def test_devices_are_divided_among_replicas() -> None:
    four = ["2", "3", "6", "7"]
    assert [devices_of(i, 2, four)["CUDA_VISIBLE_DEVICES"] for i in range(2)] == ["2,3", "6,7"]
    assert devices_of(0, 1, []) == {}
    with pytest.raises(
        UsageError, match="replica 3 with tensor_parallel_size 2 needs GPU 6, and there are 4"
    ):
        devices_of(2, 2, four)


@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM")
def test_only_the_child_gets_the_environment_of_its_devices(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Telling(VllmEngine):
        core = "tests.engines.cores:CountingCore"

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    engine = Telling(config(devices="1,2", replicas=2), tiny)
    try:
        engine.wait_ready()
        seen = [
            Path(f"/proc/{child.process.pid}/environ").read_bytes().split(b"\0")
            for child in engine._children
        ]
        assert [b"CUDA_VISIBLE_DEVICES=5" in s for s in seen] == [True, False]
        assert [b"CUDA_VISIBLE_DEVICES=6" in s for s in seen] == [False, True]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5,6"
        assert (
            len(
                list(
                    engine.generate(
                        Request(str(i), "p", i, Sampling(max_tokens=4)) for i in range(20)
                    )
                )
            )
            == 20
        )
    finally:
        engine.close()
    with pytest.raises(UsageError, match="names GPU 3, but this process sees 0, 1, 2"):
        Telling(config(devices=3), tiny)


@pytest.mark.parametrize(
    ("settings", "name", "device", "way"),
    [
        ({"devices": "1"}, "vllm", "cuda:0", "nccl"),
        ({"devices": "1", "transfer": "files"}, "vllm", "cuda:0", "files"),
        ({"devices": "1"}, "vllm", "cpu", "files"),
        ({}, "vllm", "cuda:0", "files"),
        ({"devices": "1"}, "transformers", "cuda:0", "files"),
        ({"devices": "1", "transfer": "nccl"}, "vllm", "cuda:0", "nccl"),
        ({"transfer": "nccl"}, "vllm", "cuda:0", None),
        ({"devices": "1", "transfer": "nccl"}, "vllm", "cpu", None),
        ({"devices": "1", "transfer": "nccl"}, "transformers", "cuda:0", None),
    ],
)
def test_how_weights_reach_the_engine(
    settings: dict[str, Any], name: str, device: str, way: str | None
) -> None:
    if way is None:
        with pytest.raises(UsageError, match=r"engine\.transfer=nccl needs vLLM on its own GPUs"):
            way_of_weights(config(**settings), name, device)
    else:
        assert way_of_weights(config(**settings), name, device) == way


def test_each_replica_gets_its_own_ranks() -> None:
    class Fake:
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def call(self, *words: Any) -> None:
            self.calls.append(words)

    children = [Fake(), Fake(), Fake()]
    client = Children(children, 2)  # type: ignore[arg-type]
    client.init_weight_transfer_engine({"rank_offset": 1, "world_size": 7})
    ranks = [child.calls[0][2]["rank_offset"] for child in children]
    assert ranks == [1, 3, 5]
    client.start_weight_update()
    client.update_weights({"names": ["a"]})
    client.finish_weight_update("7")
    assert [words[1] for words in children[2].calls] == [
        "init_weight_transfer_engine",
        "start_weight_update",
        "update_weights",
        "finish_weight_update",
    ]


def test_hashes_cover_a_tensor_and_its_parts() -> None:
    torch = pytest.importorskip("torch")
    from curate.engines.proof import hash_of

    matrix, odd = torch.arange(24.0).view(4, 6).to(torch.bfloat16), torch.arange(3.0)
    hashes = expected_hashes({"w": matrix, "b": odd}, 2)
    parts = hashes["w"]["forms"]["torch.bfloat16"]["hashes"]
    assert set(parts) == {"", "0:0", "0:1", "1:0", "1:1"}
    assert parts["0:1"] == hash_of(matrix[2:])
    assert parts["1:0"] == hash_of(matrix[:, :3])
    odd_parts = hashes["b"]["forms"]["torch.float32"]["hashes"]
    assert set(odd_parts) == {""}, "three numbers are not split over two"
    assert hash_of(matrix) != hash_of(matrix + 1)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(300)
def test_weights_go_through_vllms_own_transfer(tiny: Path, tiny_other: Path) -> None:
    pytest.importorskip("vllm")
    code = "import sys; from tests.engines.transfer import main; main(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny), str(tiny_other), "2"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("SAID ")]
    assert lines, done.stderr[-3000:]
    report = json.loads(lines[0].removeprefix("SAID "))
    assert report["transfers"]
    assert not set(report["before"]) & set(report["after"])
    assert report["restarted"] == report["after"], (
        "a child that dies starts again from what was sent"
    )
    assert report["restarts"] == 1
    assert report["back"] == report["before"]
    assert "the engine differs from the trainer's tensors in 1 tensor" in report["spoiled"]
    assert report["files"] == report["proof"], "one fingerprint, whichever way the weights came"
