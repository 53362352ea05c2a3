"""Configs of other trainers for an exported corpus: data in their shape, and a file to
run.

    curate export cold-start --out data --for trl --model Qwen/Qwen2.5-1.5B

writes `data/data/train-*.parquet`, `data/sft.yaml` and a card with the command. What is trained
follows from the corpus: SFT on traces, RL on the prompts of a corpus `kind: rl`, DPO on pairs
(`--format preference`). Settings are modest defaults to begin with, not a recipe.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import yaml

from curate.errors import UsageError

# Ours: one or two epochs at common rates, and room for a long chain of thought.
LENGTH = 8192
SFT_RATE, DPO_RATE, RL_RATE = 1e-5, 5e-7, 1e-6
BATCH = 32


@dataclass(frozen=True)
class Job:
    """A training: `sft`, `rl` or `dpo`, on rows of a corpus, from a model."""

    corpus: str
    task: str
    model: str
    suffix: str  # .parquet or .jsonl

    @property
    def files(self) -> str:
        """The data as a pattern, from the folder of the config."""
        return f"data/train-*{self.suffix}"


@dataclass(frozen=True)
class Trainer:
    """A trainer: the format of its data by task, and the files to write by name.

    command: how to run it in the folder. package: what to install.
    """

    package: str
    formats: dict[str, str]
    files: Callable[[Job], dict[str, str]]
    command: Callable[[Job], str]


def prepare(name: str, job: Job) -> tuple[Trainer, dict[str, str]]:
    """Return the trainer, and its files by name. UsageError if it does not support the task."""
    trainer = TRAINERS[name]
    if name == "verl" and job.suffix != ".parquet":
        raise UsageError("--for verl: it reads Parquet only; leave out --suffix")
    if job.task not in trainer.formats:
        tasks = {"sft": "traces", "rl": "prompts (a rule set with kind: rl)", "dpo": "pairs"}
        raise UsageError(
            f"--for {name}: it is given {' or '.join(tasks[t] for t in trainer.formats)} here, and "
            f"this export has {tasks[job.task]}"
        )
    return trainer, trainer.files(job)


def training_section(name: str, job: Job) -> list[str]:
    """Section of a card on how to train."""
    trainer = TRAINERS[name]
    verifier = (
        ["", "The reward is the verdict of `curate`'s verifiers: install it next to the trainer."]
        if job.task == "rl"
        else []
    )
    return [
        f"## Training with {name}",
        "",
        "```sh",
        f"pip install {trainer.package}",
        trainer.command(job),
        "```",
        *verifier,
    ]


def _yaml(head: str, values: dict[str, object]) -> str:
    return f"# {head}\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}"


def _shell(*words: str) -> str:
    """A script that runs in its own folder; `$FILES` are the files of data, with commas."""
    lines = " \\\n  ".join(words)
    head = '#!/usr/bin/env bash\nset -euo pipefail\ncd "$(dirname "$0")"\n'
    files = 'FILES=$(ls "$PWD"/data/train-* | paste -sd,)\n' if "$FILES" in lines else ""
    return f'{head}{files}{lines} "$@"\n'


def _reward(function: str) -> str:
    """A file for trainers that load a reward by path."""
    return (
        '"""The reward: the verdict of curate\'s verifiers."""\n\n'
        f'from curate.verify.trainers import {function}\n\n__all__ = ["{function}"]\n'
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# -- TRL -----------------------------------------------------------------------------------------


def _trl(job: Job) -> dict[str, str]:
    shared: dict[str, object] = {
        "model_name_or_path": job.model,
        "dataset_name": ".",
        "output_dir": "model",
        "bf16": True,
        "gradient_checkpointing": True,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "save_strategy": "epoch",
        "report_to": "none",
    }
    own: dict[str, dict[str, object]] = {
        "sft": {
            "max_length": LENGTH,
            "learning_rate": SFT_RATE,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": BATCH,
        },
        "dpo": {
            "max_length": LENGTH,
            "learning_rate": DPO_RATE,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": BATCH,
        },
        "rl": {
            "reward_funcs": ["curate.verify.trainers.accuracy_reward"],
            "max_completion_length": LENGTH,
            "num_generations": 8,
            "learning_rate": RL_RATE,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 8,
        },
    }
    name = _TRL[job.task]
    head = f"trl {name} --config {name}.yaml"
    return {f"{name}.yaml": _yaml(head, {**shared, **own[job.task]})}


