"""Faults that only the real sizes show: a context that is too short, a batch that does not fit, and
a form whose tags get lost on the way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from curate.config import validate
from curate.engines import EngineConfig
from curate.engines.base import encode, load_tokenizer, render_chat
from curate.engines.registry import LOCAL
from curate.errors import CurateError
from curate.evaluate.job import EvaluateConfig
from curate.generate.config import GenerateConfig
from curate.pipeline.stages import Stage
from curate.prompts.forms import ANSWER_OPEN, Form
from curate.prompts.render import load_template, messages
from curate.rehearsal.architectures import Model
from curate.rehearsal.bill import Measured, StageBill
from curate.rehearsal.gpus import GPU
from curate.train.config import DPOConfig, GRPOConfig, SFTConfig

GB = 1e9


# --- contexts


def short_contexts(
    stages: Sequence[Stage],
    measured: Mapping[str, Measured],
    lengths: Mapping[str, float],
    model_for: Callable[[str], Model | None],
) -> Iterator[str]:
    """A line for every stage whose texts do not fit the context of its model or engine.

    `lengths`: tokens that the prompts of a stage hold besides what was measured, such as the traces
    that are rewritten.
    """
    for stage in stages:
        for spec, engine, most in _sampled(stage.checked):
            model = model_for(spec)
            if model is None or engine.name not in (*LOCAL, "auto"):
                continue
            prompt = measured.get(stage.name, Measured()).longest + lengths.get(stage.name, 0.0)
            if line := _too_short(model, engine, most, prompt):
                yield f"stage {stage.name}: {line}"
        config = stage.checked
        if isinstance(config, SFTConfig | DPOConfig):
            model = model_for(config.model)
            if model is not None and config.max_length > model.max_len:
                yield (
                    f"stage {stage.name}: max_length is {config.max_length:,}, and {model.name} "
                    f"has {model.max_len:,} positions: set max_length={model.max_len}, or take a "
                    "model with a longer context"
                )


def _sampled(config: Any) -> Iterator[tuple[str, EngineConfig, int]]:
    """Every model that a stage samples from, with its engine and `max_tokens`."""
    if isinstance(config, GenerateConfig) and config.model and config.source != "solutions":
        yield config.model, config.engine, config.sampling.max_tokens
    elif isinstance(config, GRPOConfig) and (config.replay is None or config.replay.fresh):
        yield config.model, getattr(config, "engine", EngineConfig()), config.sampling.max_tokens
    elif isinstance(config, EvaluateConfig):
        engine = validate(EngineConfig, config.engine, "engine")
        for one in config.models:
            for spec in [one.model] if isinstance(one.model, str) else one.model:
                yield spec, engine, config.sampling.max_tokens


def _too_short(model: Model, engine: EngineConfig, most: int, prompt: float) -> str | None:
    """The fault of one model that is sampled; None if prompts and completions fit."""
    asked = engine.max_model_len
    room = min(asked or model.max_len, model.max_len)
    if prompt + most <= room:
        return None
    left = max(0, int(room - prompt))
    needed = int(prompt + most)
    line = (
        f"prompts of up to {prompt:,.0f} tokens and max_tokens={most:,} need {needed:,} tokens, "
        f"and the context of {model.name} is {room:,}"
    )
    line += " (engine.max_model_len)" if asked and asked < model.max_len else " (its positions)"
    line += f": completions would be cut off at {left:,} tokens. "
    if model.max_len >= needed:
        return line + f"Set engine.max_model_len={needed} or more, or max_tokens={left}"
    return line + f"Set max_tokens={left}, or take a model with a longer context"


# --- memory


def full_gpus(bills: Sequence[StageBill], gpu: GPU) -> Iterator[str]:
    """A line for every stage that needs more memory per GPU than there is."""
    for line in bills:
        for purpose, memory in line.memory.items():
            if memory.total <= gpu.memory:
                continue
            parts = sorted(vars(memory).items(), key=lambda part: -part[1])
            shown = ", ".join(f"{name} {size / GB:.1f}" for name, size in parts if size > GB / 10)
            yield (
                f"stage {line.stage}: {purpose} needs {memory.total / GB:.0f} GB per GPU "
                f"({shown}), and {gpu.name} has {gpu.memory / GB:.0f}: {_REMEDIES[parts[0][0]]}"
            )


_REMEDIES = {
    "weights": "split the model over more GPUs (processes, or engine.tensor_parallel_size)",
    "gradients": "train with more processes, or train adapters (compute.lora)",
    "optimizer": "train with more processes, or train adapters (compute.lora)",
    "reference": "every process holds the whole reference: set loss.beta=0, train adapters "
    "(compute.lora), or take a GPU with more memory",
    "activations": "lower compute.micro_batch_tokens (and max_length or max_tokens, which it must "
    "hold), or set compute.gradient_checkpointing=true",
    "cache": "lower sampling.max_tokens, or raise engine.tensor_parallel_size",
    "overhead": "take a GPU with more memory",
}


# --- tags


def lost_tags(
    stages: Sequence[Stage], directories: Mapping[str, Path], corpora: Mapping[str, list[str]]
) -> Iterator[str]:
    """A line for every stage whose form has tags that no prompt asks for, that no text of training
    holds, or that the tokenizer drops.

    directories: tiny models with the real tokenizer, by name. corpora: completions of the corpus
    that each stage of SFT learned from.
    """
    learned: dict[str, str] = {}  # stage that gives a model: the stage whose corpus taught it
    for stage in stages:
        config = stage.checked
        start = getattr(config, "model", None)
        if isinstance(config, SFTConfig):
            learned[stage.name] = stage.name
        elif isinstance(start, str) and start.startswith("@") and stage.kind.gives == "model":
            learned[stage.name] = learned.get(start[1:].partition(".")[0], "")
        for spec, template, form, chat, examples in _asked(config):
            where = f"stage {stage.name}: form {form}"
            shape = Form.of(form or load_template(template).form)
            if not shape.open:
                continue
            if not spec.startswith("@"):
                fault = _of_base(spec, template, shape, chat, examples, directories)
            else:
                taught = learned.get(spec[1:].partition(".")[0], "")
                fault = _of_corpus(taught, shape, corpora)
            if fault:
                yield f"{where or shape.name} {fault}".replace("form None", f"form {shape.name}")


def _asked(config: Any) -> Iterator[tuple[str, str, str | None, bool, bool]]:
    """Model, template, form, chat and worked examples of everything that a stage samples."""
    if isinstance(config, GenerateConfig) and config.model and config.source == "model":
        yield (
            config.model, config.template, config.form, bool(config.chat),
            config.examples is not None,
        )  # fmt: skip
    elif isinstance(config, GRPOConfig):
        yield config.model, config.template, config.form, False, False
    elif isinstance(config, EvaluateConfig):
        for one in config.models:
            names = [one.model] if isinstance(one.model, str) else one.model
            chat = config.chat if one.chat is None else one.chat
            for spec in names:
                yield (
                    spec, one.template or config.template, one.form or config.form, bool(chat),
                    one.examples is not None,
                )  # fmt: skip


def _of_base(
    spec: str,
    template: str,
    form: Form,
    chat: bool,
    examples: bool,
    directories: Mapping[str, Path],
) -> str | None:
    """The fault of a model that was not trained here; None if its prompt asks for the form."""
    text = load_template(template, form).text
    wanted = [form.open, *([ANSWER_OPEN] if form.name == "r1-zero" else [])]
    absent = [tag for tag in wanted if tag not in text]
    if absent and not chat and not examples:
        return (
            f"asks for {' and '.join(absent)}, which the template '{template}' never mentions, and "
            f"{spec} was not trained on it: every completion would be ill-formed. Write the tags "
            "into the template, or name another form"
        )
    directory = directories.get(spec)
    if directory is None:
        return None
    tokenizer = load_tokenizer(directory)
    sample = form.compose("a step", "an answer")
    kept = tokenizer.decode(encode(tokenizer, sample), skip_special_tokens=True)
    lost = [tag for tag in re.findall(r"<[^<>\s]+>", sample) if tag not in kept]
    if lost:
        return (
            f"has {', '.join(lost)}, which are special tokens of {spec}: its texts lose them. Name "
            "a form with other delimiters, such as r1[<reasoning>|</reasoning>]"
        )
    if chat and examples and getattr(tokenizer, "chat_template", None):
        return _lost_in_chat(tokenizer, template, form, spec)
    return None


def _lost_in_chat(tokenizer: Any, template: str, form: Form, spec: str) -> str | None:
    """The fault of a chat template that cuts the reasoning out of earlier turns."""
    from curate.prompts.render import Example

    shown = Example("a question", form.compose("a step", "an answer"))
    talk = messages(load_template(template, form), "another question", [shown])
    try:
        text = render_chat(tokenizer, talk, True, spec)
    except CurateError:
        return None
    if form.open in text.partition("another question")[0]:
        return None
    return (
        f"is shown by worked examples, and the chat template of {spec} removes {form.open} from "
        "earlier turns: set chat=false, or leave the examples out"
    )


def _of_corpus(taught: str, form: Form, corpora: Mapping[str, list[str]]) -> str | None:
    """The fault of a model that learned from a corpus without the form's tags."""
    texts = corpora.get(taught)
    if not texts or any(form.close in text for text in texts):
        return None
    return (
        f"asks for {form.close}, and no text of the corpus that stage {taught} learns from has it: "
        "set output.form of the rules (or the form of the traces) to the same form"
    )
