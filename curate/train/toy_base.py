"""A small base model of known faults, for claims that must be testable in minutes on a CPU.

A Llama of about a million parameters over single characters, pre-trained from nothing on texts that are deliberately
poor: sums (`chain_sum`) worked step by step, in which steps are wrong, tags are left out and two languages are mixed,
each at a rate that the config names. What RL or a cold start then changes is known to have been there, and is no matter
of what a web corpus held. It is a base for experiments: it can do nothing but these sums.
"""

from __future__ import annotations

import random
import re
import string
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field

from curate.config import Config
from curate.errors import UsageError
from curate.job import Context, JobResult
from curate.progress import duration, task
from curate.warehouse.card import write_card
from curate.warehouse.identity import digest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BASE_VERSION = 1  # raised when the same config would make another model

# Opening, between two steps, closing; the words of curate/problems/solutions.py, so that a cold start on worked
# solutions speaks of the same things. The last is a check of the step before it.
PHRASES = {
    "en": ("Step by step: ", ", then ", ". So the result is {}.", ", wait, let me check: "),
    "zh": ("逐步计算：", "，然后 ", "。所以结果是 {}。", "，等等，验算："),
}
_TERM = re.compile(r"[+-]?\s*\d+")
_SUM = re.compile(r"-?\d+(?:\s*[+-]\s*\d+)+")


class BaseConfig(Config):
    """How large the base is, how long it learns, and what is wrong with the texts it learns from.

    The rates are this project's own: they leave pass@1 low and pass@8 well above 0, so that RL has something to find.
    """

    name: str = "base"
    problems: str  # stored sums; questions of the training split only
    hidden: int = Field(128, ge=32)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    steps: int = Field(700, ge=1)
    batch_size: int = Field(48, ge=1)  # texts a step
    lr: float = Field(2e-3, gt=0)
    wrong: float = Field(0.25, ge=0, le=1)  # chance that a step's result is off by one to three
    untagged: float = Field(0.5, ge=0, le=1)  # share of texts in which a tag is missing
    mixed: float = Field(
        0.5, ge=0, le=1
    )  # share of texts whose phrases are drawn from both languages
    checks: float = Field(0.15, ge=0, le=1)  # chance that a step is checked, and then always right
    max_length: int = Field(512, ge=64)  # positions the model has
    seed: int = 0


def run(config: BaseConfig, context: Context) -> JobResult:
    """Pre-train the base, or find it made; its directory is `result.model`. A killed run begins again."""
    from curate.engines.models import weights_hash
    from curate.train.checkpoints import Checkpoints, TrainResult

    started = time.monotonic()
    version = context.warehouse.latest(
        "problems", config.problems.removeprefix("problems/").replace("/", "@", 1)
    )
    run_id = digest("base", BASE_VERSION, config.model_dump(mode="json"), version.ref)[:16]
    checkpoints = Checkpoints(context.warehouse.root, run_id)
    made = checkpoints.finished()
    result = JobResult(refs=[version.ref])
    if made is None:
        questions = version.read(["question", "target_language", "split"]).collect()
        rows = (
            questions.filter(questions["split"] == "train")
            .select("question", "target_language")
            .rows()
        )
        asked = [(q, language or "en") for q, language in rows if _SUM.search(q)]
        if not asked:
            raise UsageError(
                f"base: {version.ref} holds no sums in its training split: it learns chain_sum only"
            )
        model, tokenizer, loss = pretrain(config, asked)

        def write(path: Path) -> None:
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)

        made = TrainResult(checkpoints.path / "model", run_id, config.steps, metrics={"loss": loss})
        made.counts = {"parameters": sum(p.numel() for p in model.parameters())}
        remember = partial(_remember, config, made, version.ref, context)
        checkpoints.finish(write, made, remember)
        result.rows = len(asked)
    result.model, result.seconds = str(made.model_path), time.monotonic() - started
    result.facts = {"run_id": run_id, "model_hash": weights_hash(made.model_path)}
    result.summary = f"{config.steps} steps on poor traces of sums, {duration(result.seconds)}"
    if result.rows:
        context.record(run_id, "base", config.name, config.model_dump(mode="json"), result)
    if result.rows or not (made.model_path / "README.md").exists():  # killed before it was written
        write_card(context.warehouse, result.facts["model_hash"])
    return result


