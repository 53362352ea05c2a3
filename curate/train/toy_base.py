"""A small base model with known faults, to test claims in minutes on a CPU.

A Llama of about a million parameters, pre-trained from scratch on deliberately faulty texts: sums
(`chain_sum`) worked step by step, in which steps are wrong, tags are missing and two languages are
mixed, each at a rate that the config sets. The faults that RL or a cold start can correct are thus
known, unlike those of a web corpus. It is a base for experiments and can do nothing but these sums.

RL sharpens what a model knows and teaches it nothing new. So a base for claims about accuracy must
know its sums but express them badly: `right_first` lets it learn on right sums before it sees
faulty ones, and its accuracy at temperature 0 is measured, printed, and checked against
`least_greedy`.
"""

from __future__ import annotations

import random
import re
import string
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
from pydantic import Field

from curate.config import Config
from curate.engines.models import weights_hash
from curate.engines.testing.tiny import char_tokenizer
from curate.errors import UsageError
from curate.job import Context, JobResult
from curate.progress import counted, duration, task
from curate.prompts.forms import ANSWER_CLOSE, ANSWER_OPEN, CLOSE, OPEN, Form
from curate.train.result import TrainResult
from curate.warehouse import Version
from curate.warehouse.card import write_card
from curate.warehouse.identity import digest

if TYPE_CHECKING:
    from curate.train.checkpoints import Checkpoints

BASE_VERSION = 1  # increased when the same config would give a different model

# Opening, link between two steps, closing, and a check of the previous step. The words are those of
# curate/problems/solutions.py, so that a cold start on worked solutions uses the same ones.
PHRASES = {
    "en": ("Step by step: ", ", then ", ". So the result is {}.", ", wait, let me check: "),
    "zh": ("逐步计算：", "，然后 ", "。所以结果是 {}。", "，等等，验算："),
}
FORM = Form.of("r1-zero")
SPLITS = ("train", "held-out")
GREEDY_SUMS, GREEDY_TOKENS = 100, 220
_NUMBER = re.compile(r"-?\d+")
_TERM = re.compile(r"[+-]?\s*\d+")
_SUM = re.compile(r"-?\d+(?:\s*[+-]\s*\d+)+")


class BaseConfig(Config):
    """Size of the base, length of its training, and faults of its texts.

    The rates are this project's own: they leave pass@1 low and pass@8 well above 0, so that RL has
    something to improve.
    """

    name: str = "base"
    """Name of the model."""
    problems: str
    """Stored sums; only their training split is used."""
    hidden: int = Field(128, ge=32)
    """Width of the model."""
    layers: int = Field(4, ge=1)
    """Decoder layers."""
    heads: int = Field(4, ge=1)
    """Attention heads."""
    steps: int = Field(700, ge=1)
    """Steps of pre-training."""
    batch_size: int = Field(48, ge=1)
    """Texts per step."""
    lr: float = Field(0.002, gt=0)
    """Highest learning rate."""
    wrong: float = Field(0.25, ge=0, le=1)
    """Probability that the result of a step is off by one to three."""
    untagged: float = Field(0.5, ge=0, le=1)
    """Share of texts with a missing tag."""
    mixed: float = Field(0.5, ge=0, le=1)
    """Share of texts with phrases of both languages."""
    checks: float = Field(0.15, ge=0, le=1)
    """Probability that a step is checked, which corrects it."""
    right_first: float = Field(0.0, ge=0, lt=1)
    """Share of the steps, at the start, whose texts have neither wrong steps nor checks."""
    tokens: Literal["characters", "words"] = "characters"
    """Characters alone, or whole phrases and tags as tokens, too: a fifth of the tokens."""
    least_greedy: float = Field(0.0, ge=0, le=1)
    """Accuracy on unseen sums at temperature 0 below which the base is refused."""
    max_length: int = Field(512, ge=64)
    """Positions of the model."""
    seed: int = 0
    """Seed of the weights and the texts."""


