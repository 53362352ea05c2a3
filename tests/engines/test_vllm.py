"""Real vLLM on a tiny model: streaming, seeds, log-probs, end tokens, weights, adapters,
crashes; and its server.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curate.engines import EngineConfig, open_engine
from curate.engines.openai import OpenAIEngine
from curate.engines.vllm import QUIET, VllmEngine
from curate.errors import CurateError, UsageError
from curate.records import Completion, Request, Sampling
from tests.engines.server import Loopback
from tests.engines.test_pool import ROOT, gone
from tests.engines.test_transformers import plain_logprobs

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]
pytest.importorskip("vllm")

SMALL = {"memory": 0.25, "max_model_len": 256}


def open_vllm(path: Path, **settings: Any) -> VllmEngine:
    return open_engine(
        EngineConfig(**{"name": "vllm", "dtype": "float32", **SMALL, **settings}), path
    )  # type: ignore[return-value]


def ask(count: int, samples: int = 4, **sampling: Any) -> list[Request]:
    settings = Sampling(**{"max_tokens": 24, **sampling})
    return [
        Request(f"r{i}", "What is " + "7 + " * (i // samples) + "1?", 100 + i, settings)
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[VllmEngine]:
    engine = open_vllm(tiny)
    yield engine
    engine.close()


@pytest.fixture
def fresh(engine: VllmEngine, tiny: Path) -> Iterator[VllmEngine]:
    """The shared engine, with its first weights again afterwards: one start serves all tests."""
    yield engine
    engine.update_weights(tiny)


def texts(completions: Any) -> dict[str, str]:
    return {c.request_id: c.text for c in completions}


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_are_those_of_a_plain_forward_pass(
    engine: VllmEngine, tiny: Path, temperature: float
) -> None:
    """vLLM against transformers in float32 on the same tokens, under the distribution sampled
    from.
    """
    worst = 0.0
    for completion in engine.generate(ask(16, temperature=temperature)):
        expected = plain_logprobs(tiny, completion, temperature)
        assert len(completion.logprobs or []) == len(expected) == completion.completion_tokens
        worst = max(worst, *(abs(a - b) for a, b in zip(completion.logprobs or [], expected)))
    assert worst < 1e-4


def test_truncated_sampling_gives_logprobs_of_the_truncated_distribution(
    engine: VllmEngine, tiny: Path
) -> None:
    (completion,) = engine.generate(ask(1, top_k=1))
    assert completion.logprobs == pytest.approx([0.0] * completion.completion_tokens, abs=1e-5)
    assert max(plain_logprobs(tiny, completion)) < -1e-3


def test_seeds_decide_the_text(engine: VllmEngine) -> None:
    first, again = texts(engine.generate(ask(24))), texts(engine.generate(ask(24)[::-1]))
    assert first == again
    assert len(set(first.values())) == 24


def test_completions_stream_while_others_run(engine: VllmEngine) -> None:
    """A short request that is sent last comes back first."""
    long = ask(3, max_tokens=200)
    back = [
        c.request_id
        for c in engine.generate([*long, Request("short", "1 + 1", 0, Sampling(max_tokens=2))])
    ]
    assert back[0] == "short"
    assert sorted(back[1:]) == ["r0", "r1", "r2"]


def test_long_prompts_in_steps_and_shared_prefixes(engine: VllmEngine) -> None:
    prompt = "7 + " * 50
    requests = [Request(f"r{i}", prompt, i, Sampling(max_tokens=4)) for i in range(8)]
    list(engine.generate(requests[:1]))
    back = list(engine.generate(requests))
    assert all(c.prompt_tokens == 200 and c.finish_reason != "error" for c in back)
    assert all(c.extra["cached_prompt_tokens"] >= 128 for c in back)


def test_end_tokens_and_stop_strings(fresh: VllmEngine, tiny_ending: Path) -> None:
    (whole,) = fresh.generate(ask(1))
    stop = whole.text[3:5]
    (cut,) = fresh.generate(ask(1, stop=(stop,)))
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop) + 2], "stop")
    fresh.update_weights(tiny_ending)
    back = list(fresh.generate(ask(40)))
    lasts = {(c.token_ids or [])[-1] for c in back if c.finish_reason == "stop"}
    assert lasts == {1, 2}
    assert not any({1, 2} & set((c.token_ids or [])[:-1]) for c in back)


def test_bad_requests_are_completions(engine: VllmEngine) -> None:
    bad = [Request("empty", "", 0, Sampling()), Request("long", "a" * 256, 0, Sampling())]
    back = {c.request_id: c for c in engine.generate([*bad, *ask(2)])}
    assert {k: c.finish_reason.replace("stop", "length") for k, c in back.items()} == {
        "empty": "error",
        "long": "error",
        "r0": "length",
        "r1": "length",
    }
    assert "256" in str(back["long"].error)


def test_new_weights_arrive_in_the_running_engine(
    fresh: VllmEngine, tiny: Path, tiny_other: Path
) -> None:
    before = texts(fresh.generate(ask(8)))
    pids = [child.process.pid for child in fresh._children]
    proof = fresh.update_weights(tiny_other)
    assert "not compared" not in fresh.proven()
    (completion,) = list(fresh.generate(ask(1)))
    assert completion.logprobs == pytest.approx(plain_logprobs(tiny_other, completion), abs=1e-4)
    after = texts(fresh.generate(ask(8)))
    assert not set(before.values()) & set(after.values())
    assert fresh.update_weights(tiny) != proof
    assert texts(fresh.generate(ask(8))) == before
    assert [child.process.pid for child in fresh._children] == pids


def test_weights_that_do_not_arrive_are_detected(
    fresh: VllmEngine, tiny: Path, tiny_other: Path, tmp_path: Path
) -> None:
    """Files that change behind the engine's back: the proof reads the engine."""
    mixed = tmp_path / "mixed"
    shutil.copytree(tiny_other, mixed)
    proof = fresh._children[0].call("update_weights", str(mixed))
    shutil.copy(tiny / "model.safetensors", mixed)
    with pytest.raises(CurateError, match="differ"):
        fresh._children[0].call("prove_weights", str(mixed))
    assert proof == fresh._children[0].call("prove_weights", str(tiny_other))


