"""Compare the bill of a small pipeline with its real run on this machine: tokens, memory and time.

    python -m tests.rehearsal.measured [--time]

Tokens are compared as they are, with the length of completions that the first stage had. From the
memory of a process, that of the same training with a model of nearly no size is subtracted. For
time, the rate of this machine is measured by a first training, and the processor seconds of a
second one, three times as long, are predicted with it: nothing is claimed about a GPU, and the
start of a process is left out of both.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from curate.engines.testing.tiny import make_tiny_model
from curate.job import Context
from curate.pipeline.config import load_pipeline
from curate.pipeline.runner import Pipeline
from curate.rehearsal import costs
from curate.rehearsal.architectures import model_of
from curate.rehearsal.gpus import gpu_named
from curate.rehearsal.job import rehearse

WIDTH = {"hidden": 512, "layers": 8, "heads": 8, "kv_heads": 4, "intermediate": 2048}
NARROW = {"hidden": 32, "layers": 1, "heads": 1, "kv_heads": 1, "intermediate": 32}
PLAIN = {"template": "plain", "form": "plain"}
MICRO = 1024  # tokens at once
LONGEST = 1024
ROWS = 24
BEFORE = ["problems", "solutions", "annotate"]


def pipeline(folder: Path, rows: int, model: Path) -> Path:
    """A pipeline over `rows` sums: sampling, worked solutions, SFT, GRPO and an evaluation."""
    sums = [
        {
            "question": f"What is {a} + {a + 1}?",
            "reference": str(2 * a + 1),
            "solution": f"We add {a} and {a + 1}. " * 4 + f"So {a} + {a + 1} = {2 * a + 1}.",
            "verifier": "math",
        }
        for a in range(10, 10 + rows)
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    tokens = {"max_tokens": 20}
    compute = {"precision": "fp32", "micro_batch_tokens": MICRO}
    stages: dict[str, Any] = {
        "problems": {
            "do": "problems",
            "sources": [{"source": "files", "path": str(folder / "sums.jsonl")}],
            "held_out": 4,
        },
        "harvest": {"do": "generate", "recipe": "r1-zero", "model": str(model),
                    "problems": "@problems", "samples": 2, "sampling": tokens},
        "solutions": {"do": "generate", "recipe": "cold-start", "source": "solutions",
                      "problems": "@problems"},
        "annotate": {"do": "annotate", "traces": ["@solutions"]},
        "corpus": {"do": "filter", "rules": "unfiltered", "traces": ["@solutions"],
                   "after": ["annotate"]},
        "sft": {"do": "sft", "model": str(model), "corpus": "@corpus", "batch_size": 4,
                "max_length": LONGEST, "compute": compute},
        "grpo": {"do": "grpo", "model": str(model), "problems": "@problems", "steps": 3,
                 "prompts": 4, "samples": 4, "sampling": tokens, **PLAIN,
                 "loss": {"beta": 0.01}, "compute": compute},
        "evaluate": {"do": "evaluate", "problems": "@problems", "samples": 3, "sampling": tokens,
                     **PLAIN, "models": [{"label": "a", "model": str(model)}]},
    }  # fmt: skip
    config = {"name": f"measured-{rows}", "engine": {"name": "transformers"}, "stages": stages}
    path = folder / f"measured-{rows}.yaml"
    path.write_text(json.dumps(config))
    return path


def run(path: Path, folder: Path, only: list[str]) -> dict[str, float]:
    """Run stages for real in a process of their own; return its seconds and memory."""
    command = [sys.executable, "-m", "tests.rehearsal.measured", str(path), str(folder), *only]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_here(path: Path, folder: Path, only: list[str]) -> dict[str, float]:
    """Run stages in this process, whose memory before and after them is measured."""
    import torch  # noqa: F401
    import transformers  # noqa: F401

    before = resident("VmRSS")
    began = time.process_time()
    config, stages = load_pipeline(path)
    with Context(folder) as context:
        Pipeline(config, stages, context).run(only)
    return {"seconds": time.process_time() - began, "memory": resident("VmHWM") - before}


def resident(name: str) -> int:
    """Bytes of memory of this process: VmRSS is the present number, VmHWM the highest one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def tokens_of(folder: Path) -> dict[str, dict[str, float]]:
    """Prompt and sampled tokens of each recipe, and the tokens that SFT trained on."""
    from curate.warehouse import Warehouse

    wh = Warehouse(folder)
    rows = wh.sql(
        "SELECT recipe, sum(prompt_tokens) AS prompt, sum(completion_tokens) AS sampled "
        "FROM traces WHERE engine = 'transformers' GROUP BY recipe"
    )
    return {row["recipe"]: row for row in rows.iter_rows(named=True)}


