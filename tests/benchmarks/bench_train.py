"""Training beside TRL, in one run: the same model, sequences, dtype and threads, each contender in an own process.

    python tests/benchmarks/bench_train.py MODEL_DIR sft            tokens/s on ragged lengths, TRL grouping by length
    python tests/benchmarks/bench_train.py MODEL_DIR loss           one GRPO update without rollouts: seconds and memory
    python tests/benchmarks/bench_train.py MODEL_DIR grpo           a whole GRPO step, rollouts included

Needs `pip install trl==1.16.0`; without it only ours runs. Contenders alternate, `--rounds` times, and the best round
of each counts. All rewards differ, so that we leave out no completion. Memory is the peak of the process during the
update, less what it held before the model was loaded, less weights, gradients and two moments in fp32 (16 bytes a
parameter).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "Add the two numbers and say the result, with a short reason. "


def status(name: str) -> float:
    """A line of /proc/self/status in GiB: VmRSS now, VmHWM at most since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**20


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def draw(count: int, low: int, high: int, seed: int) -> list[list[int]]:
    dice = random.Random(seed)
    return [[dice.randrange(10, 40_000) for _ in range(dice.randint(low, high))] for _ in range(count)]


# --- what each contender does, in its own process


def sft(contender: str, args: argparse.Namespace) -> dict[str, float]:
    """Examples of ragged lengths, nothing shared between them; bf16 where the processor has it."""
    count = args.batch * args.steps
    dice = random.Random(0)
    lengths = [min(600, int(dice.lognormvariate(4.6, 0.7)) + 8) for _ in range(count)]
    prompts = [draw(1, n // 3, n // 3, i)[0] for i, n in enumerate(lengths)]
    completions = [draw(1, n - n // 3, n - n // 3, 10_000 + i)[0] for i, n in enumerate(lengths)]
    if contender == "trl":
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        rows = [
            {"input_ids": p + c, "completion_mask": [0] * len(p) + [1] * len(c)}
            for p, c in zip(prompts, completions, strict=True)
        ]
        options = SFTConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=args.batch,
            num_train_epochs=1,
            train_sampling_strategy="group_by_length",
            completion_only_loss=True,
            max_length=None,
            bf16=args.bf16,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            logging_steps=1000,
            dataloader_pin_memory=False,
            gradient_checkpointing=False,
        )
        trainer = SFTTrainer(model=trl_model(args.model), args=options, train_dataset=Dataset.from_list(rows))
        started = time.perf_counter()
        trainer.train()
    else:
        from curate.train.config import OptimConfig
        from curate.train.layout import Sequence_
        from curate.train.optim import make_optimizer, optimizer_step
        from curate.train.sft import Example, likelihood, sft_step
        from curate.train.world import World

        policy = our_policy(args)
        optimizer = make_optimizer(policy, OptimConfig())
        rows = [Example(Sequence_(p, c), 1.0, "", 0.5) for p, c in zip(prompts, completions, strict=True)]
        started = time.perf_counter()
        for at in range(0, count, args.batch):
            sft_step(policy, rows[at : at + args.batch], World(), likelihood)
            optimizer_step(policy, optimizer, 1e-6, 1.0)
    seconds = time.perf_counter() - started
    return {"tokens_per_second": sum(lengths) / seconds, "seconds": seconds}


def loss(contender: str, args: argparse.Namespace) -> dict[str, float]:
    """One group of `samples` completions of `completion` tokens of one prompt: forward, backward, AdamW."""
    import torch

    before = status("VmRSS")
    prompt = draw(1, args.prompt, args.prompt, 0)[0]
    completions = draw(args.samples, args.completion, args.completion, 1)
    advantages = [(-1.0) ** i for i in range(args.samples)]
    if contender == "trl":
        trainer = trl_trainer(args, [PROMPT], lambda completions, **_: [0.0] * len(completions))
        trainer.current_gradient_accumulation_steps = 1  # what its own loop would have set
        model = trainer.model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
        inputs = {
            "prompt_ids": torch.tensor([prompt] * args.samples),
            "prompt_mask": torch.ones(args.samples, args.prompt, dtype=torch.long),
            "completion_ids": torch.tensor(completions),
            "completion_mask": torch.ones(args.samples, args.completion, dtype=torch.long),
            "advantages": torch.tensor(advantages),
            "num_items_in_batch": torch.tensor(args.samples * args.completion),
        }

        def update() -> None:
            model.train()
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                value = trainer.compute_loss(model, inputs)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    else:
        from curate.train.config import GRPOConfig
        from curate.train.grpo import Row, grpo_step
        from curate.train.layout import Sequence_
        from curate.train.optim import make_optimizer, optimizer_step
        from curate.train.world import World

        policy = our_policy(args)
        model = policy.model
        config = GRPOConfig(model=str(args.model))
        optimizer = make_optimizer(policy, config.optim)
        rows = [Row(Sequence_(prompt, c), "", 0, a, True, None) for c, a in zip(completions, advantages, strict=True)]

        def update() -> None:
            grpo_step(policy, rows, config, World(), 1)
            optimizer_step(policy, optimizer, 1e-6, 1.0)

    update()
    fixed = 16 * sum(p.numel() for p in model.parameters()) / 2**30
    seconds = []
    reset_peak()
    for _ in range(args.steps):
        started = time.perf_counter()
        update()
        seconds.append(time.perf_counter() - started)
    return {"seconds": min(seconds), "memory_above_state_gib": status("VmHWM") - before - fixed, "state_gib": fixed}


def grpo(contender: str, args: argparse.Namespace) -> dict[str, float]:
    """Whole steps: `problems` prompts, `samples` completions of up to `completion` tokens each, random rewards."""
    padding = PROMPT * max(1, args.prompt // 12)
    prompts = [f"{padding}{i} + {i + 3} =" for i in range(args.problems * args.steps)]

    def reward(texts: list[str]) -> list[float]:
        return [random.Random(text).random() for text in texts]

    if contender == "trl":
        trainer = trl_trainer(args, prompts, lambda completions, **_: reward(completions))
        started = time.perf_counter()
        trainer.train()
        seconds = (time.perf_counter() - started) / args.steps
        return {"seconds_a_step": seconds}
    from curate.engines import EngineConfig, open_engine
    from curate.records import Problem, Verdict
    from curate.train.config import GRPOConfig
    from curate.train.grpo import train_grpo
    from curate.warehouse import Warehouse

    class Right:
        def verify_batch(self, problems: list[Problem], completions: list[str]) -> list[Verdict]:
            return [Verdict("correct", verifier="bench", verifier_version="1") for _ in problems]

    dtype = "bfloat16" if args.bf16 else "float32"
    engine = open_engine(EngineConfig(name=contender, dtype=dtype, max_model_len=1024), args.model)
    config = GRPOConfig.model_validate(
        {
            "model": str(args.model),
            "template": "plain",
            "form": "plain",
            "steps": args.steps,
            "prompts": args.problems,
            "samples": args.samples,
            "rewards": {"tests.benchmarks.bench_train:spread": 1.0},
            "sampling": {"max_tokens": args.completion},
            "compute": {"precision": "bf16" if args.bf16 else "fp32", "device": "cpu"},
            "checkpoint": {"every": 0, "dtype": dtype},
        }
    )
    problems = [Problem(question=p, reference="1", verifier="exact", problem_id=f"{i}") for i, p in enumerate(prompts)]
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        train_grpo(config, Warehouse(folder), engine, Right(), problems, lambda s, t, m: seconds.append(m["seconds"]))
    engine.close()
    return {"seconds_a_step": sum(seconds) / len(seconds)}


def spread(frame: Any) -> Any:
    """A reward that differs between completions."""
    import polars as pl

    return pl.Series([random.Random(text).random() for text in frame["completion"]])


def our_policy(args: argparse.Namespace) -> Any:
    from curate.train.config import ModelConfig
    from curate.train.model import load_policy

    compute = ModelConfig(precision="bf16" if args.bf16 else "fp32", device="cpu", micro_batch_tokens=args.micro)
    return load_policy(args.model, compute)[0]


def trl_model(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def trl_trainer(args: argparse.Namespace, prompts: list[str], reward: Callable[..., list[float]]) -> Any:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    options = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=args.problems * args.samples,
        num_generations=args.samples,
        max_completion_length=args.completion,
        max_steps=args.steps,
        learning_rate=1e-6,
        beta=0.0,
        bf16=args.bf16,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        logging_steps=1000,
        dataloader_pin_memory=False,
        gradient_checkpointing=False,
    )
    return GRPOTrainer(
        model=trl_model(args.model),
        reward_funcs=reward,
        args=options,
        train_dataset=Dataset.from_list([{"prompt": p} for p in prompts]),
        processing_class=AutoTokenizer.from_pretrained(args.model),
    )


# --- running them in turn

WORK: dict[str, Callable[[str, argparse.Namespace], dict[str, float]]] = {"sft": sft, "loss": loss, "grpo": grpo}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("what", choices=list(WORK))
    parser.add_argument("--contenders", default="")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--problems", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=20)
    parser.add_argument("--completion", type=int, default=64)
    parser.add_argument("--micro", type=int, default=2048, help="compute.micro_batch_tokens of ours")
    parser.add_argument("--fp32", dest="bf16", action="store_false")
    parser.add_argument("--child", default="")
    args = parser.parse_args()
    if args.child:
        print("RESULT " + json.dumps(WORK[args.what](args.child, args)))
        return
    names = (
        args.contenders.split(",")
        if args.contenders
        else (["transformers", "trl"] if args.what == "grpo" else ["ours", "trl"])
    )
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
            paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
            done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
            line = next((text for text in done.stdout.splitlines() if text.startswith("RESULT ")), None)
            if line is None:
                print(f"{name}: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
                continue
            results[name].append(json.loads(line.removeprefix("RESULT ")))
    for name, found in results.items():
        for key in found[0] if found else ():
            values = sorted(r[key] for r in found)
            best = values[-1 if "per_second" in key else 0]
            print(f"{name:14}{key:26} best {best:9.3f}   all {[round(v, 3) for v in values]}")


if __name__ == "__main__":
    main()