def _remember(config: BaseConfig, made: Any, problems: str, context: Context) -> None:
    from curate.train.metrics import record_model

    inputs = {"problems": [problems]}
    record_model(
        context.warehouse, made, config.name, "base", "", inputs, config.model_dump(mode="json")
    )


def pretrain(config: BaseConfig, asked: Sequence[tuple[str, str]]) -> tuple[Any, Any, float]:
    """(model, tokenizer, last loss) after `steps` batches of fresh poor traces; the loss is on the whole text."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from curate.engines.testing.tiny import char_tokenizer

    letters = string.printable[:95] + "\n" + "".join("".join(p) for p in PHRASES.values())
    tokenizer = char_tokenizer("".join(dict.fromkeys(letters + "".join(q for q, _ in asked))))
    end = tokenizer.eos_token_id
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=config.hidden, intermediate_size=3 * config.hidden,
        num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.heads,
        max_position_embeddings=config.max_length, tie_word_embeddings=True, bos_token_id=None, eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    dice = random.Random(config.seed)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = LlamaForCausalLM(shape)
    model.generation_config = GenerationConfig(
        eos_token_id=[end], pad_token_id=tokenizer.pad_token_id
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=0.01
    )
    warm = max(1, config.steps // 20)
    value = float("nan")
    with task(config.name, config.steps) as bar:
        for step in range(config.steps):
            texts = [poor_text(*dice.choice(asked), config, dice) for _ in range(config.batch_size)]
            ids = [[*tokenizer.encode(text, add_special_tokens=False), end] for text in texts]
            wide = max(map(len, ids))
            batch = torch.tensor(
                [row + [tokenizer.pad_token_id] * (wide - len(row)) for row in ids]
            )
            known = torch.tensor([[1] * len(row) + [0] * (wide - len(row)) for row in ids])
            labels = batch.masked_fill(known == 0, -100)
            loss = model(input_ids=batch, attention_mask=known, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            rate = min((step + 1) / warm, 1.0) * (1 - 0.9 * step / config.steps)
            for group in optimizer.param_groups:
                group["lr"] = config.lr * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            value = loss.item()
            bar.update(step + 1, f"loss {value:.3f}")
    return model.eval(), tokenizer, value


def poor_text(question: str, language: str, config: BaseConfig, dice: random.Random) -> str:
    """A question and a poor answer to it, as the base reads them; the faults are drawn at the rates of the config."""
    found = _SUM.search(question)
    assert found is not None
    terms = [int(term.replace(" ", "")) for term in _TERM.findall(found.group())]
    own = language if language in PHRASES else "en"
    mixed = dice.random() < config.mixed

    def phrase(number: int) -> str:
        return PHRASES[dice.choice(list(PHRASES)) if mixed else own][number]

    total, steps = terms[0], phrase(0)
    for number, term in enumerate(terms[1:]):
        right = total + term
        said = right + dice.choice((-3, -2, -1, 1, 2, 3)) if dice.random() < config.wrong else right
        equation = f"{total} {'-' if term < 0 else '+'} {abs(term)} = "
        steps += (phrase(1) if number else "") + equation + str(said)
        if dice.random() < config.checks:
            said = right
            steps += phrase(3) + equation + str(said)
        total = said
    steps += phrase(2).format(total)
    if dice.random() >= config.untagged:
        text = f"<think> {steps} </think> <answer> {total} </answer>"
    else:
        text = dice.choice((
            f"{steps} {total}",
            f"<think> {steps} <answer> {total} </answer>",
            f"<think> {steps} </think> {total}",
            f"{steps} </think> <answer> {total} </answer>",
        ))  # fmt: skip
    return f"{question} {text}"
