"""Training compared with TRL: the same model, sequences, dtype and threads, in separate processes.

    python tests/benchmarks/bench_train.py MODEL_DIR sft     tokens/s on ragged lengths
    python tests/benchmarks/bench_train.py MODEL_DIR loss    seconds and memory of one GRPO update
    python tests/benchmarks/bench_train.py MODEL_DIR grpo    a whole GRPO step, rollouts included

Contenders: `ours` (sft, loss), `vllm` and `transformers` (grpo: ours with that engine); `trl`; the
rows of a micro-batch after a colon (`trl:8`; default: the whole batch, for ours what `--micro`
says); `ours-plain`: without lean layers; for sft `trl-packing`; for grpo `trl-vllm` (vLLM in its
process, as TRL starts it) and `trl-vllm-plain` (the same without its correction for the sampler,
which costs it a forward pass; ours corrects). Needs `pip install trl==1.16.0`; without it only ours
runs. Contenders alternate, `--rounds` times, and the best of each counts, except the first GRPO
step of each process. Weights are fp32 and products bf16 (`--fp32`: fp32) for all; TRL's gradient
checkpointing, on by default, is off unless `--checkpointing` switches it on for both. All rewards
differ, so that we leave out no completion.

Memory is the peak of the process during an update less its static state, measured in two ways: what
it holds at rest after an update (libraries, weights, moments) and gradients (4 bytes per
parameter); and what it holds with the model loaded but not used, with gradients and moments (12
bytes per parameter), which counts the libraries that a first update loads. With `--device cuda`
memory is what the GPU's allocator gave out, less 16 bytes per parameter. `cores_taken_by_others`
shows how busy the machine was with other work.

For grpo all contenders get a copy of the model whose end token is one it never samples (`--end`),
so that every completion has its full length: else the contender that happens to sample shorter ones
looks faster.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import resource
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
    return [
        [dice.randrange(10, 40_000) for _ in range(dice.randint(low, high))] for _ in range(count)
    ]


# --- what each contender does, in its own process


def sft(contender: str, args: argparse.Namespace) -> dict[str, float]:
    """Examples of ragged lengths, nothing shared between them; bf16 where the processor has it."""
    count = args.batch * args.steps
    dice = random.Random(0)
    lengths = [min(600, int(dice.lognormvariate(4.6, 0.7)) + 8) for _ in range(count)]
    prompts = [draw(1, n // 3, n // 3, i)[0] for i, n in enumerate(lengths)]
    completions = [draw(1, n - n // 3, n - n // 3, 10_000 + i)[0] for i, n in enumerate(lengths)]
    if contender.startswith("trl"):
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        rows = [
            {"input_ids": p + c, "completion_mask": [0] * len(p) + [1] * len(c)}
            for p, c in zip(prompts, completions, strict=True)
        ]
        packing = contender.startswith("trl-packing")
        micro = rows_of(contender, args.batch)
        # Packed rows hold 608 tokens, about four examples each: as many tokens per step as others.
        options = SFTConfig(
            **trl_options(args),
            per_device_train_batch_size=1 if packing else micro,
            gradient_accumulation_steps=args.batch // 4 if packing else args.batch // micro,
            num_train_epochs=1,
            train_sampling_strategy="random" if packing else "group_by_length",
            packing=packing,
            completion_only_loss=True,
            max_length=608 if packing else None,
        )
        trainer = SFTTrainer(
            model=trl_model(args.model), args=options, train_dataset=Dataset.from_list(rows)
        )
        started = time.perf_counter()
        trainer.train()
    else:
        from curate.train.config import OptimConfig
        from curate.train.model.layout import PromptCompletion
        from curate.train.optim import make_optimizer, optimizer_step
        from curate.train.ranks import Ranks
        from curate.train.sft import TrainingExample, likelihood, sft_step

        policy = our_policy(contender, args)
        optimizer = make_optimizer(policy, OptimConfig())
        rows = [
            TrainingExample(PromptCompletion(p, c), 1.0, "", 0.5)
            for p, c in zip(prompts, completions, strict=True)
        ]
        started = time.perf_counter()
        for at in range(0, count, args.batch):
            sft_step(policy, rows[at : at + args.batch], Ranks(), likelihood)
            optimizer_step(policy, optimizer, 1e-6, 1.0)
    if args.device == "cuda":
        import torch

        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return {"tokens_per_second": sum(lengths) / seconds, "seconds": seconds}


def loss(contender: str, args: argparse.Namespace) -> dict[str, float]:
    """One group of `samples` completions of `completion` tokens: forward, backward, AdamW."""
    import torch

    prompt = draw(1, args.prompt, args.prompt, 0)[0]
    completions = draw(args.samples, args.completion, args.completion, 1)
    advantages = [(-1.0) ** i for i in range(args.samples)]
    if contender.startswith("trl"):
        micro = rows_of(contender, args.samples)
        trainer = trl_trainer(
            args, [PROMPT], lambda completions, **_: [0.0] * len(completions), args.samples
        )
        # what its own loop would have set
        trainer.current_gradient_accumulation_steps = args.samples // micro
        model = trainer.model
        if args.checkpointing:  # as its own loop does when it begins
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
        parts: list[dict[str, Any]] = [
            {
                "prompt_ids": torch.tensor([prompt] * micro),
                "prompt_mask": torch.ones(micro, args.prompt, dtype=torch.long),
                "completion_ids": torch.tensor(completions[at : at + micro]),
                "completion_mask": torch.ones(micro, args.completion, dtype=torch.long),
                "advantages": torch.tensor(advantages[at : at + micro]),
                "num_items_in_batch": torch.tensor(args.samples * args.completion),
            }
            for at in range(0, args.samples, micro)
        ]
        parts = [{key: value.to(args.device) for key, value in part.items()} for part in parts]

        def update() -> None:
            model.train()
            for inputs in parts:
                with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
                    value = trainer.compute_loss(model, inputs)
                value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    else:
        from curate.train.config import GRPOConfig
        from curate.train.grpo import RolloutRow, grpo_step
        from curate.train.model.layout import PromptCompletion
        from curate.train.optim import make_optimizer, optimizer_step
        from curate.train.ranks import Ranks

        policy = our_policy(contender, args)
        model = policy.model
        config = GRPOConfig(model=str(args.model))
        optimizer = make_optimizer(policy, config.optim)
        rows = [
            RolloutRow(PromptCompletion(prompt, c), "", 0, a, True, None)
            for c, a in zip(completions, advantages, strict=True)
        ]

        def update() -> None:
            grpo_step(policy, rows, config, Ranks(), 1)
            optimizer_step(policy, optimizer, 1e-6, 1.0)

    parameters = sum(p.numel() for p in model.parameters()) / 2**30
    if args.device == "cuda":
        return loss_on_gpu(update, parameters, args.steps)
    ctypes.CDLL(None).malloc_trim(0)
    loaded = status("VmRSS") + 12 * parameters
    update()
    ctypes.CDLL(None).malloc_trim(0)
    rest = status("VmRSS") + 4 * parameters
    seconds = []
    reset_peak()
    for _ in range(args.steps):
        started = time.perf_counter()
        update()
        seconds.append(time.perf_counter() - started)
    peak = status("VmHWM")
    return {
        "seconds": min(seconds),
        "memory_above_rest_gib": peak - rest,
        "memory_above_loaded_gib": peak - loaded,
        "rest_gib": rest,
        "loaded_gib": loaded,
    }


def loss_on_gpu(update: Callable[[], None], parameters: float, steps: int) -> dict[str, float]:
    """Seconds, and peak allocated memory beyond weights, moments and gradients (16 bytes each)."""
    import torch

    update()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        update()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / 2**30
    return {
        "seconds": min(seconds),
        "memory_above_state_gib": peak - 16 * parameters,
        "peak_gib": peak,
    }


def grpo(contender: str, args: argparse.Namespace) -> dict[str, float]:
    """Whole steps: `problems` prompts with `samples` completions each, and random rewards."""
    import torch

    padding = PROMPT * max(1, args.prompt // 14)
    # The number comes first: what prompts of different problems share must not be what is measured.
    prompts = [f"{i} + {i + 3} = ? {padding}".strip() for i in range(args.problems * args.steps)]

    def reward(texts: list[str]) -> list[float]:
        return [random.Random(text).random() for text in texts]

    if contender.startswith("trl"):
        micro = rows_of(contender, args.problems * args.samples)
        trainer = trl_trainer(
            args, prompts, lambda completions, **_: reward(completions), micro, contender
        )
        times = step_times(trainer)
        trainer.train()
        lengths = [
            h["completions/mean_length"]
            for h in trainer.state.log_history
            if "completions/mean_length" in h
        ]
        figures = {
            "seconds_a_step": min(times[1:]),
            "tokens_a_completion": sum(lengths) / len(lengths),
        }
        return figures | {"threads": float(torch.get_num_threads())}
    from curate.engines import EngineConfig, open_engine
    from curate.records import Problem, Verdict
    from curate.train.config import GRPOConfig
    from curate.train.grpo import train_grpo
    from curate.warehouse import Warehouse

    class Right:
        def verify_batch(self, problems: list[Problem], *_: Any, **__: Any) -> list[Verdict]:
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
            "compute": our_compute(contender, args),
            "checkpoint": {"every": 0, "dtype": dtype},
        }
    )
    problems = [
        Problem(question=p, reference="1", verifier="exact", problem_id=f"{i}")
        for i, p in enumerate(prompts)
    ]
    seen: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        train_grpo(
            config, Warehouse(folder), engine, Right(), problems, lambda s, t, m: seen.append(m)
        )
    engine.close()
    best = min(seen[1:], key=lambda m: m["seconds"])
    return {
        "seconds_a_step": best["seconds"],
        "seconds_rollout": best["seconds_rollout"],
        "seconds_train": best["seconds_train"],
        "tokens_a_completion": sum(m["mean_length"] for m in seen) / len(seen),
    }


def spread(frame: Any) -> Any:
    """A reward that differs between completions."""
    import polars as pl

    return pl.Series([random.Random(text).random() for text in frame["completion"]])


def rows_of(contender: str, default: int) -> int:
    """Rows a micro-batch: the number after the colon of a contender's name."""
    return int(contender.partition(":")[2] or default)