def run(config: BaseConfig, context: Context) -> JobResult:
    """Pre-train the base unless it exists; its directory is `result.model`.

    A killed run starts over.
    """
    from curate.train.checkpoints import Checkpoints

    started = time.monotonic()
    version = context.warehouse.latest(
        "problems", config.problems.removeprefix("problems/").replace("/", "@", 1)
    )
    # The threshold does not change the model, so a base that was refused is not trained again.
    settings = config.model_dump(mode="json", exclude={"least_greedy"})
    run_id = digest("base", BASE_VERSION, settings, version.ref)[:16]
    checkpoints = Checkpoints(context.warehouse.root, run_id)
    trained = checkpoints.finished()
    result = JobResult(refs=[version.ref])
    if trained is None:
        trained, result.rows = _train(config, version, run_id, checkpoints, context)
    result.model, result.seconds = str(trained.model_path), time.monotonic() - started
    result.facts = {"run_id": run_id, "model_hash": weights_hash(trained.model_path)}
    greedy = trained.metrics.get("greedy")
    accuracy = "" if greedy is None else f", {greedy:.2f} of unseen sums right at temperature 0"
    result.summary = (
        f"{counted(config.steps, 'step')} on faulty traces of sums{accuracy}, "
        f"{duration(result.seconds)}"
    )
    if result.rows:
        context.record(run_id, "base", config.name, config.model_dump(mode="json"), result)
    # A finished base without a card was killed before writing it.
    if result.rows or not (trained.model_path / "README.md").exists():
        write_card(context.warehouse, result.facts["model_hash"])
    _check_accuracy(config, version, greedy)
    return result


def _train(
    config: BaseConfig, version: Version, run_id: str, checkpoints: Checkpoints, context: Context
) -> tuple[TrainResult, int]:
    """Pre-train the base and write it; returns the result and the number of training sums."""
    questions = version.read(["question", "target_language", "split"]).collect()
    sums, unseen = (_sums(questions, questions["split"] == split) for split in SPLITS)
    if not sums:
        raise UsageError(
            f"base: {version.ref} has no sums in its training split, and the base learns only "
            "chain_sum"
        )
    model, tokenizer, loss = pretrain(config, sums)

    def write(path: Path) -> None:
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)

    trained = TrainResult(checkpoints.path / "model", run_id, config.steps)
    trained.metrics = {"loss": loss}
    if unseen:
        trained.metrics["greedy"] = greedy_accuracy(model, tokenizer, unseen[:GREEDY_SUMS])
    trained.counts = {"parameters": sum(p.numel() for p in model.parameters())}
    checkpoints.finish(
        write, trained, partial(_record_model, config, trained, version.ref, context)
    )
    return trained, len(sums)


def _check_accuracy(config: BaseConfig, version: Version, greedy: float | None) -> None:
    """Raise UsageError if the accuracy at temperature 0 is unknown or below `least_greedy`."""
    if greedy is None and config.least_greedy > 0:
        raise UsageError(
            f"base: least_greedy needs held-out sums, and {version.ref} holds out none: set "
            "`held_out` in its config"
        )
    if greedy is not None and greedy < config.least_greedy:
        raise UsageError(
            f"base: only {greedy:.2f} of unseen sums are right at temperature 0, and "
            f"least_greedy is {config.least_greedy}: the base has not learnt to add, and RL could "
            "only teach it the form. Raise steps or batch_size, or lower least_greedy"
        )


def _sums(questions: pl.DataFrame, rows: pl.Series) -> list[tuple[str, str]]:
    """Questions that are sums, with their languages."""
    pairs = questions.filter(rows).select("question", "target_language").iter_rows()
    return [(question, language or "en") for question, language in pairs if _SUM.search(question)]


def _record_model(
    config: BaseConfig, trained: TrainResult, problems: str, context: Context
) -> None:
    from curate.train.metrics import record_model

    inputs = {"problems": [problems]}
    record_model(
        context.warehouse, trained, config.name, "base", "", inputs, config.model_dump(mode="json")
    )