def corpus_tokens(folder: Path, model: Path) -> float:
    """Tokens of prompts and completions of the corpus, which all go through the model."""
    from curate.engines.base import encode, load_tokenizer
    from curate.warehouse import Warehouse

    tokenizer = load_tokenizer(model)
    rows = Warehouse(folder / "wh").sql("SELECT prompt, completion FROM latest_corpora").rows()
    return float(sum(len(encode(tokenizer, text)) for row in rows for text in row))


def memory_of_program(path: Path, folder: Path) -> float:
    """Bytes that the same training takes with a model of nearly no size."""
    narrow = make_tiny_model(folder / "narrow", max_len=2048, **NARROW)
    config = json.loads(path.read_text())
    config["stages"]["sft"]["model"] = str(narrow)
    other = folder / "narrow.yaml"
    other.write_text(json.dumps(config))
    return run(other, folder / "wh", ["sft"])["memory"]


def seconds_of_longer(path: Path, folder: Path, seconds: float) -> tuple[float, float]:
    """Predicted and measured seconds of a training three times as long as one of `seconds`."""
    start = run(path, folder, ["sft"])["seconds"]  # it is done: imports and plan
    config = json.loads(path.read_text())
    config["stages"]["sft"]["epochs"] = 3
    path.write_text(json.dumps(config))
    return 3 * (seconds - start), run(path, folder, ["sft"])["seconds"] - start


def main(folder: Path, timed: bool) -> dict[str, tuple[float, float]]:
    """Estimate and measurement of each figure."""
    model = make_tiny_model(folder / "model", max_len=2048, **WIDTH)
    path = pipeline(folder, ROWS, model)
    bill = rehearse(path, [], gpu_named("h100"), warehouse=folder / "wh")
    assert not bill.faults, bill.faults
    lines = {line.stage: line for line in bill.bills}
    run(path, folder / "wh", ["corpus", "grpo", "evaluate", "harvest", *BEFORE])
    trained = run(path, folder / "wh", ["sft"])
    program = memory_of_program(path, folder)
    real = tokens_of(folder / "wh")
    # The share of max_tokens that this model's completions have, as a user knows it from a trial.
    length = float(real["r1-zero"]["sampled"]) / lines["harvest"].sampled_tokens
    figures = {}
    for stage, recipe in (("harvest", "r1-zero"), ("grpo", "grpo"), ("evaluate", "evaluate")):
        figures[f"{stage}: prompt tokens"] = lines[stage].prompt_tokens, real[recipe]["prompt"]
        sampled = length * lines[stage].sampled_tokens
        figures[f"{stage}: sampled tokens"] = sampled, real[recipe]["sampled"]
    facts = model_of(str(model))
    memory = costs.training_memory(
        facts, MICRO, 1, recomputes=False, half=False, overhead=0, tiles=2 * 2**23
    )
    figures["sft: memory in MB"] = memory.total / 1e6, (trained["memory"] - program) / 1e6
    figures["sft: trained tokens"] = lines["sft"].trained_tokens, corpus_tokens(folder, model)
    if timed:
        figures["sft x 3: seconds"] = seconds_of_longer(path, folder / "wh", trained["seconds"])
    return figures


if __name__ == "__main__":
    if len(sys.argv) > 2:
        result = run_here(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
        print("\n" + json.dumps(result))
    else:
        with tempfile.TemporaryDirectory() as place:
            for name, (estimate, measured) in main(Path(place), "--time" in sys.argv).items():
                ratio = estimate / float(measured)
                print(f"{name:<28} {estimate:>12,.0f} {measured:>12,.0f}  {ratio:.2f}")