def our_compute(contender: str, args: argparse.Namespace) -> dict[str, Any]:
    rows = rows_of(contender, 0)
    return {
        "precision": "bf16" if args.bf16 else "fp32",
        "device": args.device,
        "micro_batch_tokens": args.prompt + rows * args.completion if rows else args.micro,
        "gradient_checkpointing": args.checkpointing,
    }


def our_policy(contender: str, args: argparse.Namespace) -> Any:
    from curate.train.config import ModelConfig
    from curate.train.model import policy
    from curate.train.model.loading import load_policy

    if contender.startswith("ours-plain"):
        policy.use_lean_layers = lambda *_: None
    return load_policy(args.model, ModelConfig.model_validate(our_compute(contender, args)))[0]


def trl_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(),
        "bf16": args.bf16,
        "use_cpu": args.device == "cpu",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
        "dataloader_pin_memory": False,
        "gradient_checkpointing": args.checkpointing,
    }


def trl_model(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def trl_vllm(contender: str) -> dict[str, Any]:
    """TRL's vLLM, in its own process; on a CPU it must not bind the trainer's threads to cores."""
    if not contender.startswith("trl-vllm"):
        return {}
    os.environ |= {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    correction = not contender.startswith("trl-vllm-plain")
    return {
        "use_vllm": True,
        "vllm_max_model_length": 1024,
        "vllm_importance_sampling_correction": correction,
    }


def trl_trainer(
    args: argparse.Namespace,
    prompts: list[str],
    reward: Callable[..., list[float]],
    micro: int,
    contender: str = "trl",
) -> Any:
    """`micro` completions a micro-batch, all of a step's sampled at once."""
    rollout = trl_vllm(contender)
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    whole = max(micro, args.problems * args.samples) if len(prompts) > 1 else micro
    options = GRPOConfig(
        **trl_options(args),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=whole // micro,
        num_generations=args.samples,
        max_completion_length=args.completion,
        max_steps=args.steps,
        learning_rate=3e-6,
        beta=0.0,
        **rollout,
    )
    return GRPOTrainer(
        model=trl_model(args.model),
        reward_funcs=reward,
        args=options,
        train_dataset=Dataset.from_list([{"prompt": p} for p in prompts]),
        processing_class=AutoTokenizer.from_pretrained(args.model),
    )


def step_times(trainer: Any) -> list[float]:
    """A list that grows by the seconds of each step while the trainer runs."""
    from transformers import TrainerCallback

    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter() - self.began)

    trainer.add_callback(Clock())
    return times


def without_end(model: Path, end: str, target: Path, dtype: str) -> Path:
    """A copy of a model, with linked weights, whose only end token is `end`; sampled in `dtype`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    number = tokenizer.convert_tokens_to_ids(end)
    if number in (None, tokenizer.unk_token_id):
        raise SystemExit(f"the tokenizer of {model} has no token {end}: name a rare one with --end")
    tokenizer.eos_token = end
    tokenizer.save_pretrained(target)
    for path in model.glob("*.safetensors*"):
        (target / path.name).symlink_to(path.resolve())
    for name in ("config.json", "generation_config.json"):
        if (model / name).exists():
            config = json.loads((model / name).read_text()) | {"eos_token_id": number}
            config |= {"dtype": dtype} if name == "config.json" else {}
            (target / name).write_text(json.dumps(config))
    return target


# --- running them in turn

WORK: dict[str, Callable[[str, argparse.Namespace], dict[str, float]]] = {
    "sft": sft,
    "loss": loss,
    "grpo": grpo,
}


def measured(command: list[str]) -> dict[str, float] | None:
    """Run a contender's process and return its result; if it failed, print its error: None."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    began, busy, own = time.perf_counter(), busy_seconds(), own_seconds()
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    others = (busy_seconds() - busy - (own_seconds() - own)) / (time.perf_counter() - began)
    line = next((text for text in done.stdout.splitlines() if text.startswith("RESULT ")), None)
    if line is None:
        print(
            f"{command[-1]}: {(done.stderr.strip().splitlines() or ['no output'])[-1]}", flush=True
        )
        return None
    result: dict[str, float] = json.loads(line.removeprefix("RESULT "))
    return result | {"cores_taken_by_others": round(others, 2)}


def busy_seconds() -> float:
    """Processor time that the whole machine has used: user, nice, system, interrupts."""
    fields = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]))
    return (sum(fields[:3]) + sum(fields[5:7])) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    parser.add_argument(
        "--micro", type=int, default=1280, help="compute.micro_batch_tokens of ours"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--fp32", dest="bf16", action="store_false")
    parser.add_argument(
        "--checkpointing", action="store_true", help="gradient checkpointing, in all contenders"
    )
    parser.add_argument(
        "--end", default="<file_sep>", help="grpo: a token that the model never says"
    )
    parser.add_argument("--child", default="")
    args = parser.parse_args()
    if args.child:
        print("\nRESULT " + json.dumps(WORK[args.what](args.child, args)), flush=True)
        return
    names = (
        args.contenders.split(",")
        if args.contenders
        else (["transformers", "trl"] if args.what == "grpo" else ["ours", "trl"])
    )
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        dtype = "bfloat16" if args.bf16 else "float32"
        model = (
            without_end(args.model, args.end, Path(folder), dtype)
            if args.what == "grpo"
            else args.model
        )
        for name in names * args.rounds:
            command = [sys.executable, __file__, str(model), *sys.argv[2:], "--child", name]
            if (figures := measured(command)) is not None:
                results[name].append(figures)
                print(f"  {name}: {json.dumps(figures)}", flush=True)
    for name, figures in results.items():
        for key in figures[0] if figures else ():
            values = sorted(r[key] for r in figures)
            best = values[-1 if "per_second" in key else 0]
            print(
                f"{name:14}{key:26} best {best:9.3f}   all {[round(v, 3) for v in values]}",
                flush=True,
            )


if __name__ == "__main__":
    main()