_TRL = {"sft": "sft", "dpo": "dpo", "rl": "grpo"}


# -- verl ----------------------------------------------------------------------------------------


def _verl(job: Job) -> dict[str, str]:
    words: tuple[str, ...]
    if job.task == "sft":
        words = (
            "torchrun --standalone --nproc_per_node=${GPUS:-1} -m verl.trainer.sft_trainer",
            '"data.train_files=[$FILES]"',
            "data.messages_key=messages",
            f"data.max_length={LENGTH}",
            "data.truncation=right",
            f"data.train_batch_size={BATCH}",
            f"model.path={_quoted(job.model)}",
            f"optim.lr={SFT_RATE}",
            "trainer.total_epochs=2",
            "trainer.project_name=curate",
            f"trainer.experiment_name={_quoted(job.corpus)}",
            "trainer.logger=[console]",
            "trainer.default_local_dir=model",
        )
        return {"run.sh": _shell(*words)}
    words = (
        "python3 -m verl.trainer.main_ppo",
        "algorithm.adv_estimator=grpo",
        '"data.train_files=[$FILES]"',
        '"data.val_files=[$FILES]"',
        f"data.train_batch_size={BATCH}",
        "data.max_prompt_length=1024",
        f"data.max_response_length={LENGTH}",
        f"actor_rollout_ref.model.path={_quoted(job.model)}",
        f"actor_rollout_ref.actor.optim.lr={RL_RATE}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={BATCH}",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=1",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.n=8",
        '"reward.custom_reward_function.path=$PWD/reward.py"',
        "trainer.n_gpus_per_node=${GPUS:-1}",
        "trainer.project_name=curate",
        f"trainer.experiment_name={_quoted(job.corpus)}",
        "trainer.logger=[console]",
        "trainer.default_local_dir=model",
    )
    return {"run.sh": _shell(*words), "reward.py": _reward("compute_score")}


# -- prime-rl ------------------------------------------------------------------------------------


def _prime(job: Job) -> dict[str, str]:
    model, name = json.dumps(job.model), json.dumps(job.corpus)
    return {
        "sft.toml": f"""# uv run sft @ sft.toml; data.name is the folder of this file
max_steps = 100

[model]
name = {model}

[data]
name = "."
seq_len = {LENGTH}
batch_size = {BATCH}

[optim]
lr = {SFT_RATE:.1e}

[run]
name = {name}

[ckpt]
"""
    }


# -- OpenRLHF ------------------------------------------------------------------------------------


def _openrlhf(job: Job) -> dict[str, str]:
    if job.task == "rl":
        words = (
            "python3 -m openrlhf.cli.train_ppo_ray",
            f"--actor.model_name_or_path {_quoted(job.model)}",
            '--reward.remote_url "$PWD/reward.py"',
            "--data.prompt_dataset ./data",
            "--data.input_key prompt",
            "--data.label_key label",
            "--data.apply_chat_template",
            f"--data.max_len {LENGTH}",
            "--algo.advantage.estimator group_norm",
            "--rollout.n_samples_per_prompt 8",
            f"--rollout.batch_size {BATCH}",
            f"--train.batch_size {8 * BATCH}",
            "--ckpt.output_dir model",
        )
        return {"run.sh": _shell(*words), "reward.py": _reward("reward_func")}
    own: tuple[str, ...]
    if job.task == "sft":
        own = ("--data.input_key prompt", "--data.output_key completion")
    else:
        own = (
            "--data.prompt_key prompt",
            "--data.chosen_key chosen",
            "--data.rejected_key rejected",
        )
    rate = SFT_RATE if job.task == "sft" else DPO_RATE
    words = (
        f"deepspeed --module openrlhf.cli.train_{job.task}",
        "--data.dataset ./data",
        *own,
        "--data.apply_chat_template",
        f"--data.max_len {LENGTH}",
        f"--model.model_name_or_path {_quoted(job.model)}",
        f"--train.batch_size {BATCH}",
        "--train.micro_batch_size 1",
        f"--train.max_epochs {2 if job.task == 'sft' else 1}",
        f"--adam.lr {rate}",
        "--ds.zero_stage 2",
        "--ds.param_dtype bf16",
        "--model.gradient_checkpointing_enable",
        "--ckpt.output_dir model",
    )
    return {"run.sh": _shell(*words)}