def test_the_engine_works_after_closing_early(engine: VllmEngine) -> None:
    stream = engine.generate(ask(200, max_tokens=100))
    next(stream)
    stream.close()
    assert len(list(engine.generate(ask(4)))) == 4


def test_a_killed_engine_restarts_with_the_latest_weights(
    fresh: VllmEngine, tiny_other: Path
) -> None:
    fresh.update_weights(tiny_other)
    expected = texts(fresh.generate(ask(40)))
    stream = fresh.generate(ask(40))
    back = [next(stream)]
    os.kill(fresh._children[0].process.pid, signal.SIGKILL)
    back += stream
    assert texts(back) == expected
    assert fresh.restarts == 1


def test_an_adapter_changes_the_text(engine: VllmEngine, tiny: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny),
        LoraConfig(r=8, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    with_adapter = open_vllm(tiny, args={"lora_path": str(tmp_path / "adapter")})
    try:
        back = list(with_adapter.generate(ask(4)))
    finally:
        with_adapter.close()
    assert texts(back) != texts(engine.generate(ask(4)))
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny), tmp_path / "adapter"
    ).eval()
    for completion in back:
        prompt, tokens = completion.prompt_token_ids or [], completion.token_ids or []
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0].tolist()
        assert completion.logprobs == pytest.approx(expected, abs=1e-3)


def test_a_killed_parent_leaves_no_engine(tiny: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.engines.test_vllm import ask, open_vllm\n"
        "engine = open_vllm(Path(sys.argv[1])); stream = engine.generate(ask(10**5, "
        "max_tokens=200)); next(stream)\n"
        "print(engine._children[0].process.pid, flush=True)\n"
        "for _ in stream: pass"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tiny)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert gone([child], seconds=10)


def test_arguments_reach_vllm_and_wrong_ones_are_explained(tiny: Path) -> None:
    engine = open_vllm(tiny, args={"no_such_argument": 1})
    with pytest.raises(CurateError, match="no_such_argument"):
        engine.wait_ready()
    engine.close()
    with pytest.raises(UsageError, match="unknown engine"):
        open_engine(EngineConfig(name="vllm2"), tiny)