def pretrain(config: BaseConfig, sums: Sequence[tuple[str, str]]) -> tuple[Any, Any, float]:
    """Pre-train on `steps` batches of fresh faulty traces; the loss is on the whole text.

    Returns model, tokenizer and the last loss. `sums` are questions with their languages.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    letters = string.printable[:95] + "\n" + "".join("".join(p) for p in PHRASES.values())
    tokenizer = char_tokenizer("".join(dict.fromkeys(letters + "".join(q for q, _ in sums))))
    if config.tokens == "words":
        tokenizer.add_tokens(words(sums))
    end = tokenizer.eos_token_id
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=config.hidden, intermediate_size=3 * config.hidden,
        num_hidden_layers=config.layers, num_attention_heads=config.heads,
        num_key_value_heads=config.heads, max_position_embeddings=config.max_length,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    rng = random.Random(config.seed)
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
    right = config.model_copy(update={"wrong": 0.0, "checks": 0.0})
    with task(config.name, config.steps) as bar:
        for step in range(config.steps):
            rates = right if step < config.right_first * config.steps else config
            texts = [faulty_text(*rng.choice(sums), rates, rng) for _ in range(config.batch_size)]
            # Question and text apart, since no token may span the end of a prompt.
            ids = [[*_encode(tokenizer, q), *_encode(tokenizer, text), end] for q, text in texts]
            wide = max(map(len, ids))
            batch = torch.tensor(
                [row + [tokenizer.pad_token_id] * (wide - len(row)) for row in ids]
            )
            present = torch.tensor([[1] * len(row) + [0] * (wide - len(row)) for row in ids])
            labels = batch.masked_fill(present == 0, -100)
            loss = model(input_ids=batch, attention_mask=present, labels=labels).loss
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


def words(sums: Sequence[tuple[str, str]] = ()) -> list[str]:
    """Texts that are one token each with `tokens: words`: phrases, tags, operators, and the words
    of the questions around their sums.
    """
    phrases = [
        part for language in PHRASES.values() for phrase in language for part in phrase.split("{}")
    ]
    around = {part for question, _ in sums for part in _SUM.split(question)}
    tags = [f"{OPEN} ", f" {CLOSE}", f" {ANSWER_OPEN} ", f" {ANSWER_CLOSE}"]
    longer = [part for part in [*phrases, *sorted(around)] if len(part) > 1]
    return [*longer, *tags, " + ", " - ", " = "]


def greedy_accuracy(model: Any, tokenizer: Any, sums: Sequence[tuple[str, str]]) -> float:
    """Share of the sums whose text at temperature 0 ends in the right number."""
    import torch

    right = 0
    for question, _ in sums:
        ids = torch.tensor([_encode(tokenizer, question)])
        with torch.no_grad():
            output = model.generate(ids, do_sample=False, max_new_tokens=GREEDY_TOKENS)
        numbers = _NUMBER.findall(tokenizer.decode(output[0, ids.shape[1] :]))
        right += bool(numbers) and int(numbers[-1]) == sum(_terms(question))
    return right / len(sums)


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _terms(question: str) -> list[int]:
    """The signed terms of a sum."""
    match = _SUM.search(question)
    assert match is not None
    return [int(term.replace(" ", "")) for term in _TERM.findall(match.group())]


def faulty_text(
    question: str, language: str, config: BaseConfig, rng: random.Random
) -> tuple[str, str]:
    """Return a question and a faulty answer, with faults at the rates of the config."""
    terms = _terms(question)
    native = language if language in PHRASES else "en"
    mixed = rng.random() < config.mixed

    def phrase(number: int) -> str:
        return PHRASES[rng.choice(list(PHRASES)) if mixed else native][number]

    total, steps = terms[0], phrase(0)
    for number, term in enumerate(terms[1:]):
        right = total + term
        wrong = rng.random() < config.wrong
        written = right + rng.choice((-3, -2, -1, 1, 2, 3)) if wrong else right
        equation = f"{total} {'-' if term < 0 else '+'} {abs(term)} = "
        steps += (phrase(1) if number else "") + equation + str(written)
        if rng.random() < config.checks:
            written = right
            steps += phrase(3) + equation + str(written)
        total = written
    steps += phrase(2).format(total)
    text = FORM.compose(steps, str(total))
    if rng.random() < config.untagged:
        text = rng.choice((
            f"{steps} {total}",
            text.replace(f"{CLOSE} ", ""),
            text.replace(f"{ANSWER_OPEN} ", "").replace(f" {ANSWER_CLOSE}", ""),
            text.removeprefix(f"{OPEN} "),
        ))  # fmt: skip
    return question, f" {text}"