# -- Axolotl -------------------------------------------------------------------------------------


def _axolotl(job: Job) -> dict[str, str]:
    data: dict[str, object] = {"path": "./data", "split": "train"}
    if job.task == "sft":
        data |= {"type": "chat_template", "field_messages": "messages"}
    else:
        data |= {
            "type": "chat_template.default",
            "field_messages": "prompt",
            "field_chosen": "chosen",
            "field_rejected": "rejected",
        }
    values: dict[str, object] = {
        "base_model": job.model,
        **({"rl": "dpo"} if job.task == "dpo" else {}),
        "chat_template": "tokenizer_default",
        "datasets": [data],
        "val_set_size": 0,
        "sequence_len": LENGTH,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": BATCH,
        "num_epochs": 2 if job.task == "sft" else 1,
        "learning_rate": SFT_RATE if job.task == "sft" else DPO_RATE,
        "optimizer": "adamw_torch",
        "lr_scheduler": "cosine",
        "bf16": "auto",
        "gradient_checkpointing": True,
        "logging_steps": 1,
        "output_dir": "./model",
    }
    return {"axolotl.yaml": _yaml("axolotl train axolotl.yaml", values)}


# -- LLaMA-Factory -------------------------------------------------------------------------------


def _llama_factory(job: Job) -> dict[str, str]:
    columns: dict[str, str] = {"messages": "messages"}
    if job.task == "dpo":
        columns = {"messages": "prompt", "chosen": "chosen", "rejected": "rejected"}
    info = {
        job.corpus: {
            "file_name": "data",
            "formatting": "sharegpt",
            **({"ranking": True} if job.task == "dpo" else {}),
            "columns": columns,
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
            },
        }
    }
    values: dict[str, object] = {
        "model_name_or_path": job.model,
        "stage": job.task,
        "do_train": True,
        "finetuning_type": "full",
        "dataset": job.corpus,
        "dataset_dir": ".",
        "cutoff_len": LENGTH,
        "output_dir": "model",
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": BATCH,
        "learning_rate": SFT_RATE if job.task == "sft" else DPO_RATE,
        "num_train_epochs": 2.0 if job.task == "sft" else 1.0,
        "lr_scheduler_type": "cosine",
        "bf16": True,
        "logging_steps": 1,
        "report_to": "none",
        **({"pref_beta": 0.1, "pref_loss": "sigmoid"} if job.task == "dpo" else {}),
    }
    head = f"llamafactory-cli train {job.task}.yaml"
    return {
        f"{job.task}.yaml": _yaml(head, values),
        "dataset_info.json": json.dumps(info, indent=2, ensure_ascii=False) + "\n",
    }


TRAINERS = {
    "trl": Trainer(
        "trl",
        {"sft": "conversational", "dpo": "preference", "rl": "prompts"},
        _trl,
        lambda job: f"trl {_TRL[job.task]} --config {_TRL[job.task]}.yaml",
    ),
    "verl": Trainer("verl", {"sft": "messages", "rl": "verl"}, _verl, lambda job: "bash run.sh"),
    "prime-rl": Trainer(
        "prime-rl  # from its repository", {"sft": "messages"}, _prime,
        lambda job: "uv run sft @ sft.toml",
    ),
    "openrlhf": Trainer(
        "openrlhf",
        {"sft": "conversational", "dpo": "preference", "rl": "prompts"},
        _openrlhf,
        lambda job: "bash run.sh",
    ),
    "axolotl": Trainer(
        "axolotl",
        {"sft": "messages", "dpo": "preference"},
        _axolotl,
        lambda job: "axolotl train axolotl.yaml",
    ),
    "llama-factory": Trainer(
        "llamafactory",
        {"sft": "messages", "dpo": "preference-one"},
        _llama_factory,
        lambda job: f"llamafactory-cli train {job.task}.yaml",
    ),
}  # fmt: skip

# Every file that an export may write next to its data.
CONFIG_FILES = (
    "sft.yaml", "dpo.yaml", "grpo.yaml", "axolotl.yaml", "sft.toml", "run.sh", "reward.py",
    "dataset_info.json",
)  # fmt: skip