# --- vLLM's own server, through the openai engine


@pytest.fixture(scope="module")
def vllm_server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`vllm serve` on loopback; yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny)]
    command += [
        "--served-model-name",
        "tiny",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--dtype",
        "float32",
    ]
    command += [
        "--enforce-eager",
        "--max-model-len",
        "256",
        "--logprobs-mode",
        "processed_logprobs",
    ]
    command += [
        "--kv-cache-memory-bytes",
        str(1 << 28),
        "--no-enable-chunked-prefill",
        "--max-num-batched-tokens",
        "512",
    ]
    env = {
        **os.environ,
        **QUIET,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "TORCH_COMPILE_DISABLE": "1",
    }
    with log.open("w") as stream:
        server = subprocess.Popen(
            command, env=env, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        until = time.monotonic() + 300
        while True:
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < until, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def through(
    url: str, requests: list[Request], **args: Any
) -> tuple[dict[str, Completion], OpenAIEngine]:
    engine = OpenAIEngine(
        EngineConfig(
            name="openai", args={"base_url": url, "model": "tiny", "max_wait": 0.2, **args}
        )
    )
    try:
        return {c.request_id: c for c in engine.generate(requests)}, engine
    finally:
        engine.close()


def test_the_server_gives_tokens_logprobs_and_usage(
    vllm_server: str, engine: VllmEngine, tiny: Path
) -> None:
    back, client = through(
        vllm_server,
        ask(8),
        api="completions",
        send_logprobs=True,
        extra_body={"return_token_ids": True},
    )
    assert len(back) == 8
    for completion in back.values():
        assert completion.finish_reason in ("length", "stop")
        assert len(completion.token_ids or []) == completion.completion_tokens
        assert completion.logprobs == pytest.approx(plain_logprobs(tiny, completion), abs=1e-3)
    assert client.usage.completion_tokens == sum(c.completion_tokens for c in back.values())
    # the same seeds in process give the same texts as the server
    assert {k: c.text for k, c in back.items()} == texts(engine.generate(ask(8)))


def test_the_server_answers_chat_requests(vllm_server: str) -> None:
    prompt = '[{"role": "user", "content": "1 + 1?"}]'
    back, _ = through(
        vllm_server, [Request("a", prompt, 1, Sampling(max_tokens=8))], send_logprobs=True
    )
    assert back["a"].finish_reason == "length"
    assert back["a"].prompt_tokens == len("<|user|>1 + 1?\n<|assistant|>")
    assert len(back["a"].logprobs or []) == 8


def test_the_server_refuses_too_long_a_prompt(vllm_server: str) -> None:
    requests = [Request("long", "a" * 400, 0, Sampling(max_tokens=8)), *ask(2)]
    back, _ = through(vllm_server, requests, api="completions")
    assert back["long"].finish_reason == "error"
    assert back["r0"].text
    assert "400" in str(back["long"].error)


def test_a_bad_network_neither_loses_nor_repeats_requests(vllm_server: str) -> None:
    """429 with Retry-After, 500, hanging and dropped connections in turn, on half of the
    requests.
    """
    faults: list[Any] = [
        ("status", 429, {"retry-after": "0.2"}),
        ("status", 500, {}),
        ("hang", 3.0),
        ("drop",),
    ]

    def fault(number: int, body: dict[str, Any]) -> Any:
        return faults[number // 2 % 4] if number % 2 else None

    requests = ask(40)
    expected, _ = through(vllm_server, requests, api="completions")
    with Loopback(behind=vllm_server, fault=fault) as proxy:
        args = {"api": "completions", "timeout": 2.0, "concurrency": 8, "retries": 12}
        back, client = through(proxy.url, requests, **args)
    assert {k: c.text for k, c in back.items()} == {k: c.text for k, c in expected.items()}
    assert len(proxy.seen) == 40 + client.usage.retries
    assert client.usage.retries >= 20
    assert client.usage.errors == 0
