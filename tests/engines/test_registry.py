"""The engine and precision of a config; a measurement decides once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from curate.engines import EngineConfig, describe_choice, open_engine
from curate.engines.measure import Measurement, measure, remembered
from curate.engines.models import default_cache
from curate.engines.precision import resolve_dtype
from curate.engines.registry import alternatives, candidates, choose, label, settle
from curate.errors import CurateError, UsageError
from curate.records import Completion, Request


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("curate.engines.measure._measured", {})
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU machine on which vLLM and transformers are installed."""
    monkeypatch.setattr("curate.extras.find_spec", lambda name: object())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


class Paced:
    """An engine whose every completion takes a given number of seconds on its own clock."""

    end_token_ids: set[int]
    max_model_len = 256

    class tokenizer:
        bos_token = None

        @staticmethod
        def encode(text: str, add_special_tokens: bool = True) -> list[int]:
            return list(range(200))

    def __init__(self, clock: list[float], seconds: float) -> None:
        self.clock, self.seconds, self.closed = clock, seconds, False

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            self.clock[0] += self.seconds
            yield Completion(request.request_id, "", "length", completion_tokens=10)

    def close(self) -> None:
        self.closed = True


def paced(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> list[str]:
    """Make `create` return paced engines; returns the list of engines that were opened."""
    clock, opened = [0.0], []

    def create(config: EngineConfig, model_dir: Any) -> Any:
        opened.append(config.name)
        if config.name not in seconds:
            raise CurateError("no memory for the cache")
        return Paced(clock, seconds[config.name])

    monkeypatch.setattr("curate.engines.registry.create", create)
    monkeypatch.setattr("curate.engines.measure.time.monotonic", lambda: clock[0])
    return opened


def test_the_faster_engine_is_measured_once_and_stored_for_other_processes(
    tiny: Path, both: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = paced(monkeypatch, {"vllm": 0.02, "transformers": 0.01})
    config = EngineConfig()
    assert "measured" in choose(config, tiny)[1]
    assert settle(config, tiny).name == "transformers"
    assert opened == ["vllm", "transformers"]
    messages = capsys.readouterr().err
    assert "vllm float32 500" in messages
    assert "transformers float32 1000" in messages

    monkeypatch.setattr("curate.engines.measure._measured", {})  # another process
    assert settle(config, tiny).name == "transformers"
    assert choose(config, tiny)[0] == "transformers"
    assert "1000" in describe_choice(config, tiny)
    assert len(opened) == 2


def test_an_engine_that_does_not_start_is_left_out_and_tried_again_later(
    tiny: Path, both: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = paced(monkeypatch, {"transformers": 0.01})
    assert settle(EngineConfig(), tiny).name == "transformers"
    assert "no memory for the cache" in capsys.readouterr().err
    assert settle(EngineConfig(), tiny).name == "transformers"
    assert len(opened) == 2  # this process remembers
    monkeypatch.setattr("curate.engines.measure._measured", {})
    assert remembered(candidates(EngineConfig(), tiny), tiny) is None


def test_rates_of_a_busy_machine_hold_for_this_process_only(
    tiny: Path, both: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paced(monkeypatch, {"vllm": 0.02, "transformers": 0.01})
    monkeypatch.setattr("os.getloadavg", lambda: (500.0, 0.0, 0.0))
    assert settle(EngineConfig(), tiny).name == "transformers"
    assert "busy, so this is not stored" in capsys.readouterr().err
    assert choose(EngineConfig(), tiny)[0] == "transformers"
    monkeypatch.setattr("curate.engines.measure._measured", {})
    assert remembered(candidates(EngineConfig(), tiny), tiny) is None


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(name="vllm"),
        EngineConfig(name="transformers"),
        EngineConfig(replicas=2),
        EngineConfig(args={"enforce_eager": False}),
    ],
)
def test_nothing_is_measured_when_the_config_decides(
    tiny: Path, both: None, monkeypatch: pytest.MonkeyPatch, config: EngineConfig
) -> None:
    opened = paced(monkeypatch, {})
    assert settle(config, tiny).name == ("vllm" if config.name == "auto" else config.name)
    assert opened == []


def test_a_gpu_decides_for_vllm_without_measuring(
    tiny: Path, both: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = paced(monkeypatch, {})
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose(EngineConfig(), tiny)[0] == "vllm"
    assert opened == []


def test_a_dry_run_never_measures(tiny: Path, both: None, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = paced(monkeypatch, {})
    assert settle(EngineConfig(), tiny, may_measure=False).name == "vllm"
    assert opened == []


def test_a_damaged_measurement_is_repeated(
    tiny: Path, both: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = paced(monkeypatch, {"vllm": 0.01, "transformers": 0.02})
    first = measure(candidates(EngineConfig(), tiny), tiny, _create)
    (file,) = (default_cache() / "engines").glob("*.json")
    assert Measurement(**json.loads(file.read_text())) == first
    file.write_text("{")
    monkeypatch.setattr("curate.engines.measure._measured", {})
    assert measure(candidates(EngineConfig(), tiny), tiny, _create).fastest == "vllm"
    assert len(opened) == 4


def _create(config: EngineConfig, model_dir: Any) -> Any:
    from curate.engines import registry

    return registry.create(config, model_dir)


# --- precision


@pytest.mark.parametrize("name", ["vllm", "transformers"])
@pytest.mark.parametrize(
    ("stored", "native", "expected"),
    [
        ("bfloat16", True, "bfloat16"),
        ("bfloat16", False, "float32"),
        ("float16", False, "float32"),
        ("float32", True, "float32"),
        ("float32", False, "float32"),
    ],
)
def test_a_cpu_computes_bf16_only_if_it_multiplies_it_natively(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    stored: str,
    native: bool,
    expected: str,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("curate.engines.precision.fast_bf16", lambda device: native)
    (tmp_path / "config.json").write_text(json.dumps({"dtype": stored}))
    assert resolve_dtype(EngineConfig(), name, tmp_path) == expected
    assert resolve_dtype(EngineConfig(dtype="bfloat16"), name, tmp_path) == "bfloat16"


def test_torch_can_be_configured_without_avx512(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    from curate.engines.precision import fast_bf16

    monkeypatch.setattr("curate.engines.precision._cpu_flags", lambda: {"avx512_bf16"})
    for capability, expected in (("AVX512", True), ("AVX2", False)):
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda c=capability: c)
        assert fast_bf16(torch.device("cpu")) is expected


def test_the_transformers_engine_runs_in_the_settled_precision(tiny: Path) -> None:
    import torch

    engine: Any = open_engine(EngineConfig(name="transformers", dtype="bfloat16"), tiny)
    assert engine.model.dtype == torch.bfloat16
    assert label(engine.config) == "transformers/bfloat16"


# --- inputs that determine a text


def test_labels_differ_by_engine_precision_and_arguments_that_change_numbers(
    tmp_path: Path,
) -> None:
    configs = [
        EngineConfig(name="vllm", dtype="bfloat16"),
        EngineConfig(name="vllm", dtype="float32"),
        EngineConfig(name="transformers", dtype="float32"),
        EngineConfig(name="vllm", dtype="bfloat16", args={"quantization": "fp8"}),
        EngineConfig(name="vllm", dtype="bfloat16", args={"lora_path": "adapter"}),
        EngineConfig(name="stub"),
        EngineConfig(name="openai"),
        EngineConfig(name="openai", args={"extra_body": {"effort": "high"}}),
    ]
    assert len({label(config) for config in configs}) == len(configs)
    faster = EngineConfig(name="vllm", dtype="bfloat16", memory=2.0, in_flight=8, replicas=2)
    assert label(faster) == label(configs[0])


def test_alternatives_of_auto_are_all_installed_engines_and_of_a_name_itself(
    tiny: Path, both: None
) -> None:
    names = {label(c) for c in alternatives(EngineConfig(), tiny)}
    assert {"vllm/bfloat16", "vllm/float32", "transformers/float32"} <= names
    assert [label(c) for c in alternatives(EngineConfig(name="stub"), tiny)] == ["stub"]
    named = alternatives(EngineConfig(name="vllm", dtype="float32"), tiny)
    assert [label(c) for c in named] == ["vllm/float32"]


def test_missing_packages_give_one_message(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.extras.find_spec", lambda name: None)
    for name in ("auto", "transformers"):
        with pytest.raises(
            UsageError, match=r"needs torch and transformers.*curate-reasoning\[train\]"
        ):
            open_engine(EngineConfig(name=name), tiny)
    with pytest.raises(UsageError, match="'vllm' is not installed"):
        open_engine(EngineConfig(name="vllm"), tiny)
